"""The weak and strong augmentations of points and images (METHOD 2.3, 2.4).

Everything is drawn from the generator or the seed that is handed in, never from global state, so that a
sample is the same whatever worker makes it. The up axis is z here, where the published code turns clouds
about y. Its box crop is left out: as published it is configured to keep everything.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from crossmost.data.parts import rotation_about
from crossmost.models.torchvision_cpu import repair_torchvision

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
GEOMETRIC_SCALE = (0.5, 1.0)
"""Share of a rendered view's area that a crop keeps."""
NEIGHBORS = 10
"""Points averaged into one point that up-sampling adds, itself included."""

STRONGEST = math.nextafter(10.0, 0.0)
"""Highest RandAugment magnitude: at 10 timm asks Pillow to keep 0 bits of a colour, which Pillow refuses."""

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class PointAugment:
    """How a cloud is varied; the steps run in the order of the fields, and the defaults do nothing.

    Attributes:
        scale: range of the common factor of all coordinates.
        rotation: range of the angle about the up axis z, in radians.
        tilt_sigma: standard deviation of a small rotation about each of x, y and z, in radians.
        tilt_clip: largest such angle, in radians.
        translation: largest shift along each axis, as a share of the cloud's extent along it.
        jitter_sigma: standard deviation of the noise of each coordinate, in units of the normalised cloud.
        jitter_clip: largest such noise, same unit.
        dropout: highest share of points dropped; the share is drawn from 0 to this.
        drop_mode: "remove" the dropped points, or overwrite them with the "first" point as published.
        upsample_to: number of points a smaller cloud is filled up to with local means; 0 leaves it.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    rotation: tuple[float, float] = (0.0, 0.0)
    tilt_sigma: float = 0.0
    tilt_clip: float = 0.0
    translation: float = 0.0
    jitter_sigma: float = 0.0
    jitter_clip: float = 0.0
    dropout: float = 0.0
    drop_mode: Literal["remove", "first"] = "first"
    upsample_to: int = 0


WEAK = PointAugment(scale=(0.9, 1.1), tilt_sigma=0.06, tilt_clip=0.18)
STRONG = PointAugment(
    scale=(0.5, 2.0),
    rotation=(0.0, 2 * np.pi),
    translation=0.5,
    jitter_sigma=0.01,
    jitter_clip=0.05,
    dropout=0.875,
    drop_mode="first",
    upsample_to=8192,
)


def augment_points(
    points: NDArray[np.float32], settings: PointAugment, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Vary a normalised cloud; the result is not normalised again.

    Args:
        points: (n, 3) xyz or (n, 6) xyz and rgb, float32, z up, n at least 1; left as it is.
        settings: what to do, for instance `WEAK` or `STRONG`.
        rng: the only source of randomness.

    Returns:
        (m, 3 or 6) float32, m at least 1. Colours stay with their points; an added point has the mean colour
        of its neighbours.
    """
    varied = points.astype(np.float32)
    matrix = small_rotation(settings, rng) @ rotation_about(2, rng.uniform(*settings.rotation))
    matrix *= rng.uniform(*settings.scale)
    xyz = points[:, :3] @ matrix.T.astype(np.float32)
    extent = np.ptp(xyz, axis=0)
    xyz += (rng.uniform(-1, 1, 3) * settings.translation * extent).astype(np.float32)
    if settings.jitter_sigma > 0:
        noise = settings.jitter_sigma * rng.standard_normal(xyz.shape, dtype=np.float32)
        xyz += np.clip(noise, -settings.jitter_clip, settings.jitter_clip)
    varied[:, :3] = xyz
    varied = _drop(varied, settings, rng)
    return _upsample(varied, settings.upsample_to, rng)


