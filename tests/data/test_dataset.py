"""Folders, archives and files open alike; bad files are named and skipped; labels stay where they are."""

from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from crossmost.data.dataset import CloudDataset, open_dataset
from crossmost.errors import InputError
from crossmost.runtime.orientation import AXES, rotation
from crossmost.runtime.preprocess import prepare


def cloud(seed: int = 0, count: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3))


def put(root: Path, *names: str) -> None:
    """Save a small cloud under each name."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, cloud(seed))


def archive(path: Path, count: int = 6, **arrays: object) -> Path:
    points = np.stack([cloud(seed, 80) for seed in range(count)])
    np.savez(path, **{"points": points, **arrays})  # type: ignore[arg-type]
    return path


def classes_of(dataset: CloudDataset) -> list[str]:
    assert dataset.labels is not None
    assert dataset.class_names is not None
    return [dataset.class_names[label] for label in dataset.labels]


@pytest.mark.parametrize("name", ["missing", "missing.ply", "missing/deeper.h5", "missing.npz"])
def test_no_such_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="found nothing there"):
        open_dataset(tmp_path / name)


def test_loading_is_the_runtimes_preparation_of_the_rotated_cloud(tmp_path: Path) -> None:
    points = cloud(3, 2000) * [3.0, 1.0, 2.0] + 1000.0
    np.save(tmp_path / "a.npy", points)
    for axis in AXES:
        loaded = open_dataset(tmp_path, points=512, up_axis=axis).load(0)
        assert loaded.dtype == np.float32
        assert loaded.shape == (512, 3)
        np.testing.assert_array_equal(loaded, prepare(points @ rotation(axis).T, most=512))


def test_georeferenced_coordinates_keep_their_shape(tmp_path: Path) -> None:
    near = cloud(5, 500)
    np.save(tmp_path / "near.npy", near)
    np.save(tmp_path / "far.npy", near + np.array([4.5e5, 5.4e6, 300.0]))
    dataset = open_dataset(tmp_path)
    far, close = dataset.load(0), dataset.load(1)
    np.testing.assert_allclose(far, close, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_tiny_clouds_are_filled_up_to_least(tmp_path: Path, count: int) -> None:
    np.save(tmp_path / "a.npy", cloud(0, count))
    loaded = open_dataset(tmp_path, least=32).load(0)
    assert loaded.shape == (32, 3)
    assert np.isfinite(loaded).all()
    assert len(np.unique(loaded, axis=0)) == count


def test_colors_are_taken_filled_or_left_out(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).random((100, 3))
    np.save(tmp_path / "color.npy", np.hstack([cloud(), rgb]))
    np.save(tmp_path / "plain.npy", cloud())
    auto = open_dataset(tmp_path, channels=6)
    np.testing.assert_allclose(auto.load(0)[:, 3:], rgb, atol=1e-6)
    np.testing.assert_allclose(auto.load(1)[:, 3:], 0.4)
    none = open_dataset(tmp_path, channels=6, color="none")
    np.testing.assert_allclose(none.load(0)[:, 3:], 0.4)
    np.testing.assert_array_equal(none.load(0)[:, :3], auto.load(0)[:, :3])
    assert open_dataset(tmp_path).load(0).shape == (100, 3)


def test_columns_reach_the_reader(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.hstack([cloud(), np.ones((100, 1))]))
    np.testing.assert_array_equal(open_dataset(tmp_path, columns="xyz").load(0), prepare(cloud(), most=1024))


@pytest.mark.parametrize(
    ("option", "value"),
    [("up_axis", "w"), ("color", "red"), ("channels", 4), ("points", 0), ("least", 0), ("columns", "ab")],
)
def test_options_that_make_no_sense(tmp_path: Path, option: str, value: object) -> None:
    put(tmp_path, "a.npy")
    with pytest.raises(InputError, match="expected"):
        open_dataset(tmp_path, **{option: value})  # type: ignore[arg-type]


def test_a_bad_file_is_named_and_skipped_and_load_raises(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number:02}.npy" for number in range(20)))
    np.save(tmp_path / "07.npy", np.full((9, 3), np.nan))
    dataset = open_dataset(tmp_path)
    dataset.probe()
    assert list(dataset.bad) == ["07"]
    assert str(tmp_path / "07.npy") in dataset.bad["07"]
    assert dataset.try_load(7) is None
    assert dataset.try_load(8) is not None
    with pytest.raises(InputError, match=r"07\.npy.*all 9 hold NaN"):
        dataset.load(7)


def test_more_than_a_tenth_of_bad_files_ends_it_and_names_three(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number:02}.npy" for number in range(40)))
    for number in range(10, 14):
        (tmp_path / f"{number}.npy").write_bytes(b"rubbish")
    open_dataset(tmp_path).probe()  # 4 of 40 is a tenth, not more
    (tmp_path / "14.npy").write_bytes(b"")
    with pytest.raises(InputError, match="found 5 of 40 tried") as caught:
        open_dataset(tmp_path).probe()
    message = str(caught.value)
    assert all(f"{number}.npy" in message for number in (10, 11, 12))
    assert "13.npy" not in message
    assert "\n" not in message


def test_a_probe_reaches_both_ends_of_a_large_data_set(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number:02}.npy" for number in range(30)))
    dataset = open_dataset(tmp_path)
    spread = dataset.spread(4)
    assert spread == [0, 10, 19, 29]
    assert dataset.spread(99) == list(range(30))


def test_subsets_keep_their_clouds_labels_and_the_list_of_bad_ones(tmp_path: Path) -> None:
    put(tmp_path, "a/1.npy", "a/2.npy", "b/3.npy", "b/4.npy")
    (tmp_path / "b" / "4.npy").write_bytes(b"")
    dataset = open_dataset(tmp_path)
    subset = dataset.subset([3, 0])
    assert subset.ids == ("b/4", "a/1")
    assert classes_of(subset) == ["b", "a"]
    np.testing.assert_array_equal(subset.load(1), dataset.load(0))
    assert subset.try_load(0) is None
    assert list(dataset.bad) == ["b/4"]
    assert dataset.subset(np.array([False, True, True, False])).ids == ("a/2", "b/3")
    assert subset.subset([1]).ids == ("a/1",)


def test_unlabelled_holds_no_label_anywhere(tmp_path: Path) -> None:
    put(tmp_path, "mug/a.npy", "bowl/b.npy")
    dataset = open_dataset(tmp_path)
    blind = dataset.unlabelled()
    assert blind.labels is None
    assert blind.class_names is None
    assert blind.subset([0]).labels is None
    np.testing.assert_array_equal(blind.load(0), dataset.load(0))
    with pytest.raises(InputError, match="labels"):
        blind.label_indices(["mug", "bowl"])


def test_label_indices_find_classes_however_they_are_written(tmp_path: Path) -> None:
    put(tmp_path, "night_stand/a.npy", "TV-stand/b.npy", "mug/c.npy", "night_stand/d.npy")
    dataset = open_dataset(tmp_path)
    vocabulary = ["Mug", "chair", "Night Stand", "tvstand"]
    found = dict(zip(dataset.ids, dataset.label_indices(vocabulary), strict=True))
    assert found == {"TV-stand/b": 3, "mug/c": 0, "night_stand/a": 2, "night_stand/d": 2}
    with pytest.raises(InputError, match="found 'night_stand'; the nearest is 'nightstant'"):
        dataset.label_indices(["mug", "tv stand", "nightstant", "chair"])
    with pytest.raises(InputError, match="differ"):
        dataset.label_indices(["mug", "tv stand", "night stand", "Night-stand"])


def test_label_indices_ask_only_for_classes_that_occur(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz", labels=np.zeros(6, np.int64), class_names=np.array(["mug", "unused"]))
    assert open_dataset(tmp_path / "a.npz").label_indices(["chair", "mug"]).tolist() == [1] * 6


def test_views_are_found_by_id_and_a_broken_picture_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "mug/a.npy", "mug/b.npy", "mug/c.npy")
    for id_, count in (("mug/a", 3), ("mug/b", 1)):
        folder = tmp_path / "views" / id_
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 4), number * 50).save(folder / f"{number}.png")
    (tmp_path / "views/mug/a/1.png").write_bytes(b"\x89PNG rubbish")
    (tmp_path / "views/mug/b/0.png").write_bytes((tmp_path / "views/mug/b/0.png").read_bytes()[:-30])
    dataset = open_dataset(tmp_path)
    pictures = dataset.views(0)
    assert pictures is not None
    assert [one and (one.mode, one.size, one.getpixel((0, 0))) for one in pictures] == [
        ("RGB", (8, 4), (0, 0, 0)),
        None,
        ("RGB", (8, 4), (100, 100, 100)),
    ]
    assert list(dataset.views(1) or ()) == [None], "its only picture is cut off"
    assert dataset.views(2) is None
    assert set(dataset.bad) == {"views/mug/a/1.png", "views/mug/b/0.png"}


def test_one_file_is_a_data_set_of_one(tmp_path: Path) -> None:
    trimesh.creation.icosphere().export(tmp_path / "ball.stl")
    dataset = open_dataset(tmp_path / "ball.stl", points=2048)
    assert (dataset.ids, dataset.labels, dataset.name) == (("ball",), None, "ball")
    loaded = dataset.load(0)
    assert loaded.shape == (2048, 3)
    np.testing.assert_allclose(np.linalg.norm(loaded, axis=1), 1, atol=0.05)


def test_more_points_than_a_mesh_is_usually_sampled_with(tmp_path: Path) -> None:
    trimesh.creation.box().export(tmp_path / "box.off")
    assert open_dataset(tmp_path, points=10000).load(0).shape == (10000, 3)


def load_first(dataset: CloudDataset) -> np.ndarray:
    return dataset.load(0)


def test_a_data_set_travels_to_worker_processes(tmp_path: Path) -> None:
    put(tmp_path, "a.npy")
    dataset = open_dataset(tmp_path)
    with get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.map(load_first, [dataset])[0], dataset.load(0))


def test_class_folders_are_no_classes_where_labels_are_not_wanted(tmp_path: Path) -> None:
    put(tmp_path, "mug/a.npy", "bowl/b.npy")
    dataset = open_dataset(tmp_path, labelled=False)
    assert (dataset.ids, dataset.labels, dataset.class_names) == (("bowl/b", "mug/a"), None, None)


def test_a_whole_cloud_is_turned_and_coloured_and_nothing_else(tmp_path: Path) -> None:
    points = cloud(0, 2000) * 1e3 + 5.0
    np.save(tmp_path / "a.npy", points)
    whole = open_dataset(tmp_path, points=64, up_axis="y", channels=6).load_whole(0)
    np.testing.assert_array_equal(whole[:, :3], points @ rotation("y").T)
    np.testing.assert_array_equal(whole[:, 3:], 0.4)
