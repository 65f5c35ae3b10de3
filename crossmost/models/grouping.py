"""Farthest point sampling and grouping in batched torch, for clouds of different sizes (DESIGN section 6).

The twin of `crossmost.runtime.sampling`: the same indices for the same float32 cloud, on CPU and CUDA.
No N x N matrix is ever made; the G x N distances are made for a few clouds at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ELEMENTS_AT_ONCE = 1 << 24
"""Distances held at once while searching neighbours: 64 MB in float32."""


class Groups(NamedTuple):
    """A batch of clouds cut into patches."""

    patches: Tensor  # (B, G, K, 3 or 6) float32, xyz relative to the centre
    centers: Tensor  # (B, G, 3) float32


def squared_distances(points: Tensor, centers: Tensor) -> Tensor:
    """Squared distances from centres to points, summed x, y, z in this order.

    Args:
        points: (B, N, 3+) float32.
        centers: (B, G, 3) float32.

    Returns:
        (B, G, N) float32.
    """
    total = torch.zeros(1, device=points.device)
    for axis in range(3):
        delta = points[:, None, :, axis] - centers[:, :, None, axis]
        total = total + delta * delta
    return total


def farthest_point_indices(points: Tensor, count: int, sizes: Tensor | None = None) -> Tensor:
    """Choose `count` points of each cloud, each the farthest from those chosen before.

    Starts at the point farthest from the origin; ties go to the lowest index.

    Args:
        points: (B, N, 3+) float32.
        count: at most the smallest size.
        sizes: (B,) how many points of each row are real; None for all.

    Returns:
        (B, count) int64.
    """
    x, y, z = points[..., :3].unbind(-1)  # each (B, N)
    padding = None
    nearest = torch.full_like(x, float("inf"))
    norms = x * x + y * y + z * z
    if sizes is not None:
        padding = torch.arange(x.shape[1], device=x.device) >= sizes[:, None]
        nearest = nearest.masked_fill(padding, -1.0)
        norms = norms.masked_fill(padding, -1.0)
    chosen = [norms.argmax(dim=1)]
    for _ in range(1, count):
        last = chosen[-1][:, None]
        dx, dy, dz = x - x.gather(1, last), y - y.gather(1, last), z - z.gather(1, last)
        nearest = torch.minimum(nearest, dx * dx + dy * dy + dz * dz)
        chosen.append(nearest.argmax(dim=1))
    return torch.stack(chosen, dim=1)


def nearest_indices(points: Tensor, centers: Tensor, k: int, sizes: Tensor | None = None) -> Tensor:
    """Find the `k` points nearest to each centre, nearest first, ties to the lowest index.

    Args:
        points: (B, N, 3+) float32.
        centers: (B, G, 3) float32.
        k: at most the smallest size.
        sizes: (B,) how many points of each row are real; None for all.

    Returns:
        (B, G, k) int64.
    """
    index = torch.arange(points.shape[1], device=points.device)
    clouds = max(1, ELEMENTS_AT_ONCE // (centers.shape[1] * points.shape[1]))
    found = []
    for start in range(0, len(points), clouds):
        part = slice(start, start + clouds)
        distances = squared_distances(points[part], centers[part])
        if sizes is not None:
            distances = distances.masked_fill(index >= sizes[part, None, None], float("inf"))
        # The bits of a non-negative float32 order like the number; the index below them makes ties exact.
        keys = (distances.view(torch.int32).to(torch.int64) << 32) | index
        found.append(keys.topk(k, dim=-1, largest=False).values & 0xFFFFFFFF)
    return torch.cat(found)


def gather_points(points: Tensor, indices: Tensor) -> Tensor:
    """Pick points by index: (B, N, C) and (B, ...) int64 give (B, ..., C)."""
    flat = indices.reshape(len(points), -1, 1).expand(-1, -1, points.shape[-1])
    return points.gather(1, flat).reshape(*indices.shape, points.shape[-1])


@torch.no_grad()
def group(points: Tensor, groups: int, neighbors: int, sizes: Tensor | None = None) -> Groups:
    """Cut clouds into overlapping patches around farthest-point centres.

    Args:
        points: (B, N, 3 or 6) float32, rows padded to the largest cloud.
        groups: G.
        neighbors: K; every size must be at least max(G, K).
        sizes: (B,) how many points of each row are real; None for all.
    """
    centers = gather_points(points[..., :3], farthest_point_indices(points, groups, sizes))
    patches = gather_points(points, nearest_indices(points, centers, neighbors, sizes))
    xyz = patches[..., :3] - centers[:, :, None, :]
    return Groups(torch.cat([xyz, patches[..., 3:]], dim=-1), centers)
