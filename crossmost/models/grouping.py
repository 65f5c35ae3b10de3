"""Farthest point sampling and grouping in batched torch, for clouds of different sizes.

The twin of `crossmost.runtime.sampling`: the same indices for the same float32 cloud, on CPU and CUDA.
No N x N matrix is ever made; the G x N distances are made for a few clouds and centres at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from crossmost.models.grouping_kernels import Sizes, kernel_grouping
from crossmost.runtime.orientation import signed_columns
from crossmost.runtime.sampling import squared_radius

ELEMENTS_IN_CACHE, ELEMENTS_AT_ONCE = 1 << 18, 1 << 24
"""Distances held at once while searching neighbours, on a CPU and on any other device."""


class Cut(Protocol):
    """How an encoder wants clouds cut into patches; a `PointCard` says it."""

    @property
    def groups(self) -> int:
        """G."""

    @property
    def neighbors(self) -> int:
        """K."""

    @property
    def radius(self) -> float | None:
        """Of balls; None for the K nearest."""

    @property
    def up_axis(self) -> str:
        """The frame of the clouds it was trained with: what points up, and whether they were mirrored."""


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
    columns = points[..., :3].transpose(1, 2).contiguous()  # (B, 3, N)
    norms = _sum_of_squares(columns.clone())
    nearest = torch.full_like(norms, float("inf"))
    if sizes is not None:
        padding = torch.arange(norms.shape[1], device=points.device) >= sizes[:, None]
        nearest = nearest.masked_fill(padding, -1.0)
        norms = norms.masked_fill(padding, -1.0)
    chosen = [norms.argmax(dim=1)]
    for _ in range(1, count):
        last = chosen[-1][:, None, None].expand(-1, 3, 1)
        distances = _sum_of_squares(columns - columns.gather(2, last))
        torch.minimum(nearest, distances, out=nearest)
        chosen.append(nearest.argmax(dim=1))
    return torch.stack(chosen, dim=1)


def _sum_of_squares(columns: Tensor) -> Tensor:
    """(B, 3, N) to (B, N), summed x, y, z in this order; overwrites its input.

    Few calls and no memory it does not need: the loop above is bound by the one on a GPU, by the other on a CPU.
    """
    squares = columns.mul_(columns)
    return (squares[:, 0] + squares[:, 1]).add_(squares[:, 2])


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

    def nearest(distances: Tensor) -> Tensor:
        # The bits of a non-negative float32 order like the number; the index below them makes ties exact.
        keys = (distances.view(torch.int32).to(torch.int64) << 32) | index
        return keys.topk(k, dim=-1, largest=False).values & 0xFFFFFFFF

    return _search(points, centers, sizes, nearest)


def ball_indices(
    points: Tensor, centers: Tensor, k: int, radius: float, sizes: Tensor | None = None
) -> Tensor:
    """Find the first `k` points of each ball, by index, and the first again for what is missing to `k`.

    As published, the answer depends on the order of the points where a ball holds more than `k` of them.

    Args:
        points: (B, N, 3+) float32.
        centers: (B, G, 3) float32, each a point of its cloud.
        k: at least 1.
        radius: of the balls, in the unit of the points.
        sizes: (B,) how many points of each row are real; None for all.

    Returns:
        (B, G, k) int64.
    """
    limit = float(squared_radius(radius))
    ranks = torch.arange(1, k + 1, dtype=torch.int32, device=points.device)

    def first(distances: Tensor) -> Tensor:
        # The r-th point of a ball is the first by which r of them have been counted.
        counts = (~(distances > limit)).cumsum(dim=-1, dtype=torch.int32)
        places = torch.searchsorted(counts, ranks.expand(*counts.shape[:2], k).contiguous())
        return torch.where(ranks > counts[..., -1:], places[..., :1], places)

    return _search(points, centers, sizes, first)


def _search(
    points: Tensor, centers: Tensor, sizes: Tensor | None, find: Callable[[Tensor], Tensor]
) -> Tensor:
    """Find (B, G, k) indices from the distances of a few clouds and centres at a time.

    The distances are infinite where a point is padding.
    """
    index = torch.arange(points.shape[1], device=points.device)
    elements = ELEMENTS_IN_CACHE if points.device.type == "cpu" else ELEMENTS_AT_ONCE
    cells = max(1, min(centers.shape[1], elements // points.shape[1]))
    clouds = max(1, elements // (cells * points.shape[1]))
    rows = []
    for start in range(0, len(points), clouds):
        part = slice(start, start + clouds)
        found = []
        for some in centers[part].split(cells, dim=1):
            distances = squared_distances(points[part], some)
            if sizes is not None:
                distances = distances.masked_fill(index >= sizes[part, None, None], float("inf"))
            found.append(find(distances))
        rows.append(torch.cat(found, dim=1))
    return torch.cat(rows)


def gather_points(points: Tensor, indices: Tensor) -> Tensor:
    """Pick points by index: (B, N, C) and (B, ...) int64 give (B, ..., C)."""
    flat = indices.reshape(len(points), -1, 1).expand(-1, -1, points.shape[-1])
    return points.gather(1, flat).reshape(*indices.shape, points.shape[-1])


@torch.no_grad()
def group(
    points: Tensor,
    groups: int,
    neighbors: int,
    sizes: Tensor | None = None,
    *,
    radius: float | None = None,
) -> Groups:
    """Cut clouds into overlapping patches around farthest-point centres.

    On a GPU by kernels, where they can run there and agree with what torch makes of the first clouds they are given.

    Args:
        points: (B, N, 3 or 6) float32, rows padded to the largest cloud.
        groups: G.
        neighbors: K; every size must be at least max(G, K).
        sizes: (B,) how many points of each row are real; None for all.
        radius: a patch is the first K points of a ball, see `ball_indices`; None for the K nearest.
    """
    wanted = Sizes(groups, neighbors, points.shape[-1], radius)
    in_torch = partial(group_in_torch, wanted)
    if points.is_cuda and points.dtype == torch.float32:
        on_gpu = kernel_grouping(points.device, wanted)
        if on_gpu is not None and (found := on_gpu(points, sizes, in_torch)) is not None:
            return Groups(*found)
    return in_torch(points, sizes)


def group_in_torch(wanted: Sizes, points: Tensor, sizes: Tensor | None) -> Groups:
    """`group` by calls of torch alone, on any device."""
    # Every search reads whole columns, so each is laid out in one piece.
    xyz = points[..., :3].transpose(1, 2).contiguous().transpose(1, 2)
    centers = gather_points(xyz, farthest_point_indices(xyz, wanted.groups, sizes))
    if wanted.radius is None:
        members = nearest_indices(xyz, centers, wanted.neighbors, sizes)
    else:
        members = ball_indices(xyz, centers, wanted.neighbors, wanted.radius, sizes)
    patches = gather_points(points, members)
    relative = patches[..., :3] - centers[:, :, None, :]
    return Groups(torch.cat([relative, patches[..., 3:]], dim=-1), centers)


def cut(points: Tensor, card: Cut, sizes: Tensor | None = None) -> Groups:
    """Turn z-up clouds into the encoder's own frame and cut them into its patches; see `group`."""
    return group(turned(points, card.up_axis), card.groups, card.neighbors, sizes, radius=card.radius)


def turned(points: Tensor, up_axis: str) -> Tensor:
    """Turn clouds (B, N, 3+) from z up to an encoder's frame, exactly."""
    if up_axis == "z":
        return points
    columns, signs = signed_columns("z", up_axis)
    xyz = points[..., columns.tolist()] * torch.tensor(signs, dtype=points.dtype, device=points.device)
    return torch.cat([xyz, points[..., 3:]], dim=-1)
