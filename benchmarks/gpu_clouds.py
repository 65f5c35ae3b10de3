"""The clouds of benchmarks/gpu.py: real ones or procedural shapes, and those that are hard on the kernels."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossmost.data.shapes import SHAPES, make_shape
from crossmost.runtime.preprocess import prepare

Cloud = NDArray[np.float32]

COUNTS = (255, 256, 257, 1024, 1025, 2048, 2049, 4096, 4097, 8192, 8193, 16384, 16385, 65536)
"""Sizes on both sides of every limit where another kernel takes over, up to the largest."""
QUICK_COUNTS = (257, 1025, 4097, 16385)
LATTICE = 6
"""Points along each axis of a grid, which is repeated: most distances are equal to others."""


class Sizes(NamedTuple):
    """G, K, C and the radius, if patches are balls, of a pair of kernels."""

    groups: int
    neighbors: int
    channels: int
    radius: float | None = None

    @property
    def least(self) -> int:
        """Points that a cloud must have."""
        return max(self.groups, self.neighbors)


FIXED_SIZES = (
    Sizes(64, 32, 3), Sizes(512, 32, 6), Sizes(33, 64, 3), Sizes(384, 64, 6, 0.2), Sizes(64, 256, 6, 0.4),
)  # fmt: skip
"""Proved beside those of the bundles: every grouping kernel, both kinds of clouds."""


class Case(NamedTuple):
    """Clouds (n_i, C) that are sampled in one batch, and what is hard about them."""

    name: str
    clouds: list[Cloud]


def read_clouds(folder: Path, each: int) -> list[Cloud]:
    """Real clouds (P, 3) of every archive of a folder, up to `each` of one, evenly over its test split.

    Raises:
        ValueError: an archive is damaged, or none there holds clouds.
    """
    clouds: list[Cloud] = []
    for path in sorted(folder.glob("*.npz")):
        try:
            clouds += _read_archive(path, each)
        except (OSError, EOFError, ValueError, IndexError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    if not clouds:
        raise ValueError(f"expected archives (.npz) with points (N, P, 3) in {folder}, found none")
    return clouds


def _read_archive(path: Path, each: int) -> list[Cloud]:
    with np.load(path) as archive:
        if "points" not in archive.files:
            return []
        points = archive["points"]
        test = archive["split"] == "test" if "split" in archive.files else np.ones(len(points), bool)
    rows = np.flatnonzero(test)
    rows = rows[np.linspace(0, len(rows) - 1, min(each, len(rows))).astype(int)]
    return [cloud[:, :3].astype(np.float32) for cloud in points[rows]]


def make_clouds(count: int, rng: np.random.Generator) -> list[Cloud]:
    """Procedural shapes of all classes in turn, of 300 to 4,000 points."""
    return [
        make_shape(SHAPES[index % len(SHAPES)], rng, int(rng.integers(300, 4001))) for index in range(count)
    ]


def make_raw(count: int, points: int) -> list[Cloud]:
    """Procedural shapes (points, 3) whose speed is measured."""
    rng = np.random.default_rng(points)
    return [make_shape(SHAPES[index % len(SHAPES)], rng, points) for index in range(count)]


def kernel_cases(sizes: Sizes, clouds: list[Cloud], *, quick: bool) -> Iterator[Case]:
    """Everything that the kernels of some sizes are to agree with NumPy on.

    Args:
        sizes: of the kernels.
        clouds: real or procedural ones, (n, 3).
        quick: fewer.
    """
    rng = np.random.default_rng(sum(sizes[:3]))
    batch = [prepare(cloud, most=16384, least=sizes.least) for cloud in clouds[: 8 if quick else 32]]
    yield Case("the clouds", [widened(cloud, sizes, rng) for cloud in batch])
    counts = {sizes.least, sizes.least + 1, *(QUICK_COUNTS if quick else COUNTS)}
    for count in sorted(count for count in counts if count >= sizes.least):
        name = SHAPES[count % len(SHAPES)]
        pair = [make_shape(name, rng, count) for _ in range(2)]
        yield Case(f"shapes of {count} points", [widened(cloud, sizes, rng) for cloud in pair])
    for count in (sizes.least, 3000, 20000):
        for name, cloud in hard_clouds(count, rng).items():
            yield Case(f"{name} of {count} points", [widened(cloud, sizes, rng)])
    for most in (5000, 20000):  # the second needs the kernel that streams
        uneven = [sizes.least, sizes.least + 1, most // 7 + sizes.least, most, most // 2]
        mixed = [rng.normal(size=(count, 3)).astype(np.float32) for count in uneven]
        yield Case(f"sizes up to {most} in a batch", [widened(cloud, sizes, rng) for cloud in mixed])


def hard_clouds(count: int, rng: np.random.Generator) -> dict[str, Cloud]:
    """Clouds (count, 3) full of ties, flat ones, and some whose squared distances leave float32."""
    free = rng.normal(size=(count, 3))
    axis = np.arange(LATTICE) / LATTICE
    lattice = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    made = {
        "a grid": lattice[np.arange(count) % len(lattice)],
        "a shuffled grid": rng.permutation(lattice[np.arange(count) % len(lattice)]),
        "duplicates": free[rng.integers(0, min(7, count), count)],
        "equal points": np.full((count, 3), 0.25),
        "a line": free[:, :1] * np.ones(3),
        "a plane": free * (1, 1, 0),
        "tiny distances": free * 1e-20,
        "huge distances": free * 1e18,
    }
    return {name: cloud.astype(np.float32) for name, cloud in made.items()}


def widened(cloud: Cloud, sizes: Sizes, rng: np.random.Generator) -> Cloud:
    """The cloud with random colors where the kernels read them."""
    if sizes.channels == 3:
        return cloud
    return np.concatenate([cloud, rng.uniform(size=(len(cloud), 3)).astype(np.float32)], axis=1)
