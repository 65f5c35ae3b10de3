""".pcd files as their many writers leave them."""

from pathlib import Path

import numpy as np
import pypcd4
import pytest

from crossmost.data.readers import read_cloud
from crossmost.errors import InputError

XYZ = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
HEADER = {
    "VERSION": "0.7",
    "FIELDS": "x y z",
    "SIZE": "4 4 4",
    "TYPE": "F F F",
    "COUNT": "1 1 1",
    "WIDTH": "20",
    "HEIGHT": "1",
    "VIEWPOINT": "0 0 0 1 0 0 0",
    "POINTS": "20",
    "DATA": "ascii",
}


def header(**lines: str | None) -> str:
    """A header with some lines changed, or left out where they are None."""
    changed = HEADER | lines
    changed["DATA"] = changed.pop("DATA")  # the last
    return "".join(f"{key} {value}\n" for key, value in changed.items() if value is not None)


def rows(between: str = " ", behind: str = "", more: str = "") -> str:
    return "".join(between.join(f"{value:.9g}" for value in row) + more + behind + "\n" for row in XYZ)


@pytest.mark.parametrize(
    "lines",
    [
        {"COUNT": None},
        {"POINTS": None},
        {"POINTS": None, "WIDTH": "4", "HEIGHT": "5"},
        {"WIDTH": None, "HEIGHT": None},
        {"VIEWPOINT": None},
        {"VIEWPOINT": "1e-05 2.5e+00 0 1 0 0 0"},
        {"VERSION": "0.5"},
        {"VERSION": "0.6"},
        {"VERSION": ".7"},
        {"VERSION": None},
        {"FIELDS": "X Y Z"},
        {"FIELDS": None, "COLUMNS": "x y z", "SIZE": None, "TYPE": None, "COUNT": None},
        {"TYPE": "f f f"},
    ],
)
def test_headers_of_every_version(tmp_path: Path, lines: dict[str, str | None]) -> None:
    (tmp_path / "a.pcd").write_text("# .PCD file\n" + header(**lines) + rows())
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.pcd").xyz.astype(np.float32), XYZ)


@pytest.mark.parametrize(
    ("between", "behind"), [("  ", ""), ("\t", ""), (" ", " "), (" \t ", "\t"), (" ", "\r")]
)
def test_blanks_between_and_behind_the_numbers(tmp_path: Path, between: str, behind: str) -> None:
    (tmp_path / "a.pcd").write_text(header() + rows(between, behind) + "\n")
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.pcd").xyz.astype(np.float32), XYZ)


def test_names_that_are_no_words_padding_and_fields_of_several_numbers(tmp_path: Path) -> None:
    text = header(
        FIELDS="normal.x (Kr) _ x y z hist rgb rgb", SIZE="4 4 1 4 4 4 4 4 4", TYPE="F F U F F F F U U",
        COUNT="1 1 3 1 1 1 2 1 1",
    )  # fmt: skip
    lines = [f"9 8 0 0 0 {x:.9g} {y:.9g} {z:.9g} 7 7 {0x80FF20} 0" for x, y, z in XYZ]
    (tmp_path / "a.pcd").write_text(text + "\n".join(lines) + "\n")
    cloud = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_array_equal(cloud.xyz.astype(np.float32), XYZ)
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb[0] * 255, [128, 255, 32], atol=1e-4)


@pytest.mark.parametrize("encoding", list(pypcd4.Encoding)[:3])
def test_every_encoding_of_an_old_header(tmp_path: Path, encoding: pypcd4.Encoding) -> None:
    pypcd4.PointCloud.from_xyz_points(XYZ).save(tmp_path / "a.pcd", encoding)
    content = (tmp_path / "a.pcd").read_bytes()
    old = content.replace(b"VERSION 0.7", b"VERSION 0.5").replace(b"COUNT 1 1 1\n", b"")
    assert len(old) < len(content)
    (tmp_path / "a.pcd").write_bytes(old)
    np.testing.assert_allclose(read_cloud(tmp_path / "a.pcd").xyz, XYZ, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (header(FIELDS=None) + rows(), "a line FIELDS, found VERSION SIZE"),
        (header(POINTS=None, WIDTH=None) + rows(), "a line POINTS or WIDTH"),
        (header() + rows() + rows(), "expected 20 points as its header says, found 40"),
        (header(DATA="zipped") + rows(), "damage"),
        (header(DATA=None), "damage"),
        (header(COUNT="1 1") + rows(), "damage"),
    ],
)
def test_what_a_header_may_not_lack_or_say(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "a.pcd").write_text(text)
    with pytest.raises(InputError, match=word):
        read_cloud(tmp_path / "a.pcd")
