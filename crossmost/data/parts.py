"""Parts that shapes are put together from, as triangles, and points drawn from them uniformly by area.

There are four kinds: boxes (tapered and leaning if asked), lathed profiles, rods, and what `moved` makes of
them. Everything is a (T, 3, 3) array of corners, so that a shape is a concatenation and nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Triangles = NDArray[np.float64]
"""A part: (T, 3, 3) corners of its triangles."""
Triple = tuple[float, float, float]

_CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
_BOX_FACES = np.array(
    [[0, 2, 1], [0, 3, 2], [4, 5, 6], [4, 6, 7]]
    + [face for a, b in ((0, 1), (1, 2), (2, 3), (3, 0)) for face in ([a, b, b + 4], [a, b + 4, a + 4])]
)


def box(
    size: Triple, at: Triple = (0, 0, 0), *, top: float = 1.0, lean: tuple[float, float] = (0, 0)
) -> Triangles:
    """Make a box of `size` standing on `at`; its upper face is scaled by `top` and shifted by `lean`."""
    ring = _CORNERS * size[:2]
    low = np.column_stack([ring, np.zeros(4)])
    high = np.column_stack([ring * top + lean, np.full(4, size[2])])
    corners = np.concatenate([low, high]) + at
    return corners[_BOX_FACES]


def lathe(profile: Sequence[tuple[float, float]], at: Triple = (0, 0, 0), *, sides: int = 20) -> Triangles:
    """Turn a profile of (radius, height) about the vertical line through `at`."""
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    radius, height = np.array(profile, dtype=np.float64).T[..., None]
    rings = np.stack([radius * np.cos(angle), radius * np.sin(angle), height + 0 * angle], axis=-1) + at
    a, b, c, d = rings[:-1, :-1], rings[:-1, 1:], rings[1:, 1:], rings[1:, :-1]
    return np.concatenate([np.stack([a, b, c], axis=2), np.stack([a, c, d], axis=2)]).reshape(-1, 3, 3)


def cylinder(
    radius: float, height: float, at: Triple = (0, 0, 0), *, top: float = 1.0, sides: int = 16
) -> Triangles:
    """Make a closed cylinder, or a cone frustum whose upper radius is `top` times the lower."""
    return lathe([(0, 0), (radius, 0), (radius * top, height), (0, height)], at, sides=sides)


def ellipsoid(radii: Triple, at: Triple = (0, 0, 0)) -> Triangles:
    """Make an ellipsoid with its middle `at`."""
    polar = np.linspace(0, np.pi, 9)
    ball = lathe(list(zip(np.sin(polar), -np.cos(polar), strict=True)))
    return moved(ball, at, stretch=radii)


def rod(start: Triple, end: Triple, radius: float) -> Triangles:
    """Make an open round bar between two points."""
    along = np.subtract(end, start)
    length = float(np.linalg.norm(along))
    along = along / length
    aside = np.cross(along, np.eye(3)[np.argmin(np.abs(along))])
    aside /= np.linalg.norm(aside)
    bar = lathe([(radius, 0), (radius, length)], sides=8)
    return bar @ np.stack([aside, np.cross(along, aside), along]) + start


def moved(
    part: Triangles, at: Triple = (0, 0, 0), *, stretch: Triple = (1, 1, 1), axis: int = 2, angle: float = 0.0
) -> Triangles:
    """Stretch a part, turn it by `angle` radians about coordinate `axis`, then shift it by `at`."""
    return (part * stretch) @ rotation_about(axis, angle).T + at


def rotation_about(axis: int, angle: float) -> NDArray[np.float64]:
    """Return the right-handed rotation by `angle` radians about an axis (0 to 2), (3, 3), for columns."""
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return matrix


def sample(parts: list[Triangles], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw (count, 3) points uniformly by area from the surfaces of all parts."""
    triangles = np.concatenate(parts)
    first, second = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    area = np.cumsum(np.linalg.norm(np.cross(first, second), axis=1))
    chosen = np.searchsorted(area, rng.random(count) * area[-1], side="right")
    u, v = rng.random((2, count, 1))
    folded = u + v > 1
    u, v = np.where(folded, 1 - u, u), np.where(folded, 1 - v, v)
    return triangles[chosen, 0] + u * first[chosen] + v * second[chosen]
