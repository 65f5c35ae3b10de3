"""The PTX that ships, run by an emulator, against NumPy; and that the emulator notices what a GPU would not."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossmost.runtime.cuda_kernels import ARCHITECTURES, KERNELS, SamplingKernels
from crossmost.runtime.sampling import farthest_point_indices, group

Cloud = NDArray[np.float32]
FEW = settings(max_examples=15, deadline=None)


class Sampled(NamedTuple):
    """What a launch wrote."""

    indices: NDArray[np.int32]
    patches: Cloud
    centers: Cloud


def ptx_of(architecture: int) -> str:
    return (KERNELS / f"sampling_{architecture}.ptx").read_text("utf-8")


Run = Callable[..., Sampled]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def run(request: pytest.FixtureRequest, ptx_driver: ModuleType) -> Run:
    """Launch the shipped kernels on (B, N, C) points."""

    def launch(
        points: Cloud,
        groups: int,
        neighbors: int,
        radius: float | None = None,
        *,
        sizes: list[int] | None = None,
        ptx: str = "",
    ) -> Sampled:
        driver = ptx_driver.EmulatedDriver()
        batch, count, channels = points.shape
        text = (ptx or ptx_of(request.param)).encode()
        kernels = SamplingKernels(
            text, groups=groups, neighbors=neighbors, channels=channels, radius=radius, driver=driver
        )

        def empty(*shape: int) -> int:
            return int(driver.memory.allocate(np.zeros(shape, dtype=np.float32), writable=True))

        shapes = (batch, groups), (batch, groups, neighbors, channels), (batch, groups, 3)
        indices, patches, centers = (empty(*shape) for shape in shapes)
        workspace = kernels.workspace_bytes(batch, count)
        kernels.launch(
            driver.memory.allocate(points),
            0 if sizes is None else driver.memory.allocate(np.array(sizes, dtype=np.int32)),
            patches,
            centers,
            batch,
            count,
            7,
            indices_ptr=indices,
            workspace_ptr=empty(workspace // 4) if workspace else 0,
        )
        fetch = driver.memory.fetch
        return Sampled(
            fetch(indices, shapes[0], np.int32),
            fetch(patches, shapes[1], np.float32),
            fetch(centers, shapes[2], np.float32),
        )

    return launch


def assert_as_numpy(found: Sampled, clouds: list[Cloud], radius: float | None = None) -> None:
    groups, neighbors = found.patches.shape[1:3]
    for index, cloud in enumerate(clouds):
        expected_patches, expected_centers = group(cloud, groups, neighbors, radius)
        np.testing.assert_array_equal(found.indices[index], farthest_point_indices(cloud, groups))
        np.testing.assert_array_equal(found.centers[index], expected_centers)
        np.testing.assert_array_equal(found.patches[index], expected_patches)


def random_clouds(batch: int, count: int, channels: int = 3, seed: int = 0) -> Cloud:
    return np.random.default_rng(seed).normal(size=(batch, count, channels)).astype(np.float32)


SHAPES = {
    "one slot in use": (2, 40, 3, 32, 32),
    "up to 1024 points": (2, 1000, 3, 33, 32),
    "up to 2048 points, colored": (1, 2048, 6, 64, 32),
    "up to 4096 points, two lists": (1, 2049, 3, 18, 64),
    "up to 8192 points": (1, 8001, 6, 9, 33),
    "up to 16384 points": (1, 16384, 3, 9, 1),
    "streamed": (1, 16385, 6, 5, 20),
}


@pytest.mark.parametrize(("batch", "count", "channels", "groups", "neighbors"), SHAPES.values(), ids=SHAPES)
def test_every_kernel_agrees_with_numpy(
    run: Run, batch: int, count: int, channels: int, groups: int, neighbors: int
) -> None:
    points = random_clouds(batch, count, channels)
    assert_as_numpy(run(points, groups, neighbors), list(points))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("count", [64, 16400])
def test_a_single_group(run: Run, groups: int, count: int) -> None:
    points = random_clouds(1, count)
    assert_as_numpy(run(points, groups, 3), list(points))


@given(seed=st.integers(0, 10_000), count=st.integers(1, 600), neighbors=st.integers(1, 64))
@FEW
def test_ties_go_to_the_lowest_index(run: Run, seed: int, count: int, neighbors: int) -> None:
    """On a coarse grid most distances are equal to others, and many points are equal."""
    cloud = (np.random.default_rng(seed).integers(-3, 4, (count, 3)) / 4).astype(np.float32)
    neighbors = min(neighbors, count)
    assert_as_numpy(run(cloud[None], min(count, 24), neighbors), [cloud])


@pytest.mark.parametrize("count", [5, 64, 1500])
def test_equal_points(run: Run, count: int) -> None:
    cloud = np.full((count, 3), 0.25, dtype=np.float32)
    assert_as_numpy(run(cloud[None], 5, 5), [cloud])


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e6, 1e19, 1e30])
def test_distances_that_underflow_or_overflow(run: Run, scale: float) -> None:
    cloud = (random_clouds(1, 300)[0] * scale).astype(np.float32)
    with np.errstate(over="ignore"):
        assert_as_numpy(run(cloud[None], 20, 40), [cloud])


def test_clouds_of_different_sizes_make_a_batch(run: Run) -> None:
    sizes = [16, 17, 255, 256, 257, 700]
    points = random_clouds(len(sizes), 700)
    for row, size in zip(points, sizes, strict=True):
        row[size:] = np.nan
    assert_as_numpy(
        run(points, 16, 16, sizes=sizes), [row[:size] for row, size in zip(points, sizes, strict=True)]
    )


def test_sizes_of_streamed_clouds(run: Run) -> None:
    sizes = [900, 16390]
    points = random_clouds(2, 16390)
    points[0, 900:] = np.nan
    assert_as_numpy(run(points, 6, 8, sizes=sizes), [points[0, :900], points[1]])


def test_sizes_that_are_wrong_reach_no_other_memory(run: Run) -> None:
    """The emulator refuses every access outside the arrays."""
    points = random_clouds(4, 64)
    found = run(points, 8, 40, sizes=[-1, 0, 3, 1000])
    assert_as_numpy(Sampled(*(part[3:] for part in found)), [points[3]])
    assert np.isfinite(found.patches).all()


@pytest.mark.parametrize("order", ["nearer and nearer", "farther and farther"])
def test_neighbors_in_the_worst_order(run: Run, order: str) -> None:
    """From far to near, every point of the walk is nearer than all before it."""
    cloud = random_clouds(1, 2500)[0]
    far = farthest_point_indices(cloud, 1)[0]
    by_distance = np.argsort(np.linalg.norm(cloud - cloud[far], axis=1))
    cloud = cloud[by_distance[::-1] if order == "nearer and nearer" else by_distance]
    for neighbors in (31, 64):
        assert_as_numpy(run(cloud[None], 4, neighbors), [cloud])


BALLS = {
    "few points, most balls with a place left": (2, 40, 3, 32, 32, 0.5),
    "one tile": (1, 1024, 3, 33, 64, 0.4),
    "several tiles, colored": (1, 2500, 6, 18, 64, 0.3),
    "every point in every ball": (2, 300, 3, 9, 64, 1e3),
    "as many as a ball may hold, full and not": (1, 2000, 6, 9, 256, 0.8),
    "no point but the center": (1, 300, 6, 9, 5, 1e-6),
    "patches of one point": (1, 1100, 3, 5, 1, 0.7),
    "streamed": (1, 16385, 6, 3, 20, 0.2),
}


@pytest.mark.parametrize(
    ("batch", "count", "channels", "groups", "neighbors", "radius"), BALLS.values(), ids=BALLS
)
def test_balls_agree_with_numpy(
    run: Run, batch: int, count: int, channels: int, groups: int, neighbors: int, radius: float
) -> None:
    points = random_clouds(batch, count, channels)
    assert_as_numpy(run(points, groups, neighbors, radius), list(points), radius)


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 600),
    neighbors=st.integers(1, 64),
    steps=st.integers(1, 6),
)
@FEW
def test_points_at_the_radius_and_duplicates(
    run: Run, seed: int, count: int, neighbors: int, steps: int
) -> None:
    """On a coarse grid many points lie at the radius, and many are equal."""
    cloud = (np.random.default_rng(seed).integers(-3, 4, (count, 3)) / 4).astype(np.float32)
    neighbors = min(neighbors, count)
    assert_as_numpy(run(cloud[None], min(count, 24), neighbors, steps / 4), [cloud], steps / 4)


def test_balls_that_are_full_late_and_early_share_a_block(run: Run) -> None:
    """Three points far away at the end, each with a ball of its own, between balls that the first points fill."""
    cloud = np.concatenate([random_clouds(1, 2200)[0] / 100, 5 * np.eye(3, dtype=np.float32)])
    cloud = cloud.astype(np.float32)
    assert_as_numpy(run(cloud[None], 8, 64, 0.5), [cloud], 0.5)


def test_balls_of_clouds_of_different_sizes(run: Run) -> None:
    sizes = [16, 17, 255, 1024, 1025, 1100]
    points = random_clouds(len(sizes), 1100)
    for row, size in zip(points, sizes, strict=True):
        row[size:] = np.nan
    found = run(points, 16, 16, 0.9, sizes=sizes)
    assert_as_numpy(found, [row[:size] for row, size in zip(points, sizes, strict=True)], 0.9)


def test_sizes_that_are_wrong_and_points_that_are_none_lead_balls_nowhere_else(run: Run) -> None:
    points = random_clouds(4, 64)
    points[1:3, ::5] = np.nan
    found = run(points, 8, 40, 0.5, sizes=[-1, 50, 3, 1000])
    assert_as_numpy(Sampled(*(part[3:] for part in found)), [points[3]], 0.5)


@pytest.mark.parametrize("radius", [None, 0.2], ids=["nearest", "balls"])
@pytest.mark.parametrize("name", ["modelnet40_airplane_bathtub_2048", "lidarnet4_real_512", "infomr69_1024"])
def test_real_clouds(run: Run, shared_data: Path, name: str, radius: float | None) -> None:
    with np.load(shared_data / f"{name}.npz") as archive:
        points = archive["points"]
    clouds = points[:: len(points) // 3][:3].astype(np.float32)
    shuffled = np.random.default_rng(0).permuted(np.arange(clouds.shape[1]))
    clouds = np.ascontiguousarray(clouds[:, shuffled])
    assert_as_numpy(run(clouds, 64, 32, radius), list(clouds), radius)


# The emulator itself: what it is trusted to notice.


def damaged(pattern: str, replacement: str, architecture: int = 80) -> str:
    text = ptx_of(architecture)
    changed = re.sub(pattern, replacement, text)
    assert changed != text
    return changed


DAMAGES = {
    "one row of keys instead of two": (r"and\.b32(\s+%r\d+, %r\d+, )1;", r"and.b32\g<1>0;", "race"),
    "rounding left to the compiler": (r"sub\.rn\.f32", "sub.f32", "PTX type"),
    "reads beyond the cloud": (
        r"min\.s32(\s+%r\d+, )(%r\d+), %r\d+;",
        r"mov.u32\g<1>\2;",
        "outside every allocation",
    ),
}


@pytest.mark.parametrize(("pattern", "replacement", "complaint"), DAMAGES.values(), ids=DAMAGES)
def test_the_emulator_notices_damage(run: Run, pattern: str, replacement: str, complaint: str) -> None:
    with pytest.raises(Exception, match=complaint):
        run(random_clouds(2, 300), 16, 32, ptx=damaged(pattern, replacement))


@pytest.mark.parametrize(
    ("kernel", "barriers", "count", "neighbors", "radius"),
    [
        ("farthest_points_4", 1, 1000, 1, None),
        ("group_32", 5, 1500, 32, None),
        ("group_64", 5, 1500, 64, None),
        ("group_ball", 3, 1500, 64, 0.5),
    ],
)
def test_no_barrier_is_superfluous(
    run: Run, kernel: str, barriers: int, count: int, neighbors: int, radius: float | None
) -> None:
    """Nor is the lack of any one of them overlooked."""
    text = ptx_of(80)
    start = text.index(f".entry {kernel}(")
    found = re.compile(r"bar\.(warp\.)?sync\s+(0|-1);").finditer(text, start, text.index("\n}", start))
    places = [match.span() for match in found]
    assert len(places) == barriers
    for first, last in places:
        with pytest.raises(Exception, match="race"):
            run(random_clouds(1, count), 6, neighbors, radius, ptx=text[:first] + text[last:])


@pytest.mark.parametrize("opcode", ["sub.rn.f32", "setp.lt.f32", "setp.gt.u64"])
def test_another_instruction_gives_another_result(run: Run, opcode: str) -> None:
    other = {"sub.rn.f32": "add.rn.f32", "setp.lt.f32": "setp.le.f32", "setp.gt.u64": "setp.lt.u64"}[opcode]
    cloud = np.tile(np.round(random_clouds(1, 256)[0] * 2), (3, 1))  # equal points belong to the same thread
    with pytest.raises(AssertionError):
        assert_as_numpy(run(cloud[None], 16, 32, ptx=damaged(re.escape(opcode), other)), [cloud])
