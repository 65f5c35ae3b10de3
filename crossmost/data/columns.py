"""What the columns of a file mean: from named or positional columns of any dtype to a `Cloud`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.errors import InputError
from crossmost.runtime.colors import NotColors, StoredColors, unit_colors

COLOR_NAMES = (
    ("red", "green", "blue"),
    ("r", "g", "b"),
    ("R", "G", "B"),
    ("diffuse_red", "diffuse_green", "diffuse_blue"),
)
PACKED_NAMES = ("rgb", "rgba")


@dataclass(frozen=True)
class Cloud:
    """The points of one file, as they are there: not normalised, not thinned, invalid points included.

    Attributes:
        xyz: (N, 3) float64, N >= 1, at least one point finite, in the file's own units and axes.
        rgb: (N, 3) float32 in [0, 1], or None where the file has no colour.
        stored_colors: range of the colours as the file has them, or None.
        sampled: whether the points were drawn from a mesh's faces.
    """

    xyz: NDArray[np.float64]
    rgb: NDArray[np.float32] | None = None
    stored_colors: StoredColors | None = None
    sampled: bool = False


def check_columns(columns: str | None) -> None:
    """Refuse a column description that does not say where x, y and z are.

    Args:
        columns: one letter a column out of `xyzrgb_`, '_' for one to ignore, e.g. "xyz__rgb"; or None.

    Raises:
        InputError: another letter, a letter twice, no x, y or z, or only some of r, g, b.
    """
    if columns is None:
        return
    letters = [letter for letter in columns if letter != "_"]
    rule = "expected columns like xyz, xyzrgb or xyz__rgb (one letter a column, '_' is ignored)"
    if set(letters) - set("xyzrgb") or len(letters) != len(set(letters)):
        raise InputError(f"{rule}, found {columns!r}")
    if not set("xyz") <= set(letters) or len(set("rgb") & set(letters)) not in (0, 3):
        raise InputError(f"{rule} with all of x, y, z and all or none of r, g, b, found {columns!r}")


def cloud_from_array(array: NDArray[Any], columns: str | None = None) -> Cloud:
    """Read a cloud out of an array whose columns have no names.

    Args:
        array: (N, 3) xyz, (N, 6) xyzrgb, or (N, C) with `columns`; any real dtype.
        columns: see `check_columns`; columns to the right of its last letter are ignored.

    Raises:
        InputError: not numbers, another shape, more letters than columns, or colours that are none.
    """
    check_columns(columns)
    require_real(array)
    if array.ndim != 2:
        hint = (
            "; many clouds in one file are a data set: a .npz with points (N, P, 3)"
            if array.ndim == 3
            else ""
        )
        raise InputError(f"expected an array of shape (N, 3 or 6), found {array.shape}{hint}")
    if columns is None:
        if array.shape[1] not in (3, 6):
            hint = (
                "transpose it" if array.shape[0] in (3, 6) else "say which columns count with --columns xyz"
            )
            raise InputError(f"expected an array of shape (N, 3 or 6), found {array.shape}: {hint}")
        columns = "xyzrgb"[: array.shape[1]]
    if len(columns) > array.shape[1]:
        raise InputError(f"expected {len(columns)} columns for --columns {columns}, found {array.shape[1]}")
    return cloud_from_fields({letter: array[:, i] for i, letter in enumerate(columns) if letter != "_"})


def cloud_from_fields(fields: Mapping[str, NDArray[Any]]) -> Cloud:
    """Read a cloud out of named columns.

    Args:
        fields: (N,) arrays by name: x, y, z (or X, Y, Z); colours by one of `COLOR_NAMES` or packed as rgb or
            rgba; further names are ignored.

    Raises:
        InputError: no x, y or z, no points, nothing finite, or colours that are none.
    """
    axes = "XYZ" if set("XYZ") <= set(fields) and not set("xyz") & set(fields) else "xyz"
    missing = [axis for axis in axes if axis not in fields]
    if missing:
        found = ", ".join(fields) or "none"
        raise InputError(f"expected the columns x, y and z, found {found}: {', '.join(missing)} missing")
    for axis in axes:
        require_real(fields[axis])
    xyz = np.stack([np.asarray(fields[axis], dtype=np.float64) for axis in axes], axis=1)
    require_points(xyz)
    raw = _stored_colors(fields)
    if raw is None:
        return Cloud(xyz)
    rgb, stored = decode_colors(raw)
    return Cloud(xyz, rgb, stored)


def with_colors(cloud: Cloud, colors: NDArray[Any]) -> Cloud:
    """The points of a cloud with the colours that an array of their own has.

    Raises:
        InputError: another shape than (N, 3), or colours that are none.
    """
    if colors.shape != cloud.xyz.shape:
        raise InputError(f"expected colours of shape {cloud.xyz.shape}, found {colors.shape}")
    rgb, stored = decode_colors(colors)
    return Cloud(cloud.xyz, rgb, stored)


def require_real(array: NDArray[Any]) -> None:
    """Refuse anything but real numbers, e.g. complex numbers, text or dates."""
    if not np.issubdtype(array.dtype, np.integer) and not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"expected real numbers, found dtype {array.dtype}")


def require_points(xyz: NDArray[np.float64]) -> None:
    """Refuse (N, 3) coordinates without one usable point."""
    if len(xyz) == 0:
        raise InputError("expected at least one point, found an empty cloud")
    if not np.isfinite(xyz).all(axis=1).any():
        raise InputError(f"expected at least one usable point, all {len(xyz)} hold NaN or infinity")


def decode_colors(raw: NDArray[Any]) -> tuple[NDArray[np.float32], StoredColors]:
    """Bring stored colours (N, 3) to [0, 1] as the runtime does; NaN is read as no colour.

    Raises:
        InputError: other than real numbers, or normals or coordinates instead of colours.
    """
    require_real(raw)
    try:
        return unit_colors(raw)
    except NotColors as error:
        raise InputError(
            f"{error}: if these columns are normals, leave them out with --columns xyz"
        ) from None


def color_names(fields: Collection[str]) -> tuple[str, ...] | None:
    """The names that red, green and blue have among some fields, or None where one of them is missing."""
    return next((names for names in COLOR_NAMES if set(names) <= set(fields)), None)


def _stored_colors(fields: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """The (N, 3) colours of named columns as stored, or None."""
    if names := color_names(fields):
        return np.stack([fields[name] for name in names], axis=1)
    for name in PACKED_NAMES:
        if name in fields:
            return unpack_colors(np.asarray(fields[name]))
    return None


def unpack_colors(packed: NDArray[Any]) -> NDArray[np.uint8]:
    """Split colours packed into one number, 0xAARRGGBB, the way PCL stores them.

    A float32 column holds the bits of that integer (PCL's habit), except where its values are themselves
    whole numbers of at most 24 bits, as ASCII writers print them: the bits of a 24-bit colour would be a
    number far below 1.

    Args:
        packed: (N,) of 4 or 8 bytes each.

    Returns:
        (N, 3) uint8 red, green, blue.
    """
    require_real(packed)
    if not packed.dtype.isnative:
        packed = packed.byteswap().view(packed.dtype.newbyteorder())
    bits: NDArray[Any] = packed.astype(np.int64) if np.issubdtype(packed.dtype, np.integer) else packed
    if np.issubdtype(packed.dtype, np.floating):
        finite = packed[np.isfinite(packed)]
        whole = len(finite) > 0 and finite.max() >= 1 and (finite >= 0).all() and (finite < 1 << 24).all()
        if whole or packed.dtype != np.float32:
            bits = np.nan_to_num(packed).astype(np.int64)
        else:
            bits = np.ascontiguousarray(packed).view(np.uint32)
    return np.stack([(bits >> shift) & 255 for shift in (16, 8, 0)], axis=1).astype(np.uint8)
