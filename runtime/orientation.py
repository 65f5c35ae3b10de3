"""Turning clouds from one up axis to another: a rotation, never a swap of two axes.

The exception is an encoder that was itself trained on clouds whose axes had been swapped, which mirrored them: its own
frame is z up and mirrored, and clouds are mirrored for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

AXES = ("x", "y", "z", "-x", "-y", "-z")
"""The directions that may point up."""
MIRRORED = "z-mirrored"
FRAMES = (*AXES, MIRRORED)
"""The frames of encoders: an axis, or z up with y turned over."""

# Rows are the images of nothing but signed axes, so that a rotation costs no rounding at all.
_TO_Z = {
    "x": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "y": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "-x": ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    "-y": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "-z": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    MIRRORED: ((1, 0, 0), (0, -1, 0), (0, 0, 1)),
}


def rotation(up: str, to: str = "z") -> NDArray[np.float64]:
    """The quarter and half turns that take the up axis `up` to `to`, by way of z.

    x, -x turn about y; y, -y and -z turn about x: `y` to z is the +90 degree turn that takes (x, y, z) to
    (x, -z, y). Swapping y and z instead would mirror the object.

    Args:
        up: of `FRAMES`.
        to: of `FRAMES`.

    Returns:
        (3, 3) float64 with determinant +1, or -1 if one of the frames is mirrored; `points @ rotation.T` turns (N, 3)
        points.

    Raises:
        KeyError: another frame.
    """
    return np.array(_TO_Z[to], dtype=np.float64).T @ np.array(_TO_Z[up], dtype=np.float64)


def signed_columns(up: str, to: str = "z") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A rotation as what it does to columns: which three to take, and the sign of each; see `rotation`."""
    matrix = rotation(up, to)
    return np.abs(matrix).argmax(axis=1), matrix.sum(axis=1)


def turn(points: NDArray[Any], up: str, to: str = "z") -> NDArray[np.float64]:
    """Rotate points, exactly: columns are picked and negated, so that a NaN stays in its place.

    Args:
        points: (N, 3+); the first three columns are x, y, z, the others stay as they are.
        up: of `FRAMES`.
        to: of `FRAMES`.

    Returns:
        (N, 3+) float64 in C order: a sum over points rounds differently over another memory layout.

    Raises:
        KeyError: another frame.
    """
    columns, signs = signed_columns(up, to)
    turned = np.array(points, dtype=np.float64, order="C")
    turned[:, :3] = points[:, columns] * signs
    return turned
