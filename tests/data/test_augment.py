import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crossmost.data import augment
from crossmost.data.augment import STRONG, WEAK, PointAugment, augment_points
from crossmost.data.shapes import make_shape
from crossmost.data.views import render_views
from crossmost.runtime.preprocess import normalize

seeds = st.integers(0, 2**32 - 1)
SIDE = 32
LIGHT_STRONG = dataclasses.replace(STRONG, upsample_to=300)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_cloud(seed: int, count: int = 60, channels: int = 3) -> np.ndarray:
    values = generator(seed).normal(size=(count, channels))
    return np.concatenate([normalize(values[:, :3]), values[:, 3:].astype(np.float32)], axis=1)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return render_views(make_shape("chair", generator(0)), count=1, size=48)[0]


@given(seeds, st.sampled_from([WEAK, LIGHT_STRONG, PointAugment()]), st.sampled_from([1, 2, 9, 60]))
@settings(max_examples=40, deadline=None)
def test_points_are_decided_by_the_generator_and_the_input_is_kept(
    seed: int, settings: PointAugment, count: int
) -> None:
    cloud = random_cloud(seed, count, 6)
    before = cloud.copy()
    varied = augment_points(cloud, settings, generator(seed))
    np.testing.assert_array_equal(varied, augment_points(cloud, settings, generator(seed)))
    np.testing.assert_array_equal(cloud, before)
    assert varied.dtype == np.float32
    assert varied.shape == (max(settings.upsample_to, count), 6)
    assert np.isfinite(varied).all()


@given(seeds)
@settings(deadline=None)
def test_weak_is_a_proper_small_rotation_and_a_scale(seed: int) -> None:
    cloud = random_cloud(seed, channels=6)
    varied = augment_points(cloud, WEAK, generator(seed))
    matrix = np.linalg.lstsq(cloud[:, :3].astype(float), varied[:, :3].astype(float), rcond=None)[0].T
    scale = np.cbrt(np.linalg.det(matrix))
    assert 0.9 <= scale <= 1.1
    rotation = matrix / scale
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    assert angle <= 3 * 0.18 + 1e-3
    np.testing.assert_array_equal(varied[:, 3:], cloud[:, 3:])


def test_the_small_rotation_is_rz_ry_rx() -> None:
    def about(axis: int, angle: float) -> np.ndarray:
        generators = np.zeros((3, 3))
        generators[(axis + 2) % 3, (axis + 1) % 3], generators[(axis + 1) % 3, (axis + 2) % 3] = 1, -1
        return np.eye(3) + np.sin(angle) * generators + (1 - np.cos(angle)) * generators @ generators

    rng, twin = generator(4), generator(4)
    matrix = augment.small_rotation(WEAK, rng)
    x, y, z = np.clip(0.06 * twin.standard_normal(3), -0.18, 0.18)
    np.testing.assert_allclose(matrix, about(2, z) @ about(1, y) @ about(0, x), atol=1e-12)


@given(seeds)
@settings(deadline=None)
def test_upright_rotation_keeps_heights_and_norms(seed: int) -> None:
    cloud = random_cloud(seed)
    turned = augment_points(cloud, PointAugment(rotation=(0, 2 * np.pi)), generator(seed))
    np.testing.assert_allclose(turned[:, 2], cloud[:, 2], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(cloud, axis=1), atol=1e-5)
    quarter = augment_points(cloud, PointAugment(rotation=(np.pi / 2, np.pi / 2)), generator(seed))
    np.testing.assert_allclose(quarter, np.stack([-cloud[:, 1], cloud[:, 0], cloud[:, 2]], axis=1), atol=1e-6)


@given(seeds)
@settings(deadline=None)
def test_translation_is_a_share_of_the_extent(seed: int) -> None:
    cloud = random_cloud(seed) * np.array([1, 0.1, 0.01], dtype=np.float32)
    shift = augment_points(cloud, PointAugment(translation=0.5), generator(seed)) - cloud
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-6)
    share = shift[0] / np.ptp(cloud, axis=0)
    assert (np.abs(share) <= 0.5 + 1e-4).all()
    assert len(set(share)) == 3


def test_jitter_has_its_width_and_is_clipped() -> None:
    cloud = random_cloud(0, 4000)
    noise = augment_points(cloud, PointAugment(jitter_sigma=0.01, jitter_clip=0.05), generator(0)) - cloud
    assert noise.std() == pytest.approx(0.01, rel=0.05)
    clipped = augment_points(cloud, PointAugment(jitter_sigma=0.01, jitter_clip=0.005), generator(0)) - cloud
    assert np.abs(clipped).max() == pytest.approx(0.005, rel=1e-3)


@given(seeds, st.floats(0.01, 1), st.integers(1, 80))
@settings(deadline=None)
def test_dropped_points_are_removed_or_overwritten_by_the_first(seed: int, ratio: float, count: int) -> None:
    cloud = random_cloud(seed, count, 6)
    removed = augment_points(cloud, PointAugment(dropout=ratio, drop_mode="remove"), generator(seed))
    first = augment_points(cloud, PointAugment(dropout=ratio, drop_mode="first"), generator(seed))
    assert 1 <= len(removed) <= count
    assert len(first) == count
    np.testing.assert_array_equal(removed[0], cloud[0])
    stayed = (first == cloud).all(axis=1)
    np.testing.assert_array_equal(first[stayed], removed)
    np.testing.assert_array_equal(first[~stayed], np.broadcast_to(cloud[0], first[~stayed].shape))


