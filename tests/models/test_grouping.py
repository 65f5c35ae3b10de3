"""The batched torch twin picks the indices of crossmost.runtime.sampling, on real clouds, ties and padding alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossmost.models import grouping
from crossmost.models.point_cards import load_point_card
from crossmost.runtime import sampling
from crossmost.runtime.orientation import turn
from crossmost.runtime.preprocess import normalize

Cloud = NDArray[np.float32]
FEW = settings(max_examples=40, deadline=None)
REAL = [
    ("modelnet10_vox30_1024.npz", 12),  # voxel centres: ties everywhere
    ("infomr69_1024.npz", 12),
    ("lidarnet4_real_512.npz", 12),  # repeated points
    ("modelnet40_airplane_bathtub_2048.npz", 6),
    ("cc0_lowpoly_1024.npz", 6),
]


def random_cloud(seed: int, count: int, channels: int = 3) -> Cloud:
    return np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32)


def grid_cloud(seed: int, count: int, cells: int = 6) -> Cloud:
    """Points of a coarse grid, some of them twice: equal distances are the rule."""
    grid = np.random.default_rng(seed).integers(0, cells, (count, 3)).astype(np.float32)
    return (grid / cells * 2 - 1).astype(np.float32)


def real_clouds(folder: Path, name: str, count: int) -> list[Cloud]:
    with np.load(folder / name) as archive:
        points = archive["points"]
    chosen = points[np.linspace(0, len(points) - 1, count).astype(int)]
    return [normalize(cloud) for cloud in chosen]


def padded(clouds: list[Cloud], filler: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = [len(cloud) for cloud in clouds]
    batch = np.full((len(clouds), max(sizes), clouds[0].shape[1]), filler, dtype=np.float32)
    for row, cloud in zip(batch, clouds, strict=True):
        row[: len(cloud)] = cloud
    return torch.from_numpy(batch), torch.tensor(sizes)


def assert_same_indices(clouds: list[Cloud], groups: int, neighbors: int, filler: float = 0.0) -> None:
    points, sizes = padded(clouds, filler)
    chosen = grouping.farthest_point_indices(points, groups, sizes)
    centers = grouping.gather_points(points[..., :3], chosen)
    nearest = grouping.nearest_indices(points, centers, neighbors, sizes)
    balls = {
        radius: grouping.ball_indices(points, centers, neighbors, radius, sizes) for radius in (0.1, 0.35)
    }
    for row, cloud in enumerate(clouds):
        squared = np.empty((groups, len(cloud)), dtype=np.float32)
        expected = sampling.farthest_point_indices(cloud, groups, squared)
        np.testing.assert_array_equal(chosen[row].numpy(), expected)
        expected = sampling.nearest_indices(cloud, cloud[expected, :3], neighbors)
        np.testing.assert_array_equal(nearest[row].numpy(), expected)
        for radius, found in balls.items():
            expected = sampling.ball_indices(squared, neighbors, radius)
            np.testing.assert_array_equal(found[row].numpy(), expected)


@pytest.mark.parametrize(("name", "count"), REAL)
def test_real_clouds_one_size(shared_data: Path, name: str, count: int) -> None:
    assert_same_indices(real_clouds(shared_data, name, count), 64, 32)


def test_real_clouds_of_different_sizes_in_one_batch(shared_data: Path) -> None:
    clouds = [cloud for name, _ in REAL for cloud in real_clouds(shared_data, name, 2)]
    cut = [cloud[: 100 + 37 * row] for row, cloud in enumerate(clouds)]
    assert_same_indices(cut, 64, 32)


def test_a_large_cloud_into_512_groups(shared_data: Path) -> None:
    assert_same_indices(real_clouds(shared_data, REAL[3][0], 2), 512, 32)


@given(seed=st.integers(0, 10_000), tied=st.booleans(), filler=st.sampled_from([0.0, 100.0, -1.0]))
@FEW
def test_random_clouds_of_any_sizes(seed: int, tied: bool, filler: float) -> None:
    make = grid_cloud if tied else random_cloud
    sizes = np.random.default_rng(seed).integers(20, 120, size=4)
    assert_same_indices([make(seed + row, int(size)) for row, size in enumerate(sizes)], 16, 12, filler)


@pytest.mark.parametrize("filler", [0.0, 7.0])
@pytest.mark.parametrize("size", [16, 17, 40])
def test_all_equal_points_and_whole_clouds(size: int, filler: float) -> None:
    same, spread = np.full((16, 3), 0.25, dtype=np.float32), random_cloud(0, size)
    assert_same_indices([same, spread], 16, 16, filler)


@pytest.mark.parametrize("radius", [None, 0.5])
@pytest.mark.parametrize("elements", [1, 3 * 90, 40 * 90])
def test_grouping_in_parts_is_grouping_at_once(
    monkeypatch: pytest.MonkeyPatch, radius: float | None, elements: int
) -> None:
    points, sizes = padded([grid_cloud(row, 50 + 10 * row) for row in range(5)])
    whole = grouping.group(points, 16, 8, sizes, radius=radius)
    monkeypatch.setattr(grouping, "ELEMENTS_IN_CACHE", elements)
    parts = grouping.group(points, 16, 8, sizes, radius=radius)
    assert torch.equal(whole.patches, parts.patches)
    assert torch.equal(whole.centers, parts.centers)


@pytest.mark.parametrize("radius", [None, 0.7])
@pytest.mark.parametrize("channels", [3, 6])
def test_groups_are_the_runtimes_to_the_bit_and_colours_pass(channels: int, radius: float | None) -> None:
    clouds = [random_cloud(row, 60 + 13 * row, channels) for row in range(3)]
    points, sizes = padded(clouds)
    found = grouping.group(points, 16, 8, sizes, radius=radius)
    for row, cloud in enumerate(clouds):
        patches, centers = sampling.group(cloud, 16, 8, radius)
        np.testing.assert_array_equal(found.patches[row].numpy(), patches)
        np.testing.assert_array_equal(found.centers[row].numpy(), centers)


def test_sizes_that_are_all_full_are_as_good_as_none() -> None:
    points = torch.from_numpy(np.stack([grid_cloud(row, 50) for row in range(3)]))
    with_sizes = grouping.group(points, 16, 8, torch.full((3,), 50))
    without = grouping.group(points, 16, 8)
    assert torch.equal(with_sizes.patches, without.patches)


def test_grouping_takes_no_gradient_and_leaves_its_input() -> None:
    points = torch.from_numpy(random_cloud(0, 40))[None].requires_grad_()
    before = points.detach().clone()
    found = grouping.group(points, 8, 4)
    assert not found.patches.requires_grad
    assert torch.equal(points.detach(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("radius", [None, 0.5])
def test_a_gpu_picks_the_same_indices(radius: float | None) -> None:
    points, sizes = padded(
        [make(row, 60 + 9 * row) for row in range(6) for make in (grid_cloud, random_cloud)]
    )
    here = grouping.group(points, 16, 12, sizes, radius=radius)
    there = grouping.group(points.cuda(), 16, 12, sizes.cuda(), radius=radius)
    assert torch.equal(here.patches, there.patches.cpu())
    assert torch.equal(here.centers, there.centers.cpu())


def chosen_set(cloud: Cloud, count: int) -> set[bytes]:
    indices = grouping.farthest_point_indices(torch.from_numpy(cloud)[None], count)[0].numpy()
    return {cloud[index].tobytes() for index in indices}


@given(seed=st.integers(0, 10_000))
@FEW
def test_the_order_of_the_points_does_not_matter_where_no_two_tie(seed: int) -> None:
    cloud = random_cloud(seed, 60)
    shuffled = cloud[np.random.default_rng(seed + 1).permutation(60)]
    assert chosen_set(cloud, 20) == chosen_set(shuffled, 20)


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.25, 2.0, 1024.0]))
@FEW
def test_scaling_by_a_power_of_two_changes_no_index(seed: int, scale: float) -> None:
    cloud = torch.from_numpy(random_cloud(seed, 60))[None]
    found, scaled = (grouping.farthest_point_indices(points, 20) for points in (cloud, cloud * scale))
    assert torch.equal(found, scaled)


@given(seed=st.integers(0, 10_000), shift=st.tuples(*[st.integers(-8, 8)] * 3))
@FEW
def test_neighbours_do_not_depend_on_where_the_cloud_is(seed: int, shift: tuple[int, int, int]) -> None:
    """Shifted by whole numbers, coordinates of few bits stay exact: so do all distances, ties included."""
    cloud = torch.from_numpy(np.round(random_cloud(seed, 60) * 64) / 64)[None]
    moved = cloud + torch.tensor(shift, dtype=torch.float32)
    found = grouping.nearest_indices(cloud, cloud[:, :9], 12)
    assert torch.equal(found, grouping.nearest_indices(moved, moved[:, :9], 12))


@given(seed=st.integers(0, 10_000), shift=st.tuples(*[st.floats(-1e3, 1e3)] * 3))
@FEW
def test_a_normalised_clouds_centres_do_not_depend_on_where_it_was(
    seed: int, shift: tuple[float, float, float]
) -> None:
    cloud = np.random.default_rng(seed).normal(size=(60, 3))
    found, moved = (normalize(points) for points in (cloud, cloud + np.array(shift)))
    np.testing.assert_array_equal(
        sampling.farthest_point_indices(found, 20),
        grouping.farthest_point_indices(torch.from_numpy(moved)[None], 20)[0].numpy(),
    )


def test_clouds_are_cut_in_the_frame_of_the_encoder() -> None:
    """A y-up encoder sees the z-up cloud of the trainer as the runtime would turn it."""
    card = load_point_card("openshape-pointbert-vitb32").model_copy(
        update={"groups": 8, "neighbors": 6, "channels": 6}
    )
    assert card.up_axis == "y"
    cloud = np.random.default_rng(0).uniform(-0.5, 0.5, (100, 6)).astype(np.float32)
    found = grouping.cut(torch.from_numpy(cloud)[None], card)
    patches, centers = sampling.group(turn(cloud, "z", "y").astype(np.float32), 8, 6, card.radius)
    np.testing.assert_array_equal(found.patches[0], patches)
    np.testing.assert_array_equal(found.centers[0], centers)
    np.testing.assert_array_equal(grouping.turned(torch.from_numpy(cloud), "y")[:, 1], cloud[:, 2])
