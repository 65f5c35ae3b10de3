"""Farthest point sampling and nearest neighbours in NumPy (DESIGN section 6).

`crossmost.models.grouping` is the batched torch twin; a test holds the two to the same indices. All squared
distances are float32, summed x, y, z in this order, so that every implementation rounds alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def farthest_point_indices(points: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Choose `count` points, each the farthest from those chosen before.

    Starts at the point farthest from the origin, which is the centroid of a normalised cloud; ties go to
    the lowest index.

    Args:
        points: (N, 3+) float32, N >= count.
        count: at least 1.

    Returns:
        (count,) int64 indices into `points`.
    """
    x, y, z = (np.ascontiguousarray(points[:, axis]) for axis in range(3))
    indices = np.empty(count, dtype=np.int64)
    indices[0] = np.argmax(x * x + y * y + z * z)
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    delta, squared = np.empty_like(x), np.empty_like(x)
    for step in range(1, count):
        last = indices[step - 1]
        np.subtract(x, x[last], out=delta)
        np.multiply(delta, delta, out=squared)
        for axis in (y, z):
            np.subtract(axis, axis[last], out=delta)
            np.multiply(delta, delta, out=delta)
            np.add(squared, delta, out=squared)
        np.minimum(nearest, squared, out=nearest)
        indices[step] = np.argmax(nearest)
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
        delta = points[None, :, axis] - centers[:, axis, None]
        squared += delta * delta
    # The bits of a non-negative float32 order like the number: with the index below them every key is
    # unique and ties fall to the lowest index.
    keys = (squared.view(np.uint32).astype(np.uint64) << np.uint64(32)) | np.arange(
        len(points), dtype=np.uint64
    )
    if k < len(points):
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys.sort(axis=1)
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def group(
    points: NDArray[np.float32], groups: int, neighbors: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cut a cloud into overlapping patches around farthest-point centres.

    Args:
        points: (N, 3 or 6) float32 with N >= max(groups, neighbors); colours, if any, in columns 3 to 5.
        groups: G.
        neighbors: K.

    Returns:
        patches (G, K, 3 or 6), xyz relative to the centre, colours as they are; centers (G, 3).
    """
    centers = points[farthest_point_indices(points, groups), :3]
    patches = points[nearest_indices(points, centers, neighbors)]
    patches[:, :, :3] -= centers[:, None, :]
    return patches, centers
