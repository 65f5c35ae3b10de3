"""A folder of clouds and meshes as a data set: indexed with one walk over its names, nothing opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from crossmost.checkpoints.run_files import CLASSES, CONFIG
from crossmost.data.catalog import UNKNOWN, Catalog, printable
from crossmost.data.columns import Cloud
from crossmost.data.evidence import files_evidence
from crossmost.data.readers import SUFFIXES, read_cloud
from crossmost.data.splits import meant_splits
from crossmost.errors import InputError
from crossmost.runtime.manifest import MANIFEST
from crossmost.runtime.onnx_backend import GRAPH

VIEWS = "views"
MADE = ({CONFIG, CLASSES}, {MANIFEST, GRAPH})
"""Files that only a run has, and only a bundle: the arrays beside them are no clouds of the user's."""

COMPANIONS = frozenset(
    {".mtl", ".png", ".jpg", ".jpeg", ".tga", ".bmp", ".webp", ".md", ".json", ".yaml", ".yml", ".html"}
)
"""What lies beside clouds as a rule: materials and pictures of meshes, notes."""


@dataclass(frozen=True)
class FolderSource:
    """Reads files below a folder by their relative paths."""

    folder: Path
    files: tuple[str, ...]
    columns: str | None
    samples: int

    def read(self, row: int) -> Cloud:
        """Read the file of a row; see `readers.read_cloud`."""
        return read_cloud(self.folder / self.files[row], columns=self.columns, samples=self.samples)

    def evidence(self, rows: Sequence[int]) -> Iterator[bytes]:
        """Sizes of all files, and both ends of some of them."""
        return files_evidence([self.folder / self.files[row] for row in rows])


@dataclass
class Found:
    """What a walk comes across.

    Attributes:
        clouds: relative POSIX paths.
        others: files of other suffixes, counted by suffix in lower case.
        hdf: the first .h5 file, or None.
        closed: folders that may not be entered.
        made: folders that a command wrote.
    """

    clouds: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    hdf: str | None = None
    closed: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)


def catalog_folder(folder: Path, *, columns: str | None, samples: int) -> Catalog:
    """Index every cloud and mesh below a folder.

    100,000 files take 0.7 s and 40 MB (measured); a file is first opened when its cloud is loaded. Ids are
    relative paths without the suffix (with it where two files differ in nothing else). Names that begin
    with a dot are left out, and so are `views/`, runs and bundles.

    Folders named train, val or test, or as `splits.meant_splits` knows them, are splits where they are all that the
    root holds, where there are two of them (other folders beside them are left out then), or directly below a class
    folder (ModelNet's `<class>/train/*.off`). Otherwise the first folder of a path is its class: `<class>/...`,
    `<split>/<class>/...`, `<class>/<split>/...`. A file that no class folder holds has no class, and a selection
    with such a file has no labels at all: scores over the labelled part alone would pass for scores over the whole.

    Args:
        folder: an existing folder.
        columns: see `readers.read_cloud`.
        samples: points drawn from a mesh.

    Raises:
        InputError: no cloud below the folder.
    """
    found = look_through(folder)
    if not found.clouds:
        raise InputError(f"{printable(str(folder))}: {_nothing(folder, found)}")
    files = sorted(found.clouds)
    splits = _split_folders(files)
    beside = [file for file in files if splits and "/" in file and file.split("/")[0] not in splits]
    if beside:
        files = sorted(set(files) - set(beside))
    places = _places(files, splits)
    class_names = tuple(sorted({name for _, name in places if name}))
    index = {name: label for label, name in enumerate(class_names)}
    return Catalog(
        name=printable(folder.resolve().name),
        source=FolderSource(folder, tuple(files), columns, samples),
        ids=_ids(files),
        splits=[split for split, _ in places],
        labels=np.array([index[name] if name else UNKNOWN for _, name in places], dtype=np.int64),
        class_names=class_names,
        folder=folder,
        left_out=tuple(_left_out(found, beside, splits)),
    )


def catalog_file(path: Path, *, columns: str | None, samples: int) -> Catalog:
    """Make a data set of the one cloud in a file.

    Raises:
        InputError: a suffix that no reader has.
    """
    if path.suffix.lower() not in SUFFIXES:
        known = " ".join(sorted(SUFFIXES))
        raise InputError(f"{path}: expected one of {known} or .h5, found {path.suffix or 'no suffix'}")
    return Catalog(
        name=printable(path.stem),
        source=FolderSource(path.parent, (path.name,), columns, samples),
        ids=(printable(path.stem),),
        splits=("",),
        labels=np.array([UNKNOWN], dtype=np.int64),
        class_names=(),
        folder=path.parent,
    )


