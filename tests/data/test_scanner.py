import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.data.scanner import SEVERITIES, Severity, scan, scan_dataset, visible
from crossmost.data.shapes import make_shape
from crossmost.errors import InputError

seeds = st.integers(0, 2**32 - 1)
names = st.sampled_from(sorted(SEVERITIES))
OCCLUSION = Severity()  # one viewpoint, nothing else


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def sphere(count: int, seed: int = 0) -> np.ndarray:
    points = generator(seed).normal(size=(count, 3))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def rows(points: np.ndarray) -> set[tuple[float, ...]]:
    return set(map(tuple, points.tolist()))


@given(seeds, names, st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_a_scan_is_a_finite_cloud_decided_by_the_seed(seed: int, severity: str, count: int) -> None:
    shape = sphere(count, seed)
    before = shape.copy()
    first = scan(shape, severity=severity, rng=generator(seed))
    np.testing.assert_array_equal(first, scan(shape, severity=severity, rng=generator(seed)))
    np.testing.assert_array_equal(shape, before)
    assert first.dtype == np.float32
    assert first.shape[1] == 3
    assert len(first) >= min(count, 32)
    assert np.isfinite(first).all()


@given(seeds, st.integers(1, 4), st.floats(0, 1), st.floats(0, 1), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_occlusion_and_dropout_only_take_points_away(
    seed: int, viewpoints: int, hidden: float, dropout: float, holes: int
) -> None:
    shape = sphere(200, seed)
    settings = Severity(viewpoints=viewpoints, hidden=hidden, dropout=dropout, holes=holes)
    scanned = scan(shape, severity=settings, rng=generator(seed))
    assert rows(scanned) <= rows(shape)
    assert len(rows(scanned)) == len(scanned) >= 32


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_a_camera_sees_the_near_side_of_a_sphere(seed: int) -> None:
    shape = sphere(1500, seed).astype(np.float64)
    camera = 4 * sphere(1, seed + 1)[0].astype(np.float64)
    seen = visible(shape, camera)
    facing = shape @ camera / 4
    assert seen[facing > 0.45].mean() > 0.95
    assert seen[facing < -0.1].mean() < 0.1


def test_a_screen_hides_what_is_behind_it() -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(-0.6, 0.6, 30)] * 2), axis=-1).reshape(-1, 2)
    screen = np.column_stack([np.full(len(grid), 0.5), grid])
    wall = np.column_stack([np.full(len(grid), -0.5), 0.8 * grid])
    seen = visible(np.concatenate([wall, screen]), np.array([4.0, 0, 0]))
    assert not seen[: len(wall)].any()
    assert seen[len(wall) :].all()


