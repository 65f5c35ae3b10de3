"""Pinned memory of the host in which a batch of clouds lies as the sampling kernels read it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.cuda_device import CudaDevice, PinnedMemory
from crossmost.runtime.cuda_exclusion import EXCLUSIVE
from crossmost.runtime.engine_shapes import Shape, offsets
from crossmost.runtime.manifest import Encoder


class CloudStaging:
    """Clouds padded to one size, and their sizes behind them: one copy brings both to the GPU.

    Nothing may be copied from it while it is filled or made larger.
    """

    def __init__(self, device: CudaDevice, encoder: Encoder) -> None:
        """Memory comes with the first batch.

        Args:
            device: the GPU; its context must be current for every further call.
            encoder: of the bundle.
        """
        self._device, self._channels = device, encoder.channels
        self._least = encoder.least
        self._memory: PinnedMemory | None = None

    @property
    def address(self) -> int:
        """Where it starts, until a batch is larger than all before."""
        assert self._memory is not None
        return self._memory.address

    def needed(self, shape: Shape) -> tuple[int, int]:
        """Bytes of the clouds, and of their sizes; each starts where `engine_shapes.offsets` says."""
        return 4 * shape.batch * shape.points * self._channels, 4 * shape.batch

    def holds(self, shape: Shape) -> bool:
        """Whether a batch fits without moving anything."""
        return self._memory is not None and self._memory.size >= offsets(self.needed(shape))[1]

    def reserve(self, shape: Shape) -> None:
        """Make room for a batch, elsewhere if need be."""
        if not self.holds(shape):
            self.close()
            self._memory = PinnedMemory(self._device, offsets(self.needed(shape))[1])

    def fill(self, clouds: Sequence[NDArray[np.float32]], shape: Shape) -> None:
        """Copy clouds to where the GPU reads them.

        What is in the rest of a row is never read; a row too many is given the fewest points there can be.

        Args:
            clouds: (n_i, C) float32 each, at most `shape.batch` of at most `shape.points`.
            shape: what they are padded to.
        """
        self.reserve(shape)
        assert self._memory is not None
        rows = self._memory.view(0, (*shape, self._channels), np.float32)
        (_, start), _ = offsets(self.needed(shape))
        sizes = self._memory.view(start, (shape.batch,), np.int32)
        sizes[:] = self._least
        for row, cloud in enumerate(clouds):
            rows[row, : len(cloud)] = cloud
            sizes[row] = len(cloud)

    def close(self) -> None:
        """Free it. Further calls do nothing."""
        memory, self._memory = self._memory, None
        if memory is not None:
            with EXCLUSIVE:
                memory.close()
