"""A simulated depth camera: what a sensor would have recorded of a complete, clean shape.

Lengths are in radii of the object, which for a normalised cloud is the unit of its coordinates, so that a
severity means the same for a mug and for a wardrobe.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter

from crossmost.data.parts import rotation_about
from crossmost.data.views import camera_axes, sample_spacing
from crossmost.errors import InputError
from crossmost.runtime.colors import MISSING_COLOR

DISTANCE = 4.0
"""Camera to object centre, in radii: about 2 m from a chair."""
STEP = math.radians(60.0)
"""Azimuth between two fused viewpoints: a robot that walks around the object."""
CELL = 0.65
"""Side of a z-buffer cell in spacings of the samples: a 3 x 3 window then holds about four front points."""
TOLERANCE = 2.5
"""How far behind the front of its window a point still counts as seen, same unit: surfaces may be steep."""
FEWEST = 32
"""A scan has at least this many points, or all there are."""


@dataclass(frozen=True)
class Severity:
    """How bad the scan is.

    Attributes:
        noise: standard deviation of the range error along the ray, in radii of the object.
        viewpoints: camera positions fused into one cloud, 60 degrees of azimuth apart; 1 is a one-sided scan.
        hidden: probability that a point which no viewpoint sees is there all the same (0 to 1).
        dropout: share of the seen points that is lost at random (0 to 1).
        holes: patches of the surface that return nothing: dark, shiny or transparent parts.
        hole_radius: radius of such a patch, in radii of the object.
        floor: points of a support plane under the object, as a share of the object's; occlusion comes after.
        floor_extent: how far the plane reaches, in multiples of the object's horizontal radius.
        elevation: lowest and highest camera elevation above the horizon, in degrees.
        yaw: turn the object by a random angle about z, so that its front is not known.
    """

    noise: float = 0.0
    viewpoints: int = 1
    hidden: float = 0.0
    dropout: float = 0.0
    holes: int = 0
    hole_radius: float = 0.2
    floor: float = 0.0
    floor_extent: float = 1.2
    elevation: tuple[float, float] = (20.0, 55.0)
    yaw: bool = False

    def __post_init__(self) -> None:
        shares = (self.hidden, self.dropout)
        if self.viewpoints < 1 or self.noise < 0 or self.floor < 0 or not all(0 <= s <= 1 for s in shares):
            raise InputError(
                "expected viewpoints >= 1, noise and floor >= 0, hidden and dropout in 0..1, "
                f"found {self}: correct the severity"
            )


SEVERITIES: dict[str, Severity] = {
    "low": Severity(noise=0.005, viewpoints=4, dropout=0.05),
    "moderate": Severity(noise=0.02, viewpoints=1, hidden=0.1, dropout=0.1, holes=1),
    "high": Severity(noise=0.02, viewpoints=1, dropout=0.2, holes=2, hole_radius=0.25, floor=0.4),
}


def scan(
    cloud: NDArray[np.float32], *, severity: str | Severity, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Scan one shape with a simulated depth camera.

    Args:
        cloud: (N, 3) xyz or (N, 6) xyz and rgb, float32, normalised, z up; N at least 1.
        severity: one of `SEVERITIES` or your own.
        rng: the only source of randomness.

    Returns:
        (n, 3 or 6) float32 in the frame of `cloud`, not re-normalised; n >= min(N, 32). Colours stay with their
        points, and a floor has none.

    Raises:
        InputError: the severity's name is not known.
    """
    settings = _severity(severity)
    scene = cloud[:, :3].astype(np.float64)
    if settings.yaw:
        scene = scene @ rotation_about(2, rng.uniform(0, 2 * np.pi)).T
    floor = _floor(scene, settings, rng)
    colors = np.pad(cloud[:, 3:], ((0, len(floor)), (0, 0)), constant_values=MISSING_COLOR)
    scene = np.concatenate([scene, floor])
    cameras = _cameras(settings, rng)
    seen = np.stack([visible(scene, camera) for camera in cameras])
    lucky = rng.random(len(scene)) < settings.hidden
    kept = _at_least(seen.any(axis=0) | lucky, seen[0], rng)
    kept = _at_least(kept & ~_lost(scene, kept, settings, rng), kept, rng)
    rays = scene - cameras[np.argmax(seen, axis=0)]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    error = rng.normal(0, 1, len(scene)) * settings.noise
    measured = (scene + rays * error[:, None]).astype(np.float32)
    return np.concatenate([measured, colors], axis=1)[kept]


