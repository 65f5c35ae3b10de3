"""From a sensor's cloud to the normalised cloud the encoder was trained on.

This is the only implementation: the trainer imports it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.errors import InvalidInput

MORTON_BITS = 10
"""Bits an axis of the space-filling curve that `thin` walks along: a grid of 1024 cells a side."""

MORTON_STEPS = ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249))
"""Shifts and masks that move ten bits apart, two empty ones behind each."""

INDEX_BITS = 32
"""Of a number for a point's index; the code of its cell stands above it."""

MIXERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
"""Odd numbers that make one number of three coordinates; different places seldom give the same."""
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
"""Multiples of it, without their whole part, fill an interval as evenly as any sequence does."""

FAR = 0.5
"""Of a cloud's diagonal: from here on what stands at (0, 0, 0) is no part of it."""

LARGEST = 2.0**960
"""Of coordinates: sums and differences of larger ones could leave the range of float64."""

REAL = "biuf"
"""Kinds of dtypes that hold real numbers."""

MOST_COLUMNS = 9
"""So few points (xyz, rgb, normals), with more columns than that, are a transposed cloud."""


class InvalidCloud(InvalidInput):
    """A cloud that cannot be classified; the message says what was expected and what was found."""


def check_cloud(points: Any) -> NDArray[Any]:
    """Return `points` as an (N, 3+) numeric array, or say what is wrong with it.

    Args:
        points: anything NumPy reads as an array: (N, 3) xyz, further columns allowed.

    Raises:
        InvalidCloud: not two-dimensional, fewer than three columns, not numbers, or no point at all.
    """
    try:
        cloud = np.asarray(points)
    except ValueError as error:
        raise InvalidCloud(
            f"expected points of shape (N, 3), found rows of different lengths: {error}"
        ) from error
    transposed = cloud.ndim == 2 and (
        (cloud.shape[0] == 3 and cloud.shape[1] < 3) or 3 <= cloud.shape[0] <= MOST_COLUMNS < cloud.shape[1]
    )
    if cloud.dtype.names:
        raise InvalidCloud(
            f"expected points of shape (N, 3), found an array of the fields {', '.join(cloud.dtype.names)}: "
            "crossmost.runtime.ros.cloud_from_message reads the message itself"
        )
    if cloud.ndim != 2 or cloud.shape[1] < 3 or transposed:
        hint = "; transpose it" if transposed else ""
        raise InvalidCloud(f"expected points of shape (N, 3), found {cloud.shape}{hint}")
    if cloud.dtype.kind not in REAL:
        raise InvalidCloud(f"expected real numbers, found dtype {cloud.dtype}")
    if len(cloud) == 0:
        raise InvalidCloud("expected at least one point, found an empty cloud")
    if (
        cloud.dtype == np.longdouble and cloud.dtype.itemsize > 8
    ):  # what leaves the range of float64 is infinite
        with np.errstate(over="ignore"):
            return cloud.astype(np.float64)
    return cloud


