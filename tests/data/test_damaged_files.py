"""Every broken file ends in one line that names it, and no file is ever unpickled."""

import warnings
from collections.abc import Callable
from pathlib import Path

import laspy
import numpy as np
import plyfile
import pypcd4
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.data.readers import read_cloud
from crossmost.errors import InputError

XYZ = np.random.default_rng(0).normal(size=(50, 3))


def error_of(path: Path) -> str:
    """The one line that reading the file ends in."""
    with pytest.raises(InputError) as caught:
        read_cloud(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def vertices() -> np.ndarray:
    table = np.zeros(50, dtype=[(axis, "f8") for axis in "xyz"])
    for i, axis in enumerate("xyz"):
        table[axis] = XYZ[:, i]
    return table


def write_ply(path: Path, table: np.ndarray, *, text: bool = False) -> None:
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")], text=text).write(str(path))


def damaged(folder: Path) -> dict[str, tuple[Callable[[Path], object], str]]:
    """Files that must end in one line: how to write each, and a word of that line."""

    def truncated_ply(path: Path) -> None:
        write_ply(folder / "whole.ply", vertices())
        path.write_bytes((folder / "whole.ply").read_bytes()[:-100])

    def truncated_npz(path: Path) -> None:
        np.savez(folder / "whole.npz", points=XYZ)
        path.write_bytes((folder / "whole.npz").read_bytes()[:-100])

    def truncated_pcd(path: Path) -> None:
        pypcd4.PointCloud.from_xyz_points(XYZ.astype(np.float32)).save(folder / "whole.pcd")
        path.write_bytes((folder / "whole.pcd").read_bytes()[:-100])

    def truncated_las(path: Path) -> None:
        las = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
        las.x, las.y, las.z = XYZ.T
        las.write(str(folder / "whole.las"))
        path.write_bytes((folder / "whole.las").read_bytes()[:-100])

    objects = np.array([{"a": 1}], dtype=object)
    return {
        "a.ply": (truncated_ply, "early end-of-file"),
        "b.ply": (lambda path: path.write_bytes(b"not a ply at all"), "'ply'"),
        "c.ply": (lambda path: write_ply(path, np.zeros(3, dtype=[("x", "f4"), ("y", "f4")])), "z missing"),
        "d.ply": (lambda path: write_ply(path, np.full_like(vertices(), np.nan)), "all 50 hold NaN"),
        "a.npz": (truncated_npz, "damage"),
        "b.npz": (lambda path: np.savez(path, points=objects), "pickled"),
        "c.npz": (lambda path: np.savez(path, left=XYZ, right=XYZ), "points or xyz"),
        "d.npz": (lambda path: np.savez(path, points=np.zeros((4, 5, 3))), "data set of 4"),
        "e.npz": (lambda path: np.savez(path, points=XYZ, rgb=XYZ[:7]), "colours of shape (50, 3)"),
        "a.npy": (lambda path: np.save(path, objects), "pickled"),
        "b.npy": (lambda path: objects.dump(path), "pickled"),
        "c.npy": (lambda path: np.save(path, XYZ.astype(complex)), "complex128"),
        "d.npy": (lambda path: np.save(path, XYZ.T), "transpose"),
        "e.npy": (lambda path: np.save(path, np.zeros((9, 4))), "--columns xyz"),
        "f.npy": (lambda path: np.save(path, np.zeros((0, 3))), "empty"),
        "g.npy": (lambda path: np.save(path, np.array([["a", "b", "c"]])), "real numbers"),
        "h.npy": (lambda path: np.save(path, np.zeros((2, 3, 3))), "data set"),
        "i.npy": (lambda path: np.save(path, np.full((5, 3), np.inf)), "NaN or infinity"),
        "zero.npy": (lambda path: path.touch(), "0 bytes"),
        "a.pcd": (truncated_pcd, "damage"),
        "b.pcd": (lambda path: path.write_text("VERSION 0.7\nDATA ascii\n"), "a line FIELDS"),
        "a.las": (truncated_las, "copy it again"),
        "a.off": (lambda path: path.write_text("OFF\n3 1 0\n0 0 0\n"), "header says"),
        "b.off": (lambda path: path.write_text("OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"), "header says"),
        "a.obj": (lambda path: path.write_text("v 0 0 0\nv 1 0 0\nf 1 2 9\n"), "damage"),
        "a.stl": (lambda path: path.write_text("solid a\nendsolid a\n"), "neither faces nor vertices"),
        "a.glb": (lambda path: path.write_bytes(b"glTF\x02\0\0\0rubbish"), "damage"),
        "a.txt": (lambda path: path.write_text("0 0 0"), ".ply"),
        "none": (lambda path: path.write_text("0 0 0"), "no suffix"),
    }


@pytest.mark.parametrize("name", damaged(Path()))
def test_a_bad_file_ends_in_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    write, word = damaged(tmp_path)[name]
    write(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor may NumPy complain on the side
        assert word in error_of(tmp_path / name)


def test_pickled_objects_are_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return (Path.touch, (str(tmp_path / "sprung"),))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object))
    np.savez(tmp_path / "b.npz", points=np.array([Trap()], dtype=object))
    np.array([Trap()], dtype=object).dump(tmp_path / "c.npy")
    for name in ("a.npy", "b.npz", "c.npy"):
        error_of(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    assert "nothing there" in error_of(tmp_path / "a.ply")
    (tmp_path / "b.ply").mkdir()
    assert "a folder" in error_of(tmp_path / "b.ply")


@pytest.fixture(scope="session")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a sound file of every format, by name."""
    folder = tmp_path_factory.mktemp("whole")
    write_ply(folder / "binary.ply", vertices())
    write_ply(folder / "text.ply", vertices(), text=True)
    for encoding in pypcd4.Encoding:
        pypcd4.PointCloud.from_xyz_points(XYZ.astype(np.float32)).save(
            folder / f"{encoding.value}.pcd", encoding
        )
    np.save(folder / "a.npy", XYZ)
    np.savez(folder / "a.npz", points=XYZ)
    las = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    las.x, las.y, las.z = XYZ.T
    las.write(str(folder / "a.las"))
    las.write(str(folder / "a.laz"))
    for suffix in ("off", "obj", "stl", "glb", "ply"):
        trimesh.creation.box().export(folder / f"mesh.{suffix}")
    trimesh.creation.box().export(folder / "mesh_text.ply", encoding="ascii")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_file_cut_off_anywhere_is_an_input_error_or_whole(
    whole_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(whole_files)))
    content = whole_files[name]
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content[: data.draw(st.integers(1, len(content) - 1))])
    message = f"{path}: "
    try:
        count = len(read_cloud(path, samples=50).xyz)
    except InputError as error:
        message, count = str(error), 50
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    # Formats that count their points must not pass off a part for the whole.
    assert count == 50 or name == "mesh.obj"