def scan_dataset(
    points: NDArray[np.floating], ids: Sequence[str], severity: str | Severity, seed: int
) -> list[NDArray[np.float32]]:
    """Scan many shapes, each with a generator of its own, so that no scan depends on the other shapes.

    Args:
        points: (M, P, 3) float, each cloud normalised, z up.
        ids: M names; a name and the seed decide the scan.
        severity: one of `SEVERITIES` or your own.
        seed: at least 0.

    Returns:
        M clouds, (n, 3) float32 of different sizes.

    Raises:
        InputError: as many names as clouds are needed; or the severity's name is not known.
    """
    if len(ids) != len(points):
        raise InputError(f"expected one id a cloud, found {len(ids)} ids for {len(points)} clouds")
    settings = _severity(severity)
    return [
        scan(
            cloud.astype(np.float32),
            severity=settings,
            rng=np.random.default_rng([seed, zlib.crc32(str(name).encode())]),
        )
        for cloud, name in zip(points, ids, strict=True)
    ]


def visible(scene: NDArray[np.float64], camera: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which points a pinhole camera looking at the origin sees, by a z-buffer of the points themselves.

    Args:
        scene: (N, 3); its spacing sets the resolution of the z-buffer.
        camera: (3,) its position, outside the scene.

    Returns:
        (N,) bool.
    """
    away = float(np.linalg.norm(camera))
    right, up, depth = camera_axes(camera[None] / away)[0] @ scene.T
    spacing = sample_spacing(scene)
    perspective = away / np.maximum(away - depth, 1e-3)
    cells = np.floor(np.stack([right, up]) * perspective / (CELL * spacing)).astype(np.int64)
    cells -= cells.min(axis=1, keepdims=True)
    row, column = cells
    distance = np.linalg.norm(scene - camera, axis=1)
    front = np.full(tuple(cells.max(axis=1) + 1), np.inf)
    farthest_first = np.argsort(-distance, kind="stable")
    front[row[farthest_first], column[farthest_first]] = distance[farthest_first]
    nearest = minimum_filter(front, size=3, mode="constant", cval=np.inf)
    return distance <= nearest[row, column] + TOLERANCE * spacing


def _severity(severity: str | Severity) -> Severity:
    if isinstance(severity, Severity):
        return severity
    if severity not in SEVERITIES:
        raise InputError(f"expected a scan severity of {', '.join(SEVERITIES)}, found {severity!r}")
    return SEVERITIES[severity]


def _cameras(settings: Severity, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the camera positions, (viewpoints, 3): any azimuth, one elevation each."""
    azimuth = rng.uniform(0, 2 * np.pi) + STEP * np.arange(settings.viewpoints)
    low, high = np.radians(settings.elevation)
    elevation = rng.uniform(low, high, settings.viewpoints)
    level = np.cos(elevation)
    directions = [level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)]
    return DISTANCE * np.stack(directions, axis=1)


def _floor(scene: NDArray[np.float64], settings: Severity, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the points of a round support plane at the lowest point of the object, (n, 3)."""
    count = round(settings.floor * len(scene))
    middle = (scene[:, :2].min(axis=0) + scene[:, :2].max(axis=0)) / 2
    reach = settings.floor_extent * np.linalg.norm(scene[:, :2] - middle, axis=1).max()
    radius = reach * np.sqrt(rng.random(count))
    angle = rng.uniform(0, 2 * np.pi, count)
    height = np.full(count, scene[:, 2].min())
    return np.stack([middle[0] + radius * np.cos(angle), middle[1] + radius * np.sin(angle), height], axis=1)


def _lost(
    scene: NDArray[np.float64], kept: NDArray[np.bool_], settings: Severity, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose the points that return nothing: some at random, some in patches around kept points."""
    lost = rng.random(len(scene)) < settings.dropout
    for center in scene[rng.choice(np.flatnonzero(kept), settings.holes)]:
        lost |= np.linalg.norm(scene - center, axis=1) < settings.hole_radius
    return lost


def _at_least(
    kept: NDArray[np.bool_], preferred: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Add points, the preferred ones first, until `FEWEST` (or all there are) are kept."""
    missing = min(FEWEST, len(kept)) - int(kept.sum())
    if missing <= 0:
        return kept
    rank = rng.random(len(kept)) + 2 * kept - preferred
    kept = kept.copy()
    kept[np.argsort(rank, kind="stable")[:missing]] = True
    return kept