def small_rotation(settings: PointAugment, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw Rz Ry Rx with three clipped Gaussian angles, (3, 3), for column vectors."""
    clip = settings.tilt_clip
    x, y, z = np.clip(settings.tilt_sigma * rng.standard_normal(3), -clip, clip)
    return rotation_about(2, z) @ rotation_about(1, y) @ rotation_about(0, x)


def _drop(
    points: NDArray[np.float32], settings: PointAugment, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Drop a random share of the points; the first always stays."""
    if settings.dropout <= 0:
        return points
    dropped = rng.random(len(points)) <= rng.uniform(0, settings.dropout)
    dropped[0] = False
    if settings.drop_mode == "remove":
        return points[~dropped]
    points[dropped] = points[0]
    return points


def _upsample(points: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Append local means until there are `count` points."""
    missing = count - len(points)
    if missing <= 0:
        return points
    picked, place = np.unique(rng.integers(len(points), size=missing), return_inverse=True)
    nearest = np.arange(1, min(NEIGHBORS, len(points)) + 1)
    _, neighbors = cKDTree(points[:, :3]).query(points[picked, :3], k=nearest)
    means = points[neighbors].mean(axis=1)
    return np.concatenate([points, means[place].astype(np.float32)])


def weak_image(image: Any, size: int, seed: int) -> torch.Tensor:
    """Scale the shorter side to `size` and crop a random square, as the teacher sees an image.

    Args:
        image: PIL image, or uint8 array (H, W) or (H, W, 3).
        size: side of the result in pixels.
        seed: any integer; the same seed gives the same crop.

    Returns:
        (3, size, size) float32, normalised with CLIP's mean and deviation.
    """
    with seeded(seed):
        return _transforms(size)["weak"](_rgb(image))


def strong_image(image: Any, size: int, seed: int) -> torch.Tensor:
    """Crop, flip and RandAugment an image (rand-m9-mstd0.5-inc1), as the student sees it.

    Args:
        image: PIL image, or uint8 array (H, W) or (H, W, 3).
        size: side of the result in pixels.
        seed: any integer; the same seed gives the same picture.

    Returns:
        (3, size, size) float32, normalised with CLIP's mean and deviation.
    """
    with seeded(seed):
        return _transforms(size)["strong"](_rgb(image))


def geometric_image(image: Any, size: int, seed: int) -> torch.Tensor:
    """Crop and flip an image, as the student sees a rendered view.

    RandAugment's changes of colour would change the distances that a depth image shows.

    Args:
        image: PIL image, or uint8 array (H, W) or (H, W, 3).
        size: side of the result in pixels.
        seed: any integer; the same seed gives the same picture.

    Returns:
        (3, size, size) float32, normalised with CLIP's mean and deviation.
    """
    with seeded(seed):
        return _transforms(size)["geometric"](_rgb(image))


def test_image(image: Any, size: int) -> torch.Tensor:
    """Scale the shorter side to `size` and crop the middle, as an image is classified.

    Args:
        image: PIL image, or uint8 array (H, W) or (H, W, 3).
        size: side of the result in pixels.

    Returns:
        (3, size, size) float32, normalised with CLIP's mean and deviation.
    """
    return _transforms(size)["test"](_rgb(image))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of random, NumPy and torch (CPU), and put their states back afterwards.

    timm and torchvision draw from these three. Not for use in several threads at once.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def _rgb(image: Any) -> Image.Image:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.lru_cache(maxsize=8)
def _transforms(size: int) -> dict[str, Transform]:
    """Build the three image transforms of one size."""
    repair_torchvision()
    from timm.data import create_transform
    from torchvision import transforms

    resize = transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC)
    tensor = [transforms.ToTensor(), transforms.Normalize(CLIP_MEAN, CLIP_STD)]
    strong = create_transform(
        size,
        is_training=True,
        scale=(0.3, 1.0),
        hflip=0.5,
        color_jitter=0.0,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        re_prob=0.0,
    )
    for step in strong.transforms:
        for operation in getattr(step, "ops", ()):
            operation.magnitude_max = STRONGEST
    crop = transforms.RandomResizedCrop(size, GEOMETRIC_SCALE, interpolation=resize.interpolation)
    return {
        "geometric": transforms.Compose([crop, transforms.RandomHorizontalFlip(), *tensor]),
        "weak": transforms.Compose([resize, transforms.RandomCrop(size), *tensor]),
        "strong": strong,
        "test": transforms.Compose([resize, transforms.CenterCrop(size), *tensor]),
    }
