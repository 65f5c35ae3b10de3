"""Meshes become points spread evenly over their surface, the same ones everywhere."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import trimesh

from crossmost.data.readers import read_cloud


@pytest.mark.parametrize("suffix", [".off", ".obj", ".stl", ".ply", ".glb"])
def test_a_mesh_is_sampled_evenly_by_area(tmp_path: Path, suffix: str) -> None:
    # Two cubes, of 4 and 36 times the same face: the points must share out 1 to 9 between them.
    small, large = trimesh.creation.box((2, 2, 2)), trimesh.creation.box((6, 6, 6))
    small.apply_translation((20, 0, 0))
    trimesh.util.concatenate([small, large]).export(tmp_path / f"a{suffix}")
    cloud = read_cloud(tmp_path / f"a{suffix}", samples=20000)
    assert cloud.xyz.shape == (20000, 3)
    assert (cloud.xyz[:, 0] > 10).mean() == pytest.approx(0.1, abs=0.01)
    inner = cloud.xyz[cloud.xyz[:, 0] < 10]
    on_top = np.isclose(inner[:, 2], 3)
    assert on_top.mean() == pytest.approx(1 / 6, abs=0.01)
    # Uniform on a face: mean 0, standard deviation of a side over the square root of twelve.
    np.testing.assert_allclose(inner[on_top][:, :2].mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(inner[on_top][:, :2].std(axis=0), 6 / np.sqrt(12), rtol=0.03)


def test_samples_depend_on_the_files_name_and_not_on_its_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for name in ("a.stl", "b.stl", "other/a.stl"):
        trimesh.creation.icosphere().export(tmp_path / name)
    first, second, moved = (read_cloud(tmp_path / name).xyz for name in ("a.stl", "b.stl", "other/a.stl"))
    np.testing.assert_array_equal(first, moved)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("suffix", [".off", ".obj", ".stl", ".ply", ".glb"])
def test_a_mesh_whose_name_is_no_utf_8_is_read(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / os.fsdecode(b"Caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes no such name")
    trimesh.creation.box((2, 2, 2)).export(tmp_path / f"a{suffix}")
    paths = [folder / os.fsdecode(name + suffix.encode()) for name in (b"\xe8", b"\xe9")]
    clouds = [read_cloud(Path(shutil.copy(tmp_path / f"a{suffix}", path))) for path in paths]
    assert all(np.abs(cloud.xyz).max() == pytest.approx(1) for cloud in clouds)
    assert not np.array_equal(clouds[0].xyz, clouds[1].xyz), "names that are printed alike seed differently"


def test_samples_of_a_known_mesh_are_the_same_on_every_machine(tmp_path: Path) -> None:
    (tmp_path / "one.off").write_text("OFF\n3 1 0\n0 0 0\n4 0 0\n0 4 0\n3 0 1 2\n")
    # Printed once by this reader: the generator and the fold onto the triangle are part of the promise.
    expected = [[1.2726132679242101, 1.9461679470218556, 0.0], [1.516706099896922, 0.9466825830620431, 0.0]]
    np.testing.assert_allclose(read_cloud(tmp_path / "one.off", samples=2).xyz, expected, rtol=0, atol=1e-12)


def test_a_scene_is_flattened_with_its_transforms_and_colors(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    for shift, color in ((0.0, (255, 0, 0, 255)), (10.0, (0, 0, 255, 255))):
        box = trimesh.creation.box((1, 1, 1))
        box.visual = trimesh.visual.ColorVisuals(box, vertex_colors=np.tile(np.uint8(color), (8, 1)))
        scene.add_geometry(box, transform=trimesh.transformations.translation_matrix((shift, 0, 0)))
    scene.export(tmp_path / "two.glb")
    cloud = read_cloud(tmp_path / "two.glb")
    right = cloud.xyz[:, 0] > 5
    assert right.mean() == pytest.approx(0.5, abs=0.03)
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb[right], [[0, 0, 1]] * right.sum(), atol=0.01)
    np.testing.assert_allclose(cloud.rgb[~right], [[1, 0, 0]] * (~right).sum(), atol=0.01)


@pytest.mark.parametrize("name", ["a.obj", "a.off", "flat.off"])
def test_a_mesh_file_without_area_is_a_cloud_of_its_vertices(tmp_path: Path, name: str) -> None:
    text = {
        "a.obj": "v 0 0 0\nv 1 0 0\nv 2 0 0\n",
        "a.off": "OFF\n3 0 0\n0 0 0\n1 0 0\n2 0 0\n",
        "flat.off": "OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n",
    }[name]
    (tmp_path / name).write_text(text)
    cloud = read_cloud(tmp_path / name)
    np.testing.assert_array_equal(cloud.xyz, [[0, 0, 0], [1, 0, 0], [2, 0, 0]])
    assert not cloud.sampled


def test_modelnets_glued_header_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text("OFF3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    assert read_cloud(tmp_path / "a.off", samples=7).xyz.shape == (7, 3)


def test_real_meshes_are_sampled_on_their_surface(shared_data: Path) -> None:
    paths = sorted((shared_data / "raw").iterdir())
    assert len(paths) > 10
    for path in paths:
        cloud = read_cloud(path, samples=2000)
        mesh = trimesh.load_scene(str(path)).to_mesh()
        assert cloud.xyz.shape == (2000, 3)
        low, high = mesh.bounds
        slack = 1e-6 * (high - low).max()
        assert (cloud.xyz >= low - slack).all(), path.name
        assert (cloud.xyz <= high + slack).all(), path.name
        np.testing.assert_allclose(np.ptp(cloud.xyz, axis=0), high - low, rtol=0.35, err_msg=path.name)
        assert cloud.rgb is None or (cloud.rgb.min() >= 0 and cloud.rgb.max() <= 1)
    bear = read_cloud(shared_data / "raw" / "bear.glb")
    assert bear.rgb is not None
    assert len(np.unique(bear.rgb, axis=0)) >= 2, "its parts have colours of their own"


@pytest.mark.parametrize(
    "text",
    [
        "# a\nOFF\n4 4 0\n{v}{f}",
        "OFF # a\n4 4 0\n{v}{f}",
        "OFF\n# a\n4 4 0\n{v}{f}",
        "OFF\n4 4 0 # a\n{v}{f}",
        "OFF\n4 4 0\n\n# a\n{v}{f}",
        "OFF\n4 4 0\n{v}# a\n{f}",
        "OFF\n4 4 0\n{v}3 0 1 2 # a\n3 0 1 3\n3 0 2 3\n3 1 2 3\n# the end",
        "OFF\r\n4 4 0\r\n{v}# a\r\n{f}",
    ],
)
def test_comments_in_an_off_file_change_nothing(tmp_path: Path, text: str) -> None:
    vertices = "0 0 0\n1 0 0\n0 1 0\n0 0 1\n"
    faces = "3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
    (tmp_path / "a.off").write_text(text.format(v=vertices, f=faces))
    commented = read_cloud(tmp_path / "a.off", samples=500).xyz
    (tmp_path / "a.off").write_text(f"OFF\n4 4 0\n{vertices}{faces}")
    np.testing.assert_array_equal(commented, read_cloud(tmp_path / "a.off", samples=500).xyz)
    assert 0.9 < commented.max() <= 1
