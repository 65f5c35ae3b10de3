"""Which patches the student does not see (METHOD 1.8)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

IMAGE_RATIO = 0.3
IMAGE_CELL = 1 / 7
"""A cell's share of the image's side: 32 of 224 pixels."""
POINT_RATIO = (0.3, 0.4)


def image_mask(batch: int, grid: int, generator: torch.Generator) -> Tensor:
    """Hide 30 % of the cells of a coarse grid, independently for each sample.

    Args:
        batch: B.
        grid: patches a side; for ViT-B/16 at 224 pixels 14, of which 60 patches are hidden.
        generator: on the CPU, so that every device draws the same.

    Returns:
        (B, grid, grid) bool, True where hidden.
    """
    cell = max(1, round(grid * IMAGE_CELL))  # patches a side of a cell
    side = math.ceil(grid / cell)
    hidden = math.ceil(side * side * IMAGE_RATIO)
    order = torch.rand(batch, side * side, generator=generator).argsort(dim=1)
    cells = torch.zeros(batch, side * side, dtype=torch.bool).scatter_(1, order[:, :hidden], True)
    blocks = cells.view(batch, side, side).repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    return blocks[:, :grid, :grid]


def point_mask(centers: Tensor, generator: torch.Generator) -> Tensor:
    """Hide a block of patches: a random centre and those nearest to it.

    Args:
        centers: (B, G, 3).
        generator: on the CPU.

    Returns:
        (B, G) bool, True where hidden: int(r G) of them, r drawn from [0.3, 0.4) for each sample.
    """
    batch, groups, _ = centers.shape
    middle = torch.randint(groups, (batch,), generator=generator).to(centers.device)
    low, high = POINT_RATIO
    ratio = low + (high - low) * torch.rand(batch, generator=generator)
    count = (ratio * groups).int().clamp(min=1).to(centers.device)
    anchor = centers[torch.arange(batch, device=centers.device), middle][:, None]
    rank = (centers - anchor).square().sum(-1).argsort(dim=1).argsort(dim=1)
    return rank < count[:, None]
