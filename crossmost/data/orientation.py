"""Turning a cloud so that its up axis is z, and nothing else: always a rotation, never a swap of two axes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossmost.errors import InputError

UP_AXES = ("x", "y", "z", "-x", "-y", "-z")
"""What `--up-axis` takes: the direction that points up in the file."""

# Rows are the images of nothing but signed axes, so that a rotation costs no rounding at all.
_ROTATIONS = {
    "x": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "y": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "-x": ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    "-y": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "-z": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
}


def rotation_to_z_up(axis: str) -> NDArray[np.float64]:
    """Return the quarter or half turn that takes the up axis of a file to z.

    x, -x turn about y; y, -y and -z turn about x: `y` is the +90 degree turn that takes (x, y, z) to
    (x, -z, y). Swapping y and z instead would mirror the object.

    Args:
        axis: one of `UP_AXES`.

    Returns:
        (3, 3) float64 with determinant +1; `points @ rotation.T` turns (N, 3) points.

    Raises:
        InputError: another axis.
    """
    if axis not in _ROTATIONS:
        raise InputError(f"expected an up axis out of {', '.join(UP_AXES)}, found {axis!r}")
    return np.array(_ROTATIONS[axis], dtype=np.float64)


def rotate_to_z_up(xyz: NDArray[np.float64], axis: str) -> NDArray[np.float64]:
    """Turn points so that the file's up axis becomes z, exactly.

    Columns are picked and negated rather than multiplied out: a matrix product would spread one NaN over
    its point's other coordinates, and cost time on a cloud of millions.

    Args:
        xyz: (N, 3) float64.
        axis: one of `UP_AXES`.

    Returns:
        (N, 3) float64, equal to `xyz @ rotation_to_z_up(axis).T`.

    Raises:
        InputError: another axis.
    """
    rotation = rotation_to_z_up(axis)
    source = np.abs(rotation).argmax(axis=1)
    # Contiguous rows: a sum over points rounds differently over another memory layout.
    return np.ascontiguousarray(xyz[:, source] * rotation.sum(axis=1))
