"""From any sensor's cloud to the unit sphere: every shape, scale and dtype, never a NaN, never a changed input."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossmost.runtime.preprocess import (
    GOLDEN,
    InvalidCloud,
    check_cloud,
    drop_invalid,
    fill,
    morton_codes,
    normalize,
    prepare,
    repeat_evenly,
    scatter,
    thin,
)

FEW = settings(max_examples=50, deadline=None)


def cloud(seed: int, count: int = 50, channels: int = 3) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(count, channels))


def slow_normalize(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    centroid = [sum(float(row[axis]) for row in xyz) / len(xyz) for axis in range(3)]
    moved = [[float(value) - middle for value, middle in zip(row, centroid, strict=True)] for row in xyz]
    radius = max(sum(value * value for value in row) ** 0.5 for row in moved)
    return np.array([[value / radius for value in row] for row in moved])


def slow_codes(points: NDArray[np.float32]) -> list[int]:
    """Bit by bit: those of x, y and z in turn, the highest first."""
    found = []
    for point in points[:, :3].tolist():
        cells = [min(1023, int((value + 1) * 512)) for value in point]
        bits = [cells[axis] >> bit & 1 for bit in reversed(range(10)) for axis in (2, 1, 0)]
        found.append(int("".join(map(str, bits)), 2))
    return found


def as_set(points: NDArray[np.float32]) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in points.tolist())


@given(seed=st.integers(0, 10_000), count=st.integers(2, 60))
@FEW
def test_normalize_centres_and_scales(seed: int, count: int) -> None:
    xyz = 3 * cloud(seed, count) + 5
    found = normalize(xyz)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_normalize(xyz), atol=1e-6)
    assert np.sqrt((found.astype(np.float64) ** 2).sum(axis=1)).max() == pytest.approx(1, abs=1e-6)


@given(seed=st.integers(0, 10_000), exponent=st.integers(-140, 140))
@FEW
def test_the_unit_of_length_does_not_matter(seed: int, exponent: int) -> None:
    xyz = cloud(seed)
    np.testing.assert_allclose(normalize(xyz * 10.0**exponent), normalize(xyz), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_squares_beyond_the_range_of_float64_do_no_harm(scale: float) -> None:
    np.testing.assert_allclose(normalize(cloud(0) * scale), normalize(cloud(0)), atol=1e-6)


@pytest.mark.parametrize("shape", ["spread", "one far away"])
def test_coordinates_at_the_end_of_the_range_of_float64_do_no_harm(shape: str) -> None:
    largest = np.finfo(np.float64).max
    points = cloud(0, 300) * (largest / 8 if shape == "spread" else 1.0)
    if shape == "one far away":
        points[4] = largest
    found = normalize(points)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found, axis=1).max() == pytest.approx(1.0, abs=1e-6)
    if shape == "spread":
        np.testing.assert_allclose(found, normalize(cloud(0, 300)), atol=1e-6)


@pytest.mark.parametrize("offset", [1e6, -1e6, 5e6])
def test_georeferenced_coordinates_keep_their_digits(offset: float) -> None:
    np.testing.assert_allclose(normalize(cloud(0) + offset), normalize(cloud(0)), atol=1e-6)


@given(seed=st.integers(0, 10_000), shift=st.tuples(*[st.floats(-1e4, 1e4)] * 3))
@FEW
def test_where_the_cloud_is_does_not_matter(seed: int, shift: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(normalize(cloud(seed) + np.array(shift)), normalize(cloud(seed)), atol=1e-6)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.int8, np.int16, np.int64, np.uint8, np.uint64, bool]
)
def test_any_real_dtype(dtype: type) -> None:
    numbers = np.random.default_rng(0).integers(0, 2 if dtype is bool else 100, (40, 3)).astype(dtype)
    np.testing.assert_array_equal(normalize(numbers), normalize(numbers.astype(np.float64)))
    assert np.isfinite(prepare(numbers, most=20)).all()


def test_one_point_becomes_the_origin() -> None:
    assert normalize(np.array([[123.4, -5.6, 1e6]])).tolist() == [[0, 0, 0]]


@given(
    count=st.integers(1, 400),
    point=st.tuples(*[st.floats(-1e7, 1e7, allow_subnormal=False)] * 3),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@FEW
def test_equal_points_become_zeros(count: int, point: tuple[float, ...], dtype: type) -> None:
    found = normalize(np.tile(np.array(point, dtype=dtype), (count, 1)))
    assert not found.any()


def test_equal_points_become_zeros_whatever_their_mean_rounds_to() -> None:
    """The mean of a thousand times 0.1 is not 0.1."""
    assert not normalize(np.full((1000, 3), 0.1)).any()


@given(seed=st.integers(0, 10_000), count=st.integers(1, 60), most=st.integers(1, 70))
@FEW
def test_thin_keeps_that_many_points_of_the_cloud_in_any_order(seed: int, count: int, most: int) -> None:
    points = normalize(cloud(seed, count))
    kept = thin(points, most)
    assert len(kept) == min(count, most)
    assert set(as_set(kept)) <= set(as_set(points))
    assert len(set(as_set(kept))) == len(kept)
    shuffled = points[np.random.default_rng(seed + 1).permutation(count)]
    assert as_set(thin(shuffled, most)) == as_set(kept)
    if most < count:
        np.testing.assert_array_equal(thin(shuffled, most), kept)


@FEW
@given(
    seed=st.integers(0, 10_000),
    have=st.integers(1, 300),
    want=st.integers(1, 300),
    channels=st.sampled_from([3, 6]),
    steps=st.sampled_from([1, 3, 30, 4000]),
)
def test_the_curve_is_walked_as_a_sort_by_cell_and_all_columns_walks_it(seed, have, want, channels, steps):
    """The coarser the steps, the more points share a cell, and differ in colour alone or not at all."""
    points = np.random.default_rng(seed).integers(-steps, steps + 1, (have, channels)) / steps
    points = points.astype(np.float32)
    walked = points[np.lexsort((*points.T, slow_codes(points)))]
    evenly = np.arange(want) * have // want
    np.testing.assert_array_equal(
        thin(points, want) if want < have else repeat_evenly(points, want), walked[evenly]
    )
    step = next(step for step in itertools.count(max(1, round(have * GOLDEN))) if math.gcd(step, have) == 1)
    np.testing.assert_array_equal(scatter(points), walked[np.arange(have) * step % have])


@given(seed=st.integers(0, 10_000))
@FEW
def test_thin_is_independent_of_the_order_among_points_of_one_cell(seed: int) -> None:
    points = (cloud(seed, 40) * 1e-4).astype(np.float32)
    shuffled = points[np.random.default_rng(seed + 1).permutation(40)]
    np.testing.assert_array_equal(thin(points, 15), thin(shuffled, 15))


def test_thin_is_independent_of_the_order_among_points_that_differ_in_colour_only() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([np.repeat(rng.random((10, 3)), 4, axis=0), rng.random((40, 3))], axis=1)
    points = points.astype(np.float32)
    np.testing.assert_array_equal(thin(points, 15), thin(points[::-1].copy(), 15))


def test_thin_covers_the_cloud_and_keeps_dense_parts_denser() -> None:
    rng = np.random.default_rng(0)
    sphere = rng.normal(size=(3000, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    dense = 0.05 * rng.normal(size=(1000, 3))
    points = np.concatenate([sphere, dense]).astype(np.float32)
    kept = thin(points, 400)
    gaps = np.sqrt(((sphere[:, None] - kept[None]) ** 2).sum(-1)).min(axis=1)
    assert gaps.max() < 0.5
    assert np.linalg.norm(kept, axis=1).tolist().count(0) == 0
    assert (np.linalg.norm(kept, axis=1) < 0.5).mean() == pytest.approx(0.25, abs=0.03)


def test_neighbours_on_the_curve_are_neighbours_in_space() -> None:
    points = normalize(cloud(0, 2000))
    walked = points[np.argsort(morton_codes(points))]
    steps = np.linalg.norm(np.diff(walked, axis=0), axis=1)
    jumps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.mean() < 0.4 * jumps.mean()
    assert (morton_codes(np.array([[-1, -1, -1], [1, 1, 1]], dtype=np.float32)) == [0, (1 << 30) - 1]).all()


@pytest.mark.parametrize(("have", "want"), [(1, 5), (3, 8), (4, 4), (9, 4)])
def test_fill_repeats_points_in_turn(have: int, want: int) -> None:
    points = normalize(cloud(0, 9))[:have]
    filled = fill(points, want)
    assert len(filled) == max(have, want)
    for row, point in enumerate(filled):
        np.testing.assert_array_equal(point, points[row % have])


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_which_points_are_repeated_does_not_depend_on_their_order(count: int) -> None:
    points = cloud(0, count, 6)
    expected = prepare(points, most=100, least=8)
    assert len(expected) == 8
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(points)
        np.testing.assert_array_equal(prepare(shuffled, most=100, least=8), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_points_with_a_bad_coordinate_are_dropped_and_counted(bad: float, axis: int) -> None:
    points = cloud(0)
    points[[3, 17], axis] = bad
    usable, dropped = drop_invalid(points)
    assert dropped == 2
    np.testing.assert_array_equal(usable, np.delete(points, [3, 17], axis=0))
    np.testing.assert_array_equal(prepare(points, most=100), prepare(usable, most=100))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("columns", [3, 6])
@pytest.mark.parametrize("away", [(0, 0, 150), (-250, 0, 0), (90, -200, 0)])
def test_zeros_far_from_the_cloud_are_no_points(dtype: type, columns: int, away: tuple[int, ...]) -> None:
    """What many sensors write where nothing came back; one of them would scale the cloud to a dot."""
    points = 100 * np.random.default_rng(0).random((60, columns))
    points[:, :3] += away
    points = points.astype(dtype)
    padded = np.concatenate([points[:20], np.zeros((7, columns), dtype), points[20:]])
    usable, dropped = drop_invalid(padded)
    assert dropped == 7
    np.testing.assert_array_equal(usable, points)
    np.testing.assert_array_equal(prepare(padded, most=100), prepare(points, most=100))


@given(seed=st.integers(0, 10_000), sides=st.integers(3, 40))
@FEW
def test_the_tip_of_a_cone_that_stands_on_the_origin_is_a_point(seed: int, sides: int) -> None:
    """The answer does not depend on where the cloud is: not even on whether one of its points is at (0, 0, 0)."""
    rng = np.random.default_rng(seed)
    angle, height = rng.uniform(0, 6.28, sides), rng.uniform(0.05, 1, sides)
    cone = np.stack([height * np.cos(angle), height * np.sin(angle), height], axis=1)
    cone = np.concatenate([cone, [[0, 0, 0], [1, 0, 1], [-1, 0, 1]]])
    assert drop_invalid(cone)[1] == 0


def test_an_origin_that_is_part_of_the_cloud_is_a_point() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (60, 3))
    points[3] = 0.0
    assert drop_invalid(points)[1] == 0
    for few in (np.zeros((5, 3)), np.zeros((1, 3)), np.array([[0.0, 0, 0], [1, 1, 1]])):
        assert drop_invalid(few)[1] == 0


def test_a_clean_cloud_loses_nothing() -> None:
    points = cloud(0)
    usable, dropped = drop_invalid(points)
    assert dropped == 0
    np.testing.assert_array_equal(usable, points)
    assert drop_invalid(np.ones((3, 3), dtype=np.int64))[1] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_cloud_without_a_usable_point_is_refused(bad: float) -> None:
    with pytest.raises(InvalidCloud, match="all 4"):
        drop_invalid(np.full((4, 3), bad))
    with pytest.raises(InvalidCloud, match="NaN"):
        prepare(np.full((4, 3), bad), most=10)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((100, 2)), r"\(N, 3\), found \(100, 2\)"),
        (np.zeros(3), r"found \(3,\)"),
        (np.zeros((2, 5, 3)), r"found \(2, 5, 3\)"),
        ([], r"found \(0,\)"),
        (np.zeros((0, 3)), "empty"),
        (np.array([["1", "2", "3"]]), "real numbers"),
        (np.zeros((4, 3), dtype=complex), "real numbers"),
        (np.zeros((4, 3), dtype=object), "real numbers"),
        (None, "found"),
        (7.0, "found"),
    ],
)
def test_what_is_no_cloud_is_refused_in_one_line(points: object, message: str) -> None:
    for use in (check_cloud, lambda cloud: prepare(cloud, most=10)):
        with pytest.raises(InvalidCloud, match=message) as caught:
            use(points)
        assert "\n" not in str(caught.value)
    assert issubclass(InvalidCloud, ValueError)


@pytest.mark.parametrize("count", [2, 100, 1024])
def test_a_transposed_cloud_is_no_cloud_of_three_points(count: int) -> None:
    with pytest.raises(InvalidCloud, match=rf"\(N, 3\), found \(3, {count}\); transpose"):
        check_cloud(np.zeros((3, count)))


def test_lists_are_clouds() -> None:
    assert check_cloud([[0, 0, 1], [1, 2, 3]]).shape == (2, 3)


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 80),
    most=st.integers(1, 60),
    least=st.integers(1, 60),
    channels=st.sampled_from([3, 6]),
)
@FEW
def test_prepare_promises_a_number_of_points_in_the_unit_sphere(
    seed: int, count: int, most: int, least: int, channels: int
) -> None:
    points = cloud(seed, count, channels)
    found = prepare(points, most=most, least=least)
    assert found.dtype == np.float32
    assert found.shape[1] == channels
    assert least <= len(found) <= max(most, least)
    assert len(found) == max(min(count, most), least)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found[:, :3].astype(np.float64), axis=1).max() <= 1 + 1e-6


def test_colours_stay_with_their_points() -> None:
    points = cloud(0, 200, 6)
    places = {
        tuple(row): color for row, color in zip(normalize(points[:, :3]).tolist(), points[:, 3:], strict=True)
    }
    for row in prepare(points, most=50):
        np.testing.assert_allclose(row[3:], places[tuple(row[:3].tolist())], rtol=1e-6)


def test_normalisation_comes_before_thinning() -> None:
    """Centroid and radius are those of the whole cloud, however many of its points are kept."""
    points = cloud(0, 500)
    assert set(as_set(prepare(points, most=50))) <= set(as_set(normalize(points)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize(("most", "least"), [(10, 1), (100, 1), (100, 90)])
def test_the_input_is_left_as_it_is(dtype: type, most: int, least: int) -> None:
    points = (100 * cloud(0)).astype(dtype)
    before = points.copy()
    points.flags.writeable = False
    found = prepare(points, most=most, least=least)
    np.testing.assert_array_equal(points, before)
    assert not np.shares_memory(found, points)
    found += 1  # the answer is the caller's to change


@given(seed=st.integers(0, 2**32 - 1), have=st.integers(1, 80), want=st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_repetitions_are_even_and_do_not_depend_on_the_order(seed: int, have: int, want: int) -> None:
    rng = np.random.default_rng(seed)
    cloud = normalize(rng.standard_normal((have, 3)))
    count = max(have, want)
    filled = repeat_evenly(cloud, count)
    assert (filled == repeat_evenly(cloud[rng.permutation(have)], count)).all()
    times = np.unique(filled, axis=0, return_counts=True)[1]
    assert len(times) == len(np.unique(cloud, axis=0))
    if len(times) == have:
        assert set(times.tolist()) <= {count // have, count // have + 1}


def test_repetitions_do_not_pull_the_cloud_to_one_side() -> None:
    cloud = normalize(np.random.default_rng(0).standard_normal((300, 3)))
    assert np.abs(prepare(cloud, most=1024, least=512).mean(axis=0)).max() < 0.03


@FEW
@given(
    seed=st.integers(0, 10_000),
    distinct=st.integers(1, 90),
    count=st.integers(90, 400),
    channels=st.sampled_from([3, 6]),
    scattered=st.booleans(),
)
def test_a_cloud_padded_by_repetition_does_not_depend_on_its_order(
    seed, distinct, count, channels, scattered
):
    """Where fewer points differ than there are patches, the rest of the patches would be of whatever came first."""
    rng = np.random.default_rng(seed)
    apart = rng.integers(-8, 9, size=(distinct, channels)).astype(np.float64)  # sums of these are exact
    padded = apart[np.r_[: min(distinct, count), rng.integers(0, distinct, max(0, count - distinct))]]
    found = prepare(padded, most=512, least=64, scattered=scattered)
    again = prepare(padded[rng.permutation(len(padded))], most=512, least=64, scattered=scattered)
    if scattered or len(np.unique(padded[:, :3], axis=0)) < 64:
        np.testing.assert_array_equal(found, again)
    assert as_set(np.unique(found, axis=0)) == as_set(np.unique(again, axis=0))
    assert len(found) >= 64


class TestScatter:
    """What ball query takes first of a ball stands for all of it."""

    @staticmethod
    def surface(count: int, seed: int = 0) -> np.ndarray:
        directions = np.random.default_rng(seed).normal(size=(count, 3))
        return normalize(directions / np.linalg.norm(directions, axis=1, keepdims=True) * [1.0, 0.7, 0.4])

    @pytest.mark.parametrize("count", [1, 2, 3, 7, 1000, 1597])
    def test_every_point_stays_once(self, count):
        points = self.surface(count)
        found = scatter(points)
        np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(points, axis=0))
        assert len(found) == count

    def test_the_order_given_does_not_matter(self):
        points = self.surface(500)
        shuffled = points[np.random.default_rng(1).permutation(len(points))]
        np.testing.assert_array_equal(scatter(shuffled), scatter(points))

    def test_the_first_points_of_a_ball_are_spread_over_it(self):
        thinned = thin(self.surface(20_000), 5_000)
        center, radius, few = thinned[1234], 0.3, 32

        def shift(cloud):
            ball = cloud[np.linalg.norm(cloud - center, axis=1) <= radius]
            assert len(ball) > 4 * few
            return np.linalg.norm(ball[:few].mean(axis=0) - ball.mean(axis=0)) / radius

        assert shift(scatter(thinned)) < 0.15 < 0.4 < shift(thinned)

    def test_prepare_scatters_last(self):
        points = self.surface(900)
        found = prepare(points, most=300, least=64, scattered=True)
        np.testing.assert_array_equal(found, scatter(prepare(points, most=300, least=64)))
