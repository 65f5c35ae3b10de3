"""Clouds in, patches and centers on the GPU out, for a library that reads them there: one batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.cloud_staging import CloudStaging
from crossmost.runtime.cuda_device import CudaStream, DeviceMemory
from crossmost.runtime.cuda_exclusion import EXCLUSIVE
from crossmost.runtime.engine_shapes import Shape, offsets, padded_points
from crossmost.runtime.gpu_sampling import GpuSampling


class Grouped(NamedTuple):
    """Addresses on the GPU: patches (b, G, K, C) and centers (b, G, 3), float32, until the worker's next batch."""

    patches: int
    centers: int


class GroupingWorker:
    """A stream and its memory, which grows to what the largest batch needs; for one thread at a time.

    The GPU's context must be current for every call.
    """

    def __init__(self, sampling: GpuSampling) -> None:
        """Make the stream; memory comes with the first batch.

        Raises:
            CudaError: the driver refused.
        """
        self._sampling = sampling
        self._stream = CudaStream(sampling.device, marks=0)
        self._staging = CloudStaging(sampling.device, sampling.encoder)
        self._memory: DeviceMemory | None = None

    @property
    def bytes(self) -> int:
        """Memory on the GPU that it holds."""
        return self._memory.size if self._memory else 0

    def group(self, clouds: Sequence[NDArray[np.float32]]) -> Grouped:
        """Sample and group a batch, and wait for it: the library that reads it has a stream of its own.

        Args:
            clouds: (n_i, C) float32 each, as `GpuSampling.check` wants them.

        Raises:
            CudaError: the driver refused, or work on the GPU failed.
        """
        sampling, card = self._sampling, self._sampling.encoder
        shape = Shape(len(clouds), padded_points(max(map(len, clouds)), sampling.points[1]))
        staged = self._staging.needed(shape)
        patch_bytes = 4 * shape.batch * card.groups * card.neighbors * card.channels
        workspace = sampling.kernels.workspace_bytes(*shape)
        starts, total = offsets([*staged, patch_bytes, 4 * shape.batch * card.groups * 3, workspace])
        base = self._reserve(total)
        points, sizes, patches, centers, scratch = (base + start for start in starts)
        self._staging.fill(clouds, shape)
        self._stream.copy_in(self._staging.address, points, patches - points)
        sampling.kernels.launch(
            points, sizes, patches, centers, *shape, self._stream.handle, workspace_ptr=scratch
        )
        self._stream.wait()
        return Grouped(patches, centers)

    def close(self) -> None:
        """Free everything; nothing may be under way. Further calls do nothing."""
        self._free()
        self._staging.close()
        self._stream.close()

    def _reserve(self, total: int) -> int:
        """Make sure there is so much memory on the GPU, and say where it starts."""
        if self._memory is None or self._memory.size < total:
            self._free()
            self._memory = DeviceMemory(self._sampling.device, total)
        return self._memory.address

    def _free(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            with EXCLUSIVE:
                memory.close()
