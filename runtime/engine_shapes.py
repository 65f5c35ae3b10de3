"""The shapes that clouds are padded to, so that few CUDA graphs serve all, and where each tensor of one lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

FEWEST_POINTS = 256
ALIGNMENT = 256
"""Of every tensor's address, as cuMemAlloc gives it and TensorRT wants it."""


class Shape(NamedTuple):
    """Clouds in a batch, and points in each, both padded."""

    batch: int
    points: int


def padded_batch(count: int, least: int, most: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on: at most half of a batch is padding, mostly far less.

    Args:
        count: clouds, at most `most`.
        least: the smallest batch the engine takes.
        most: the largest.
    """
    power = 1 << (count - 1).bit_length()
    size = power * 3 // 4 if count <= power * 3 // 4 else power
    return min(max(size, least), most)


def padded_points(count: int, most: int) -> int:
    """The next power of two from 256 on; the kernels look at the real points only.

    Args:
        count: points of the largest cloud, at most `most`.
        most: points of the largest cloud there can be.
    """
    size = FEWEST_POINTS
    while size < count:
        size *= 2
    return min(size, most)


def chunks(count: int, most: int) -> Iterator[slice]:
    """Cut so many clouds into batches the engine takes, all but the last of the largest size."""
    return (slice(start, min(start + most, count)) for start in range(0, count, most))


def offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where tensors of these sizes in bytes start when they lie one after another, and the size of all."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return starts, end
