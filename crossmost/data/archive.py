"""One .npz as a data set: `points` (N, P, 3 or more), optional rgb, labels, class_names, split, ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.data.catalog import UNKNOWN, Catalog, printable
from crossmost.data.columns import Cloud, cloud_from_array, require_real, with_colors
from crossmost.data.evidence import evenly
from crossmost.data.readers import COLOR_KEYS, POINTS_KEYS, colors_beside
from crossmost.data.splits import meant_splits
from crossmost.errors import InputError

FORM = "points (N, P, 3), optional rgb (N, P, 3), labels (N,), class_names (C,), split (N,), ids (N,)"


@dataclass(frozen=True)
class ArraySource:
    """Reads rows of arrays that are in memory: points, and their colours where those are an array of their own."""

    points: NDArray[Any]
    columns: str | None
    colors: NDArray[Any] | None = None

    def read(self, row: int) -> Cloud:
        """Read a row; float16 becomes float64 here and float32 once it is normalised."""
        cloud = cloud_from_array(self.points[row], self.columns)
        return cloud if self.colors is None else with_colors(cloud, self.colors[row])

    def evidence(self, rows: Sequence[int]) -> Iterator[bytes]:
        """The points and colours of some of the rows."""
        for row in evenly(rows):
            yield self.points[row].tobytes()
            if self.colors is not None:
                yield self.colors[row].tobytes()


def is_archive(path: Path) -> bool:
    """Whether a .npz holds many clouds (three-dimensional points) and not one."""
    return path.suffix.lower() == ".npz" and _points_key(path) is not None


def _points_key(path: Path) -> str | None:
    """The name of the three-dimensional points, from the array's header alone; None where there are none.

    The names are those that a single cloud may have, and any other where there is but one array.
    """
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            key = next((name for name in POINTS_KEYS if name in names), names[0] if len(names) == 1 else "")
            with archive.open(f"{key}.npy") as member:
                form = np.lib.format
                old = form.read_magic(member) == (1, 0)
                shape, _, _ = (form.read_array_header_1_0 if old else form.read_array_header_2_0)(member)
                return key if len(shape) == 3 else None
    except (KeyError, ValueError, OSError, zipfile.BadZipFile):
        return None  # the reader of single clouds says what is wrong with it


def catalog_archive(path: Path, *, columns: str | None, labelled: bool = True) -> Catalog:
    """Open an archive of clouds.

    `points` is read once and stays in memory as it is stored: N x P x 3 x 2 bytes for float16, e.g. 30 MB for
    4,887 clouds of 1,024 points, and 0.6 GB for 100,000. Forked workers share it. So does an array of colours.

    Args:
        path: a .npz with the arrays above. Without ids, rows are called `<stem>/<row>`; labels without
            class_names are called by their numbers. Texts may be stored as bytes, as h5py does. A split that is
            spelled Training, testing or the like is train or test; any other keeps its name.
        columns: see `readers.read_cloud`; where they are given, an array of colours is not looked at.
        labelled: whether labels are looked at; False leaves them out, whatever they are.

    Raises:
        InputError: pickled objects, or arrays that do not belong together.
    """
    key = _points_key(path) or "points"
    wanted = [key, "split", "ids"]
    if labelled:
        wanted += ["labels", "class_names"]
    arrays = _load(path, wanted)
    points, stem = arrays[key], printable(path.stem)
    try:
        require_real(points)
        count = len(points)
        ids = _texts(arrays, "ids", count) or [f"{stem}/{row}" for row in range(count)]
        if len(set(ids)) < count:
            twice = Counter(ids).most_common(1)[0][0]
            raise InputError(f"expected ids that differ, found {twice!r} twice")
        labels, class_names = check_labels(arrays.get("labels"), _names(arrays), count)
        splits = _train_and_test(_texts(arrays, "split", count) or [""] * count)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    colors = None if columns else _colors(path, points.shape[:2])
    return Catalog(stem, ArraySource(points, columns, colors), ids, splits, labels, class_names, path.parent)


def _load(path: Path, known: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those of the known arrays that the archive has."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in known if name in archive.files}
    except Exception as error:  # zip, zlib and NumPy each have errors of their own for damage
        reason = "it holds pickled Python objects" if "pickle" in str(error) else " ".join(str(error).split())
        raise InputError(
            f"{path}: expected a readable .npz with {FORM}, found damage ({reason}): write it again"
        ) from error


def _colors(path: Path, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Three numbers per point, or None where the archive does not hold them: other arrays may have these names."""
    found: dict[str, NDArray[Any]] = {}
    for name in (*COLOR_KEYS, *"RGB"):
        try:
            found |= _load(path, (name,))
        except InputError as error:
            if not isinstance(error.__cause__, ValueError):  # which pickled objects are: those are no colours
                raise
    one = {name: each for name, each in found.items() if each.shape == (*shape, 3)}
    return colors_beside(one or {name: each for name, each in found.items() if each.shape == shape})


