"""The .h5 files of ModelNet40 (`modelnet40_ply_hdf5_2048`) and ScanObjectNN (`main_split*`) as distributed.

Both are y-up: open them with `up_axis="y"` (`--up-axis y`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.data.archive import check_labels
from crossmost.data.catalog import UNKNOWN, Catalog, natural_key, printable
from crossmost.data.columns import Cloud, cloud_from_array
from crossmost.data.evidence import pieces_of, size_of
from crossmost.data.folder import counted_by_suffix, look_through
from crossmost.errors import InputError

SCANOBJECTNN_CLASSES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table"),
    *("bed", "pillow", "sink", "sofa", "toilet"),
)
"""The order of ScanObjectNN's labels, which its files do not name."""

_SUFFIXES = (".h5", ".hdf5")
_SPLIT_OF = {"training": "train", "train": "train", "test": "test"}
_MODELNET = re.compile(r"(?P<variant>.+)_(?P<split>train|test)\d*")  # ply_data_train0
_SCANOBJECTNN = re.compile(r"(?P<split>training|test)_(?P<variant>.*objectdataset.*)")
_SPLIT_FOLDER = re.compile(r"(main_split|split\d)(_nobg)?")

PIECES = 64
"""Of a file that are looked at to tell it from another."""

Variants = dict[str, list[tuple[str, Path]]]
"""Files of each variant, with their splits."""


@dataclass(frozen=True)
class HdfSource:
    """Reads rows of `data` out of .h5 files.

    A file is opened for each row (0.3 ms; 15 ms where a compressed chunk holds a hundred rows) and nothing but
    the row is read: no handle is shared between processes, which HDF5 needs for forked workers to be safe.
    """

    files: tuple[Path, ...]
    starts: tuple[int, ...]
    columns: str | None

    def read(self, row: int) -> Cloud:
        """Read one row of the files laid end to end."""
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        with _opened(self.files[index]) as file:
            return cloud_from_array(file["data"][row - self.starts[index]], self.columns)

    def evidence(self, rows: Sequence[int]) -> Iterator[bytes]:
        """Size and pieces of each file that holds some of the rows."""
        for index in sorted(set(np.searchsorted(self.starts, rows, side="right").tolist())):
            yield size_of(self.files[index - 1])
            yield pieces_of(self.files[index - 1], PIECES)


def is_official(path: Path) -> bool:
    """Whether a path is an .h5 file, a folder of them, or the name of a variant (see `catalog_official`)."""
    if path.is_dir():
        return bool(_variants(path))
    if path.suffix.lower() in _SUFFIXES:
        return path.is_file()
    return not path.exists() and path.name in _variants(path.parent)


def catalog_official(path: Path, *, columns: str | None, labelled: bool = True) -> Catalog:
    """Open the official .h5 files lazily: shapes and labels now, points when a cloud is loaded.

    Args:
        path: one .h5 file; or the ModelNet40 folder (`train_files.txt` and `test_files.txt` where they are,
            else `ply_data_train*.h5`; names of the classes from `shape_names.txt`); or a ScanObjectNN folder
            with one variant; or a variant by name, i.e. its files' names without split and suffix, for both
            splits: `main_split/objectdataset_augmentedrot_scale75`. Its `mask` is not used.
        columns: see `readers.read_cloud`.
        labelled: whether labels are looked at; False leaves them out, whatever they are.

    Raises:
        InputError: several variants, a listed file that is missing, or arrays of another form.
    """
    if path.is_dir():
        variants = _variants(path)
        if len(variants) > 1:
            raise InputError(
                f"{path}: expected one data set, found {len(variants)} variants ({', '.join(variants)}): "
                f"name one, e.g. {path / min(variants, key=len)}, or point at one .h5 file"
            )
        (files,) = variants.values()
    elif path.suffix.lower() in _SUFFIXES:
        files = [(_split_and_variant(path)[0], path)]
    else:
        files = _variants(path.parent)[path.name]
    return _catalog(path, files, columns, labelled)


