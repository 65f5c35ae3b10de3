"""What `inspect` measures, guesses and warns of, and what it stays silent about."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import plyfile
import pytest
import trimesh

from crossmost.data.cloud_facts import duplicate_share, measure, stands_on_floor
from crossmost.data.columns import Cloud
from crossmost.data.inspection import inspect_path
from crossmost.errors import InputError
from crossmost.runtime.orientation import rotation


def ball(seed: int, count: int = 2000, size: float = 1.0) -> np.ndarray:
    """A round cloud a little over `size` wide, around (1, 2, 3) sizes."""
    points = np.random.default_rng(seed).normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return (points * [0.5, 0.45, 0.4] + [1.0, 2.0, 3.0]) * size


def table(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    top = rng.uniform((-1, -0.6, 0.9), (1, 0.6, 1.0), (1400, 3))
    corners = [(x, y, 0.0) for x in (-0.95, 0.95) for y in (-0.55, 0.55)]
    legs = [rng.uniform((-0.05, -0.05, 0), (0.05, 0.05, 0.9), (120, 3)) + at for at in corners]
    return np.concatenate([top, *legs])


def save(folder: Path, *clouds: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, points in enumerate(clouds):
        np.save(folder / f"{number:03}.npy", points)
    return folder


def warned(folder: Path, word: str, **options: object) -> bool:
    return any(re.search(word, warning) for warning in inspect_path(folder, **options).warnings)  # type: ignore[arg-type]


def test_measures_of_a_sound_data_set_and_no_warning(tmp_path: Path) -> None:
    found = inspect_path(save(tmp_path, ball(0, size=1.5), ball(1, 1500, 1.4), ball(2, 3000, 1.6)))
    assert (found.clouds, found.measured) == (3, 3)
    assert found.points == (1500, 2000, 3000)
    np.testing.assert_allclose(found.extent, (1.5, 1.35, 1.2), atol=0.03)
    assert found.centroid_offset == pytest.approx(1.5 * np.sqrt(14), abs=0.05)
    assert found.up.axis == "unsure"
    assert found.unit == "m"
    assert (found.duplicates, found.invalid, found.colors) == (0, 0, None)
    assert (found.classes, found.bad, found.warnings) == ({}, {}, [])


def test_everything_is_json_and_fits_the_screen(tmp_path: Path) -> None:
    save(tmp_path / "mug", ball(0), ball(1))
    save(tmp_path / "bowl", np.full((3, 3), np.nan), np.hstack([ball(2), np.full((2000, 3), 200.0)]))
    found = inspect_path(tmp_path)
    stored = json.loads(json.dumps(found.to_dict()))
    assert stored["classes"] == {"bowl": 2, "mug": 2}
    assert stored["up"]["axis"] == "unsure"
    assert list(stored["bad"]) == ["bowl/000"]
    lines = found.lines()
    text = "\n".join(lines)
    assert all("\n" not in line for line in lines)
    for part in ("median 2000", "200 to 200 as stored", "mug", "bowl/000.npy", *found.warnings):
        assert part in text


@pytest.mark.parametrize(
    ("size", "unit"),
    [
        (0.3, "m"),
        (2.5, "m"),
        (12.0, "unsure"),
        (80.0, "cm or mm"),
        (900.0, "mm"),
        (1e6, "unsure"),
        (1e-3, "unsure"),
    ],
)
def test_the_unit_is_guessed_by_the_size_of_everyday_objects(tmp_path: Path, size: float, unit: str) -> None:
    # A different length each: equal lengths would mean that somebody normalised them.
    assert inspect_path(save(tmp_path, *(ball(i, size=size * (1 + 0.1 * i)) for i in range(3)))).unit == unit


def test_normalised_clouds_have_no_unit(tmp_path: Path) -> None:
    centred = [ball(seed) - ball(seed).mean(axis=0) for seed in range(3)]
    sphere = [one / np.linalg.norm(one, axis=1).max() for one in centred]
    assert inspect_path(save(tmp_path / "sphere", *sphere)).unit == "none: normalised"
    box = [one / np.ptp(one, axis=0).max() for one in centred]
    assert inspect_path(save(tmp_path / "box", *box)).unit == "none: normalised"


def test_a_y_up_look_is_warned_of_and_gone_with_the_right_axis(tmp_path: Path) -> None:
    folder = save(tmp_path, *(table(seed) @ rotation("y") for seed in range(12)))
    assert inspect_path(folder).up.axis == "y"
    assert warned(folder, "look y-up but are read as z-up: try --up-axis y")
    assert inspect_path(folder, up_axis="y").warnings == []


def test_too_few_points_for_the_card(tmp_path: Path) -> None:
    folder = save(tmp_path, ball(0, 300), ball(1, 300), ball(2, 40))
    assert warned(folder, "3 of 3 clouds have fewer than 1024 points")
    assert warned(folder, "1 clouds have fewer than 64 points")
    assert not warned(folder, "fewer than", points=256, least=32)


def test_duplicates(tmp_path: Path) -> None:
    folder = save(tmp_path, np.concatenate([ball(0), ball(0)[:1000]]))
    found = inspect_path(folder)
    assert found.duplicates == pytest.approx(1 / 3)
    assert warned(folder, "repeat points")
    assert duplicate_share(np.array([[0, 0, 1.0], [0, 0, 2], [0, 0, 1], [0, 0, 1]])) == 0.5


def test_zeros_beside_the_cloud_are_invalid_and_do_not_count_for_its_size(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(2, 3, (200, 3))
    np.save(tmp_path / "a.npy", np.concatenate([points, np.zeros((9, 3))]))
    found = inspect_path(tmp_path)
    assert (found.invalid, found.points) == (9, (200, 200, 200))
    assert max(found.extent) < 1


def test_invalid_points_are_counted(tmp_path: Path) -> None:
    points = ball(0)
    points[:7, 1] = np.nan
    points[7, 0] = -np.inf
    found = inspect_path(save(tmp_path, points))
    assert found.invalid == 8
    assert found.points == (1992, 1992, 1992)
    assert warned(tmp_path, "1 clouds hold NaN, infinity or zeros")


def test_colors_as_floats_above_one_and_colors_that_tell_nothing(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2000, 3)).astype(float)
    floats = save(tmp_path / "floats", np.hstack([ball(0), rgb]))
    assert inspect_path(floats).colors == (rgb.min(), rgb.max())
    assert warned(floats, "floats above 1")
    assert not warned(save(tmp_path / "unit", np.hstack([ball(0), rgb / 255])), "colour")
    assert warned(save(tmp_path / "grey", np.hstack([ball(0), np.full((2000, 3), 0.5)])), "one colour only")
    mixed = save(tmp_path / "mixed", np.hstack([ball(0), rgb / 255]), ball(1))
    assert warned(mixed, "1 of 2 clouds have no colour")
    table = np.zeros(2000, dtype=[(n, "f8") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")])
    for i, names in enumerate(zip("xyz", ("red", "green", "blue"), strict=True)):
        table[names[0]], table[names[1]] = ball(0)[:, i], rgb[:, i]
    (tmp_path / "bytes").mkdir()
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")]).write(str(tmp_path / "bytes" / "a.ply"))
    assert inspect_path(tmp_path / "bytes").warnings == [], "0..255 is what bytes are"


def test_coordinates_far_from_the_origin(tmp_path: Path) -> None:
    assert warned(save(tmp_path, ball(0) + np.array([4.5e5, 5.4e6, 100.0])), "far from the origin")


def test_a_floor_under_the_object_is_warned_of_and_a_wide_foot_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    floor = np.column_stack([rng.uniform(-2.5, 2.5, (900, 2)), rng.normal(0, 0.005, 900)])
    with_floor = save(tmp_path / "floor", *(np.concatenate([table(seed), floor]) for seed in range(3)))
    assert warned(with_floor, "3 clouds seem to stand on a piece of floor")
    assert not warned(save(tmp_path / "tables", *(table(seed) for seed in range(3))), "floor")


def test_the_floor_is_looked_for_below_the_given_up_axis() -> None:
    rng = np.random.default_rng(0)
    floor = np.column_stack([rng.uniform(-2.5, 2.5, (900, 2)), rng.normal(0, 0.005, 900)])
    y_up = np.concatenate([table(0), floor]) @ rotation("y")
    assert measure(Cloud(y_up), "y").floor
    assert not measure(Cloud(y_up), "z").floor


def test_real_whole_objects_are_not_taken_for_objects_on_a_floor(shared_data: Path) -> None:
    with np.load(shared_data / "modelnet10_vox30_1024.npz", allow_pickle=False) as data:
        clouds = data["points"][data["split"] == "test"][::3].astype(np.float64)
    rng = np.random.default_rng(0)

    def on_floor(points: np.ndarray) -> np.ndarray:
        floor = rng.uniform(-1, 1, (300, 2)) * np.ptp(points[:, :2]) * 0.75
        return np.concatenate([points, np.column_stack([floor, np.full(300, points[:, 2].min())])])

    assert np.mean([stands_on_floor(points) for points in clouds]) < 0.02
    assert np.mean([stands_on_floor(on_floor(points)) for points in clouds]) > 0.95


def test_class_imbalance_and_stray_files(tmp_path: Path) -> None:
    save(tmp_path / "mug", *(ball(seed, 100) for seed in range(20)))
    save(tmp_path / "bowl", ball(0, 100), ball(1, 100))
    found = inspect_path(tmp_path, points=64)
    assert found.classes == {"bowl": 2, "mug": 20}
    assert found.warnings == ["classes are unbalanced (20 mug, 2 bowl): read the accuracy per class"]
    save(tmp_path, ball(3, 100))
    assert inspect_path(tmp_path, points=64).classes == {}
    assert warned(tmp_path, "no labels: 1 of 23 clouds lie outside the class folders")


def test_bad_files_are_listed_and_only_bad_ones_end_it(tmp_path: Path) -> None:
    save(tmp_path, ball(0), ball(1))
    (tmp_path / "broken.ply").write_bytes(b"ply\nformat")
    found = inspect_path(tmp_path)
    assert list(found.bad) == ["broken"]
    assert (found.clouds, found.measured) == (3, 3)
    assert warned(tmp_path, "1 clouds cannot be read")
    with pytest.raises(InputError, match=r"none of 1 can: .*broken\.ply"):
        inspect_path(tmp_path / "broken.ply")


def test_a_large_data_set_is_sampled(tmp_path: Path) -> None:
    save(tmp_path, *(ball(0, 100) for _ in range(30)))
    found = inspect_path(tmp_path, most=5)
    assert (found.clouds, found.measured) == (30, 5)
    assert "clouds       30 (5 measured)" in found.lines()


def test_a_single_mesh_is_inspected_like_a_cloud(tmp_path: Path) -> None:
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.stl")
    found = inspect_path(tmp_path / "box.stl")
    assert found.clouds == 1
    np.testing.assert_allclose(found.extent, (1, 2, 3), atol=0.01)


def test_points_all_in_one_place(tmp_path: Path) -> None:
    assert warned(save(tmp_path, np.ones((2000, 3))), "all their points in one place")


def test_the_official_files_are_y_up_and_it_says_so(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "ply_data_test0.h5", "w") as file:
        file["data"], file["label"] = np.stack([ball(0, 2048)] * 2), np.zeros(2, int)
    assert warned(tmp_path, "give --up-axis y")
    assert not warned(tmp_path, "--up-axis", up_axis="y")


def test_real_lidar_padded_by_resampling_is_noticed(shared_data: Path) -> None:
    found = inspect_path(shared_data / "lidarnet4_real_512.npz")
    assert found.up.axis == "unsure"
    assert found.unit == "none: normalised"
    assert found.classes.keys() == {"bush", "car", "pedestrian", "pole"}
    assert any("repeat points" in warning for warning in found.warnings)
    assert any("1024" in warning for warning in found.warnings)


def test_real_furniture_is_z_up_and_stays_without_a_warning_about_it(shared_data: Path) -> None:
    found = inspect_path(shared_data / "modelnet10_vox30_1024.npz")
    assert found.up.axis == "z"
    assert found.measured == 256
    assert not any("up" in warning or "floor" in warning for warning in found.warnings)


def boxes(folder: Path, *names: str) -> Path:
    """Boxes of different sizes, which tell no up axis."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        trimesh.creation.box((1, 1.1, 1.2 + number)).export(folder / name)
    return folder


