"""Farthest point sampling, neighbours and balls against loops, ties and duplicates included."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossmost.runtime.preprocess import normalize
from crossmost.runtime.sampling import (
    RADII,
    ball_indices,
    farthest_point_indices,
    group,
    nearest_indices,
    squared_radius,
)

Cloud = NDArray[np.float32]
FEW = settings(max_examples=40, deadline=None)


def grid_cloud(seed: int, count: int = 40) -> Cloud:
    """Coordinates of few bits: squared distances are exact in float32, and many of them are equal."""
    return (np.random.default_rng(seed).integers(-8, 9, (count, 3)) / 8).astype(np.float32)


def random_cloud(seed: int, count: int = 60) -> Cloud:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def squared(a: Cloud, b: Cloud) -> float:
    return float(sum((float(p) - float(q)) ** 2 for p, q in zip(a[:3], b[:3], strict=True)))


def slow_farthest_points(points: Cloud, count: int) -> list[int]:
    origin = np.zeros(3, dtype=np.float32)
    chosen = [max(range(len(points)), key=lambda i: (squared(points[i], origin), -i))]
    while len(chosen) < count:
        distance = [min(squared(point, points[j]) for j in chosen) for point in points]
        chosen.append(max(range(len(points)), key=lambda i: (distance[i], -i)))
    return chosen


def slow_ball(points: Cloud, center: Cloud, k: int, radius: float) -> list[int]:
    """In float32, each operation rounded, as every implementation does it."""
    limit, found = np.float32(float(radius) ** 2), []
    for index, point in enumerate(points):
        x, y, z = (point[axis] - center[axis] for axis in range(3))
        if (x * x + y * y) + z * z <= limit:
            found.append(index)
    return (found + [found[0]] * k)[:k]


def balls(points: Cloud, groups: int, k: int, radius: float) -> NDArray[np.int64]:
    """`ball_indices` around farthest points, (groups, k)."""
    squared = np.empty((groups, len(points)), dtype=np.float32)
    farthest_point_indices(points, groups, squared)
    return ball_indices(squared, k, radius)


def slow_nearest(points: Cloud, center: Cloud, k: int) -> list[int]:
    return sorted(range(len(points)), key=lambda i: (squared(points[i], center), i))[:k]


@given(seed=st.integers(0, 10_000), count=st.integers(1, 40))
@FEW
def test_farthest_points_with_ties_to_the_lowest_index(seed: int, count: int) -> None:
    points = grid_cloud(seed)
    assert farthest_point_indices(points, count).tolist() == slow_farthest_points(points, count)


@given(seed=st.integers(0, 10_000))
@FEW
def test_each_farthest_point_is_the_farthest_from_those_before(seed: int) -> None:
    points = random_cloud(seed)
    chosen = farthest_point_indices(points, 20)
    assert len(set(chosen.tolist())) == 20
    norms = [squared(point, np.zeros(3, dtype=np.float32)) for point in points]
    assert norms[chosen[0]] >= max(norms) * (1 - 1e-6)
    for step in range(1, 20):
        distances = [min(squared(point, points[j]) for j in chosen[:step]) for point in points]
        assert distances[chosen[step]] >= max(distances) * (1 - 1e-6)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 40))
@FEW
def test_neighbours_nearest_first_with_ties_to_the_lowest_index(seed: int, k: int) -> None:
    points = grid_cloud(seed)
    centers = points[:5]
    found = nearest_indices(points, centers, k)
    assert found.shape == (5, k)
    assert found.tolist() == [slow_nearest(points, center, k) for center in centers]


@given(seed=st.integers(0, 10_000))
@FEW
def test_neighbours_of_any_centre_are_nearer_than_the_rest(seed: int) -> None:
    points, centers = random_cloud(seed), random_cloud(seed + 1, 4)
    for center, found in zip(centers, nearest_indices(points, centers, 12), strict=True):
        distances = np.array([squared(point, center) for point in points])
        assert (np.diff(distances[found]) >= -1e-6).all()
        assert distances[found].max() <= np.delete(distances, found).min() + 1e-6


@given(seed=st.integers(0, 10_000), count=st.integers(1, 30))
@FEW
def test_fewer_farthest_points_are_the_first_of_more(seed: int, count: int) -> None:
    points = random_cloud(seed)
    np.testing.assert_array_equal(
        farthest_point_indices(points, count), farthest_point_indices(points, 40)[:count]
    )


@given(seed=st.integers(0, 10_000))
@FEW
def test_permuting_a_cloud_permutes_the_choice(seed: int) -> None:
    points, order = random_cloud(seed), np.random.default_rng(seed + 1).permutation(60)
    chosen = farthest_point_indices(points, 20)
    np.testing.assert_array_equal(order[farthest_point_indices(points[order], 20)], chosen)
    nearest = nearest_indices(points, points[:3], 10)
    np.testing.assert_array_equal(order[nearest_indices(points[order], points[:3], 10)], nearest)


@given(
    seed=st.integers(0, 10_000),
    axes=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
)
@FEW
def test_turning_a_cloud_by_right_angles_or_mirroring_it_changes_no_index(
    seed: int, axes: list[int], signs: tuple[int, ...]
) -> None:
    points = grid_cloud(seed)
    turned = points[:, axes] * np.array(signs, dtype=np.float32)
    np.testing.assert_array_equal(farthest_point_indices(turned, 20), farthest_point_indices(points, 20))
    np.testing.assert_array_equal(
        nearest_indices(turned, turned[:4], 9), nearest_indices(points, points[:4], 9)
    )


@pytest.mark.parametrize("value", [0.0, 0.1, -0.75])
def test_equal_points_give_the_lowest_indices(value: float) -> None:
    points = np.full((8, 3), value, dtype=np.float32)
    assert farthest_point_indices(points, 4).tolist() == [0, 0, 0, 0]
    assert nearest_indices(points, points[:2], 5).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_one_point_is_its_own_group() -> None:
    patches, centers = group(np.array([[0.5, 0.25, -1]], dtype=np.float32), 1, 1)
    assert patches.tolist() == [[[0, 0, 0]]]
    assert centers.tolist() == [[0.5, 0.25, -1]]


def test_a_duplicate_is_taken_last() -> None:
    points = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    assert farthest_point_indices(points, 4).tolist() == [0, 2, 3, 0]


@pytest.mark.parametrize("channels", [3, 6])
def test_groups_are_centred_and_colours_are_not(channels: int) -> None:
    points = np.random.default_rng(0).random((50, channels), dtype=np.float32)
    patches, centers = group(points, 8, 6)
    assert patches.shape == (8, 6, channels)
    assert patches.dtype == centers.dtype == np.float32
    for row, index in enumerate(farthest_point_indices(points, 8)):
        nearest = slow_nearest(points, points[index], 6)
        np.testing.assert_array_equal(centers[row], points[index, :3])
        np.testing.assert_array_equal(patches[row, :, :3], points[nearest, :3] - points[index, :3])
        np.testing.assert_array_equal(patches[row, :, 3:], points[nearest, 3:])


def test_a_read_only_cloud_is_grouped_and_left_as_it_is() -> None:
    points = random_cloud(0)
    before = points.copy()
    points.flags.writeable = False
    patches, centers = group(points, 8, 6)
    np.testing.assert_array_equal(points, before)
    assert not np.shares_memory(points, patches)
    assert not np.shares_memory(points, centers)


def test_memory_layout_does_not_matter() -> None:
    points = random_cloud(3)
    wide = np.zeros((60, 7), dtype=np.float32)
    wide[:, ::2][:, :3] = points
    for layout in (np.asfortranarray(points), wide[:, ::2][:, :3]):
        np.testing.assert_array_equal(group(layout, 8, 6)[0], group(points, 8, 6)[0])


# Balls.


@given(seed=st.integers(0, 10_000), tied=st.booleans(), k=st.integers(1, 70), radius=st.floats(1e-3, 4))
@FEW
def test_a_ball_is_its_first_points_and_the_first_again(seed: int, tied: bool, k: int, radius: float) -> None:
    points = grid_cloud(seed) if tied else random_cloud(seed)
    expected = [slow_ball(points, points[i], k, radius) for i in farthest_point_indices(points, 6)]
    assert balls(points, 6, k, radius).tolist() == expected


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 12))
@FEW
def test_a_point_at_the_radius_is_inside(seed: int, steps: int) -> None:
    """On the grid everything is exact, in float64 as well."""
    points = grid_cloud(seed)
    chosen = farthest_point_indices(points, 5)
    expected = [
        [j for j, point in enumerate(points) if squared(point, points[i]) <= (steps / 8) ** 2] for i in chosen
    ]
    found = balls(points, 5, 40, steps / 8)
    assert [list(dict.fromkeys(row)) for row in found.tolist()] == expected


def test_the_next_number_above_the_squared_radius_is_outside() -> None:
    limit = squared_radius(0.2)
    rows = np.array([[0, limit, np.nextafter(limit, np.float32(1))]], dtype=np.float32)
    assert ball_indices(rows, 3, 0.2).tolist() == [[0, 1, 0]]


def test_the_square_is_rounded_once() -> None:
    assert squared_radius(0.2) == np.float32(0.04)
    for radius in np.random.default_rng(0).uniform(0.01, 2, 100):
        assert squared_radius(radius) == np.float32(np.float64(radius) * np.float64(radius))
        assert squared_radius(radius).dtype == np.float32


@pytest.mark.parametrize("radius", [0.0, -0.2, float("nan"), float("inf"), 1e-19, 1e19])
def test_a_radius_whose_square_is_no_ordinary_number_is_refused(radius: float) -> None:
    with pytest.raises(ValueError, match=r"expected a radius from 1e-18 to 1e\+18, found"):
        group(random_cloud(0), 4, 4, radius)


@pytest.mark.parametrize("radius", RADII)
def test_the_smallest_and_the_largest_ball(radius: float) -> None:
    points = random_cloud(0)
    chosen = farthest_point_indices(points, 4)
    expected = [[index] * 3 for index in chosen] if radius == RADII[0] else [[0, 1, 2]] * 4
    assert balls(points, 4, 3, radius).tolist() == expected


def test_a_center_without_neighbors_fills_its_patch() -> None:
    points = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    patches, centers = group(points, 3, 3, 0.5)
    assert not patches.any()
    np.testing.assert_array_equal(centers, points)


def test_duplicates_are_members_of_their_own() -> None:
    points = np.array([[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], dtype=np.float32)
    assert balls(points, 2, 4, 0.1).tolist() == [[0, 2, 3, 0], [1, 1, 1, 1]]
    assert balls(np.full((8, 3), 0.25, dtype=np.float32), 2, 5, 0.1).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_of_a_full_ball_the_first_points_count_and_not_the_nearest() -> None:
    points = np.array([[0.9, 0, 0], [0.8, 0, 0], [0.7, 0, 0], [1, 0, 0], [0.99, 0, 0]], dtype=np.float32)
    assert balls(points, 1, 3, 0.5).tolist() == [[0, 1, 2]]
    assert balls(points[::-1], 1, 3, 0.5).tolist() == [[0, 1, 2]]  # other points: the order decides


@given(seed=st.integers(0, 10_000))
@FEW
def test_the_order_of_the_points_does_not_matter_where_no_ball_is_full(seed: int) -> None:
    points, order = random_cloud(seed), np.random.default_rng(seed + 1).permutation(60)
    found = [set(row) for row in balls(points, 10, 60, 0.8).tolist()]
    assert [set(order[row].tolist()) for row in balls(points[order], 10, 60, 0.8)] == found


def test_patches_of_balls_are_centred_and_colours_are_not() -> None:
    points = np.random.default_rng(0).random((50, 6), dtype=np.float32)
    patches, centers = group(points, 8, 6, 0.4)
    assert patches.dtype == centers.dtype == np.float32
    for row, index in enumerate(farthest_point_indices(points, 8)):
        members = slow_ball(points, points[index], 6, 0.4)
        np.testing.assert_array_equal(centers[row], points[index, :3])
        np.testing.assert_array_equal(patches[row, :, :3], points[members, :3] - points[index, :3])
        np.testing.assert_array_equal(patches[row, :, 3:], points[members, 3:])


@pytest.mark.parametrize("name", ["modelnet10_vox30_1024", "lidarnet4_real_512", "infomr69_1024"])
def test_balls_of_real_clouds(shared_data: Path, name: str) -> None:
    with np.load(shared_data / f"{name}.npz") as archive:
        clouds = archive["points"]
    for cloud in clouds[:: len(clouds) // 2][:2]:
        points = normalize(cloud)
        expected = [slow_ball(points, points[i], 64, 0.2) for i in farthest_point_indices(points, 12)]
        assert balls(points, 12, 64, 0.2).tolist() == expected


def test_no_ball_is_empty_even_of_numbers_that_are_none() -> None:
    points = random_cloud(0)
    points[7] = np.nan
    with np.errstate(invalid="ignore"):
        patches, _ = group(points, 8, 6, 0.3)
    assert patches.shape == (8, 6, 3)