def _texts(arrays: dict[str, NDArray[Any]], name: str, count: int) -> list[str] | None:
    """One string per cloud, or None where the archive does not hold them."""
    if name not in arrays:
        return None
    if arrays[name].shape != (count,):
        raise InputError(f"expected {name} of shape ({count},), found {arrays[name].shape}")
    return [_text(one) for one in arrays[name].tolist()]


def _train_and_test(splits: list[str]) -> list[str]:
    """Splits with those two called by their usual names, by which training and evaluation look for them."""
    meant = {name: split for name, split in meant_splits(set(splits)).items() if split in ("train", "test")}
    return [meant.get(name, name) for name in splits]


def _names(arrays: dict[str, NDArray[Any]]) -> list[str] | None:
    return (
        [_text(one) for one in np.ravel(arrays["class_names"]).tolist()] if "class_names" in arrays else None
    )


def _text(stored: object) -> str:
    """A text of an array, which may be kept as bytes; numbers as they are printed."""
    return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else str(stored)


def check_labels(
    labels: NDArray[Any] | None, names: list[str] | None, count: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Bring stored labels and class names to one form.

    Args:
        labels: (count,) or (count, 1) whole numbers, -1 for a cloud whose class nobody gave; or the names of the
            classes themselves, "" for none; or None.
        names: of the classes; None takes those that occur, and calls numbers "0", "1", ..., which no vocabulary
            will know.
        count: clouds.

    Returns:
        (count,) int64 labels, `UNKNOWN` where there are none, and the class names.

    Raises:
        InputError: another shape, neither whole numbers nor texts, or a label without a name.
    """
    if labels is None:
        return np.full(count, UNKNOWN, dtype=np.int64), ()
    if labels.shape in ((count,), (count, 1)) and labels.dtype.kind in "SU":
        labels, names = _numbered(labels, names)
    if labels.shape not in ((count,), (count, 1)) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"expected whole-number labels of shape ({count},), found {labels.dtype} {labels.shape}"
        )
    flat = labels.reshape(-1).astype(np.int64)
    class_names = tuple(names or map(str, range(int(flat.max(initial=-1)) + 1)))
    if len(flat) and (flat.min() < UNKNOWN or flat.max() >= len(class_names)):
        raise InputError(
            f"expected labels 0..{len(class_names) - 1} for the class names, found {flat.min()}..{flat.max()}"
        )
    if len(set(class_names)) < len(class_names):
        raise InputError("expected class names that differ, found one twice")
    return flat, class_names


def _numbered(labels: NDArray[Any], names: list[str] | None) -> tuple[NDArray[np.int64], list[str]]:
    """Labels that are class names as numbers into the names, which are those that occur where none are given."""
    texts = [_text(one) for one in labels.reshape(-1).tolist()]
    names = sorted(set(texts) - {""}) if names is None else names
    numbers = {"": UNKNOWN} | {name: number for number, name in enumerate(names)}
    strange = next((text for text in texts if text not in numbers), None)
    if strange is not None:
        raise InputError(f"expected labels out of the class names, found {strange!r}")
    return np.array([numbers[text] for text in texts], dtype=np.int64), names
