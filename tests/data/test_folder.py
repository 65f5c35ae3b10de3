"""What a folder's names tell: clouds, ids, classes and splits, without a file being opened."""

import os
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import trimesh

from crossmost.data.dataset import CloudDataset, open_dataset
from crossmost.errors import InputError


def put(root: Path, *names: str) -> None:
    """Save a small cloud under each name."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, np.random.default_rng(seed).normal(size=(100, 3)))


def classes_of(dataset: CloudDataset) -> list[str]:
    assert dataset.labels is not None
    assert dataset.class_names is not None
    return [dataset.class_names[label] for label in dataset.labels]


def test_class_folders_are_labels_and_ids_are_paths_without_suffix(tmp_path: Path) -> None:
    put(tmp_path, "mug/b.npy", "mug/deep/er/a.npy", "bowl/a.npy")
    dataset = open_dataset(tmp_path)
    assert dataset.ids == ("bowl/a", "mug/b", "mug/deep/er/a")
    assert dataset.class_names == ("bowl", "mug")
    assert classes_of(dataset) == ["bowl", "mug", "mug"]
    assert dataset.labels is not None
    assert dataset.labels.dtype == np.int64
    assert (dataset.name, dataset.split, len(dataset)) == (tmp_path.name, "all", 3)


@pytest.mark.parametrize(
    "names",
    [
        ("train/mug/a.npy", "train/bowl/b.npy", "test/mug/c.npy"),  # <split>/<class>
        ("mug/train/a.npy", "bowl/train/b.npy", "mug/test/c.npy"),  # ModelNet's <class>/<split>
        ("Train/mug/a.npy", "Train/bowl/b.npy", "TEST/mug/c.npy"),
        ("train/mug/a.npy", "train/bowl/b.npy", "test/mug/c.npy", "raw/d.npy", "old/chair/e.npy"),
    ],
)
def test_split_folders_above_or_below_the_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(tmp_path, *names)
    assert sorted(classes_of(open_dataset(tmp_path))) == ["bowl", "mug", "mug"]
    train, test = open_dataset(tmp_path, split="train"), open_dataset(tmp_path, split="test")
    assert sorted(classes_of(train)) == ["bowl", "mug"]
    assert classes_of(test) == ["mug"]
    assert train.class_names == test.class_names == ("bowl", "mug"), "labels of the splits mean the same"
    assert test.split == "test"
    with pytest.raises(InputError, match="'val', found test, train"):
        open_dataset(tmp_path, split="val")


def test_an_unlabelled_train_split_beside_a_labelled_test_split(tmp_path: Path) -> None:
    put(tmp_path, "train/a.npy", "train/b.npy", "test/mug/c.npy")
    assert open_dataset(tmp_path, split="train").labels is None
    assert classes_of(open_dataset(tmp_path, split="test")) == ["mug"]
    assert open_dataset(tmp_path).labels is None


def test_a_class_of_toy_trains_is_a_class(tmp_path: Path) -> None:
    put(tmp_path, "train/a.npy", "bus/a.npy")
    assert classes_of(open_dataset(tmp_path)) == ["bus", "train"]
    with pytest.raises(InputError, match="without splits"):
        open_dataset(tmp_path, split="train")


def test_files_outside_the_class_folders_leave_a_data_set_without_labels(tmp_path: Path) -> None:
    put(tmp_path, "mug/a.npy", "stray.npy")
    dataset = open_dataset(tmp_path)
    assert dataset.labels is None
    assert dataset.class_names is None
    assert len(dataset) == 2


def test_files_that_are_no_clouds_hidden_files_and_views_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.npy", ".b.npy", ".hidden/c.npy", "views/a/d.npy", "deep/views/e.npy")
    (tmp_path / "notes.txt").write_text("hello")
    assert open_dataset(tmp_path).ids == ("a", "deep/views/e")


def test_two_files_of_one_stem_keep_their_suffixes(tmp_path: Path) -> None:
    put(tmp_path, "a.npy", "b.npy")
    trimesh.creation.box().export(tmp_path / "a.stl")
    assert open_dataset(tmp_path).ids == ("a.npy", "a.stl", "b")


def test_ids_differ_even_where_a_suffix_is_part_of_a_name(tmp_path: Path) -> None:
    put(tmp_path, "a.npy", "a.npy.npy")
    np.savez(tmp_path / "a.npz", points=np.eye(3))
    dataset = open_dataset(tmp_path)
    assert dataset.ids == ("a.npy", "a.npy.npy", "a.npz")
    np.testing.assert_array_equal(dataset.read(2).xyz, np.eye(3))


def test_a_linked_folder_is_followed_and_a_loop_is_not(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "x.npy")
    put(tmp_path / "root", "a.npy")
    (tmp_path / "root" / "mug").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    assert open_dataset(tmp_path / "root").ids == ("a", "mug/x")


def test_two_links_to_one_folder_are_both_followed(tmp_path: Path) -> None:
    put(tmp_path / "store", "x.npy", "y.npy")
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / "mug").symlink_to(tmp_path / "store")
    assert open_dataset(tmp_path / "data", split="train").ids == ("train/mug/x", "train/mug/y")
    assert open_dataset(tmp_path / "data", split="test").ids == ("test/mug/x", "test/mug/y")


def test_a_folder_is_indexed_and_not_opened(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number:05}.ply").touch()  # opening any of them would be an error
    tracemalloc.start()
    dataset = open_dataset(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(dataset) == 2000
    assert peak / 2000 < 4000, "bytes a file: 100,000 files must stay far below 2 GB"
    assert dataset.bad == {}
    with pytest.raises(InputError, match="found 64 of 64 tried"):
        dataset.probe(64)


def test_a_folder_without_clouds_and_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"expected clouds or meshes \(.*\.ply.*\), found none"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"expected one of .*found \.txt"):
        open_dataset(tmp_path / "notes.txt")


def test_a_folder_of_real_meshes_opens(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "raw", up_axis="y", channels=6)
    assert len(dataset) == 15
    dataset.probe()
    assert dataset.bad == {}
    chair = dataset.load(dataset.ids.index("chairDesk"))
    assert chair.shape == (1024, 6)
    # A desk chair: the back makes it tall, and its foot leaves less of it below than the seat above.
    assert np.ptp(chair[:, 2]) > np.ptp(chair[:, 0])


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "dev"])
@pytest.mark.parametrize("form", ["{split}/mug/a.npy", "mug/{split}/a.npy"])
def test_a_validation_split_has_many_names(tmp_path: Path, name: str, form: str) -> None:
    put(tmp_path, *(form.format(split=split) for split in ("train", "test", name)))
    dataset = open_dataset(tmp_path)
    assert dataset.splits == ("test", "train", "val")
    assert classes_of(dataset) == ["mug"] * 3
    assert len(open_dataset(tmp_path, split="val")) == 1
    assert dataset.left_out == ()


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("training", "testing"), ("test", "train")),
        (("Training", "TESTING", "Validation"), ("test", "train", "val")),
        (("train", "eval"), ("test", "train")),
        (("train", "evaluation", "dev"), ("test", "train", "val")),
        (("train", "eval", "test"), ("test", "train", "val")),
    ],
)
@pytest.mark.parametrize("form", ["{split}/mug/a.npy", "mug/{split}/a.npy"])
def test_train_and_test_splits_have_many_names_too(
    tmp_path: Path, names: tuple[str, ...], splits: tuple[str, ...], form: str
) -> None:
    put(tmp_path, *(form.format(split=name) for name in names))
    dataset = open_dataset(tmp_path)
    assert dataset.splits == splits
    assert classes_of(dataset) == ["mug"] * len(names)
    assert names[0] in open_dataset(tmp_path, split="train").ids[0]
    for name in names:
        if name.startswith("eval") and len(names) == 3:  # one of two, and nobody says which
            with pytest.raises(InputError, match="expected a split named"):
                open_dataset(tmp_path, split=name)
        else:
            assert name in open_dataset(tmp_path, split=name).ids[0]
    assert dataset.left_out == ()


def test_a_folder_that_may_not_be_entered_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the lost+found of a disk; whoever runs the tests may enter everything, maybe."""
    np.save(tmp_path / "a.npy", np.ones((4, 3)))
    closed = tmp_path / "lost+found"
    closed.mkdir()
    scan = os.scandir

    def refuse(folder: Path) -> Any:
        if Path(folder) == refused:
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = closed
    found = open_dataset(tmp_path)
    assert found.ids == ("a",)
    assert found.left_out == ("lost+found/ left out: permission denied",)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(InputError, match=r"folders that may not be entered \(lost\+found/\)"):
        open_dataset(tmp_path)
    refused = tmp_path
    with pytest.raises(PermissionError):
        open_dataset(tmp_path)