def drop_invalid(points: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Remove the points that hold NaN or infinity, and those at (0, 0, 0) if all others are far from it.

    Many sensors write zeros where nothing came back. One such point would be the farthest of all, and the cloud would
    be scaled to a dot beside it. What is but zeros is left as it is: a cloud of equal points.

    Args:
        points: (N, 3+).

    Returns:
        The usable points, (n, C) in their own dtype, and how many were dropped.

    Raises:
        InvalidCloud: no usable point is left.
    """
    finite = _finite(points)
    usable = _returned(finite)
    return usable, len(points) - len(usable)


def _finite(points: NDArray[Any]) -> NDArray[Any]:
    if not np.issubdtype(points.dtype, np.floating):
        return points
    finite = np.isfinite(points)
    if finite.all():
        return points
    usable = finite.all(axis=1)
    if not usable.any():
        raise InvalidCloud(f"expected at least one usable point, all {len(points)} hold NaN or infinity")
    return points[usable]


def _returned(points: NDArray[Any]) -> NDArray[Any]:
    """The points less those at the origin, if the box of the others is farther from it than half the box's diagonal.

    The tip of a cone that stands on the origin is nearer.
    """
    at_origin = points[:, 0] == 0
    if not at_origin.any():
        return points
    at_origin &= (points[:, 1] == 0) & (points[:, 2] == 0)
    if at_origin.all() or not at_origin.any():
        return points
    others = points[~at_origin]
    low, high = (of(others[:, :3], axis=0).astype(np.float64) for of in (np.min, np.max))
    gap, diagonal = np.hypot.reduce(np.maximum(0, np.maximum(low, -high))), np.hypot.reduce(high - low)
    return others if gap > FAR * diagonal > 0 else points


def normalize(xyz: NDArray[Any]) -> NDArray[np.float32]:
    """Move the centroid to the origin and the farthest point to distance one.

    In float64, then float32, so that georeferenced coordinates keep their digits. A cloud whose points
    are all equal becomes all zeros.

    Args:
        xyz: (N, 3), finite.

    Returns:
        (N, 3) float32 in the unit sphere.
    """
    exact = np.array(xyz.T, dtype=np.float64, order="C")  # (3, N): reductions run along the rows
    if max(exact.max(), -exact.min()) > LARGEST:
        exact *= 2.0**-60
    # The smallest goes first: the mean of equal numbers rounds, and what is left would be scaled up.
    exact -= exact.min(axis=1, keepdims=True)
    # Rows of this very layout, whatever that of the input was, so that the bits are always the same.
    exact -= exact.sum(axis=1, keepdims=True) / exact.shape[1]
    # The largest coordinate is taken out first: squares of very large or very small coordinates would
    # leave the range of float64.
    extent = max(exact.max(), -exact.min())
    if extent > 0:
        exact /= extent
        squared = exact * exact
        exact /= np.sqrt((squared[0] + squared[1] + squared[2]).max())
    normalized = np.empty((exact.shape[1], 3), np.float32)
    for axis in range(3):  # a transposed copy takes three times as long
        normalized[:, axis] = exact[axis]
    return normalized


def _spread_bits() -> NDArray[np.int64]:
    """(1024,) cell coordinates with their bits moved apart, two empty ones behind each."""
    cells = np.arange(1 << MORTON_BITS, dtype=np.int64)
    for shift, mask in MORTON_STEPS:
        cells = (cells | (cells << shift)) & mask
    return cells


SPREAD = _spread_bits()


def morton_codes(xyz: NDArray[np.float32]) -> NDArray[np.int64]:
    """Place each point of the unit sphere on a space-filling (Morton) curve.

    Args:
        xyz: (N, 3) in [-1, 1].

    Returns:
        (N,) int64: the interleaved bits of the three cell coordinates.
    """
    side = 1 << MORTON_BITS
    codes = np.zeros(len(xyz), dtype=np.int64)
    for axis in range(3):
        cells = np.clip((xyz[:, axis].astype(np.float64) + 1.0) * (side / 2), 0, side - 1).astype(np.intp)
        codes |= SPREAD.take(cells) << axis
    return codes


def thin(points: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Keep `count` points, evenly spaced along a space-filling curve.

    Deterministic and independent of the order of the points; dense parts stay denser, as in the cloud.

    Args:
        points: (N, C) float32, the first three columns normalised.
        count: at least 1.

    Returns:
        (min(N, count), C) float32.
    """
    if len(points) <= count:
        return points
    order, cells = _walk(points)
    picked = (np.arange(count, dtype=np.int64) * len(points)) // count
    # Only the order within cells that something is picked from matters.
    wanted = np.unique(cells[picked[_crowded(cells)[picked]]])
    edges = np.zeros(len(points) + 1, dtype=np.int64)
    edges[np.searchsorted(cells, wanted, "left")] += 1
    edges[np.searchsorted(cells, wanted, "right")] -= 1
    _sort_within(order, cells, points, np.flatnonzero(edges.cumsum()[:-1]))
    return points.take(order[picked], axis=0)


def _along_curve(points: NDArray[np.float32]) -> NDArray[np.int64]:
    """Indices (N,) that walk points (N, C) along the curve, those of one cell by their columns."""
    order, cells = _walk(points)
    _sort_within(order, cells, points, np.flatnonzero(_crowded(cells)))
    return order


def _walk(points: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (N,) that walk points (N, C) from cell to cell along the curve, and the code of each one's cell.

    Codes have 30 bits, so code and index make one number, and numbers sort faster than an argsort does.
    """
    walked = (morton_codes(points[:, :3]) << INDEX_BITS) | np.arange(len(points), dtype=np.int64)
    walked.sort()
    return walked & ((1 << INDEX_BITS) - 1), walked >> INDEX_BITS


def _crowded(cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the points that a walk meets, (N,), share their cell: few, as a rule."""
    alike = np.zeros(len(cells) + 1, dtype=bool)
    alike[1:-1] = cells[1:] == cells[:-1]
    return alike[:-1] | alike[1:]


def _sort_within(
    order: NDArray[np.int64], cells: NDArray[np.int64], points: NDArray[np.float32], places: NDArray[np.int64]
) -> None:
    """Sort a walk at `places`, which are whole cells: points of a cell follow their columns, the last one first."""
    members = order[places]
    order[places] = members[np.lexsort((*points[members].T, cells[places]))]


def fill(points: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Repeat points in turn until there are `count`, as `model.onnx` does; `prepare` spreads repetitions evenly."""
    if len(points) >= count:
        return points
    return points[np.arange(count) % len(points)]


def repeat_evenly(points: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Repeat points until there are `count`, those that come once more than others evenly spread over the cloud.

    Deterministic and independent of the order of the points.

    Args:
        points: (N, C) float32, the first three columns normalised.
        count: at least N.

    Returns:
        (count, C) float32, along the space-filling curve of `thin`.
    """
    order = _along_curve(points)
    return points.take(order[(np.arange(count, dtype=np.int64) * len(points)) // count], axis=0)


def scatter(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Order points so that the first few of any region are spread over it, as in the clouds of the published encoders.

    Ball query takes the first K points of a ball. Along a space-filling curve, or in a sensor's own order, those are
    one side of it. Deterministic and independent of the order of the points.

    Args:
        points: (N, C) float32, the first three columns normalised.

    Returns:
        (N, C) float32: the curve of `thin`, walked in steps of the golden ratio.
    """
    count = len(points)
    order = _along_curve(points)
    step = max(1, round(count * GOLDEN))
    while math.gcd(step, count) > 1:
        step += 1
    return points.take(order[(np.arange(count, dtype=np.int64) * step) % count], axis=0)


def prepare(points: Any, *, most: int, least: int = 1, scattered: bool = False) -> NDArray[np.float32]:
    """Everything between a raw cloud and sampling: check, drop, normalise, thin, fill, scatter.

    Args:
        points: (N, 3) xyz or (N, 6) xyz and rgb, any real dtype; colours pass through unchanged.
        most: points kept of a larger cloud: the card's N.
        least: points a smaller cloud is filled up to: the larger of the card's G and K.
        scattered: order them by `scatter`, for an encoder that groups by balls.

    Returns:
        (n, 3 or 6) float32 with least <= n, and n <= max(most, least).

    Raises:
        InvalidCloud: see `check_cloud` and `drop_invalid`.
    """
    usable, _ = drop_invalid(check_cloud(points))
    return prepare_usable(usable, most=most, least=least, scattered=scattered)


def prepare_usable(
    points: NDArray[Any], *, most: int, least: int = 1, scattered: bool = False
) -> NDArray[np.float32]:
    """`prepare` for a cloud that was checked, with its unusable points dropped."""
    normalized = normalize(points[:, :3])
    if points.shape[1] > 3:
        normalized = np.concatenate([normalized, points[:, 3:].astype(np.float32)], axis=1)
    kept = thin(normalized, most)
    if len(kept) >= least and not _differ(kept, least):
        # Padded by repetition: what is left of the patches would be of whatever point came first.
        kept = np.unique(kept, axis=0)
    filled = kept if len(kept) >= least else repeat_evenly(kept, least)
    return scatter(filled) if scattered else filled


def _differ(points: NDArray[np.float32], least: int) -> bool:
    """Whether at least so many points are in different places; as a rule the first ones are."""
    for count in (least, 2 * least, len(points)):
        first = points[:count, :3] + np.float32(0.0)  # zeros without a sign, and rows without gaps
        mixed = first.view(np.uint32).astype(np.uint64) @ MIXERS  # equal where places are
        if len(np.unique(mixed)) >= least:
            return True
    return len(np.unique(points[:, :3], axis=0)) >= least
