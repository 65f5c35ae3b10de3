"""Every format of clouds gives back the points and colours that were written."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import laspy
import numpy as np
import plyfile
import pypcd4
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from crossmost.data import readers
from crossmost.data.columns import Cloud, cloud_from_array, unpack_colors
from crossmost.data.readers import SUFFIXES, read_cloud
from crossmost.errors import InputError

XYZ = np.random.default_rng(0).normal(size=(50, 3))
RGB = np.random.default_rng(1).integers(0, 256, size=(50, 3), dtype=np.uint8)


def error_of(path: Path, **options: object) -> str:
    """The one line that reading the file ends in."""
    with pytest.raises(InputError) as caught:
        read_cloud(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def vertices(*colors: tuple[str, str], real: str = "f8") -> np.ndarray:
    table = np.zeros(50, dtype=[("x", real), ("y", real), ("z", real), *colors])
    for i, axis in enumerate("xyz"):
        table[axis] = XYZ[:, i]
    return table


def write_ply(path: Path, table: np.ndarray, *, text: bool = False) -> None:
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")], text=text).write(str(path))


def colored_table(kind: str, scale: float) -> np.ndarray:
    table = vertices(("red", kind), ("green", kind), ("blue", kind))
    for i, name in enumerate(("red", "green", "blue")):
        table[name] = RGB[:, i].astype(float) * scale
    return table


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(("kind", "scale"), [("u1", 1), ("u2", 257), ("u2", 1), ("f4", 1), ("f4", 1 / 255)])
def test_ply_colors_of_every_depth_come_out_in_0_to_1(
    tmp_path: Path, text: bool, kind: str, scale: float
) -> None:
    write_ply(tmp_path / "a.ply", colored_table(kind, scale), text=text)
    cloud = read_cloud(tmp_path / "a.ply")
    np.testing.assert_allclose(cloud.xyz, XYZ)
    assert cloud.xyz.dtype == np.float64
    assert cloud.rgb is not None
    assert cloud.rgb.dtype == np.float32
    np.testing.assert_allclose(cloud.rgb, RGB / 255, atol=1e-6)
    assert not cloud.sampled


def test_ply_coordinates_keep_their_float64_digits(tmp_path: Path) -> None:
    table = vertices()
    table["x"] += 4.5e5
    write_ply(tmp_path / "a.ply", table)
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.ply").xyz[:, 0], XYZ[:, 0] + 4.5e5)


def test_a_ply_with_faces_is_sampled_and_one_with_an_empty_face_list_is_not(tmp_path: Path) -> None:
    trimesh.creation.box((2, 2, 2)).export(tmp_path / "box.ply")
    cloud = read_cloud(tmp_path / "box.ply", samples=300)
    assert cloud.sampled
    assert cloud.xyz.shape == (300, 3)
    np.testing.assert_allclose(np.abs(cloud.xyz).max(axis=1), 1)
    faces = np.zeros(0, dtype=[("vertex_indices", "i4", (3,))])
    elements = [plyfile.PlyElement.describe(vertices(), "vertex"), plyfile.PlyElement.describe(faces, "face")]
    plyfile.PlyData(elements).write(str(tmp_path / "cloud.ply"))
    np.testing.assert_allclose(read_cloud(tmp_path / "cloud.ply").xyz, XYZ)


@pytest.mark.parametrize("encoding", [pypcd4.Encoding.BINARY, pypcd4.Encoding.BINARY_COMPRESSED])
def test_pcd_with_packed_colors(tmp_path: Path, encoding: pypcd4.Encoding) -> None:
    packed = pypcd4.PointCloud.encode_rgb(RGB).reshape(-1, 1)
    pypcd4.PointCloud.from_xyzrgb_points(np.hstack([XYZ.astype(np.float32), packed])).save(
        tmp_path / "a.pcd", encoding
    )
    cloud = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_allclose(cloud.xyz, XYZ, atol=1e-6)
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb, RGB / 255, atol=1e-6)


@pytest.mark.parametrize("kind", ["U", "F"])
def test_ascii_pcd_with_packed_colors_printed_as_numbers(tmp_path: Path, kind: str) -> None:
    packed = RGB.astype(int) @ [1 << 16, 1 << 8, 1]
    header = (
        f"VERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F {kind}\nCOUNT 1 1 1 1\nWIDTH 50\nHEIGHT 1\n"
        "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 50\nDATA ascii\n"
    )
    rows = [f"{x:.6f} {y:.6f} {z:.6f} {color}" for (x, y, z), color in zip(XYZ, packed, strict=True)]
    (tmp_path / "a.pcd").write_text(header + "\n".join(rows) + "\n")
    cloud = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_allclose(cloud.xyz, XYZ, atol=1e-5)
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb, RGB / 255, atol=1e-6)


def test_packed_colors_as_integers_bits_and_printed_numbers_agree() -> None:
    whole = (RGB[:, 0].astype(np.uint32) << 16) | (RGB[:, 1].astype(np.uint32) << 8) | RGB[:, 2]
    opaque = whole | np.uint32(0xFF000000)  # as a float the alpha makes it NaN or hugely negative
    for packed in (whole, opaque, whole.view(np.float32), opaque.view(np.float32), whole.astype(np.float64)):
        np.testing.assert_array_equal(unpack_colors(packed), RGB)


def test_pcd_keeps_its_invalid_points_for_others_to_count(tmp_path: Path) -> None:
    points = XYZ.astype(np.float32)
    points[3] = np.nan
    pypcd4.PointCloud.from_xyz_points(points).save(tmp_path / "a.pcd")
    assert np.isnan(read_cloud(tmp_path / "a.pcd").xyz).any(axis=1).tolist() == [i == 3 for i in range(50)]


@pytest.mark.parametrize(("suffix", "depth"), [(".las", 257), (".laz", 257), (".las", 1)])
def test_las_is_scaled_in_float64_and_its_16_bit_colors_decoded(
    tmp_path: Path, suffix: str, depth: int
) -> None:
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.offsets, header.scales = np.array([4.5e5, 5.4e6, 100.0]), np.full(3, 1e-4)
    las = laspy.LasData(header)
    las.x, las.y, las.z = (XYZ + header.offsets).T
    las.red, las.green, las.blue = RGB.T.astype(np.uint16) * depth
    las.write(str(tmp_path / f"a{suffix}"))
    cloud = read_cloud(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(cloud.xyz - header.offsets, XYZ, atol=1e-4)
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb, RGB / 255, atol=1e-6)


def test_numpy_arrays_by_width_and_by_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "xyz.npy", XYZ.astype(np.float16))
    np.testing.assert_allclose(read_cloud(tmp_path / "xyz.npy").xyz, XYZ, atol=2e-3)
    np.save(tmp_path / "both.npy", np.hstack([XYZ, RGB]))
    assert read_cloud(tmp_path / "both.npy").rgb is not None
    wide = np.hstack([XYZ[:, :1], np.full((50, 2), 9.0), XYZ[:, 1:], RGB, np.full((50, 1), 7.0)])
    np.save(tmp_path / "wide.npy", wide)
    cloud = read_cloud(tmp_path / "wide.npy", columns="x__yzrgb")
    np.testing.assert_array_equal(cloud.xyz, XYZ)
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb, RGB / 255, atol=1e-6)
    assert read_cloud(tmp_path / "both.npy", columns="xyz").rgb is None
    assert "--columns xyz" in error_of(tmp_path / "wide.npy")


def test_a_structured_array_is_read_by_its_names(tmp_path: Path) -> None:
    order = ["blue", "z", "green", "y", "red", "x"]
    table = np.zeros(50, dtype=[(name, "u1" if len(name) > 1 else "f8") for name in order])
    for name in order:
        table[name] = colored_table("u1", 1)[name]
    np.save(tmp_path / "a.npy", table)
    cloud = read_cloud(tmp_path / "a.npy")
    np.testing.assert_array_equal(cloud.xyz, XYZ)
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb, RGB / 255, atol=1e-6)


@pytest.mark.parametrize(
    "arrays",
    [
        {"points": XYZ, "rgb": RGB},
        {"xyz": XYZ, "colors": RGB / 255},
        {"coords": XYZ, "R": RGB[:, 0] / 255, "G": RGB[:, 1] / 255, "B": RGB[:, 2] / 255},
        {"anything": np.hstack([XYZ, RGB])},
    ],
)
def test_npz_of_one_cloud(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    cloud = read_cloud(tmp_path / "a.npz")
    np.testing.assert_array_equal(cloud.xyz, XYZ)
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb, RGB / 255, atol=1e-6)


def test_normals_are_not_taken_for_colors(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.hstack([XYZ, XYZ / np.linalg.norm(XYZ, axis=1, keepdims=True)]))
    assert "--columns xyz" in error_of(tmp_path / "a.npy")
    assert read_cloud(tmp_path / "a.npy", columns="xyz").rgb is None


@pytest.mark.parametrize("columns", ["xy", "xyzw", "xxyz", "xyzr", "", "XYZ"])
def test_columns_that_make_no_sense(tmp_path: Path, columns: str) -> None:
    np.save(tmp_path / "a.npy", XYZ)
    assert "xyz__rgb" in error_of(tmp_path / "a.npy", columns=columns)


def test_more_columns_asked_for_than_there_are(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", XYZ)
    assert "expected 6 columns" in error_of(tmp_path / "a.npy", columns="xyzrgb")


def test_suffixes_are_read_in_upper_case_too(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", XYZ)
    shutil.move(tmp_path / "a.npy", tmp_path / "A.NPY")
    assert len(read_cloud(tmp_path / "A.NPY").xyz) == 50
    assert {
        ".xyz",
        ".pts",
        ".ply",
        ".pcd",
        ".npy",
        ".npz",
        ".off",
        ".obj",
        ".stl",
        ".glb",
        ".las",
        ".laz",
    } == SUFFIXES


def test_numpy_files_need_no_other_library(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", XYZ)
    code = (
        "import sys\n"
        "for name in ('plyfile', 'pypcd4', 'trimesh', 'laspy', 'h5py', 'scipy', 'PIL', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "from crossmost.data.dataset import open_dataset\n"
        f"assert open_dataset({str(tmp_path)!r}).load(0).shape == (64, 3)\n"
        f"from crossmost.data.readers import read_cloud\n"
        f"try: read_cloud({str(tmp_path / 'b.las')!r})\n"
        "except ValueError as error: print(error)\n"
    )
    (tmp_path / "b.las").write_bytes(b"LASF")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'crossmost[io]'" in done.stdout


@pytest.mark.parametrize("error", [ImportError("No module named 'PIL'"), ImportError("")])
def test_a_missing_library_is_named_even_where_the_error_lacks_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ImportError
) -> None:
    def read(*_: object) -> Cloud:
        raise error

    (tmp_path / "a.obj").write_text("v 0 0 0\n")
    monkeypatch.setitem(readers._READERS, ".obj", read)
    message = error_of(tmp_path / "a.obj")
    assert "None" not in message
    assert f"needs {'PIL' if str(error) else 'another library'}: pip install 'crossmost[io]'" in message


def test_las_without_colors_in_its_color_fields_has_none(tmp_path: Path) -> None:
    las = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    las.x, las.y, las.z = XYZ.T
    las.write(str(tmp_path / "a.las"))
    assert read_cloud(tmp_path / "a.las").rgb is None
    las.green[3] = 1
    las.write(str(tmp_path / "b.las"))
    assert read_cloud(tmp_path / "b.las").rgb is not None


def test_axes_in_capital_letters(tmp_path: Path) -> None:
    table = np.zeros(50, dtype=[(axis, "f8") for axis in "XYZ"])
    for i, axis in enumerate("XYZ"):
        table[axis] = XYZ[:, i]
    write_ply(tmp_path / "a.ply", table)
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.ply").xyz, XYZ)


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_integer_coordinates_are_exact(count: int, seed: int) -> None:
    stored = np.random.default_rng(seed).integers(-(2**31), 2**31, size=(count, 3))
    buffer = io.BytesIO()
    np.save(buffer, stored)
    np.testing.assert_array_equal(cloud_from_array(stored).xyz, stored.astype(np.float64))