def is_split(name: str) -> bool:
    """Whether a folder of this name is a split where its neighbours are splits too."""
    return bool(meant_splits([name]))


def look_through(folder: Path) -> Found:
    """What lies below a folder, but for `views/` and names that begin with a dot."""
    found = Found()
    _walk(folder, "", frozenset(), found)
    return found


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]], found: Found) -> None:
    """Collect what lies below a folder; a link to one of the folders `above` it would lead round in a circle."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        if not prefix:
            raise
        found.closed.append(prefix)  # such as the lost+found of a disk
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    names = {entry.name for entry in inside}
    if prefix and any(made <= names for made in MADE):
        found.made.append(prefix)
        return
    for entry in inside:
        if entry.name.startswith((".", "__MACOSX")) or (not prefix and entry.name == VIEWS):
            continue
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in SUFFIXES and entry.is_file():
            found.clouds.append(prefix + entry.name)
        elif entry.is_dir():
            _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {here}, found)
        elif suffix not in COMPANIONS and entry.is_file():
            found.others[printable(suffix)] += 1
            if suffix in (".h5", ".hdf5") and found.hdf is None:
                found.hdf = prefix + entry.name


def _nothing(folder: Path, found: Found) -> str:
    """What to say of a folder without a cloud."""
    wanted = f"expected clouds or meshes ({' '.join(sorted(SUFFIXES))}), found none in it"
    if found.hdf is not None:
        return f"{wanted} but .h5 files of no official name: give one itself, {printable(str(folder / found.hdf))}"
    there = [counted_by_suffix(found.others)] if found.others else []
    if found.closed:
        there.append(f"folders that may not be entered ({', '.join(map(printable, found.closed))})")
    return f"{wanted} but {' and '.join(there)}" if there else wanted


def counted_by_suffix(suffixes: Counter[str]) -> str:
    """The most frequent suffixes with their numbers of files."""
    kinds = ", ".join(f"{count} {suffix or 'suffixless'}" for suffix, count in suffixes.most_common(5))
    return f"{kinds} file{'s' if suffixes.total() > 1 else ''}"


def _left_out(found: Found, beside: list[str], splits: Mapping[str, str]) -> Iterator[str]:
    """A line each for folders that stay closed, runs and bundles, files of other formats, folders beside the splits."""
    if found.closed:
        yield f"{', '.join(map(printable, found.closed))} left out: permission denied"
    if found.made:
        yield f"{', '.join(map(printable, found.made))} left out: a run or bundle of crossmost"
    others = found.others
    if others:
        were = "were" if others.total() > 1 else "was"
        yield f"{counted_by_suffix(others)} {were} left out: not a format that is read"
    if beside:
        folders = ", ".join(f"{name}/" for name in sorted({printable(file.split("/")[0]) for file in beside}))
        taken = ", ".join(f"{name}/" for name in sorted(splits))
        yield f"{folders} ({len(beside)} clouds) left out: {taken} beside it are taken for splits"


def _split_folders(files: Sequence[str]) -> dict[str, str]:
    """The folders of the root that are splits, and which."""
    tops = {file.split("/")[0] for file in files if "/" in file}
    splits = meant_splits(tops)
    # A folder named train among folders named airplane and bus is a class of toy trains.
    certain = splits.keys() == tops or len(set(splits.values())) > 1
    return splits if certain else {}


def _places(files: Sequence[str], splits: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """The split ("" for none) and the class (None for none) that each path tells."""
    below = meant_splits({file.split("/")[1] for file in files if file.count("/") > 1})
    places: list[tuple[str, str | None]] = []
    for file in files:
        parts = [printable(part) for part in file.split("/")[:-1]]
        if parts and splits:
            places.append((splits[parts[0]], parts[1] if len(parts) > 1 else None))
        elif len(parts) > 1 and parts[1] in below:
            places.append((below[parts[1]], parts[0]))
        else:
            places.append(("", parts[0] if parts else None))
    return places


def _ids(files: Sequence[str]) -> list[str]:
    """Paths without suffix, with it where it alone tells two files apart, and with a number where nothing does."""
    whole = [printable(file) for file in files]
    ids = [str(PurePosixPath(file).with_suffix("")) for file in whole]
    while True:
        count = Counter(ids)
        longer = [full if count[one] > 1 else one for one, full in zip(ids, whole, strict=True)]
        if longer == ids:
            break
        ids = longer  # a.npy.npy without its suffix may be another's whole name
    taken: set[str] = set()
    for place, one in enumerate(ids):
        number = 2
        while ids[place] in taken:  # bytes that cannot be printed told them apart
            ids[place] = f"{one} ({number})"
            number += 1
        taken.add(ids[place])
    return ids
