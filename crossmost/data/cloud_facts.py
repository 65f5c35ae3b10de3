"""What is worth knowing about one cloud as it is stored, before anything is done to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossmost.data.columns import Cloud
from crossmost.data.orientation import rotate_to_z_up
from crossmost.data.upright import up_probabilities
from crossmost.runtime.colors import StoredColors
from crossmost.runtime.preprocess import drop_invalid, prepare

LOOKED_AT = 1024
"""Points of a cloud that shape, not count, is judged by."""


@dataclass(frozen=True)
class CloudFacts:
    """Measurements of one cloud, in the file's own units and axes.

    Attributes:
        points: usable ones.
        invalid: points that hold NaN or infinity, or zeros far from the cloud.
        extent: (3,) of its bounding box.
        offset: distance of the centroid from the origin.
        radius: distance of the farthest point from the origin.
        duplicates: share of the points that repeat another one; 0 for a sampled mesh.
        colors: range of the colours as stored, or None.
        flat_color: whether all points have one colour.
        up: (6,) probabilities of `upright.CANDIDATES`.
        floor: whether it seems to stand on a piece of floor or table that is part of the cloud.
    """

    points: int
    invalid: int
    extent: NDArray[np.float64]
    offset: float
    radius: float
    duplicates: float
    colors: StoredColors | None
    flat_color: bool
    up: NDArray[np.float64]
    floor: bool


def measure(cloud: Cloud, up_axis: str = "z") -> CloudFacts:
    """Measure a cloud.

    Args:
        cloud: as read.
        up_axis: of the file; where the floor is looked for.
    """
    xyz, invalid = drop_invalid(cloud.xyz)
    shape = prepare(xyz, most=LOOKED_AT)
    return CloudFacts(
        points=len(xyz),
        invalid=invalid,
        extent=np.ptp(xyz, axis=0),
        offset=float(np.linalg.norm(xyz.mean(axis=0))),
        radius=float(np.linalg.norm(xyz, axis=1).max()),
        duplicates=0.0 if cloud.sampled else duplicate_share(xyz),
        colors=cloud.stored_colors,
        flat_color=cloud.rgb is not None and bool((cloud.rgb == cloud.rgb[0]).all()),
        up=up_probabilities(shape),
        floor=stands_on_floor(rotate_to_z_up(shape.astype(np.float64), up_axis)),
    )


def duplicate_share(xyz: NDArray[np.float64]) -> float:
    """The share of (N, 3) points that are exactly equal to an earlier one."""
    ordered = xyz[np.lexsort(xyz.T)]
    return float((ordered[1:] == ordered[:-1]).all(axis=1).sum()) / len(xyz)


def stands_on_floor(xyz: NDArray[np.float64]) -> bool:
    """Whether a wide thin layer at the bottom reaches beyond what stands on it.

    A table's foot or a car's wheels lie below the rest of it; a floor that the segmentation left in lies
    around it, and takes a good part of the points from the object.

    Args:
        xyz: (n, 3) normalised, z up.
    """
    height = xyz[:, 2] - xyz[:, 2].min()
    layer = height <= 0.03 * np.ptp(xyz, axis=0).max()
    # Outliers must not widen the object: its footprint leaves out a twentieth of it on each side.
    above = xyz[height > 0.1 * np.ptp(xyz, axis=0).max(), :2]
    if layer.mean() < 0.15 or len(above) < 0.1 * len(xyz):
        return False
    footprint = np.prod(np.quantile(above, 0.95, axis=0) - np.quantile(above, 0.05, axis=0))
    return bool(np.prod(np.ptp(xyz[layer, :2], axis=0)) > 2.0 * footprint)
