"""Sampling and grouping of torch tensors on an NVIDIA GPU by the runtime's own kernels.

In torch, farthest point sampling is a call or several for each center: on a GPU it takes longer than the encoder, a
few dozen milliseconds for 512 centers whatever the batch. The kernels need one launch and choose the same indices.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from crossmost.runtime.cuda_calls import CudaError
from crossmost.runtime.cuda_kernels import KERNELS, InvalidLaunch, SamplingKernels, ptx_name

Patches = tuple[Tensor, Tensor]
"""Patches (B, G, K, C) and centers (B, G, 3), float32."""
COMPARED = 2
"""Clouds; torch's sampling takes as long for more."""


class Sizes(NamedTuple):
    """What kernels are loaded for: G, K, C, and the radius of balls, None for the K nearest."""

    groups: int
    neighbors: int
    channels: int
    radius: float | None


class KernelGrouping:
    """The kernels on one GPU, trusted once they agreed with torch on the first clouds they were given."""

    def __init__(self, kernels: SamplingKernels):
        self._kernels = kernels
        self._trusted: bool | None = None

    def __call__(
        self, points: Tensor, counts: Tensor | None, in_torch: Callable[[Tensor, Tensor | None], Patches]
    ) -> Patches | None:
        """Cut clouds into patches on torch's current stream; None where torch has to do it.

        Args:
            points: (B, N, C) float32 on the GPU, rows padded to the largest cloud.
            counts: (B,) how many points of each row are real; None for all.
            in_torch: does the same, to be compared with.
        """
        if self._trusted is False:
            return None
        found = self._launch(points, counts)
        if self._trusted is None:
            some = slice(0, COMPARED)
            expected = in_torch(points[some], None if counts is None else counts[some])
            self._trusted = all(
                torch.equal(right, part[some]) for right, part in zip(expected, found, strict=True)
            )
            if not self._trusted:
                warnings.warn(
                    f"the sampling kernels are wrong on {points.device}: torch does their work", stacklevel=2
                )
                return None
        return found

    def _launch(self, points: Tensor, counts: Tensor | None) -> Patches:
        kernels, points = self._kernels, points.contiguous()
        batch, longest, channels = points.shape
        patches = points.new_empty(batch, kernels.groups, kernels.neighbors, channels)
        centers = points.new_empty(batch, kernels.groups, 3)
        # What is freed when this returns is given to later work of the same stream alone.
        real = None if counts is None else counts.to(points.device, torch.int32).contiguous()
        workspace = points.new_empty(kernels.workspace_bytes(batch, longest), dtype=torch.uint8)
        with torch.cuda.device(points.device):
            kernels.launch(
                points.data_ptr(),
                0 if real is None else real.data_ptr(),
                patches.data_ptr(),
                centers.data_ptr(),
                batch,
                longest,
                torch.cuda.current_stream(points.device).cuda_stream,
                workspace_ptr=workspace.data_ptr() if len(workspace) else 0,
            )
        return patches, centers


@functools.cache
def kernel_grouping(device: torch.device, sizes: Sizes) -> KernelGrouping | None:
    """The kernels on a GPU that torch computes on; None where they cannot run there."""
    try:
        with torch.cuda.device(device):  # whose context is current then
            ptx = (KERNELS / ptx_name(torch.cuda.get_device_capability(device))).read_bytes()
            return KernelGrouping(SamplingKernels(ptx, **sizes._asdict()))
    except (ModuleNotFoundError, CudaError, InvalidLaunch, OSError):
        return None