def _catalog(path: Path, files: list[tuple[str, Path]], columns: str | None, labelled: bool) -> Catalog:
    ids: list[str] = []
    splits: list[str] = []
    starts: list[int] = []
    labels: list[NDArray[Any] | None] = []
    for split, file in files:
        count, label = _measure(file, labelled)
        starts.append(len(ids))
        labels.append(label)
        splits += [split] * count
        ids += [f"{printable(file.stem)}/{row}" for row in range(count)]
    first = files[0][1]
    try:
        numbers, class_names = check_labels(
            _end_to_end(labels, starts, len(ids)), _class_names(first), len(ids)
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    source = HdfSource(tuple(file for _, file in files), tuple(starts), columns)
    name = printable(path.resolve().name if path.is_dir() else path.stem)
    left_out = _others(path, files) if path.is_dir() else ()
    return Catalog(name, source, ids, splits, numbers, class_names, first.parent, left_out)


def _others(folder: Path, files: list[tuple[str, Path]]) -> tuple[str, ...]:
    """A line for what else in a folder could be clouds, where there is anything."""
    found = look_through(folder)
    suffixes = Counter(Path(name).suffix.lower() for name in found.clouds)
    suffixes.update({suffix: found.others[suffix] for suffix in _SUFFIXES})
    suffixes.subtract(file.suffix.lower() for _, file in files)
    others = +suffixes
    were = "were" if others.total() > 1 else "was"
    taken = "the official .h5 files beside are taken for the data set"
    return (f"{counted_by_suffix(others)} {were} left out: {taken}",) if others else ()


def _end_to_end(
    labels: Sequence[NDArray[Any] | None], starts: Sequence[int], count: int
) -> NDArray[Any] | None:
    """The labels of all files, those of a file without any as `check_labels` knows them; None where no file has any."""
    known = next((label for label in labels if label is not None), None)
    if known is None:
        return None
    none = np.zeros((), known.dtype) if known.dtype.kind in "SU" else np.array(UNKNOWN)
    counts = np.diff([*starts, count])
    return np.concatenate(
        [
            np.full(clouds, none) if label is None else label
            for label, clouds in zip(labels, counts, strict=True)
        ]
    )


def _measure(file: Path, labelled: bool) -> tuple[int, NDArray[Any] | None]:
    """How many clouds a file holds, and their labels where they are asked for, (M,) or None."""
    with _opened(file) as content:
        if "data" not in content or len(content["data"].shape) != 3:
            found = ", ".join(f"{name} {getattr(content[name], 'shape', '')}" for name in content)
            wanted = "expected an array named data of shape (M, P, 3)"
            raise InputError(f"{file}: {wanted}, found {found or 'nothing'}")
        count = len(content["data"])
        label = content["label"][()] if labelled and "label" in content else None
    if label is None:
        return count, None
    if label.size != count:
        raise InputError(f"{file}: expected {count} labels, found {label.shape}")
    return count, label.reshape(-1)


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Any]]:
    """An .h5 file open for reading, or one line about why not."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{path}: reading .h5 needs h5py: pip install 'crossmost[io]'") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:  # h5py tells of a bad header and of a bad chunk differently
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path}: expected a readable .h5 file, found damage ({reason}): copy it again"
        ) from error


def _variants(folder: Path) -> Variants:
    """The official files in a folder, or in its split folders (`main_split`, ...), grouped by variant."""
    if not folder.is_dir():
        return {}
    if listed := _listed(folder):
        return {folder.name: listed}
    variants: Variants = {}
    for file in sorted(folder.glob("*.h5"), key=lambda path: natural_key(path.name)):
        split, variant = _split_and_variant(file)
        if variant:
            variants.setdefault(variant, []).append((split, file))
    if variants:
        return variants
    inner = sorted(path for path in folder.glob("*split*") if _SPLIT_FOLDER.fullmatch(path.name))
    return {f"{below.name}/{name}": files for below in inner for name, files in _variants(below).items()}


def _listed(folder: Path) -> list[tuple[str, Path]]:
    """The files that `train_files.txt` and `test_files.txt` list; they list them below another folder."""
    files = []
    for split in ("train", "test"):
        listing = folder / f"{split}_files.txt"
        if not listing.is_file():
            continue
        for line in listing.read_text("utf-8-sig", errors="replace").splitlines():
            file = folder / Path(line.strip()).name
            if file.suffix not in _SUFFIXES:
                continue
            if not file.is_file():
                raise InputError(f"{listing}: expected the file {file.name} beside it as it says, found none")
            files.append((split, file))
    return files


def _split_and_variant(file: Path) -> tuple[str, str]:
    """What a file's name tells, "" and "" for a name of another kind."""
    match = _SCANOBJECTNN.fullmatch(file.stem) or _MODELNET.fullmatch(file.stem)
    return (_SPLIT_OF[match["split"]], match["variant"]) if match else ("", "")


def _class_names(file: Path) -> list[str] | None:
    """Names in the order of the labels, or None where nothing tells."""
    if _SCANOBJECTNN.fullmatch(file.stem):
        return list(SCANOBJECTNN_CLASSES)
    listing = file.parent / "shape_names.txt"
    if not listing.is_file():
        return None
    lines = listing.read_text("utf-8-sig", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]