def test_runs_and_bundles_below_the_clouds_are_left_out_and_named(tmp_path: Path) -> None:
    """`--out` may well be among them: the arrays of a run are no clouds, whatever their shape."""
    for name in ("mug/a.npy", "mug/b.npy", "bowl/c.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, np.ones((8, 3)))
    made = {"runs/one": ("config.yaml", "classes.npz"), "scans.bundle": ("manifest.json", "encoder.onnx")}
    for folder, names in made.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / folder / name).touch()
        np.savez(tmp_path / folder / "sample.npz", points=np.ones((80, 3)))
    notes = tmp_path / "bowl" / "config.yaml"
    notes.touch()
    found = open_dataset(tmp_path)
    assert found.ids == ("bowl/c", "mug/a", "mug/b")
    assert found.class_names == ("bowl", "mug")
    assert found.left_out == ("runs/one/, scans.bundle/ left out: a run or bundle of crossmost",)


def test_folders_beside_the_splits_are_left_out_and_named(tmp_path: Path) -> None:
    put(tmp_path, "train/mug/a.npy", "val/mug/b.npy", "raw/c.npy", "raw/deep/d.npy", "old/e.npy")
    dataset = open_dataset(tmp_path)
    assert dataset.ids == ("train/mug/a", "val/mug/b")
    (line,) = dataset.left_out
    assert line == "old/, raw/ (3 clouds) left out: train/, val/ beside it are taken for splits"


