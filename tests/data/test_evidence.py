"""What tells one data set from another that looks like it from outside."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from crossmost.data.dataset import open_dataset
from crossmost.data.evidence import MOST, PIECE, evenly, pieces_of, size_of


def write_folder(path: Path, seed: int) -> Path:
    path.mkdir()
    for number in range(5):
        np.save(path / f"{number}.npy", np.random.default_rng([seed, number]).normal(size=(100, 3)))
    return path


def write_archive(path: Path, seed: int) -> Path:
    np.savez(path, points=np.random.default_rng(seed).normal(size=(5, 100, 3)))
    return path


def write_official(path: Path, seed: int) -> Path:
    path.mkdir()
    with h5py.File(path / "ply_data_train0.h5", "w") as file:
        file["data"] = np.random.default_rng(seed).normal(size=(5, 100, 3))
    return path


@pytest.mark.parametrize(
    ("write", "name"), [(write_folder, "a"), (write_archive, "a.npz"), (write_official, "a")]
)
def test_a_copy_has_the_same_contents_and_other_clouds_of_the_same_names_have_not(
    tmp_path: Path, write: object, name: str
) -> None:
    for folder in ("one", "copy", "other"):
        (tmp_path / folder).mkdir()
    first = write(tmp_path / "one" / name, 0)  # type: ignore[operator]
    copy = (shutil.copytree if first.is_dir() else shutil.copy)(first, tmp_path / "copy" / name)
    other = write(tmp_path / "other" / name, 1)  # type: ignore[operator]
    found = [open_dataset(path) for path in (first, copy, other)]
    assert found[0].ids == found[1].ids == found[2].ids
    assert found[0].contents() == found[1].contents()
    assert found[0].contents() != found[2].contents()


def test_one_cloud_that_was_changed_is_noticed_and_one_of_another_split_is_not(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(6, 50, 3))
    split = np.array(["train", "test"] * 3)
    np.savez(tmp_path / "a.npz", points=points, split=split)
    before = [open_dataset(tmp_path / "a.npz", split=split).contents() for split in ("train", "test")]
    points[1, 7] += 1e-9
    np.savez_compressed(tmp_path / "a.npz", points=points, split=split)
    after = [open_dataset(tmp_path / "a.npz", split=split).contents() for split in ("train", "test")]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_change_in_any_file_of_an_official_folder_is_noticed(tmp_path: Path) -> None:
    folder = write_official(tmp_path / "a", 0)
    second = folder / "ply_data_train1.h5"
    shutil.copy(folder / "ply_data_train0.h5", second)
    before = open_dataset(folder).contents()
    with h5py.File(second, "a") as file:
        file["data"][3, 7] = 1.0
    assert open_dataset(folder).contents() != before


def test_pictures_of_the_clouds_are_told_apart_by_name_and_contents(tmp_path: Path) -> None:
    clouds = write_folder(tmp_path / "a", 0)
    without = open_dataset(clouds).views_contents()
    (clouds / "views" / "nobody").mkdir(parents=True)
    (clouds / "views" / "nobody" / "0.png").write_bytes(b"of no cloud")
    assert without == open_dataset(clouds).views_contents() == ""
    found = []
    for name, content in (("3/0.png", b"one"), ("3/1.jpg", b"two"), ("3/1.jpg", b"six"), ("4/0.png", b"one")):
        path = clouds / "views" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        found.append(open_dataset(clouds).views_contents())
    assert len(set(found)) == 4
    copy = shutil.copytree(clouds, tmp_path / "copy")
    assert open_dataset(copy).views_contents() == found[-1]
    moved = copy / "views" / "3"
    moved.rename(copy / "views" / "2")
    assert open_dataset(copy).views_contents() != found[-1]


def test_the_ends_of_a_large_file_and_pieces_between_are_looked_at(tmp_path: Path) -> None:
    content = bytearray(10 * PIECE)
    (tmp_path / "a").write_bytes(content)
    two, all_of_it = pieces_of(tmp_path / "a"), pieces_of(tmp_path / "a", 10)
    assert len(two) == 2 * PIECE
    for place in (0, len(content) - 1):
        content[place] = 1
        (tmp_path / "a").write_bytes(content)
        assert pieces_of(tmp_path / "a") != two
        content[place] = 0
    content[5 * PIECE] = 1
    (tmp_path / "a").write_bytes(content)
    assert pieces_of(tmp_path / "a") == two
    assert pieces_of(tmp_path / "a", 10) != all_of_it
    assert pieces_of(tmp_path / "nothing") == size_of(tmp_path / "nothing") == b""


def test_not_every_file_of_many_is_looked_at() -> None:
    assert evenly(range(3)) == [0, 1, 2]
    some = evenly(range(100_000))
    assert len(some) == MOST
    assert some[0] == 0
