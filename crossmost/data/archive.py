"""One .npz as a data set: `points` (N, P, 3 or more), optional labels, class_names, split, ids."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.data.catalog import UNKNOWN, Catalog
from crossmost.data.columns import Cloud, cloud_from_array, require_real
from crossmost.errors import InputError

FORM = "points (N, P, 3), optional labels (N,), class_names (C,), split (N,), ids (N,)"


@dataclass(frozen=True)
class ArraySource:
    """Reads rows of one array that is in memory."""

    points: NDArray[Any]
    columns: str | None

    def read(self, row: int) -> Cloud:
        """Read a row; float16 becomes float64 here and float32 once it is normalised."""
        return cloud_from_array(self.points[row], self.columns)


def is_archive(path: Path) -> bool:
    """Whether a .npz holds many clouds (a three-dimensional `points`) and not one."""
    return path.suffix.lower() == ".npz" and _stored_ndim(path) == 3


def _stored_ndim(path: Path) -> int | None:
    """Dimensions of `points`, from its header alone; None where there is no such array."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive, archive.open("points.npy") as member:
            form = np.lib.format
            old = form.read_magic(member) == (1, 0)
            shape, _, _ = (form.read_array_header_1_0 if old else form.read_array_header_2_0)(member)
            return len(shape)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile):
        return None  # the reader of single clouds says what is wrong with it


def catalog_archive(path: Path, *, columns: str | None) -> Catalog:
    """Open an archive of clouds.

    `points` is read once and stays in memory as it is stored: N x P x 3 x 2 bytes for float16, e.g. 30 MB for
    4,887 clouds of 1,024 points, and 0.6 GB for 100,000. Forked workers share it.

    Args:
        path: a .npz with the arrays above. Without ids, rows are called `<stem>/<row>`; labels without
            class_names are called by their numbers.
        columns: see `readers.read_cloud`.

    Raises:
        InputError: pickled objects, or arrays that do not belong together.
    """
    arrays = _load(path)
    points = arrays["points"]
    try:
        require_real(points)
        count = len(points)
        ids = _texts(arrays, "ids", count) or [f"{path.stem}/{row}" for row in range(count)]
        if len(set(ids)) < count:
            twice = Counter(ids).most_common(1)[0][0]
            raise InputError(f"expected ids that differ, found {twice!r} twice")
        labels, class_names = check_labels(arrays.get("labels"), _names(arrays), count)
        splits = _texts(arrays, "split", count) or [""] * count
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Catalog(path.stem, ArraySource(points, columns), ids, splits, labels, class_names, path.parent)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of the archive that this project knows."""
    known = ("points", "labels", "class_names", "split", "ids")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in known if name in archive.files}
    except Exception as error:  # zip, zlib and NumPy each have errors of their own for damage
        reason = "it holds pickled Python objects" if "pickle" in str(error) else " ".join(str(error).split())
        raise InputError(
            f"{path}: expected a readable .npz with {FORM}, found damage ({reason}): write it again"
        ) from error


def _texts(arrays: dict[str, NDArray[Any]], name: str, count: int) -> list[str] | None:
    """One string per cloud, or None where the archive does not hold them."""
    if name not in arrays:
        return None
    if arrays[name].shape != (count,):
        raise InputError(f"expected {name} of shape ({count},), found {arrays[name].shape}")
    return [str(one) for one in arrays[name].tolist()]


def _names(arrays: dict[str, NDArray[Any]]) -> list[str] | None:
    return (
        None
        if "class_names" not in arrays
        else [str(one) for one in np.ravel(arrays["class_names"]).tolist()]
    )


def check_labels(
    labels: NDArray[Any] | None, names: list[str] | None, count: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Bring stored labels and class names to one form.

    Args:
        labels: (count,) or (count, 1) whole numbers, or None.
        names: of the classes; None calls them "0", "1", ..., which no vocabulary will know.
        count: clouds.

    Returns:
        (count,) int64 labels, `UNKNOWN` where there are none, and the class names.

    Raises:
        InputError: another shape, not whole numbers, or a label without a name.
    """
    if labels is None:
        return np.full(count, UNKNOWN, dtype=np.int64), ()
    if labels.shape not in ((count,), (count, 1)) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"expected whole-number labels of shape ({count},), found {labels.dtype} {labels.shape}"
        )
    flat = labels.reshape(-1).astype(np.int64)
    class_names = tuple(names or map(str, range(int(flat.max(initial=-1)) + 1)))
    if len(flat) and (flat.min() < 0 or flat.max() >= len(class_names)):
        raise InputError(
            f"expected labels 0..{len(class_names) - 1} for the class names, found {flat.min()}..{flat.max()}"
        )
    if len(set(class_names)) < len(class_names):
        raise InputError("expected class names that differ, found one twice")
    return flat, class_names
