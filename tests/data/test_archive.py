"""One .npz of many clouds: what it may hold, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossmost.data.dataset import open_dataset
from crossmost.errors import InputError
from crossmost.runtime.preprocess import prepare


def cloud(seed: int = 0, count: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3))


def archive(path: Path, count: int = 6, **arrays: object) -> Path:
    points = np.stack([cloud(seed, 80) for seed in range(count)])
    np.savez(path, **{"points": points, **arrays})  # type: ignore[arg-type]
    return path


def test_an_archive_with_everything(tmp_path: Path) -> None:
    names = np.array(["mug", "bowl"])
    split = np.array(["train"] * 4 + ["test"] * 2)
    ids = np.array([f"scan/{i}" for i in range(6)])
    path = archive(tmp_path / "a.npz", labels=np.arange(6) % 2, class_names=names, split=split, ids=ids)
    test = open_dataset(path, split="test")
    assert test.ids == ("scan/4", "scan/5")
    assert test.class_names == ("mug", "bowl")
    assert test.label_indices(["bowl", "mug"]).tolist() == [1, 0]
    np.testing.assert_array_equal(test.load(0), prepare(cloud(4, 80), most=1024, least=64))
    with pytest.raises(InputError, match="'dev', found test, train"):
        open_dataset(path, split="dev")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("Train", "TEST"), ("test", "train")),
        (("training", "Testing", "Validation"), ("Validation", "test", "train")),
        (("train", "evaluation", "val"), ("test", "train", "val")),
        (("train", "eval", "test"), ("eval", "test", "train")),
        (("fold1", "fold2"), ("fold1", "fold2")),
    ],
)
def test_train_and_test_splits_are_found_however_they_are_spelled(
    tmp_path: Path, names: tuple[str, ...], splits: tuple[str, ...]
) -> None:
    path = archive(tmp_path / "a.npz", split=np.resize(names, 6))
    assert open_dataset(path).splits == splits
    unclear = {"evaluation"} if {"val", "test"} <= set(splits) else set()
    for split in {*splits, *names} - unclear:  # as it is called, and as the file has it
        assert len(open_dataset(path, split=split)) == 6 / len(names)


def test_an_archive_of_points_alone(tmp_path: Path) -> None:
    dataset = open_dataset(archive(tmp_path / "scans.npz"))
    assert dataset.ids == tuple(f"scans/{row}" for row in range(6))
    assert dataset.labels is None


def test_a_missing_label_leaves_an_archive_without_any_and_is_told(tmp_path: Path) -> None:
    labels = np.array([0, 1, 0, -1, 1, 0])
    path = archive(tmp_path / "scans.npz", labels=labels, class_names=np.array(["mug", "bowl"]))
    dataset = open_dataset(path)
    assert dataset.labels is None
    assert dataset.left_out == ("no labels: 1 of 6 clouds lack one",)
    assert open_dataset(path, labelled=False).left_out == ()


def test_half_precision_archives_come_out_as_normalised_float32(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", points=(cloud(0, 300).reshape(3, 100, 3) + 5).astype(np.float16))
    loaded = open_dataset(tmp_path / "a.npz").load(1)
    assert loaded.dtype == np.float32
    assert np.linalg.norm(loaded, axis=1).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(loaded.mean(axis=0), 0, atol=1e-6)


def test_archives_with_colors_and_padding(tmp_path: Path) -> None:
    points = np.concatenate([cloud(0, 200), np.full((200, 3), 255.0)], axis=1).reshape(2, 100, 6)
    points[1, 40:] = np.nan
    np.savez(tmp_path / "a.npz", points=points)
    dataset = open_dataset(tmp_path / "a.npz", channels=6, least=1)
    np.testing.assert_allclose(dataset.load(0)[:, 3:], 1)
    assert dataset.load(1).shape == (40, 6)


@pytest.mark.parametrize(
    "other", [np.arange(6), np.zeros((6, 3)), np.array(["red"] * 6), np.array([None] * 6)], ids=str
)
def test_what_is_called_colors_and_has_none_for_each_point_is_something_else(
    tmp_path: Path, other: NDArray[Any]
) -> None:
    path = archive(tmp_path / "a.npz", color=other)
    assert open_dataset(path, channels=6).read(0).rgb is None


@pytest.mark.parametrize("names", [["rgb"], ["colors"], ["color"], ["R", "G", "B"]])
def test_colors_may_be_an_array_of_their_own(tmp_path: Path, names: list[str]) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (6, 80, 3), dtype=np.uint8)
    rgb[:, 0] = 255
    arrays = {"rgb": rgb} if len(names) == 1 else dict(zip("RGB", np.moveaxis(rgb, -1, 0), strict=True))
    path = archive(tmp_path / "a.npz", **dict(zip(names, arrays.values(), strict=True)))
    dataset = open_dataset(path, channels=6)
    read = dataset.read(4)
    np.testing.assert_array_equal(read.xyz, cloud(4, 80))
    assert read.rgb is not None
    np.testing.assert_allclose(read.rgb, rgb[4] / 255, atol=1e-6)
    assert open_dataset(path, columns="xyz").read(4).rgb is None
    without = open_dataset(archive(tmp_path / "b.npz"))
    assert dataset.contents() != without.contents() == open_dataset(path, columns="xyz").contents()


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"labels": np.array([{}] * 6, dtype=object)}, "pickled"),
        ({"points": np.empty((2, 3, 3), dtype=object)}, "pickled"),
        ({"points": np.zeros((2, 5, 3), dtype=complex)}, "complex"),
        ({"labels": np.zeros(5, int)}, r"shape \(6,\)"),
        ({"labels": np.zeros(6)}, "whole-number"),
        ({"labels": np.full(6, 2), "class_names": np.array(["a", "b"])}, r"labels 0\.\.1"),
        ({"labels": np.full(6, -2), "class_names": np.array(["a", "b"])}, r"labels 0\.\.1"),
        ({"labels": np.array(["a", "b"] * 3), "class_names": np.array(["a", "c"])}, "class names, found 'b'"),
        ({"labels": np.zeros(6, int), "class_names": np.array(["a", "a"])}, "class names that differ"),
        ({"ids": np.array(list("abcdea"))}, "'a' twice"),
        ({"split": np.array(["train"])}, r"split of shape \(6,\)"),
    ],
)
def test_archives_whose_arrays_do_not_fit(tmp_path: Path, arrays: dict[str, object], word: str) -> None:
    path = archive(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=word) as caught:
        open_dataset(path)
    assert str(caught.value).startswith(str(path))


def test_an_archive_cut_off_is_one_line(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError) as caught:
        open_dataset(path).load(0)
    assert "a.npz" in str(caught.value)


def test_a_bad_cloud_of_an_archive_is_named_by_its_id(tmp_path: Path) -> None:
    points = np.stack([cloud(seed, 80) for seed in range(20)])
    points[3] = np.nan
    np.savez(tmp_path / "a.npz", points=points)
    dataset = open_dataset(tmp_path / "a.npz")
    dataset.probe()
    assert list(dataset.bad) == ["a/3"]
    assert dataset.bad["a/3"].startswith("a/3: ")


def test_labels_without_names_are_numbers_no_vocabulary_knows(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", labels=np.arange(6) % 2)
    assert open_dataset(path).class_names == ("0", "1")
    with pytest.raises(InputError, match="found '0'"):
        open_dataset(path).label_indices(["mug", "bowl"])


def test_the_real_archives_open(shared_data: Path) -> None:
    sizes = {"modelnet10_vox30_1024": (3980, 907, 10), "infomr69_1024": (1236, 1234, 69)}
    for name, (train, test, classes) in sizes.items():
        dataset = open_dataset(shared_data / f"{name}.npz", split="train")
        assert len(dataset) == train
        assert len(open_dataset(shared_data / f"{name}.npz", split="test")) == test
        assert dataset.class_names is not None
        assert len(dataset.class_names) == classes
        dataset.probe(64)
        assert dataset.bad == {}
        loaded = dataset.load(5)
        assert loaded.dtype == np.float32
        assert loaded.shape == (1024, 3)
        assert np.linalg.norm(loaded, axis=1).max() == pytest.approx(1, abs=1e-6)


def test_an_archive_without_a_cloud(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", points=np.zeros((0, 5, 3)))
    with pytest.raises(InputError, match="at least one cloud"):
        open_dataset(tmp_path / "a.npz")


def test_texts_that_are_stored_as_bytes(tmp_path: Path) -> None:
    names = np.array(["mug", "Schüssel"])
    texts = {
        "class_names": np.char.encode(names, "utf-8"),
        "split": np.array([b"train"] * 4 + [b"test"] * 2),
        "ids": np.array([b"scan/%d" % row for row in range(6)]),
    }
    path = archive(tmp_path / "a.npz", labels=np.arange(6) % 2, **texts)
    test = open_dataset(path, split="test")
    assert test.ids == ("scan/4", "scan/5")
    assert test.class_names == ("mug", "Schüssel")


@pytest.mark.parametrize("key", ["xyz", "coords", "anything"])
def test_an_archive_may_use_the_names_of_a_single_cloud(tmp_path: Path, key: str) -> None:
    points = np.stack([cloud(seed, 80) for seed in range(3)])
    np.savez(tmp_path / "a.npz", **{key: points})
    dataset = open_dataset(tmp_path / "a.npz")
    assert dataset.ids == ("a/0", "a/1", "a/2")
    np.testing.assert_array_equal(dataset.load(2), prepare(points[2], most=1024, least=64))
    np.savez(tmp_path / "one.npz", **{key: points[0]})
    assert open_dataset(tmp_path / "one.npz").ids == ("one",)


def test_a_label_of_minus_one_is_no_class(tmp_path: Path) -> None:
    labels = np.array([0, 1, -1, 0, 1, 1])
    split = np.array(["train"] * 3 + ["test"] * 3)
    path = archive(tmp_path / "a.npz", labels=labels, class_names=np.array(["mug", "bowl"]), split=split)
    assert open_dataset(path, split="train").labels is None
    test = open_dataset(path, split="test")
    assert test.labels is not None
    assert test.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("kind", ["U", "S"])
def test_labels_may_be_the_class_names_themselves(tmp_path: Path, kind: str) -> None:
    labels = np.array(["mug", "bowl", "mug", "mug", "bowl", "mug"]).astype(kind)
    alone = open_dataset(archive(tmp_path / "a.npz", labels=labels))
    assert alone.class_names == ("bowl", "mug")
    assert alone.label_indices(["mug", "bowl"]).tolist() == [0, 1, 0, 0, 1, 0]
    named = archive(tmp_path / "b.npz", labels=labels, class_names=np.array(["can", "mug", "bowl"]))
    assert open_dataset(named).label_indices(["mug", "bowl"]).tolist() == [0, 1, 0, 0, 1, 0]
    labels[3] = ""
    assert open_dataset(archive(tmp_path / "c.npz", labels=labels)).labels is None


@pytest.mark.parametrize("labels", [np.zeros(6), np.zeros(3, int), np.array([{}] * 6, dtype=object)])
def test_labels_that_nobody_wants_are_not_looked_at(tmp_path: Path, labels: np.ndarray) -> None:
    path = archive(tmp_path / "a.npz", labels=labels)
    with pytest.raises(InputError):
        open_dataset(path)
    dataset = open_dataset(path, labelled=False)
    assert (len(dataset), dataset.labels, dataset.class_names) == (6, None, None)
