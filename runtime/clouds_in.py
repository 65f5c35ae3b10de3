"""Whatever a user holds, to prepared clouds: one, a list or a batch, of NumPy, DLPack or a GPU, in any up axis."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.colors import NotColors, unit_colors
from crossmost.runtime.device_arrays import INTERFACE, UnreadableArray, to_host
from crossmost.runtime.manifest import Encoder
from crossmost.runtime.orientation import AXES, turn
from crossmost.runtime.preprocess import InvalidCloud, check_cloud, drop_invalid, prepare_usable

COLORS = ("auto", "none")
ON_CPU = (1, 3, 13)
"""DLPack's numbers for memory the CPU reads: its own, and what CUDA pinned or manages."""


class Prepared(NamedTuple):
    """A cloud as the encoder wants it, how many invalid points it lost, and how many it had besides."""

    points: NDArray[np.float32]  # (n, C)
    dropped: int
    usable: int


@dataclass(frozen=True)
class CloudsIn:
    """How clouds become the encoder's input.

    Attributes:
        encoder: conventions of the encoder.
        up_axis: of the clouds: x, y, z, -x, -y or -z.
        color: auto takes colours where there are some and the encoder sees them, none leaves them out.
    """

    encoder: Encoder
    up_axis: str
    color: str = "auto"

    def __post_init__(self) -> None:
        if self.up_axis not in AXES:
            raise InvalidCloud(f"expected an up axis out of {', '.join(AXES)}, found {self.up_axis!r}")
        if self.color not in COLORS:
            raise InvalidCloud(f"expected color as {' or '.join(COLORS)}, found {self.color!r}")

    def prepare(self, points: Any) -> Prepared:
        """Check, drop, colour, turn, normalise, thin, fill and scatter one cloud.

        Args:
            points: (N, 3+) of any real dtype; see `Classifier` for what the further columns may be.

        Raises:
            InvalidCloud: it cannot be classified.
        """
        card = self.encoder
        cloud = check_cloud(as_array(points))
        columns = 3 if self.color == "none" else min(card.channels, cloud.shape[1])
        if columns == 6:
            try:
                colors, _ = unit_colors(_of_points(cloud), card.color_filler)
            except NotColors as error:
                raise InvalidCloud(f"{error} in columns 3 to 5: leave out columns that are none") from None
            cloud = np.concatenate([cloud[:, :3], colors], axis=1)
        # Before points are dropped: an intensity of NaN is no reason to.
        usable, dropped = drop_invalid(cloud[:, : 6 if columns == 6 else 3])
        count = len(usable)
        # Which points are kept, and their order, depend on the axes: they are chosen z up, as the trainer does.
        if self.up_axis != "z":
            usable = turn(usable, self.up_axis)
        if card.channels == 6 and columns < 6:
            filler = np.full((len(usable), 3), card.color_filler, np.float32)
            usable = np.concatenate([usable, filler], axis=1)
        points = prepare_usable(usable, most=card.points, least=card.least, scattered=card.radius is not None)
        if card.up_axis != "z":
            points = turn(points, "z", card.up_axis).astype(np.float32)
        return Prepared(points, dropped, count)


def _of_points(cloud: NDArray[Any]) -> NDArray[Any]:
    """The colors of a cloud (N, 6+), NaN where no point is: what stands there says nothing about the others."""
    lost = ~np.isfinite(cloud[:, :3]).all(axis=1)
    return np.where(lost[:, None], np.nan, cloud[:, 3:6]) if lost.any() else cloud[:, 3:6]


def split_clouds(points: Any) -> list[Any]:
    """Tell one cloud (N, C), a sequence of clouds and a batch (B, N, C) apart: always a list of clouds.

    A list of rows of numbers is one cloud.

    Raises:
        InvalidCloud: something else.
    """
    if isinstance(points, (list, tuple)):
        if not points:
            return []
        return list(points) if _depth(points[0]) >= 2 else [points]
    array = as_array(points)
    return list(array) if array.ndim == 3 else [array]


def as_array(points: Any) -> NDArray[Any]:
    """Bring an array to NumPy, without a copy where its memory is the CPU's.

    Raises:
        InvalidCloud: it is on a GPU and cannot be copied, or it cannot be read as an array.
    """
    if isinstance(points, np.ma.MaskedArray):  # what is masked is no point
        return np.ma.filled(points.astype(np.float64), np.nan)
    if isinstance(points, np.ndarray):
        return points
    try:
        if hasattr(points, INTERFACE):
            return to_host(points)
        if hasattr(points, "__dlpack__"):
            return _from_dlpack(points)
        array = np.asarray(points)
    except UnreadableArray as error:
        raise InvalidCloud(str(error)) from error
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidCloud(
            f"expected points of shape (N, 3), found a {type(points).__name__} that is no array: {reason}"
        ) from error
    if array.ndim == 0:
        raise InvalidCloud(f"expected points of shape (N, 3), found a {type(points).__name__}{_hint(points)}")
    return array


def _hint(points: Any) -> str:
    """How something that is no array becomes one, where that is known."""
    if hasattr(points, "fields") and hasattr(points, "point_step"):
        return ": crossmost.runtime.ros.cloud_from_message reads the message"
    if isinstance(points, (str, os.PathLike)):
        return ": read the file first, or give it to `crossmost predict`"
    return ""


def _from_dlpack(points: Any) -> NDArray[Any]:
    kind = int(points.__dlpack_device__()[0])
    if kind not in ON_CPU:
        raise UnreadableArray(
            f"expected points that the CPU can read, found a {type(points).__name__} on DLPack device {kind}: "
            "copy them to the CPU"
        )
    return np.from_dlpack(points)


def _depth(entry: Any) -> int:
    """Dimensions of an entry of a list: of an array, or of nested lists."""
    if isinstance(entry, (list, tuple)):
        return 1 + (_depth(entry[0]) if entry else 0)
    shape = getattr(entry, "shape", ())
    return len(shape) if isinstance(shape, Sequence) else 0
