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
from crossmost.runtime.cuda_device import CudaDevice
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
    """The kernels on one GPU; each is trusted once it agreed with torch on the first clouds it was given."""

    def __init__(self, kernels: SamplingKernels, device: CudaDevice):
        """Take both over.

        Args:
            kernels: loaded on the GPU.
            device: the GPU.
        """
        self._kernels, self._device = kernels, device
        self._trusted: dict[str, bool] = {}

    def __call__(
        self, points: Tensor, counts: Tensor | None, in_torch: Callable[[Tensor, Tensor | None], Patches]
    ) -> Patches | None:
        """Cut clouds into patches on torch's current stream; None where torch has to do it.

        Args:
            points: (B, N, C) float32 on the GPU, rows padded to the largest cloud.
            counts: (B,) how many points of each row are real; None for all.
            in_torch: does the same, to be compared with.
        """
        sampler = self._kernels.sampler(points.shape[1])
        if self._trusted.get(sampler) is False:
            return None
        found = self._launch(points, counts)
        if sampler not in self._trusted:
            some = slice(0, COMPARED)
            expected = in_torch(points[some], None if counts is None else counts[some])
            self._trusted[sampler] = all(
                torch.equal(right, part[some]) for right, part in zip(expected, found, strict=True)
            )
            if not self._trusted[sampler]:
                warnings.warn(
                    f"{sampler} is wrong on {points.device}: torch does its work",
                    RuntimeWarning,
                    stacklevel=2,
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
        with (
            self._device.current()
        ):  # torch makes it so at a thread's first call of CUDA, and this may be that
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
    """The kernels on a GPU that torch computes on; None, with a warning, where they cannot run there."""
    try:
        ptx = (KERNELS / ptx_name(torch.cuda.get_device_capability(device))).read_bytes()
        gpu = CudaDevice(device.index or 0)  # torch counts as the driver does
        with gpu.current():
            return KernelGrouping(SamplingKernels(ptx, **sizes._asdict(), driver=gpu.driver), gpu)
    except InvalidLaunch:  # no kernel is for such sizes: nothing to mend
        return None
    except (ImportError, CudaError, OSError) as error:
        warnings.warn(f"torch samples on {device}, which is slower: {error}", RuntimeWarning, stacklevel=2)
        return None
