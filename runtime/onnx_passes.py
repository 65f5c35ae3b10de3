"""A pass of ONNX Runtime: clouds are sampled and grouped, on the host or on the GPU, and the encoder embeds them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.backend import Embedded
from crossmost.runtime.engine_pool import WorkerPool
from crossmost.runtime.gpu_sampling import GpuSampling
from crossmost.runtime.grouping_worker import GroupingWorker
from crossmost.runtime.manifest import Encoder
from crossmost.runtime.sampling import group

WORKERS = 2
"""Batches on the GPU at once: the host fills one while the other is embedded."""


class Pass(Protocol):
    """From clouds to embeddings with a session; any number of threads may call."""

    @property
    def sampling(self) -> str:
        """Where sampling and grouping are done, for people."""

    def run(self, session: Any, clouds: Sequence[NDArray[np.float32]]) -> Embedded:
        """Embed b clouds at once."""

    def info(self) -> dict[str, Any]:
        """Further facts, as JSON types."""

    def close(self) -> None:
        """Wait for passes under way and free what it holds; further calls do nothing."""


class HostPass:
    """Sampling and grouping by NumPy; ONNX Runtime copies patches to where it works."""

    def __init__(self, encoder: Encoder, why: str = "") -> None:
        """Take note of the sizes.

        Args:
            encoder: of the bundle.
            why: one line, why they are not on the GPU where the encoder is; "" where it is on the CPU, too.
        """
        self._encoder = encoder
        self.sampling = f"NumPy on the CPU: {why}" if why else "NumPy"

    def run(self, session: Any, clouds: Sequence[NDArray[np.float32]]) -> Embedded:
        """See `Pass.run`."""
        began = time.perf_counter()
        patches, centers = self._group(clouds)
        grouped = time.perf_counter()
        embedding = session.run(None, {"patches": patches, "centers": centers})[0]
        return Embedded(embedding, {"group": grouped - began, "encode": time.perf_counter() - grouped})

    def info(self) -> dict[str, Any]:
        """See `Pass.info`."""
        return {}

    def close(self) -> None:
        """See `Pass.close`."""

    def _group(
        self, clouds: Sequence[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Patches (b, G, K, C) and centers (b, G, 3) of b clouds."""
        card = self._encoder
        patches = np.empty((len(clouds), card.groups, card.neighbors, card.channels), np.float32)
        centers = np.empty((len(clouds), card.groups, 3), np.float32)
        for row, cloud in enumerate(clouds):
            patches[row], centers[row] = group(cloud, card.groups, card.neighbors, card.radius)
        return patches, centers


class GpuPass:
    """Sampling and grouping by CUDA kernels; ONNX Runtime reads patches where the kernels left them."""

    sampling = "CUDA kernels"

    def __init__(self, sampling: GpuSampling, device: int) -> None:
        """Make a pool of workers, none of which has memory yet.

        Args:
            sampling: the GPU and the kernels; closed with the pass.
            device: index of the GPU, for ONNX Runtime.
        """
        self._on_gpu, self._index = sampling, device
        self._pool = WorkerPool(self._make_worker, WORKERS)

    def run(self, session: Any, clouds: Sequence[NDArray[np.float32]]) -> Embedded:
        """See `Pass.run`.

        Raises:
            ValueError: clouds that are not prepared, or the pass is closed.
            CudaError: the driver refused, or the GPU's memory is full.
        """
        self._on_gpu.check(clouds)
        card, count = self._on_gpu.encoder, len(clouds)
        with self._pool.borrow() as worker, self._on_gpu.device.current():
            began = time.perf_counter()
            found = worker.group(clouds)
            grouped = time.perf_counter()
            binding = session.io_binding()
            for name, address, sizes in (
                ("patches", found.patches, (count, card.groups, card.neighbors, card.channels)),
                ("centers", found.centers, (count, card.groups, 3)),
            ):
                binding.bind_input(name, "cuda", self._index, np.float32, sizes, address)
            binding.bind_output("embedding")
            session.run_with_iobinding(binding)  # returns when the embeddings are on the host
            embedding = binding.copy_outputs_to_cpu()[0]
        return Embedded(embedding, {"group": grouped - began, "encode": time.perf_counter() - grouped})

    def info(self) -> dict[str, Any]:
        """See `Pass.info`."""
        workers = self._pool.workers
        return {"workers": len(workers), "bytes": sum(worker.bytes for worker in workers)}

    def close(self) -> None:
        """See `Pass.close`."""
        if self._pool.close(lambda worker: self._on_gpu.in_context(worker.close)):
            self._on_gpu.close()

    def _make_worker(self) -> GroupingWorker:
        with self._on_gpu.device.current():
            return GroupingWorker(self._on_gpu)
