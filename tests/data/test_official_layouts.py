"""ModelNet40 and ScanObjectNN open as they are distributed; the files here are built in the same layout."""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest

from crossmost.data import official
from crossmost.data.dataset import CloudDataset, open_dataset
from crossmost.errors import InputError
from crossmost.runtime.orientation import rotation
from crossmost.runtime.preprocess import prepare

VARIANTS = (
    "objectdataset",
    "objectdataset_augmented25_norot",
    "objectdataset_augmented25rot",
    "objectdataset_augmentedrot",
    "objectdataset_augmentedrot_scale75",
)


def write_h5(path: Path, count: int, *, seed: int = 0, column: bool = True, mask: bool = False) -> np.ndarray:
    """A file of `count` clouds whose labels count up from `seed`, and its clouds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).normal(size=(count, 2048, 3)).astype(np.float32)
    labels = (np.arange(count) + seed) % 15
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=data, chunks=(1, 2048, 3), compression="gzip")
        file["label"] = labels.astype(np.uint8).reshape(-1, 1) if column else labels.astype(np.int32)
        if mask:
            file["mask"] = np.zeros((count, 2048), dtype=np.int32)
    return data


@pytest.fixture
def modelnet40(tmp_path: Path) -> Path:
    folder = tmp_path / "modelnet40_ply_hdf5_2048"
    for split, sizes in (("train", (4, 3, 2)), ("test", (2, 1))):
        for number, size in enumerate(sizes):
            write_h5(folder / f"ply_data_{split}{number}.h5", size, seed=10 * number + (split == "test"))
        listed = [f"data/modelnet40_ply_hdf5_2048/ply_data_{split}{n}.h5" for n in range(len(sizes))]
        (folder / f"{split}_files.txt").write_text("\n".join(listed) + "\n")
    (folder / "shape_names.txt").write_text("\n".join(f"shape_{n:02}" for n in range(40)) + "\n")
    (folder / "ply_data_train_0_id2file.json").write_text("[]")
    return folder


@pytest.fixture
def scanobjectnn(tmp_path: Path) -> Path:
    for part in ("main_split", "main_split_nobg"):
        for seed, variant in enumerate(VARIANTS):
            for split, size in (("training", 5), ("test", 2)):
                path = tmp_path / "h5_files" / part / f"{split}_{variant}.h5"
                write_h5(path, size, seed=seed, column=False, mask="rot" not in variant)
    return tmp_path / "h5_files"


def test_modelnet40_opens_with_its_splits_names_and_file_order(modelnet40: Path) -> None:
    dataset = open_dataset(modelnet40)
    assert (len(dataset), dataset.name) == (12, "modelnet40_ply_hdf5_2048")
    assert dataset.ids[:5] == (*(f"ply_data_train0/{row}" for row in range(4)), "ply_data_train1/0")
    assert dataset.class_names is not None
    assert len(dataset.class_names) == 40
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 2, 3, 10, 11, 12, 5, 6, 1, 2, 11]
    assert len(open_dataset(modelnet40, split="train")) == 9
    test = open_dataset(modelnet40, split="test")
    assert test.ids == ("ply_data_test0/0", "ply_data_test0/1", "ply_data_test1/0")
    with pytest.raises(InputError, match="found test, train"):
        open_dataset(modelnet40, split="val")


def test_the_lists_beside_the_files_have_a_line_for_each_name(modelnet40: Path) -> None:
    (modelnet40 / "shape_names.txt").write_text("\ufeffnight stand\r\nCafé \n\n", encoding="utf-8")
    (modelnet40 / "train_files.txt").write_text("\ufeffply_data_train0.h5\n", encoding="utf-8")
    with h5py.File(modelnet40 / "ply_data_train0.h5", "a") as file:
        file["label"][:, 0] = [0, 1, 1, 0]
    (modelnet40 / "test_files.txt").unlink()
    dataset = open_dataset(modelnet40)
    assert dataset.class_names == ("night stand", "Café")
    assert len(dataset) == 4


@pytest.mark.parametrize("listed", [True, False])
def test_each_row_is_the_cloud_of_its_file(modelnet40: Path, listed: bool) -> None:
    if not listed:
        for listing in modelnet40.glob("*_files.txt"):
            listing.unlink()
    test = open_dataset(modelnet40, split="test", up_axis="y", points=2048)
    for index, (file, row) in enumerate((("test0", 0), ("test0", 1), ("test1", 0))):
        with h5py.File(modelnet40 / f"ply_data_{file}.h5") as content:
            stored = content["data"][row].astype(np.float64)
        expected = prepare(stored @ rotation("y").T, most=2048)
        np.testing.assert_array_equal(test.load(index), expected)


def test_the_tenth_file_comes_after_the_ninth(tmp_path: Path) -> None:
    for number in (10, 9, 0):
        write_h5(tmp_path / f"ply_data_train{number}.h5", 1)
    assert [one.split("/")[0][14:] for one in open_dataset(tmp_path).ids] == ["0", "9", "10"]


def test_a_listed_file_that_is_missing(modelnet40: Path) -> None:
    (modelnet40 / "ply_data_train1.h5").unlink()
    with pytest.raises(InputError, match=r"train_files\.txt.*ply_data_train1\.h5"):
        open_dataset(modelnet40)


@pytest.mark.parametrize("part", ["main_split", "main_split_nobg"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_scanobjectnn_variant_opens_by_name_and_by_file(
    scanobjectnn: Path, part: str, variant: str
) -> None:
    both = open_dataset(scanobjectnn / part / variant)
    assert len(both) == 7
    assert len(open_dataset(scanobjectnn / part / variant, split="train")) == 5
    assert both.class_names == official.SCANOBJECTNN_CLASSES
    assert both.name == variant
    both.probe()
    assert both.bad == {}
    file = open_dataset(scanobjectnn / part / f"test_{variant}.h5", split="test")
    assert file.ids == (f"test_{variant}/0", f"test_{variant}/1")
    np.testing.assert_array_equal(
        file.load(1), open_dataset(scanobjectnn / part / variant, split="test").load(1)
    )
    with pytest.raises(InputError, match="'train', found test"):
        open_dataset(scanobjectnn / part / f"test_{variant}.h5", split="train")


def test_several_variants_are_listed_with_what_to_say(scanobjectnn: Path) -> None:
    with pytest.raises(InputError, match="found 5 variants") as caught:
        open_dataset(scanobjectnn / "main_split")
    message = str(caught.value)
    assert all(variant in message for variant in VARIANTS)
    assert str(scanobjectnn / "main_split" / "objectdataset") in message
    with pytest.raises(InputError, match="found 10 variants") as caught:
        open_dataset(scanobjectnn)
    assert "main_split_nobg/objectdataset_augmentedrot_scale75" in str(caught.value)


def test_a_folder_with_one_variant_needs_no_name(tmp_path: Path) -> None:
    for split in ("training", "test"):
        write_h5(tmp_path / "main_split" / f"{split}_objectdataset.h5", 3)
    assert len(open_dataset(tmp_path / "main_split")) == 6
    assert len(open_dataset(tmp_path)) == 6


def test_a_file_without_labels_leaves_a_folder_without_any_and_is_told(modelnet40: Path) -> None:
    with h5py.File(modelnet40 / "ply_data_train1.h5", "a") as file:
        del file["label"]
    dataset = open_dataset(modelnet40)
    assert dataset.labels is None
    assert dataset.left_out == ("no labels: 3 of 12 clouds lack one",)
    assert open_dataset(modelnet40, labelled=False).left_out == ()
    test = open_dataset(modelnet40, split="test")
    assert test.labels is not None
    assert (test.labels.tolist(), test.left_out) == ([1, 2, 11], ())


def test_labels_that_are_names_may_lack_in_one_file_too(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_h5(tmp_path / f"ply_data_{split}0.h5", 2)
    for split, labels in (("train", [b"mug", b"bowl"]), ("test", None)):
        with h5py.File(tmp_path / f"ply_data_{split}0.h5", "a") as file:
            del file["label"]
            if labels:
                file["label"] = np.array(labels)
    assert open_dataset(tmp_path).left_out == ("no labels: 2 of 4 clouds lack one",)
    assert open_dataset(tmp_path, split="train").class_names == ("bowl", "mug")


def test_a_label_of_minus_one_in_a_folder_is_told(modelnet40: Path) -> None:
    with h5py.File(modelnet40 / "ply_data_train1.h5", "a") as file:
        del file["label"]
        file["label"] = np.array([[0], [-1], [2]])
    assert open_dataset(modelnet40).left_out == ("no labels: 1 of 12 clouds lack one",)


def test_clouds_beside_the_official_files_are_left_out_and_counted(modelnet40: Path) -> None:
    assert open_dataset(modelnet40).left_out == ()
    (modelnet40 / "mine").mkdir()
    for name in ("mine/a.ply", "mine/b.PLY", "c.npy"):
        (modelnet40 / name).touch()
    write_h5(modelnet40 / "mine.h5", 2)
    said = "left out: the official .h5 files beside are taken for the data set"
    dataset = open_dataset(modelnet40)
    assert (len(dataset), dataset.left_out) == (12, (f"2 .ply, 1 .npy, 1 .h5 files were {said}",))
    assert open_dataset(modelnet40 / "ply_data_test0.h5").left_out == ()


def test_one_cloud_beside_one_official_file_is_counted_too(tmp_path: Path) -> None:
    write_h5(tmp_path / "main_split" / "test_objectdataset.h5", 3)
    (tmp_path / "a.ply").touch()
    (line,) = open_dataset(tmp_path).left_out
    assert line.startswith("1 .ply file was left out: ")
    assert open_dataset(tmp_path / "main_split" / "objectdataset").left_out == ()


def test_an_h5_file_of_another_name_opens_too(tmp_path: Path) -> None:
    write_h5(tmp_path / "mine.h5", 3)
    dataset = open_dataset(tmp_path / "mine.h5")
    assert dataset.ids == ("mine/0", "mine/1", "mine/2")
    assert dataset.class_names == ("0", "1", "2")
    with pytest.raises(InputError, match="found none"):
        open_dataset(tmp_path)  # not a layout that is known as a whole


def test_nothing_but_the_asked_row_is_read(modelnet40: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = h5py.Dataset.__getitem__

    def watch(self: h5py.Dataset, key: object, **options: object) -> object:
        result = original(self, key, **options)
        read.append((self.name, np.size(result)))
        return result

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watch)
    dataset = open_dataset(modelnet40, split="train")
    assert all(name == "/label" for name, _ in read), "opening reads no points"
    read.clear()
    dataset.load(4)
    assert read == [("/data", 2048 * 3)]


def load_last(dataset: CloudDataset) -> np.ndarray:
    return dataset.load(len(dataset) - 1)


def test_forked_workers_read_the_same_files(modelnet40: Path) -> None:
    dataset = open_dataset(modelnet40)
    expected = load_last(dataset)  # the parent has read before it forks
    with get_context("fork").Pool(2) as pool:
        for found in pool.map(load_last, [dataset] * 4):
            np.testing.assert_array_equal(found, expected)


def without_data(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["points"] = np.zeros((2, 5, 3))


def too_few_labels(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = np.zeros((2, 5, 3)), np.zeros(3, int)


def label_out_of_range(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = np.zeros((2, 5, 3)), np.array([0, 15])


def flat(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("write", "word"),
    [
        (lambda path: path.write_bytes(b"not an h5 file"), "readable .h5"),
        (lambda path: path.write_bytes(b""), "readable .h5"),
        (without_data, r"data of shape \(M, P, 3\), found points \(2, 5, 3\)"),
        (flat, r"found data \(2, 3\)"),
        (too_few_labels, "expected 2 labels"),
        (label_out_of_range, r"labels 0\.\.14"),
    ],
)
def test_h5_files_of_another_form(tmp_path: Path, write: Callable[[Path], None], word: str) -> None:
    path = tmp_path / "training_objectdataset.h5"
    write(path)
    with pytest.raises(InputError, match=word) as caught:
        open_dataset(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_cloud_of_nan_is_bad_and_the_rest_is_not(tmp_path: Path) -> None:
    path = tmp_path / "training_objectdataset.h5"
    write_h5(path, 12)
    with h5py.File(path, "a") as file:
        file["data"][7] = np.nan
    dataset = open_dataset(path)
    dataset.probe()
    assert list(dataset.bad) == ["training_objectdataset/7"]


def test_views_lie_beside_the_files(modelnet40: Path) -> None:
    from PIL import Image

    folder = modelnet40 / "views" / "ply_data_test0" / "1"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4), (9, 8, 7)).save(folder / "0.png")
    test = open_dataset(modelnet40, split="test")
    pictures = test.views(1)
    assert pictures is not None
    assert pictures[0].getpixel((0, 0)) == (9, 8, 7)
    assert test.views(0) is None
