import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crossmost.data.views import (
    FAR,
    NEAR,
    camera_axes,
    contact_sheet,
    render_views,
    sample_spacing,
    view_directions,
)
from crossmost.errors import InputError
from crossmost.runtime.preprocess import normalize

seeds = st.integers(0, 2**32 - 1)


def sphere(count: int, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def random_cloud(seed: int, count: int) -> np.ndarray:
    return normalize(np.random.default_rng(seed).normal(size=(count, 3)))


@given(st.integers(1, 24), st.floats(-10, 10))
def test_cameras_stand_evenly_around_and_above(count: int, azimuth: float) -> None:
    directions = view_directions(count, azimuth)
    assert directions.shape == (count, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(directions[:, 2], 0.5)
    turn = np.exp(1j * 2 * np.pi / count)
    flat = directions[:, 0] + 1j * directions[:, 1]
    np.testing.assert_allclose(np.roll(flat, -1), flat * turn, atol=1e-9)


@given(seeds)
def test_camera_frames_are_right_handed_and_upright(seed: int) -> None:
    directions = np.concatenate([sphere(5, seed).astype(np.float64), [[0, 0, 1], [0, 0, -1]]])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    axes = camera_axes(directions)
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (7, 1, 1)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(axes), 1)
    np.testing.assert_allclose(axes[:, 0, 2], 0, atol=1e-12)
    assert (axes[:5, 1, 2] > 0).all()


@given(seeds, st.integers(1, 200), st.sampled_from([8, 33, 64]))
@settings(max_examples=30, deadline=None)
def test_views_do_not_depend_on_the_order_of_the_points(seed: int, count: int, size: int) -> None:
    cloud = random_cloud(seed, count)
    shuffled = np.random.default_rng(seed + 1).permutation(cloud)
    np.testing.assert_array_equal(
        render_views(cloud, count=3, size=size), render_views(shuffled, count=3, size=size)
    )


@given(seeds, st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_turning_the_object_is_turning_the_cameras(seed: int, steps: int) -> None:
    cloud = random_cloud(seed, 80)
    angle = 2 * np.pi * steps / 6
    first = render_views(cloud, count=6, size=24)
    np.testing.assert_array_equal(first[steps], render_views(cloud, count=1, size=24, azimuth=angle)[0])
    np.testing.assert_array_equal(render_views(cloud, count=6, size=24, azimuth=2 * np.pi / 6)[0], first[1])


@pytest.mark.parametrize("count", [512, 1024, 8192])
def test_spacing_follows_the_density_of_the_samples(count: int) -> None:
    cloud = sphere(count)
    expected = np.sqrt(4 * np.pi / count)
    assert sample_spacing(cloud) == pytest.approx(expected, rel=0.15)
    assert sample_spacing(cloud / 2) == pytest.approx(expected / 2, rel=0.2)
    assert sample_spacing(np.concatenate([cloud] * 4)) > 0.3 * expected


def test_depth_is_bright_where_near() -> None:
    direction = view_directions(1)[0].astype(np.float32)
    right = camera_axes(view_directions(1))[0, 0].astype(np.float32)
    near, middle, far = 0.7 * direction - 0.6 * right, 0 * right, -0.7 * direction + 0.6 * right
    view = render_views(np.stack([far, near, middle]), count=1, size=65)[0]
    lit = np.unique(view)
    expected = [0] + [round(FAR + (NEAR - FAR) * (depth + 1) / 2) for depth in (-0.7, 0.0, 0.7)]
    np.testing.assert_allclose(lit, expected, atol=1)
    columns = [np.flatnonzero((view == grey).any(axis=0)).mean() for grey in lit[1:]]
    assert columns[2] < columns[1] < columns[0]  # the near one is on the left


def test_the_nearer_object_hides_the_farther() -> None:
    axes = camera_axes(view_directions(1))[0].astype(np.float32)
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 40)] * 2), axis=-1).reshape(-1, 2).astype(np.float32)
    sheet = grid @ axes[:2]
    wall, screen = sheet - 0.8 * axes[2], 0.5 * sheet + 0.8 * axes[2]
    for cloud in (np.concatenate([wall, screen]), np.concatenate([screen, wall])):
        view = render_views(cloud, count=1, size=64)[0]
        assert (view[26:38, 26:38] > 200).all()
        assert (view[18:20, 18:46] > 0).all()
        assert (view[18:20, 18:46] < 100).all()


