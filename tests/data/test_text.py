"""Clouds as text: what stands between and before the numbers changes nothing, and what is no cloud is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossmost.data.readers import read_cloud
from crossmost.errors import InputError

ROWS = np.array([[1.5, -2, 3e-2], [0, 1, 1e6], [7, 8, 9]])


@pytest.mark.parametrize("suffix", [".xyz", ".pts", ".XYZ"])
@pytest.mark.parametrize(
    "text",
    [
        "1.5 -2 3e-2\n0 1 1e6\n7 8 9\n",
        "1.5,-2,3e-2\r\n0,1,1e6\r\n7,8,9",
        "  1.5\t-2\t0.03 \n\n0; 1; 1e6\n7;8;9\n\n",
        "3\n1.5 -2 3e-2\n0 1 1e6\n7 8 9\n",
        "//X Y Z\n1.5 -2 3e-2\n0 1 1e6 # far\n7 8 9\n",
        "\ufeffx, y, z\n1.5 -2 3e-2\n0 1 1e6\n7 8 9\n",
        "1.5, -2, 3e-2\n0 ,1 ,1e6\n7,8 ,9\n",
        "1.5,-2,3e-2;\n0, 1; 1e6 # 0,5 1,5\n7 8,9.,\n",
    ],
)
def test_points_as_text(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(text.encode())
    cloud = read_cloud(path)
    np.testing.assert_array_equal(cloud.xyz, ROWS)
    assert cloud.rgb is None


def test_one_point_and_points_that_are_none_are_rows_too(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("1 2 3")
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.xyz").xyz, [[1, 2, 3]])
    (tmp_path / "b.xyz").write_text("nan nan nan\n1 2 3")
    assert read_cloud(tmp_path / "b.xyz").xyz.shape == (2, 3)


def test_columns_are_those_of_an_array(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("1 2 3 255 0 51\n4 5 6 0 255 0")
    rgb = read_cloud(tmp_path / "a.xyz").rgb
    assert rgb is not None
    np.testing.assert_allclose(rgb, [[1, 0, 0.2], [0, 1, 0]])
    (tmp_path / "a.pts").write_text("2\n1 2 3 -90 255 0 51\n4 5 6 -80 0 255 0")
    rgb = read_cloud(tmp_path / "a.pts", columns="xyz_rgb").rgb
    assert rgb is not None
    np.testing.assert_allclose(rgb, [[1, 0, 0.2], [0, 1, 0]])


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("r g b x y z", "255 0 51 1 2 3"),
        ("Z,Blue,Green,Red,Y,X", "3,51,0,255,2,1"),
        ("X;Y;Z;intensity;R;G;B", "1;2;3;90;255;0;51"),
        ("x y z x red green blue", "1 2 3 9 255 0 51"),
        ("x y z rgb", "1 2 3 16711731"),
    ],
)
def test_a_line_of_names_says_what_the_columns_are(tmp_path: Path, header: str, row: str) -> None:
    (tmp_path / "a.xyz").write_text(f"{header}\n{row}\n")
    cloud = read_cloud(tmp_path / "a.xyz")
    np.testing.assert_array_equal(cloud.xyz, [[1, 2, 3]])
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb, [[1, 0, 0.2]])


def test_normals_by_name_are_no_colors(tmp_path: Path) -> None:
    (tmp_path / "a.pts").write_text("1\nx,y,z,nx,ny,nz\n1,2,3,0,0,1\n")
    cloud = read_cloud(tmp_path / "a.pts")
    np.testing.assert_array_equal(cloud.xyz, [[1, 2, 3]])
    assert cloud.rgb is None


@pytest.mark.parametrize("header", ["a scan of my desk yesterday", "r g b x y z w", "x y z"])
def test_another_line_above_the_numbers_says_nothing(tmp_path: Path, header: str) -> None:
    (tmp_path / "a.xyz").write_text(f"{header}\n1 2 3 255 0 51\n")
    cloud = read_cloud(tmp_path / "a.xyz")
    np.testing.assert_array_equal(cloud.xyz, [[1, 2, 3]])
    assert cloud.rgb is not None


def test_columns_that_are_asked_for_count_more_than_names(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("r g b x y z\n1 2 3 255 0 51\n")
    cloud = read_cloud(tmp_path / "a.xyz", columns="xyz")
    np.testing.assert_array_equal(cloud.xyz, [[1, 2, 3]])
    assert cloud.rgb is None


@pytest.mark.parametrize("text", ["1,2,3 255 0 51\n4,5,6 0 255 0", "1,2,3;255,0,51\n4,5,6;0,255,0"])
def test_commas_within_and_something_else_between_points_and_colors(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xyz").write_text(text)
    cloud = read_cloud(tmp_path / "a.xyz")
    np.testing.assert_array_equal(cloud.xyz, [[1, 2, 3], [4, 5, 6]])
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb, [[1, 0, 0.2], [0, 1, 0]])


@pytest.mark.parametrize(
    "line",
    ["1,5;2,3;3,1", "1,5 2,3 3,1", "-1,5e-3\t2\t+3,1", "1;2,5;3", "1,5; 2,3; 3,1", "1,234.5 2,345.6 3,456.7"],
)
def test_commas_that_may_be_decimal_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.xyz").write_text(f"0 0 0\n{line}\n")
    with pytest.raises(InputError, match=r"a\.xyz: expected numbers with decimal points") as caught:
        read_cloud(tmp_path / "a.xyz")
    assert f"found {line!r}, whose commas may be decimal: write points" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n\n# nothing\n", "expected a point a line, found none"),
        (b"x y z\n", "expected a point a line, found none"),
        (b"4\n1 2 3\n4 5 6\n", "expected 4 points as its first line says, found 2: copy it again"),
        (b"1 2 3\n4 5\n", "expected 3 numbers a line, found '4 5' for point 2"),
        (b"2\nmethane\nC 0 0 0\nH 1 0 0\n", "expected 4 numbers a line, found 'C 0 0 0' for point 1"),
        (b"1 2\n3 4\n", r"expected an array of shape \(N, 3 or 6\), found \(2, 2\)"),
        (b"\x80\x04K\x01.", "expected text, found other bytes"),
    ],
)
def test_what_is_no_cloud_is_one_line_with_its_name(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.xyz").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.xyz: .*{said}") as caught:
        read_cloud(tmp_path / "a.xyz")
    assert "\n" not in str(caught.value)