def test_more_viewpoints_and_hidden_points_make_a_scan_more_complete() -> None:
    shape = sphere(1024)
    sizes = [
        len(scan(shape, severity=Severity(viewpoints=count), rng=generator(0))) for count in (1, 2, 4, 6)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.55 * 1024
    assert sizes[3] > 0.8 * 1024
    assert len(scan(shape, severity=Severity(hidden=1.0), rng=generator(0))) == 1024


def test_range_noise_lies_along_the_ray_and_has_its_width() -> None:
    shape = sphere(4000)
    clean = scan(shape, severity=OCCLUSION, rng=generator(3))
    noisy = scan(shape, severity=Severity(noise=0.02), rng=generator(3))
    error = (noisy - clean).astype(np.float64)
    assert abs(np.linalg.norm(error, axis=1).std() / 0.02 - 0.6) < 0.1  # of |N(0, 1)|: sqrt(1 - 2 / pi)
    signed = np.sign(error @ clean.mean(axis=0)) * np.linalg.norm(error, axis=1)
    assert abs(signed.mean()) < 0.002
    assert signed.std() == pytest.approx(0.02, rel=0.1)
    # All rays meet in the one camera, four radii away: crossing two of them finds it.
    direction = error / np.linalg.norm(error, axis=1, keepdims=True)
    moved = np.linalg.norm(error, axis=1) > 0.005
    across = np.eye(3) - direction[moved, :, None] * direction[moved, None, :]
    camera = np.linalg.solve(across.sum(axis=0), (across @ clean[moved, :, None].astype(float)).sum(axis=0))
    assert np.linalg.norm(camera) == pytest.approx(4, rel=0.02)


def test_the_floor_lies_under_the_object_and_is_shadowed_by_it() -> None:
    shape = make_shape("table", generator(1))
    settings = Severity(hidden=0.0, floor=1.0, floor_extent=1.5)
    scanned = scan(shape, severity=settings, rng=generator(0))
    floor = scanned[~np.isin(scanned[:, 0], shape[:, 0])]
    assert len(floor) > 50
    np.testing.assert_allclose(floor[:, 2], shape[:, 2].min(), atol=1e-6)
    everything = scan(shape, severity=dataclasses.replace(settings, hidden=1.0), rng=generator(0))
    assert len(everything) == 2 * len(shape)
    assert len(floor) < len(shape)


def test_a_hole_is_empty() -> None:
    shape = sphere(2000)
    whole = scan(shape, severity=OCCLUSION, rng=generator(5))
    holed = scan(shape, severity=Severity(holes=1, hole_radius=0.3), rng=generator(5))
    lost = np.array(sorted(rows(whole) - rows(holed)))
    assert len(lost) > 10
    middle = lost.mean(axis=0)
    assert np.linalg.norm(lost - middle, axis=1).max() < 0.4
    assert np.linalg.norm(holed - middle, axis=1).min() > 0.15


@pytest.mark.parametrize("severity", ["moderate", "high"])
def test_colours_stay_with_their_points_and_a_floor_has_none(severity: str) -> None:
    shape = make_shape("table", generator(1))
    bare = scan(shape, severity=severity, rng=generator(3))
    quiet = dataclasses.replace(SEVERITIES[severity], noise=0.0)
    colored = scan(np.concatenate([shape, shape], axis=1), severity=quiet, rng=generator(3))
    assert colored.dtype == np.float32
    assert len(colored) == len(bare)
    own = (colored[:, :3] == colored[:, 3:]).all(axis=1)
    floor = (colored[:, 3:] == np.float32(0.4)).all(axis=1)
    assert (own | floor).all()
    assert own.sum() > 100
    assert floor.any() == (severity == "high")


def test_yaw_turns_the_object_about_z() -> None:
    shape = sphere(300) * np.linspace(0.2, 1, 300, dtype=np.float32)[:, None]
    everything = Severity(hidden=1.0, yaw=True)
    turned = scan(shape, severity=everything, rng=generator(0))
    np.testing.assert_allclose(turned[:, 2], shape[:, 2], atol=1e-6)
    np.testing.assert_allclose(np.hypot(*turned.T[:2]), np.hypot(*shape.T[:2]), atol=1e-6)
    assert np.abs(turned - shape).max() > 0.1


def test_severities_grow(shared_data) -> None:
    with np.load(shared_data / "modelnet10_vox30_1024.npz") as data:
        clouds, ids = data["points"][::200], data["ids"][::200]
    left_out = []
    for severity in ("low", "moderate", "high"):
        scans = scan_dataset(clouds, ids, severity, seed=0)
        pairs = zip(clouds.astype(np.float64), scans, strict=True)
        distances = [np.linalg.norm(a[:, None] - b[None], axis=-1).min(axis=1).mean() for a, b in pairs]
        left_out.append(np.mean(distances))
    assert left_out[0] < 0.7 * left_out[1]
    assert left_out[1] < 0.9 * left_out[2]


def test_a_scan_does_not_depend_on_the_other_shapes() -> None:
    clouds = np.stack([sphere(200, seed) for seed in range(4)])
    ids = ["a", "b", "c", "d"]
    together = scan_dataset(clouds, ids, "moderate", seed=7)
    alone = scan_dataset(clouds[[2, 0]].astype(np.float64), ["c", "a"], "moderate", seed=7)
    np.testing.assert_array_equal(together[2], alone[0])
    np.testing.assert_array_equal(together[0], alone[1])
    other = scan_dataset(clouds, ids, "moderate", seed=8)
    assert not any(np.array_equal(a, b) for a, b in zip(together, other, strict=True))


def test_wrong_use_says_what_is_wrong() -> None:
    with pytest.raises(InputError, match="low, moderate, high, found 'awful'"):
        scan(sphere(10), severity="awful", rng=generator(0))
    with pytest.raises(InputError, match="2 ids for 3 clouds"):
        scan_dataset(np.zeros((3, 10, 3)), ["a", "b"], "low", seed=0)
    for wrong in ({"viewpoints": 0}, {"noise": -1}, {"dropout": 1.5}, {"hidden": -0.1}, {"floor": -1}):
        with pytest.raises(InputError, match="expected viewpoints"):
            Severity(**wrong)
