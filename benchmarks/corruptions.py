"""What can be wrong with a cloud: the seven corruptions of ModelNet-C, a wrong up axis, a turn, fewer points.

Definitions and severities are those of "Benchmarking and Analyzing Point Cloud Classification under Corruptions"
(Ren, Pan, Liu 2022, arXiv 2202.03377), as the authors' generator in the public repository ldkong1205/PointCloud-C
has them, for clouds of 1,024 points in the unit sphere. The code is this project's own, so the random numbers differ.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.data.parts import rotation_about

Points = NDArray[np.float64]  # (N, 3)
Generator = np.random.Generator

SEVERITIES = (1, 2, 3, 4, 5)
SCALES = (1.6, 1.7, 1.8, 1.9, 2.0)
"""Each axis is stretched by a factor between 1/s and s."""
NOISE_STEP = 0.01
"""Standard deviation of the jitter at severity 1; it grows linearly."""
LARGEST_ANGLE = math.pi / 6
"""Of the turn about each axis, at severity 5."""
DROPPED = (0.25, 0.375, 0.5, 0.625, 0.75)
CLUSTER_STEP = 100
"""Points dropped or added in clusters at severity 1; they grow linearly."""
CLUSTERS = (1, 7)
CLUSTER_SIGMA = (0.075, 0.125)
STRAY_STEP = 10
"""Points added anywhere in the unit ball at severity 1; they grow linearly."""


def scale(xyz: Points, severity: int, rng: Generator) -> Points:
    """Stretch each axis by a factor of its own, then back into the unit sphere around the mean."""
    largest = SCALES[severity - 1]
    stretched = xyz * rng.uniform(1 / largest, largest, 3)
    stretched -= stretched.mean(axis=0)
    return stretched / np.linalg.norm(stretched, axis=1).max()


def jitter(xyz: Points, severity: int, rng: Generator) -> Points:
    """Add Gaussian noise to every coordinate."""
    return xyz + rng.normal(0, NOISE_STEP * severity, xyz.shape)


def rotate(xyz: Points, severity: int, rng: Generator) -> Points:
    """Turn about x, y and z by an angle of its own each, as `points @ (Rz Ry Rx)`."""
    largest = LARGEST_ANGLE * severity / len(SEVERITIES)
    x, y, z = rng.uniform(-largest, largest, 3)
    return xyz @ (rotation_about(2, z) @ rotation_about(1, y) @ rotation_about(0, x))


def drop_global(xyz: Points, severity: int, rng: Generator) -> Points:
    """Keep a random subset."""
    return subset(xyz, int(len(xyz) * (1 - DROPPED[severity - 1])), rng)


def drop_local(xyz: Points, severity: int, rng: Generator) -> Points:
    """Remove one to seven neighbourhoods, each around a random point of what is left."""
    if len(xyz) <= CLUSTER_STEP * severity:
        raise ValueError(f"expected more than {CLUSTER_STEP * severity} points, found {len(xyz)}")
    for size in cluster_sizes(severity, rng):
        distance = np.linalg.norm(xyz - xyz[rng.integers(len(xyz))], axis=1)
        xyz = xyz[np.argsort(distance)[size:]]
    return xyz


def add_global(xyz: Points, severity: int, rng: Generator) -> Points:
    """Add points drawn uniformly from the unit ball."""
    direction = rng.normal(size=(STRAY_STEP * severity, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return np.concatenate([xyz, direction * np.cbrt(rng.random((len(direction), 1)))])


def add_local(xyz: Points, severity: int, rng: Generator) -> Points:
    """Add one to seven Gaussian clusters around points of the cloud.

    What would lie outside the unit sphere is divided by its squared distance from the origin, as published.
    """
    sizes = cluster_sizes(severity, rng)
    centers = xyz[rng.choice(len(xyz), len(sizes), replace=False)]
    spread = rng.uniform(*CLUSTER_SIGMA, len(sizes))
    added = np.repeat(centers, sizes, axis=0)
    added = added + rng.normal(size=added.shape) * np.repeat(spread, sizes)[:, None]
    return np.concatenate([xyz, added / np.maximum((added**2).sum(axis=1, keepdims=True), 1)])


CORRUPTIONS: dict[str, Callable[[Points, int, Generator], Points]] = {
    "scale": scale,
    "jitter": jitter,
    "rotate": rotate,
    "drop-global": drop_global,
    "drop-local": drop_local,
    "add-global": add_global,
    "add-local": add_local,
}


def corrupt(
    name: str, clouds: NDArray[np.floating], ids: Sequence[str], severity: int, seed: int
) -> list[Points]:
    """Corrupt many clouds, each with a generator of its own.

    Args:
        name: of `CORRUPTIONS`.
        clouds: (M, N, 3), each in the unit sphere.
        ids: M names; a name, the corruption, the severity and the seed decide the result.
        severity: of `SEVERITIES`.
        seed: at least 0.

    Returns:
        M clouds (n, 3) float64, not normalised again.
    """
    change = CORRUPTIONS[name]
    generators = generators_for(ids, name, severity, seed)
    return [
        change(cloud.astype(np.float64), severity, rng) for cloud, rng in zip(clouds, generators, strict=True)
    ]


def generators_for(ids: Sequence[str], name: str, level: int, seed: int) -> list[Generator]:
    """One generator a cloud, which no other cloud, change or level shares."""
    change = zlib.crc32(name.encode())
    return [np.random.default_rng([seed, change, level, zlib.crc32(str(one).encode())]) for one in ids]


def cluster_sizes(severity: int, rng: Generator) -> NDArray[np.int64]:
    """Share the points of a severity out at random among one to seven clusters."""
    count = int(rng.integers(CLUSTERS[0], CLUSTERS[1] + 1))
    return rng.multinomial(CLUSTER_STEP * severity, np.full(count, 1 / count))


def subset(xyz: NDArray[Any], count: int, rng: Generator) -> NDArray[Any]:
    """`count` of the points (N, 3) drawn at random, or all there are."""
    return xyz[rng.permutation(len(xyz))[:count]]
