"""Vertex colours of .obj files, as 0..1 and as 0..255."""

from pathlib import Path

import numpy as np
import pytest

from crossmost.data.obj import with_unit_colors
from crossmost.data.readers import read_cloud
from crossmost.errors import InputError

SQUARE = ("0 0 0", "1 0 0", "1 1 0", "0 1 0")


def write_square(path: Path, colors: str, faces: str = "f 1 2 3 4\n") -> None:
    path.write_text("# a square\n" + "".join(f"v {corner} {colors}\n" for corner in SQUARE) + faces)


@pytest.mark.parametrize("colors", ["255 128 0", "65535 32896 0", "1 0.501961 0", "1.0\t0.501961  0.0 "])
@pytest.mark.parametrize("faces", ["f 1 2 3 4\n", "", "mtllib none.mtl\nf 1 2 3 4\n"])
def test_colors_of_every_range_come_out_in_0_to_1(tmp_path: Path, colors: str, faces: str) -> None:
    write_square(tmp_path / "a.obj", colors, faces)
    rgb = read_cloud(tmp_path / "a.obj", samples=20).rgb
    assert rgb is not None
    np.testing.assert_allclose(rgb * 255, np.tile([255, 128, 0], (len(rgb), 1)), atol=1)


@pytest.mark.parametrize("colors", ["", "1.0", "0.2 0.5 1"])
def test_a_file_that_needs_no_change_is_not_changed(tmp_path: Path, colors: str) -> None:
    write_square(tmp_path / "a.obj", colors)
    assert with_unit_colors(tmp_path / "a.obj") is None


def test_a_material_is_still_found_beside_the_file(tmp_path: Path) -> None:
    write_square(tmp_path / "a.obj", "255 128 0", "mtllib a.mtl\nusemtl red\nf 1 2 3 4\n")
    (tmp_path / "a.mtl").write_text("newmtl red\nKd 1 0 0\n")
    rgb = read_cloud(tmp_path / "a.obj", samples=20).rgb
    write_square(tmp_path / "a.obj", "1 0.5 0", "mtllib a.mtl\nusemtl red\nf 1 2 3 4\n")
    np.testing.assert_array_equal(rgb, read_cloud(tmp_path / "a.obj", samples=20).rgb)


def test_numbers_that_are_no_colors_are_said(tmp_path: Path) -> None:
    write_square(tmp_path / "a.obj", "-1 0 0")
    with pytest.raises(InputError, match="behind the vertices"):
        read_cloud(tmp_path / "a.obj")