@pytest.mark.parametrize("size", [64, 224])
def test_a_thousand_points_make_a_closed_surface(size: int) -> None:
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(rows, columns) / (0.96 * size / 2)
    for view in render_views(sphere(1024), count=4, size=size):
        assert (view[radius < 0.9] > 0).mean() > 0.999
        # The far half of the sphere shines through the largest gaps of the near one only.
        assert (view[radius < 0.8] > (NEAR + FAR) / 2).mean() > 0.85
        assert (view[radius > 1.06] == 0).mean() > 0.98


def test_a_thin_leg_stays_thin() -> None:
    leg = np.stack([np.zeros(1024), np.zeros(1024), np.linspace(-1, 1, 1024)], axis=1).astype(np.float32)
    view = render_views(leg, count=1, size=224)[0]
    widths = (view[30:190] > 0).sum(axis=1)
    assert widths.min() >= 1
    assert widths.max() <= 9


def test_up_is_up() -> None:
    upper = np.array([[0, 0, 0.9]] * 4 + [[0, 0, -0.1]] * 4, dtype=np.float32)
    view = render_views(upper, count=1, size=64)[0]
    assert np.flatnonzero(view.any(axis=1)).min() < 16


def test_real_classes_fill_the_frame(shared_data) -> None:
    with np.load(shared_data / "modelnet10_vox30_1024.npz") as data:
        clouds = data["points"][::1500].astype(np.float32)
    for cloud in clouds:
        views = render_views(cloud, count=4, size=64)
        assert views.dtype == np.uint8
        assert views.shape == (4, 64, 64)
        assert ((views > 0).mean(axis=(1, 2)) > 0.05).all()
        assert not views[:, [0, -1], [0, -1]].any()


@pytest.mark.parametrize("points", [1, 2])
def test_tiny_clouds_are_rendered(points: int) -> None:
    assert render_views(np.zeros((points, 3), dtype=np.float32), count=2, size=16).any(axis=(1, 2)).all()


@pytest.mark.parametrize(("count", "size"), [(0, 8), (1, 0)])
def test_senseless_sizes_are_refused(count: int, size: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        render_views(np.zeros((4, 3), dtype=np.float32), count=count, size=size)


def test_contact_sheet_keeps_the_pictures_and_their_order() -> None:
    pictures = np.stack([np.full((20, 30, 3), (10 * k, 50, 200), dtype=np.uint8) for k in range(5)])
    sheet = contact_sheet(pictures, ["a", "b", "c", "d", "a caption much too long for its picture"], 2)
    assert isinstance(sheet, Image.Image)
    pixels = np.asarray(sheet)
    places = [tuple(np.argwhere((pixels == picture[0, 0]).all(axis=-1)).min(axis=0)) for picture in pictures]
    assert places == sorted(places)
    assert places[0][0] == places[1][0]
    assert places[2][0] > places[0][0]
    for (top, left), picture in zip(places, pictures, strict=True):
        np.testing.assert_array_equal(pixels[top : top + 20, left : left + 30], picture)
        caption = pixels[top + 20 : top + 34, left : left + 30]
        assert caption.min() < 128
    right_of_last = pixels[places[4][0] + 20 : places[4][0] + 34, places[4][1] + 31 :]
    assert (right_of_last == 255).all()


def test_contact_sheet_of_grey_pictures_needs_a_caption_each() -> None:
    pictures = np.zeros((2, 8, 8), dtype=np.uint8)
    assert contact_sheet(pictures, ["", ""], 9).mode == "RGB"
    with pytest.raises(InputError, match="one caption a picture"):
        contact_sheet(pictures, ["one"], 1)
