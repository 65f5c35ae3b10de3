"""One file to one `Cloud`: which reader a suffix has, and one line for whatever is wrong with a file.

A new format is one function here (or one file) and one line in `_READERS`. The libraries behind the formats
are imported by the functions that need them: somebody who has .npy files needs none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from crossmost.data.catalog import printable
from crossmost.data.columns import Cloud, check_columns, cloud_from_array, cloud_from_fields, with_colors
from crossmost.data.meshes import read_mesh
from crossmost.data.pcd import read_fields
from crossmost.data.ply import read_ply
from crossmost.data.text import read_rows
from crossmost.errors import InputError

T = TypeVar("T")

# These two log what they also raise, and Python prints logs that nobody listens to: a bad file must end in
# one line.
for _library in ("laspy", "trimesh"):
    logging.getLogger(_library).addHandler(logging.NullHandler())

POINTS_KEYS = ("points", "xyz", "coords")
COLOR_KEYS = ("rgb", "colors", "color")
PICKLED = "pickled Python objects, which are never loaded: save plain arrays of numbers"


def read_cloud(path: Path, *, columns: str | None = None, samples: int = 8192) -> Cloud:
    """Read one cloud, or sample one mesh, from a file.

    Args:
        path: a file whose suffix is in `SUFFIXES`, upper or lower case.
        columns: meaning of the columns where a file need not name them (.npy, .npz, .xyz, .pts), e.g. "xyz",
            "xyzrgb", "xyz__rgb"; without it the names count that a file has, or three columns are xyz and six are
            xyzrgb.
        samples: points drawn from a mesh, uniformly by area, seeded by the file's name.

    Returns:
        The points as stored, invalid ones included.

    Raises:
        InputError: whatever is wrong with the file, in one line that begins with its path.
    """
    path = Path(path)
    shown = printable(str(path))
    try:
        check_columns(columns)
        return _reader(path)(path, columns, samples)
    except InputError as error:
        raise InputError(f"{shown}: {error}") from error
    except ImportError as error:
        # trimesh raises some of these anew, without the name.
        needed = error.name or str(error).removeprefix("No module named ").strip("'") or "another library"
        raise InputError(
            f"{shown}: reading {path.suffix} needs {needed}: pip install 'crossmost[io]'"
        ) from error
    except Exception as error:  # a parser meets damage anywhere in a file and raises anything at all
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        raise InputError(
            f"{shown}: expected a readable {path.suffix.lower()} file, found damage ({reason[:160]}): "
            "write or copy it again"
        ) from error


def _reader(path: Path) -> Callable[[Path, str | None, int], Cloud]:
    """The reader for a file that exists, has bytes, and has a known suffix."""
    if path.suffix.lower() not in _READERS:
        raise InputError(
            f"expected one of {' '.join(sorted(_READERS))}, found {path.suffix or 'no suffix'!r}"
        )
    if not path.is_file():
        raise InputError("expected a file, found " + ("a folder" if path.is_dir() else "nothing there"))
    if path.stat().st_size == 0:
        raise InputError("expected a cloud, found an empty file (0 bytes): write or copy it again")
    return _READERS[path.suffix.lower()]


def _read_npy(path: Path, columns: str | None, samples: int) -> Cloud:
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise InputError(f"expected a NumPy array, found other bytes, perhaps {PICKLED}")
    return _from_numpy(_plain(lambda: np.load(path, allow_pickle=False)), columns)


def _read_npz(path: Path, columns: str | None, samples: int) -> Cloud:
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        key = next((name for name in POINTS_KEYS if name in names), names[0] if len(names) == 1 else "")
        if not key:
            known = " or ".join(POINTS_KEYS)
            raise InputError(f"expected an array named {known}, found {', '.join(names) or 'none'}")
        points = _plain(lambda: archive[key])
        colors = _plain(lambda: colors_beside(archive))
    if points.ndim == 3:
        found = f"expected one cloud, found a data set of {len(points)}"
        raise InputError(f"{found}: give this file itself as the data, not a folder with it")
    cloud = _from_numpy(points, columns)
    return cloud if colors is None or columns is not None else with_colors(cloud, colors)


def colors_beside(archive: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """Colours beside the points, or None: one (..., 3) array, or R, G and B as point-e writes them."""
    for name in COLOR_KEYS:
        if name in archive:
            return archive[name]
    return np.stack([archive[name] for name in "RGB"], axis=-1) if set("RGB") <= set(archive) else None


def _plain(load: Callable[[], T]) -> T:
    """What `load` returns, or one line about the pickle that NumPy refused."""
    try:
        return load()
    except ValueError as error:
        if "pickle" in str(error):
            raise InputError(f"expected arrays of numbers, found {PICKLED}") from error
        raise


def _from_numpy(array: NDArray[Any], columns: str | None) -> Cloud:
    if array.dtype.names and columns is None:
        flat = array.reshape(-1)
        return cloud_from_fields({name: flat[name] for name in array.dtype.names})
    return cloud_from_array(array, columns)


def _read_ply(path: Path, columns: str | None, samples: int) -> Cloud:
    return read_ply(path, samples)


def _read_pcd(path: Path, columns: str | None, samples: int) -> Cloud:
    return cloud_from_fields(read_fields(path))


def _read_text(path: Path, columns: str | None, samples: int) -> Cloud:
    values, names = read_rows(path)
    if columns is not None or not set("xyz") <= set(names):
        return cloud_from_array(values, columns)
    fields: dict[str, NDArray[Any]] = {}
    for name, column in zip(names, values.T, strict=True):
        fields.setdefault(name, column)
    return cloud_from_fields(fields)


def _read_las(path: Path, columns: str | None, samples: int) -> Cloud:
    import laspy

    las = laspy.read(str(path))
    if len(las.points) != las.header.point_count:
        found = f"expected {las.header.point_count} points as its header says, found {len(las.points)}"
        raise InputError(f"{found}: copy it again")
    # x, y, z are scaled and offset in float64; X, Y, Z are the stored integers.
    fields = {axis: np.asarray(las[axis]) for axis in "xyz"}
    if "red" in las.point_format.dimension_names:
        colors = {name: np.asarray(las[name]) for name in ("red", "green", "blue")}
        if any(color.any() for color in colors.values()):  # writers without colours leave the fields at zero
            fields |= colors
    return cloud_from_fields(fields)


def _read_mesh(path: Path, columns: str | None, samples: int) -> Cloud:
    return read_mesh(path, samples)


_READERS: dict[str, Callable[[Path, str | None, int], Cloud]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".ply": _read_ply,
    ".pcd": _read_pcd,
    ".xyz": _read_text,
    ".pts": _read_text,
    ".las": _read_las,
    ".laz": _read_las,
    ".off": _read_mesh,
    ".obj": _read_mesh,
    ".stl": _read_mesh,
    ".glb": _read_mesh,
}

SUFFIXES = frozenset(_READERS)
"""What a data set's folder is searched for, lower case."""