def test_glb_is_y_up_by_specification(tmp_path: Path) -> None:
    folder = boxes(tmp_path / "all", "a.glb", "b.glb")
    assert warned(folder, ".glb is y-up by specification, and read as z-up: give --up-axis y")
    assert not warned(folder, "specification", up_axis="y")
    assert not warned(boxes(tmp_path / "none", "a.obj"), "specification")


def test_glb_among_files_of_another_format_is_warned_of_more_sharply(tmp_path: Path) -> None:
    folder = boxes(tmp_path, "a.glb", "b.obj", "c.stl")
    assert warned(folder, "1 of 3 files are .glb, y-up by specification and read as z-up like the .obj .stl")
    assert not warned(folder, "specification", up_axis="y")


@pytest.mark.parametrize("below", ["chair/train", "train/chair", ""])
def test_one_folder_around_everything_is_no_class(tmp_path: Path, below: str) -> None:
    for number, kind in enumerate(("chair", "sofa")):
        save(tmp_path / "ModelNet10" / below.replace("chair", kind), ball(number))
    assert warned(tmp_path, f"all clouds lie in ModelNet10/, .* give {tmp_path / 'ModelNet10'}")
    assert not warned(tmp_path / "ModelNet10", "all clouds lie in")


def test_what_is_left_out_is_warned_of(tmp_path: Path) -> None:
    save(tmp_path / "train" / "mug", ball(0))
    save(tmp_path / "test" / "mug", ball(1))
    save(tmp_path / "raw", ball(2))
    for number in range(12):
        (tmp_path / f"{number}.vtk").touch()
    assert warned(tmp_path, "12 .vtk files were left out: not a format that is read")
    assert warned(tmp_path, r"raw/ \(1 clouds\) left out")
