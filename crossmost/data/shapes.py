"""Procedural shapes of everyday classes: data for the demo and for tests, made from nothing.

Proportions and options are random, so that a class has variety and neighbouring classes (stool and chair,
bottle and vase) come close to each other. Shapes stand upright, with their front, if they have one, to +x.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from crossmost.data.parts import Triangles, box, cylinder, ellipsoid, lathe, moved, rod, sample
from crossmost.errors import InputError
from crossmost.runtime.preprocess import normalize

Parts = list[Triangles]


def make_shape(name: str, rng: np.random.Generator, points: int = 1024) -> NDArray[np.float32]:
    """Make a random specimen of a class.

    Args:
        name: one of `SHAPES`.
        rng: the only source of randomness.
        points: P, at least 1.

    Returns:
        (P, 3) float32, normalised, z up, sampled uniformly by area.

    Raises:
        InputError: the class is not known.
    """
    if name not in _MAKERS:
        raise InputError(f"expected a shape of {', '.join(SHAPES)}, found {name!r}")
    return normalize(sample(_MAKERS[name](rng), points, rng))


def _corners(part: Callable[[float, float], Triangles], depth: float, width: float) -> Parts:
    """Put a part on the four corners of a rectangle."""
    return [part(x * depth / 2, y * width / 2) for x in (-1, 1) for y in (-1, 1)]


def _support(rng: np.random.Generator, depth: float, width: float, height: float) -> Parts:
    """Hold a plate of depth x width at `height`: four legs, a pedestal or two side panels."""
    thick = rng.uniform(0.02, 0.05) * (0.5 + height)
    style = rng.choice(3, p=[0.65, 0.22, 0.13])
    if style == 0:
        spread = rng.uniform(0.8, 1.1)

        def leg(x: float, y: float) -> Triangles:
            return rod((spread * x, spread * y, 0), (0.85 * x, 0.85 * y, height), thick)

        return _corners(leg, depth, width)
    if style == 1:
        foot = rng.uniform(0.3, 0.5) * min(depth, width)
        return [cylinder(foot, 0.04, top=0.8), rod((0, 0, 0), (0, 0, height), 1.3 * thick)]
    return [box((0.9 * depth, thick, height), (0, side * 0.45 * width, 0)) for side in (-1, 1)]


def _airplane(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    length, radius, span, chord = u(0.9, 1.3), u(0.05, 0.09), u(0.45, 0.75), u(0.14, 0.28)
    sweep, high = u(-0.35, 0.05), u(-0.5, 0.9) * radius
    tail = -0.44 * length
    fin = box((0.6 * chord, 0.015, u(0.14, 0.24)), (tail, 0, radius / 2), top=0.6, lean=(-0.08, 0))
    parts = [ellipsoid((length / 2, radius, radius)), fin]
    for side in (-1, 1):
        wing = box((chord, 0.02, span), top=u(0.3, 0.7), lean=(sweep, 0))
        parts.append(moved(wing, (u(0, 0.1), 0, high), axis=0, angle=-side * u(1.45, 1.57)))
        rear = box((0.6 * chord, 0.015, 0.35 * span), top=0.6, lean=(sweep / 3, 0))
        parts.append(moved(rear, (tail, 0, 0.3 * radius), axis=0, angle=-side * 1.55))
        if span > 0.6:
            engine = moved(cylinder(0.5 * radius, 0.16), axis=1, angle=np.pi / 2)
            parts.append(moved(engine, (0.1 + sweep / 3, side * span / 3, high - 0.6 * radius)))
    return parts


def _bathtub(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    long, wide, high = u(0.65, 0.9), u(0.32, 0.45), u(0.4, 0.6)
    wall, floor = u(0.86, 0.94), u(0.08, 0.15)
    bottom, lift = u(0.6, 0.95), rng.choice([0.0, 0.12])
    profile = [(0, 0), (bottom, 0), (1, high), (wall, high), (wall * bottom, floor), (0, floor)]
    if rng.random() < 0.5:
        parts = [moved(lathe(profile, sides=24), (0, 0, lift), stretch=(long, wide, 1))]
    else:
        rim = moved(lathe(profile, sides=4), axis=2, angle=np.pi / 4)
        parts = [moved(rim, (0, 0, lift), stretch=(1.3 * long, 1.3 * wide, 1))]
    if lift:
        parts += _corners(lambda x, y: rod((x, y, 0), (x, y, 0.2), 0.04), long, wide)
    if rng.random() < 0.4:
        parts.append(rod((-0.9 * long, 0, lift + high), (-0.75 * long, 0, lift + high + 0.2), 0.03))
    return parts


def _bed(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    long, wide, low, thick = u(1.8, 2.1), u(0.9, 1.9), u(0.1, 0.35), u(0.18, 0.35)
    parts = [box((long, wide, 0.1), (0, 0, low)), box((0.97 * long, 0.96 * wide, thick), (0, 0, low + 0.1))]
    if rng.random() < 0.9:
        parts.append(box((0.07, wide, low + u(0.5, 0.95)), (-long / 2, 0, 0)))
    if rng.random() < 0.5:
        parts.append(box((0.07, wide, low + u(0.2, 0.5)), (long / 2, 0, 0)))
    parts += _corners(lambda x, y: box((0.08, 0.08, low), (x, y, 0)), 0.92 * long, 0.92 * wide)
    for side in (0.0,) if wide < 1.3 else (-0.25, 0.25):
        parts.append(ellipsoid((0.2, 0.36, 0.1), (-0.36 * long, side * wide, low + thick + 0.15)))
    return parts


def _bookshelf(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    depth, wide, high, thick = u(0.2, 0.4), u(0.5, 1.3), u(0.9, 2.0), u(0.03, 0.05)
    levels = rng.integers(3, 7)
    parts = [box((depth, thick, high), (0, side * wide / 2, 0)) for side in (-1, 1)]
    parts += [box((depth, wide, thick), (0, 0, z)) for z in np.linspace(0, high - thick, levels)]
    if rng.random() < 0.6:
        parts.append(box((0.02, wide, high), (-depth / 2, 0, 0)))
    space = high / (levels - 1)
    for level in range(levels - 1):
        if rng.random() < 0.5:
            row = wide * u(0.2, 0.8)
            shift = (wide - row) * u(-0.45, 0.45)
            parts.append(box((0.7 * depth, row, space * u(0.5, 0.85)), (0, shift, level * space)))
    return parts


def _bottle(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    radius, body, neck = u(0.12, 0.22), u(0.4, 0.8), u(0.1, 0.35)
    shoulder, narrow = u(0.05, 0.25), radius * u(0.3, 0.5)
    waist, top = radius * u(0.85, 1.0), body + shoulder + neck
    lower = [(0, 0), (radius, 0), (waist, body / 2), (radius, body)]
    upper = [(narrow, body + shoulder), (narrow, top), (0, top)]
    return [lathe(lower + upper), cylinder(narrow * u(1.0, 1.4), u(0.04, 0.1), (0, 0, top))]


def _car(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    long, wide, low, belt = u(1.6, 2.2), u(0.75, 0.9), u(0.15, 0.25), u(0.28, 0.42)
    cabin, roof, wheel = u(0.45, 0.85) * long, u(0.25, 0.45), u(0.15, 0.2)
    back = u(-0.5, 0.2) * (long - cabin)
    body = box((long, wide, belt), (0, 0, low), top=u(0.93, 1.0))
    greenhouse = box(
        (cabin, 0.92 * wide, roof), (back, 0, low + belt), top=u(0.65, 0.9), lean=(-u(0, 0.06), 0)
    )
    tire = moved(cylinder(wheel, 0.14), (0, 0.07, wheel), axis=0, angle=np.pi / 2)
    wheels = _corners(lambda x, y: moved(tire, (x, y, 0)), u(0.55, 0.68) * long, 0.95 * wide)
    return [body, greenhouse, *wheels]


def _chair(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    depth, wide, high, back = u(0.38, 0.55), u(0.38, 0.55), u(0.36, 0.55), u(0.3, 0.7)
    thick, lean = u(0.03, 0.1), -u(0, 0.15)
    parts = [box((depth, wide, thick), (0, 0, high)), *_support(rng, depth, wide, high)]
    rear, seat = -0.47 * depth, high + thick
    if rng.random() < 0.6:
        parts.append(box((0.04, wide * u(0.8, 1), back), (rear, 0, seat), lean=(lean, 0), top=u(0.8, 1.0)))
    else:
        for side in np.linspace(-0.45, 0.45, rng.integers(2, 6)):
            parts.append(rod((rear, side * wide, seat), (rear + lean, side * wide, seat + back), 0.02))
        parts.append(box((0.04, wide, 0.25 * back), (rear + lean, 0, seat + 0.75 * back)))
    if rng.random() < 0.35:
        rest = u(0.15, 0.25)
        for side in (-0.48 * wide, 0.48 * wide):
            parts.append(box((0.9 * depth, 0.05, 0.04), (0, side, seat + rest)))
            parts.append(rod((0.4 * depth, side, seat), (0.4 * depth, side, seat + rest), 0.02))
    return parts


def _lamp(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    high, foot, shade, drop = u(0.5, 1.5), u(0.12, 0.22), u(0.15, 0.3), u(0.15, 0.3)
    parts = [cylinder(foot, u(0.02, 0.06), top=u(0.5, 1.0))]
    cone = lathe([(shade, 0), (shade * u(0.3, 0.9), drop)])
    if rng.random() < 0.65:
        return [*parts, rod((0, 0, 0), (0, 0, high), u(0.012, 0.04)), moved(cone, (0, 0, high - drop / 2))]
    elbow, head = (-u(0.1, 0.3), 0.0, 0.5 * high), (u(0.15, 0.45), 0.0, 0.75 * high)
    parts += [rod((0, 0, 0), elbow, 0.02), rod(elbow, head, 0.02)]
    hood = moved(cone, (head[0], 0, head[2] - drop / 2), stretch=(0.7, 0.7, 1), axis=1, angle=-u(0, 0.8))
    return [*parts, hood]


def _laptop(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    depth, wide, thick = u(0.55, 0.75), u(0.85, 1.1), u(0.02, 0.06)
    screen = box((0.6 * thick, wide, depth * u(0.9, 1.0)))
    opened = moved(screen, (-depth / 2, 0, thick), axis=1, angle=-u(0.0, 0.7))
    return [box((depth, wide, thick)), opened]


def _monitor(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    wide, high, thick, lift = u(0.8, 1.3), u(0.45, 0.75), u(0.04, 0.25), u(0.1, 0.35)
    parts = [box((thick, wide, high), (0, 0, lift), lean=(-u(0, 0.1), 0))]
    if thick > 0.18:
        tube = box((0.7 * high, 0.7 * wide, 0.3), top=0.5)
        parts.append(moved(tube, (-thick / 2, 0, lift + high / 2), axis=1, angle=-np.pi / 2))
    parts.append(box((0.06, u(0.08, 0.2), lift + 0.1), (-thick / 2, 0, 0)))
    foot = u(0.14, 0.24)
    return [*parts, cylinder(foot, 0.03) if rng.random() < 0.5 else box((1.4 * foot, 2.5 * foot, 0.03))]


def _mug(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    radius, high, wall = u(0.3, 0.45), u(0.65, 1.0), u(0.86, 0.93)
    flare = u(0.85, 1.15)
    inner, rim = radius * wall, radius * flare
    cup = lathe([(0, 0), (radius, 0), (rim, high), (rim * wall, high), (inner, 0.06), (0, 0.06)], sides=24)
    reach, tall, thick = u(0.2, 0.35), u(0.2, 0.36) * high, u(0.03, 0.06)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 7)
    middle = (radius + rim) / 2 - 0.02
    bow = [(middle + reach * np.cos(a), 0.0, high / 2 + tall * np.sin(a)) for a in angle]
    return [cup, *(rod(a, b, thick) for a, b in pairwise(bow))]


def _sofa(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    depth, wide, seat, back = u(0.7, 0.95), u(1.2, 2.3), u(0.3, 0.42), u(0.3, 0.5)
    arm, feet = u(0.12, 0.28), rng.choice([0.0, 0.1])
    parts = [box((depth, wide, seat), (0, 0, feet))]
    parts.append(box((u(0.18, 0.3), wide, seat + back), (-0.4 * depth, 0, feet), lean=(-u(0, 0.1), 0)))
    if rng.random() < 0.9:
        rest = seat + u(0.1, 0.25)
        parts += [box((depth, arm, rest), (0, side * (wide + arm) / 2, feet)) for side in (-1, 1)]
    cushions = rng.integers(1, 4)
    each = wide / cushions
    for middle in each * (np.arange(cushions) - (cushions - 1) / 2):
        parts.append(box((0.7 * depth, 0.95 * each, 0.12), (0.1 * depth, middle, feet + seat), top=0.95))
    return parts + _corners(lambda x, y: box((0.06, 0.06, feet + 0.01), (x, y, 0)), 0.9 * depth, 0.9 * wide)


def _stool(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    wide, high, thick = u(0.3, 0.45), u(0.4, 0.85), u(0.03, 0.1)
    round_seat, square_seat = cylinder(wide / 2, thick), box((wide, wide, thick))
    seat = round_seat if rng.random() < 0.6 else square_seat
    parts = [moved(seat, (0, 0, high)), *_support(rng, 0.8 * wide, 0.8 * wide, high)]
    if high > 0.6:
        ring = lathe([(0.4 * wide, 0), (0.4 * wide, 0.03), (0.46 * wide, 0.03), (0.46 * wide, 0)])
        parts.append(moved(ring, (0, 0, 0.35 * high)))
    if rng.random() < 0.12:
        parts.append(box((0.03, 0.8 * wide, u(0.1, 0.2)), (-0.4 * wide, 0, high)))
    return parts


def _table(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    depth, high, thick = u(0.6, 1.0), u(0.4, 0.8), u(0.03, 0.08)
    wide = depth * u(1.0, 2.2)
    plate = box((depth, wide, thick), (0, 0, high))
    if rng.random() < 0.35:
        plate = moved(cylinder(0.5, thick, sides=24), (0, 0, high), stretch=(depth, wide, 1))
        depth, wide = 0.7 * depth, 0.7 * wide
    parts = [plate, *_support(rng, depth, wide, high)]
    if rng.random() < 0.3:
        parts.append(box((0.8 * depth, 0.8 * wide, 0.03), (0, 0, u(0.2, 0.5) * high)))
    return parts


def _toilet(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    long, wide, high = u(0.26, 0.34), u(0.18, 0.23), u(0.36, 0.45)
    foot, deep = u(0.45, 0.7), u(0.12, 0.25)
    outer = [(0, 0), (foot, 0), (foot, 0.35 * high), (1, 0.85 * high), (1, high)]
    inner = [(0.72, high), (0.4, high - deep), (0, high - deep)]
    bowl = moved(lathe(outer + inner), stretch=(long, wide, 1))
    tank = box((u(0.16, 0.22), u(0.36, 0.46), u(0.3, 0.45)), (-long - 0.04, 0, high - 0.04))
    neck = box((0.25, 0.2, high), (-0.8 * long, 0, 0))
    parts = [bowl, tank, neck]
    if rng.random() < 0.5:
        lid = moved(cylinder(1, 0.03), stretch=(long, wide, 1))
        parts.append(moved(lid, (-0.75 * long, 0, high + long), axis=1, angle=-u(1.35, 1.55)))
    return parts


def _vase(rng: np.random.Generator) -> Parts:
    u = rng.uniform
    knots = np.array([u(0.12, 0.25), u(0.2, 0.42), u(0.2, 0.4), u(0.08, 0.25), u(0.12, 0.3)])
    height = np.linspace(0, 1, 13)
    radius = np.interp(height, np.linspace(0, 1, 5), knots)
    radius = np.convolve(np.pad(radius, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    outer = list(zip(radius, height, strict=True))
    inner = list(zip(0.88 * radius[::-1], 0.04 + 0.96 * height[::-1], strict=True))
    return [lathe([(0, 0), *outer, *inner, (0, 0.04)])]


_MAKERS: dict[str, Callable[[np.random.Generator], Parts]] = {
    maker.__name__.removeprefix("_"): maker
    for maker in (
        *(_airplane, _bathtub, _bed, _bookshelf, _bottle, _car, _chair, _lamp),
        *(_laptop, _monitor, _mug, _sofa, _stool, _table, _toilet, _vase),
    )
}
SHAPES: tuple[str, ...] = tuple(_MAKERS)
"""The class names `make_shape` knows."""
