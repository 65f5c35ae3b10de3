import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.data.parts import box, cylinder, ellipsoid, lathe, moved, rod, sample
from crossmost.data.shapes import SHAPES, make_shape
from crossmost.errors import InputError

seeds = st.integers(0, 2**32 - 1)
lengths = st.floats(0.05, 3)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def area(part: np.ndarray) -> float:
    first, second = part[:, 1] - part[:, 0], part[:, 2] - part[:, 0]
    return float(np.linalg.norm(np.cross(first, second), axis=1).sum() / 2)


def volume(part: np.ndarray) -> float:
    return float(abs(np.linalg.det(part).sum()) / 6)


def test_there_are_enough_classes_in_order() -> None:
    assert len(SHAPES) >= 12
    assert len(set(SHAPES)) == len(SHAPES)
    assert list(SHAPES) == sorted(SHAPES)
    assert {"chair", "table", "lamp", "mug", "airplane"} <= set(SHAPES)


@given(st.sampled_from(SHAPES), seeds, st.sampled_from([1, 7, 256, 1024]))
@settings(max_examples=60, deadline=None)
def test_shapes_are_normalized_and_decided_by_the_seed(name: str, seed: int, points: int) -> None:
    cloud = make_shape(name, generator(seed), points)
    assert cloud.shape == (points, 3)
    assert cloud.dtype == np.float32
    assert np.isfinite(cloud).all()
    np.testing.assert_array_equal(cloud, make_shape(name, generator(seed), points))
    np.testing.assert_allclose(cloud.mean(axis=0), 0, atol=1e-5)
    if points > 1:
        assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_a_class_has_variety_in_three_dimensions(name: str) -> None:
    extents = np.array([np.ptp(make_shape(name, generator(seed)), axis=0) for seed in range(30)])
    assert (extents > 0.08).all()
    assert (extents.std(axis=0) / extents.mean(axis=0)).max() > 0.05


def test_classes_can_be_told_apart() -> None:
    def features(cloud: np.ndarray) -> np.ndarray:
        radius = np.hypot(cloud[:, 0], cloud[:, 1])
        bins = np.histogram2d(cloud[:, 2], radius, bins=(10, 8), range=((-1, 1), (0, 1)))[0]
        return np.concatenate([bins.ravel() / len(cloud), np.ptp(cloud, axis=0) / 4])

    def draw(seed: int) -> np.ndarray:
        rng = generator(seed)
        return np.array([[features(make_shape(name, rng)) for _ in range(12)] for name in SHAPES])

    known, new = draw(0).reshape(-1, 83), draw(1).reshape(-1, 83)
    labels = np.repeat(np.arange(len(SHAPES)), 12)
    nearest = np.linalg.norm(new[:, None] - known[None], axis=-1).argmin(axis=1)
    accuracy = (labels[nearest] == labels).mean()
    assert accuracy > 0.75  # nearest neighbour; chance is 0.06


@pytest.mark.parametrize("name", ["chair", "table", "stool", "lamp", "bed"])
def test_furniture_stands_upright(name: str) -> None:
    flat = 0
    for seed in range(20):
        cloud = make_shape(name, generator(seed + zlib.crc32(name.encode())), 2048)
        foot = cloud[cloud[:, 2] < cloud[:, 2].min() + 0.08]
        spread = np.ptp(foot[:, :2], axis=0).min()
        flat += spread > 0.15
    assert flat >= 18


@given(lengths, lengths, lengths)
def test_closed_parts_have_the_area_and_volume_of_the_book(x: float, y: float, z: float) -> None:
    block = box((x, y, z), (0.3, -0.2, 0.1))
    assert area(block) == pytest.approx(2 * (x * y + y * z + z * x))
    assert volume(block) == pytest.approx(x * y * z)
    pillar = cylinder(x, z, sides=256)
    assert area(pillar) == pytest.approx(2 * np.pi * x * (x + z), rel=1e-3)
    assert volume(pillar) == pytest.approx(np.pi * x * x * z, rel=1e-3)
    assert volume(cylinder(x, z, top=0.0, sides=256)) == pytest.approx(np.pi * x * x * z / 3, rel=1e-3)
    assert volume(ellipsoid((x, y, z))) == pytest.approx(4 / 3 * np.pi * x * y * z, rel=0.1)


def test_a_tapered_leaning_box_has_its_top_where_it_was_put() -> None:
    part = box((2, 1, 3), (0, 0, 1), top=0.5, lean=(0.4, -0.1)).reshape(-1, 3)
    top = part[part[:, 2] == 4]
    np.testing.assert_allclose([top.min(axis=0)[:2], top.max(axis=0)[:2]], [[-0.1, -0.35], [0.9, 0.15]])
    assert part[:, 2].min() == 1


@given(seeds, lengths)
def test_a_rod_runs_between_its_ends(seed: int, radius: float) -> None:
    start, end = generator(seed).normal(size=(2, 3))
    corners = rod(tuple(start), tuple(end), radius).reshape(-1, 3)
    along = (end - start) / np.linalg.norm(end - start)
    place = (corners - start) @ along
    np.testing.assert_allclose(np.unique(place.round(6)), [0, np.linalg.norm(end - start)], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(corners - start - place[:, None] * along, axis=1), radius)


@given(seeds, st.integers(0, 2))
def test_moving_turns_counter_clockwise_about_the_axis(seed: int, axis: int) -> None:
    part = generator(seed).normal(size=(4, 3, 3))
    turned = moved(part, axis=axis, angle=np.pi / 2)
    unit = np.eye(3)[axis]
    along = part @ unit
    expected = np.cross(unit, part) + along[..., None] * unit
    np.testing.assert_allclose(turned, expected, atol=1e-12)
    np.testing.assert_allclose(moved(part, (1, 2, 3), stretch=(2, 3, 4)), part * [2, 3, 4] + [1, 2, 3])


def test_samples_are_uniform_by_area_and_lie_on_the_surface() -> None:
    small, large = box((1, 1, 1)), box((2, 2, 2), (10, 0, 0))
    points = sample([small, large], 20_000, generator(0))
    on_small = points[:, 0] < 5
    assert on_small.mean() == pytest.approx(0.2, abs=0.01)
    inside = points[on_small] - [0, 0, 0.5]
    np.testing.assert_allclose(np.abs(inside).max(axis=1), 0.5)
    faces = np.argmax(np.abs(inside), axis=1) * 2 + (
        inside[np.arange(len(inside)), np.abs(inside).argmax(1)] > 0
    )
    np.testing.assert_allclose(np.bincount(faces, minlength=6) / len(faces), 1 / 6, atol=0.02)
    disc = sample([lathe([(0, 0), (1, 0)], sides=64)], 20_000, generator(1))
    assert (np.hypot(disc[:, 0], disc[:, 1]) < 0.5).mean() == pytest.approx(0.25, abs=0.015)


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(InputError, match="found 'unicorn'"):
        make_shape("unicorn", generator(0))
