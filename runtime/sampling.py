"""Farthest point sampling, nearest neighbours and balls in NumPy.

`crossmost.models.grouping` is the batched torch twin; a test holds the two to the same indices. All squared
distances are float32, summed x, y, z in this order, so that every implementation rounds alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCKS = 8
"""Blocks a neighbour that `smallest_indices` cuts a row into: fewer let more numbers pass, more take longer."""

ROWS = 64
"""Rows it takes at once, which bounds its memory where many distances are equal."""

RADII = (1e-18, 1e18)
"""The least and the largest radius of a ball: the squares of all between them are ordinary float32 numbers."""


def farthest_point_indices(
    points: NDArray[np.float32], count: int, squared: NDArray[np.float32] | None = None
) -> NDArray[np.int64]:
    """Choose `count` points, each the farthest from those chosen before.

    Starts at the point farthest from the origin, which is the centroid of a normalised cloud; ties go to
    the lowest index.

    Args:
        points: (N, 3+) float32, N >= count.
        count: at least 1.
        squared: output, (count, N) float32: the squared distances from each choice to all points, which are
            made on the way; None if not wanted.

    Returns:
        (count,) int64 indices into `points`.
    """
    xyz = np.ascontiguousarray(points[:, :3].T)  # (3, N): a step is a few calls over long rows
    delta, row = np.empty_like(xyz), np.empty_like(xyz[0])
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    indices = np.empty(count, dtype=np.int64)
    indices[0] = _squared_lengths(xyz, delta, row).argmax()
    for step in range(count):
        np.subtract(xyz, xyz[:, indices[step], None], out=delta)
        found = _squared_lengths(delta, delta, row if squared is None else squared[step])
        if step + 1 < count:
            np.minimum(nearest, found, out=nearest)
            indices[step + 1] = nearest.argmax()
    return indices


def nearest_indices(points: NDArray[np.float32], centers: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Find the `k` points nearest to each centre, nearest first, ties to the lowest index.

    Args:
        points: (N, 3+) float32, N >= k.
        centers: (G, 3) float32.
        k: at least 1.

    Returns:
        (G, k) int64 indices into `points`.
    """
    squared = np.zeros((len(centers), len(points)), dtype=np.float32)
    for axis in range(3):
        delta = np.ascontiguousarray(points[:, axis]) - centers[:, axis, None]
        squared += np.multiply(delta, delta, out=delta)
    return smallest_indices(squared, k)


def smallest_indices(squared: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Find the `k` smallest numbers of each row, smallest first, ties to the lowest index.

    Args:
        squared: (G, N) float32, C-contiguous, not negative.
        k: 1 to N.

    Returns:
        (G, k) int64 indices into the rows.
    """
    found = np.empty((len(squared), k), dtype=np.int64)
    for start in range(0, len(squared), ROWS):
        found[start : start + ROWS] = _smallest(squared[start : start + ROWS], k)
    return found


def squared_radius(radius: float) -> np.float32:
    """The number that squared distances are compared with: the square in float64, rounded to float32 once.

    Raises:
        ValueError: a radius outside `RADII`.
    """
    if not RADII[0] <= radius <= RADII[1]:
        raise ValueError(f"expected a radius from {RADII[0]:g} to {RADII[1]:g}, found {radius}")
    return np.float32(radius * radius)


def ball_indices(squared: NDArray[np.float32], k: int, radius: float) -> NDArray[np.int64]:
    """Find the first `k` points of each ball, by index, whatever their distance; a point at the radius is inside.

    What is missing to `k` is the first one again. As published for OpenShape, the answer depends on the order of the
    points where a ball holds more than `k` of them: the later ones are left out, near or not.

    Args:
        squared: (G, N) float32, the squared distances from each centre to all points, the centre itself among them.
        k: at least 1.
        radius: of the balls, in the unit of the points.

    Returns:
        (G, k) int64 indices into the rows.
    """
    rows = np.arange(len(squared))[:, None] * squared.shape[1]
    # As published, a point is left out for being farther, so that no ball is empty, not even of numbers that are NaN.
    inside = np.flatnonzero(~(squared > squared_radius(radius)))
    first, end = np.searchsorted(inside, rows), np.searchsorted(inside, rows + squared.shape[1])
    place = first + np.arange(k)
    return inside[np.where(place < end, place, first)] - rows


def _smallest(squared: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """`smallest_indices` of a few rows; where many numbers are equal it sorts all of them."""
    rows, points = squared.shape
    # The k-th smallest of some blocks' minima is at least the k-th smallest of all: what is above it is out. A
    # block's members are far apart in the row, because neighbours in a row tend to be neighbours in space.
    blocks = min(points, BLOCKS * k)
    whole = squared[:, : points // blocks * blocks].reshape(rows, -1, blocks)
    minima = np.minimum.reduce(whole, axis=1)
    minima.partition(k - 1, axis=1)
    flat = np.flatnonzero(squared <= minima[:, k - 1, None])
    row = flat // points
    counts = np.bincount(row, minlength=rows)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    # The bits of a non-negative float32 order like the number: with the index below them every key is
    # unique and ties fall to the lowest index.
    bits = squared.reshape(-1)[flat].view(np.uint32).astype(np.uint64)
    keys = np.full((rows, counts.max()), np.iinfo(np.uint64).max)
    keys[row, place] = (bits << np.uint64(32)) | (flat - row * points).astype(np.uint64)
    keys.sort(axis=1)
    return (keys[:, :k] & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _squared_lengths(
    xyz: NDArray[np.float32], squares: NDArray[np.float32], out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Squared lengths of the columns of (3, N), summed x, y, z, into `out` (N,); `squares` (3, N) is overwritten."""
    np.multiply(xyz, xyz, out=squares)
    np.add(squares[0], squares[1], out=out)
    return np.add(out, squares[2], out=out)


def group(
    points: NDArray[np.float32], groups: int, neighbors: int, radius: float | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cut a cloud into overlapping patches around farthest-point centres.

    Args:
        points: (N, 3 or 6) float32 with N >= max(groups, neighbors); colours, if any, in columns 3 to 5.
        groups: G.
        neighbors: K.
        radius: a patch is the first K points of a ball, see `ball_indices`; None for the K nearest.

    Returns:
        patches (G, K, 3 or 6), xyz relative to the centre, colours as they are; centers (G, 3).
    """
    squared = np.empty((groups, len(points)), dtype=np.float32)
    centers = points[farthest_point_indices(points, groups, squared), :3]
    if radius is None:
        patches = points[smallest_indices(squared, neighbors)]
    else:
        patches = points[ball_indices(squared, neighbors, radius)]
    patches[:, :, :3] -= centers[:, None, :]
    return patches, centers