def test_files_of_other_formats_are_counted(tmp_path: Path) -> None:
    put(tmp_path, "mug/a.npy")
    for name in ("mug/1.vtk", "mug/2.VTK", "3.dae", "a.mtl", "a.png", "README.md", ".hidden.vtk"):
        (tmp_path / name).touch()
    (line,) = open_dataset(tmp_path).left_out
    assert line == "2 .vtk, 1 .dae files were left out: not a format that is read"
    (tmp_path / "3.dae").unlink()
    (tmp_path / "mug/2.VTK").unlink()
    assert open_dataset(tmp_path).left_out == ("1 .vtk file was left out: not a format that is read",)


def test_a_folder_of_other_formats_alone_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.vtk").touch()
    with pytest.raises(InputError, match=r"found none in it but 1 \.vtk file$"):
        open_dataset(tmp_path)
    (tmp_path / "inner").mkdir()
    with h5py.File(tmp_path / "inner" / "scans.h5", "w") as file:
        file["data"] = np.random.default_rng(0).normal(size=(3, 40, 3))
    with pytest.raises(InputError, match=r"give one itself, (.*)$") as caught:
        open_dataset(tmp_path)
    advised = str(caught.value).rpartition("give one itself, ")[2]
    assert len(open_dataset(advised)) == 3


def test_a_name_that_is_no_utf_8_is_made_printable_and_its_file_is_read(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/Caf\xe9"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes no such name")
    for name in (b"b\xe8.npy", b"b\xe9.npy"):
        with open(folder + b"/" + name, "wb") as file:
            np.save(file, np.random.default_rng(0).normal(size=(100, 3)))
    with open(folder + b"/broken\xe9.npy", "wb") as file:
        file.write(b"rubbish")
    dataset = open_dataset(tmp_path)
    assert dataset.ids == ("Caf\ufffd/broken\ufffd", "Caf\ufffd/b\ufffd.npy", "Caf\ufffd/b\ufffd.npy (2)")
    assert dataset.class_names == ("Caf\ufffd",)
    assert dataset.load(1).shape == dataset.load(2).shape == (100, 3)
    assert dataset.try_load(0) is None
    (reason,) = dataset.bad.values()
    "".join((*dataset.ids, reason, open_dataset(os.fsdecode(folder)).name)).encode("utf-8")
    assert "broken\ufffd.npy" in reason
