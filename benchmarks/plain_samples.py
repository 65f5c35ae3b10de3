"""Samples of the published method, one at a time in NumPy, torch, timm and torchvision (METHOD 1.1, 2.3, 2.4).

Views are pictures on the disk and a random one is opened at every access; the student's cloud is filled up to 8192
points through the distances of all its points to each other, which are made even where nothing is missing. The up
axis is z here, where the published code turns clouds about y.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from crossmost.data.augment import CLIP_MEAN, CLIP_STD, STRONGEST
from crossmost.models.torchvision_cpu import repair_torchvision

repair_torchvision()  # before timm, which imports it
from timm.data import create_transform  # noqa: E402
from torchvision import transforms  # noqa: E402

FILLED = 8192
NEIGHBORS = 10

Points = NDArray[np.float32]


def normalize(points: Points) -> Points:
    """Centroid to the origin, farthest point to distance one."""
    points = points - points.mean(axis=0)
    return points / np.sqrt((points**2).sum(axis=1)).max()


def turned(points: Points, x: float, y: float, z: float) -> Points:
    """Rz Ry Rx of angles in radians, applied to each point."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([x, y, z]), np.sin([x, y, z])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return (points @ (about_z @ about_y @ about_x).T).astype(np.float32)


def weak_cloud(points: Points, rng: np.random.Generator) -> Points:
    """What the teacher sees."""
    scaled = normalize(points) * np.float32(rng.uniform(0.9, 1.1))
    return turned(scaled, *np.clip(0.06 * rng.standard_normal(3), -0.18, 0.18))


def strong_cloud(points: Points, rng: np.random.Generator) -> Points:
    """What the student sees: (FILLED, 3)."""
    points = normalize(points) * np.float32(rng.uniform(0.5, 2))
    points = turned(points, 0, 0, rng.uniform(0, 2 * np.pi))
    extent = points.max(axis=0) - points.min(axis=0)
    points = points + (rng.uniform(-0.5, 0.5, 3) * extent).astype(np.float32)
    points = points + np.clip(0.01 * rng.standard_normal(points.shape), -0.05, 0.05).astype(np.float32)
    dropped = rng.random(len(points)) <= rng.random() * 0.875
    points[dropped] = points[0]
    return filled(points, rng)


def filled(points: Points, rng: np.random.Generator) -> Points:
    """Add means of random points' neighbours until there are FILLED points."""
    squares = (points**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * points @ points.T  # (N, N)
    missing = FILLED - len(points)
    if missing <= 0:
        return points
    # NumPy's argpartition takes ten times as long.
    neighbors = torch.from_numpy(distances).topk(NEIGHBORS, dim=1, largest=False).indices.numpy()
    picked = rng.integers(len(points), size=missing)
    return np.concatenate([points, points[neighbors[picked]].mean(axis=1)])


def image_mask(grid: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Hide 30 % of the cells, 7 a side: (grid, grid), 1 where hidden."""
    cells = np.zeros(49, dtype=np.float32)
    cells[rng.permutation(49)[: math.ceil(49 * 0.3)]] = 1
    return cells.reshape(7, 7).repeat(grid // 7, axis=0).repeat(grid // 7, axis=1)


class Pictures:
    """The weak and the strong version of a picture."""

    def __init__(self, size: int):
        resize = transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC)
        after = [transforms.ToTensor(), transforms.Normalize(CLIP_MEAN, CLIP_STD)]
        self.weak = transforms.Compose([resize, transforms.RandomCrop(size), *after])
        self.strong = create_transform(
            size, is_training=True, scale=(0.3, 1.0), hflip=0.5, color_jitter=0.0, re_prob=0.0,
            auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD,
        )  # fmt: skip
        for step in self.strong.transforms:
            for operation in getattr(step, "ops", ()):
                operation.magnitude_max = STRONGEST


class PlainSamples:
    """Clouds of one archive that stays in memory, and a folder of their pictures, `<row>_<view>.png`."""

    def __init__(self, archive: Path, pictures: Path, views: int, size: int, grid: int):
        with np.load(archive) as arrays:
            self.clouds = arrays["points"]
        self.folder, self.views, self.grid = pictures, views, grid
        self.pictures = Pictures(size)
        self.rng = np.random.default_rng(0)

    def read(self, row: int) -> tuple[Points, Image.Image]:
        """A cloud and one of its views."""
        picture = Image.open(self.folder / f"{row}_{self.rng.integers(self.views)}.png").convert("RGB")
        return self.clouds[row].astype(np.float32), picture

    def augment(self, cloud: Points, picture: Image.Image) -> tuple[Tensor, ...]:
        """Weak and strong cloud, weak and strong view, and the view's mask."""
        return (
            torch.from_numpy(weak_cloud(cloud, self.rng)), torch.from_numpy(strong_cloud(cloud, self.rng)),
            self.pictures.weak(picture), self.pictures.strong(picture),
            torch.from_numpy(image_mask(self.grid, self.rng)),
        )  # fmt: skip
