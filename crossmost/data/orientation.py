"""The trainer's frame: every data set's clouds are turned so that z points up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossmost.errors import InputError
from crossmost.runtime.orientation import AXES, turn


def check_up_axis(axis: str) -> None:
    """Refuse what is no up axis.

    Raises:
        InputError: names the six there are.
    """
    if axis not in AXES:
        raise InputError(f"expected an up axis out of {', '.join(AXES)}, found {axis!r}")


def rotate_to_z_up(xyz: NDArray[np.float64], axis: str) -> NDArray[np.float64]:
    """Turn points so that the file's up axis becomes z, exactly.

    Args:
        xyz: (N, 3) float64.
        axis: the direction that points up in the file.

    Returns:
        (N, 3) float64.

    Raises:
        InputError: another axis than the six there are.
    """
    check_up_axis(axis)
    return turn(xyz, axis)
