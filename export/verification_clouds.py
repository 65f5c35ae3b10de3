"""The clouds a verification runs on: as they are given, as the graphs are fed, and in which batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossmost.errors import InputError
from crossmost.models.point_cards import PointCard
from crossmost.runtime.orientation import turn
from crossmost.runtime.preprocess import fill, normalize, scatter, thin
from crossmost.runtime.sampling import farthest_point_indices, group

PART = 4
"""Clouds run at the smallest batch, where each costs the most."""


@dataclass(frozen=True, eq=False)
class VerificationClouds:
    """Real clouds, prepared for the encoder as a dataset's `load` does.

    Attributes:
        name: where they are from, for reports.
        ids: n of them, one a cloud.
        points: n arrays (n_i, C) float32.
        labels: (n,) int64 positions in the class bank, -1 where a label is unknown; or None.
    """

    name: str
    ids: tuple[str, ...]
    points: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise InputError(f"{self.name}: expected at least one cloud to verify with, found none")
        if len(self.ids) != len(self.points) or (
            self.labels is not None and len(self.labels) != len(self.ids)
        ):
            raise InputError(f"{self.name}: expected one id, and one label if any, for each cloud")


@dataclass(frozen=True, eq=False)
class FedClouds:
    """n clouds as the graphs are fed, with what NumPy makes of them.

    Attributes:
        ids: n of them.
        points: n arrays (n_i, C) float32, for `model.onnx`.
        filled: the same, with points repeated where an encoder needs more.
        indices: (n, G) int64, the farthest points.
        patches: (n, G, K, C) float32.
        centers: (n, G, 3) float32.
    """

    ids: tuple[str, ...]
    points: tuple[NDArray[np.float32], ...]
    filled: tuple[NDArray[np.float32], ...]
    indices: NDArray[np.int64]
    patches: NDArray[np.float32]
    centers: NDArray[np.float32]

    def by_size(self) -> list[NDArray[np.int64]]:
        """The clouds that can share a batch of `model.onnx`: rows of equal size."""
        sizes = np.array([len(cloud) for cloud in self.points])
        return [np.flatnonzero(sizes == size) for size in np.unique(sizes)]


def feed_clouds(clouds: VerificationClouds, card: PointCard) -> FedClouds:
    """Bring z-up clouds to sizes that can share a batch and into the encoder's frame, and sample with NumPy.

    Half of the clouds or more get the same size, the median's: larger ones are thinned to it, smaller ones stay as
    they are. Normalised once more, they pass through `model.onnx` bit for bit and both paths see the same numbers.

    Raises:
        InputError: a cloud has other columns than the encoder reads, or holds NaN or infinity.
    """
    for name, cloud in zip(clouds.ids, clouds.points, strict=True):
        if cloud.ndim != 2 or cloud.shape[1] != card.channels or not len(cloud):
            raise InputError(f"{name}: expected points of shape (N, {card.channels}), found {cloud.shape}")
        if not np.isfinite(cloud).all():
            raise InputError(f"{name}: expected finite points to verify with, found NaN or infinity")
    sizes = sorted(len(cloud) for cloud in clouds.points)
    common = sizes[(len(sizes) - 1) // 2]
    points = tuple(in_frame(thin(cloud, common), card) for cloud in clouds.points)
    filled = tuple(fill(cloud, card.least) for cloud in points)
    grouped = [group(cloud, card.groups, card.neighbors, card.radius) for cloud in filled]
    return FedClouds(
        clouds.ids,
        points,
        filled,
        np.stack([farthest_point_indices(cloud, card.groups) for cloud in filled]),
        np.stack([patches for patches, _ in grouped]),
        np.stack([centers for _, centers in grouped]),
    )


def in_frame(points: NDArray[np.float32], card: PointCard) -> NDArray[np.float32]:
    """A z-up cloud (N, C) in the encoder's own frame and order, normalised again, its colours as they are."""
    turned = turn(points, "z", card.up_axis)
    normalized = np.concatenate([normalize(turned[:, :3]), points[:, 3:]], axis=1)
    return scatter(normalized) if card.scattered else normalized


def moved_clouds(
    fed: FedClouds, card: PointCard, count: int
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """Some of the clouds as a sensor would deliver them, and one of too few points, with what they must become.

    What was normalised before goes through `model.onnx` untouched, so that none of it would show a mistake there.

    Yields:
        The cloud's id; the points to feed (N, C), scaled, away from the origin; the unit cloud (max(N, least), C).
    """
    for index, (name, points) in enumerate(zip(fed.ids[:count], fed.points[:count], strict=True)):
        given = points[: max(1, card.least // 2)].copy() if index == 0 else points.copy()
        given[:, :3] = 3.0 * given[:, :3] + np.array([1.0, -2.0, 0.5], np.float32)
        expected = given.copy()
        expected[:, :3] = normalize(given[:, :3])
        yield name, given, fill(expected, card.least)


def plan_batches(
    groups: Sequence[NDArray[np.int64]], batches: tuple[int, int, int], most: int
) -> list[list[NDArray[np.int64]]]:
    """Choose the batches of a graph: a few clouds at the smallest size, all at the typical one, one at the largest.

    Args:
        groups: rows that can share a batch.
        batches: smallest, typical and largest size.
        most: rows that fit into memory.

    Returns:
        For each size a list of batches, each an array of rows. The largest repeats clouds where they are too few.
    """
    smallest, typical, largest = (min(batch, most) for batch in sorted(batches))
    main = max(groups, key=len)
    few = main[np.linspace(0, len(main) - 1, min(PART, len(main))).round().astype(np.int64)]
    runs = [
        chunks(few, smallest),
        [np.resize(main, largest)],
        [chunk for rows in groups for chunk in chunks(rows, typical)],
    ]
    # By the size that came about: where two coincide, the run of all clouds stays.
    by_size = {max(map(len, run)): run for run in runs}
    return [by_size[size] for size in sorted(by_size)]


def chunks(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Rows in turn, `size` at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