def test_dropout_ratio_is_uniform_up_to_its_maximum() -> None:
    cloud = random_cloud(0, 400)
    rng = generator(0)
    setting = PointAugment(dropout=0.875, drop_mode="remove")
    kept = [len(augment_points(cloud, setting, rng)) / 400 for _ in range(300)]
    assert np.mean(kept) == pytest.approx(1 - 0.875 / 2, abs=0.04)
    assert min(kept) < 0.2
    assert max(kept) > 0.95


@given(seeds, st.integers(1, 40), st.integers(1, 60))
@settings(deadline=None)
def test_added_points_are_means_of_the_ten_nearest(seed: int, count: int, target: int) -> None:
    cloud = random_cloud(seed, count, 6)
    filled = augment_points(cloud, PointAugment(upsample_to=target), generator(seed))
    np.testing.assert_array_equal(filled[:count], cloud)
    assert len(filled) == max(count, target)
    distance = np.linalg.norm(cloud[:, None, :3].astype(float) - cloud[None, :, :3], axis=-1)
    means = cloud[np.argsort(distance, axis=1)[:, :10]].mean(axis=1)
    for added in filled[count:]:
        assert np.abs(means - added).max(axis=1).min() < 1e-5


def test_presets_are_the_published_ones() -> None:
    assert PointAugment((0.9, 1.1), (0, 0), 0.06, 0.18) == WEAK
    assert PointAugment((0.5, 2), (0, 2 * np.pi), 0, 0, 0.5, 0.01, 0.05, 0.875, "first", 8192) == STRONG
    cloud = make_shape("mug", generator(0))
    rng = generator(1)
    radius = [np.linalg.norm(augment_points(cloud, WEAK, rng), axis=1).max() for _ in range(20)]
    assert 0.9 <= min(radius) < max(radius) <= 1.1
    strong = augment_points(cloud, STRONG, rng)
    assert strong.shape == (8192, 3)


@pytest.mark.parametrize("make", [augment.weak_image, augment.strong_image])
def test_images_are_decided_by_the_seed_alone(make, picture: np.ndarray) -> None:
    wide = Image.fromarray(picture).resize((80, 48))
    seen = []
    for noise in range(2):
        random.seed(noise)
        np.random.seed(noise)
        torch.manual_seed(noise)
        seen.append(torch.stack([make(wide, SIDE, seed) for seed in range(20)]))
    assert torch.equal(*seen)
    assert len(torch.unique(seen[0].flatten(1), dim=0)) > 10
    assert torch.isfinite(seen[0]).all()


def test_global_generators_are_left_as_they_were(picture: np.ndarray) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed_all() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed_all()
    expected = draws()
    seed_all()
    augment.strong_image(picture, SIDE, 5)
    augment.weak_image(picture, SIDE, -5)
    assert draws() == expected
    seed_all()
    with pytest.raises(KeyError), augment.seeded(3):
        raise KeyError
    assert draws() == expected


def test_images_are_normalized_like_clip() -> None:
    mean, std = torch.tensor(augment.CLIP_MEAN), torch.tensor(augment.CLIP_STD)
    for grey in (0, 128, 255):
        flat = np.full((40, 40), grey, dtype=np.uint8)
        for image in (augment.test_image(flat, SIDE), augment.weak_image(flat, SIDE, 0)):
            assert image.dtype == torch.float32
            assert image.shape == (3, SIDE, SIDE)
            expected = ((grey / 255 - mean) / std)[:, None, None].expand(3, SIDE, SIDE)
            torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(48, 48), (48, 80), (80, 48)])
def test_image_kinds_agree_and_sizes_are_met(shape: tuple[int, int]) -> None:
    grey = generator(0).integers(0, 256, shape, dtype=np.uint8)
    kinds = [grey, np.repeat(grey[..., None], 3, axis=2), Image.fromarray(grey)]
    for make in (
        lambda image: augment.test_image(image, SIDE),
        lambda image: augment.weak_image(image, SIDE, 3),
        lambda image: augment.strong_image(image, SIDE, 3),
    ):
        images = [make(kind) for kind in kinds]
        assert images[0].shape == (3, SIDE, SIDE)
        assert torch.equal(images[0], images[1])
        assert torch.equal(images[0], images[2])


def test_the_test_image_is_the_middle_and_the_weak_one_a_crop() -> None:
    ramp = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (SIDE, 1))
    red = augment.test_image(ramp, SIDE)[0] * augment.CLIP_STD[0] + augment.CLIP_MEAN[0]
    assert float(red.mean()) == pytest.approx(0.5, abs=0.02)
    starts = [float(augment.weak_image(ramp, SIDE, seed)[0, 0, 0]) for seed in range(30)]
    assert max(starts) - min(starts) > 1


def test_strong_images_survive_every_magnitude(picture: np.ndarray) -> None:
    images = torch.stack([augment.strong_image(picture, SIDE, seed) for seed in range(1500)])
    assert torch.isfinite(images).all()
    plain = augment.test_image(picture, SIDE)
    assert ((images - plain).abs().mean(dim=(1, 2, 3)) > 0.05).float().mean() > 0.9
