"""Clouds in, embeddings out on a GPU: sampling, grouping and an engine, for any number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.backend import Embedded, check_finite, trial_cloud
from crossmost.runtime.cuda_calls import CudaError
from crossmost.runtime.encoder_engine import EncoderEngine
from crossmost.runtime.engine_pool import WorkerPool
from crossmost.runtime.engine_shapes import Shape, chunks, padded_batch, padded_points
from crossmost.runtime.engine_worker import EngineWorker
from crossmost.runtime.gpu_sampling import GpuSampling


class GpuPipeline:
    """An engine behind the sampling kernels, and the workers that run both.

    Any number of threads may embed. `workers` of them are on the GPU at the same time, each with a stream, memory
    and CUDA graphs of its own; the others wait.
    """

    def __init__(self, sampling: GpuSampling, engine: EncoderEngine, workers: int) -> None:
        """Take both over: they are closed with the pipeline.

        Args:
            sampling: the GPU and the kernels.
            engine: the encoder.
            workers: batches that can be on the GPU at once.
        """
        self._sampling, self._engine = sampling, engine
        self._pool: WorkerPool[EngineWorker] = WorkerPool(self._make_worker, workers)

    def embed(self, clouds: Sequence[NDArray[np.float32]]) -> Embedded:
        """Embed B clouds, in as few batches as the engine takes: see `Backend.embed`.

        Raises:
            ValueError: clouds that are not prepared, or the pipeline is closed.
            EngineFailed: the engine refused a batch.
            CudaError: the GPU failed, or its memory is full.
        """
        self._sampling.check(clouds)
        rows: list[NDArray[np.float32]] = []
        seconds: dict[str, float] = {}
        with self._pool.borrow() as worker, self._sampling.device.current():
            least, most = self._engine.batches
            for part in chunks(len(clouds), most):
                batch = clouds[part]
                points = padded_points(max(map(len, batch)), self._sampling.points[1])
                embedding, took = worker.embed(batch, Shape(padded_batch(len(batch), least, most), points))
                rows.append(embedding)
                seconds = {stage: seconds.get(stage, 0.0) + took[stage] for stage in took}
        return Embedded(np.concatenate(rows), seconds)

    def try_out(self, name: str) -> str:
        """Embed one cloud, enqueued and as a graph: what a library or the driver lack may show only then.

        Args:
            name: of the backend, for what is said.

        Returns:
            One line, why it cannot be embedded, and the pipeline is closed; "" where it can.
        """
        with ExitStack() as undo:
            undo.callback(self.close)  # also where somebody interrupts, for this may take seconds
            why = self._first_failure(name)
            if not why:
                undo.pop_all()
        return why

    def _first_failure(self, name: str) -> str:
        cloud, why = trial_cloud(self._sampling.points[0], self._sampling.encoder.channels), ""
        try:
            with self._sampling.device.current():  # TensorRT's objects may hang on the error, which ends here
                try:
                    for _ in range(2):
                        check_finite(self.embed([cloud]).embedding, name)
                except Exception as error:  # a vendor's library may raise anything
                    why = " ".join(str(error).split()) or type(error).__name__
        except CudaError as error:  # the context itself has gone
            return why or str(error)
        return why

    def info(self) -> dict[str, Any]:
        """What the workers hold and have done, as JSON types."""
        workers = self._pool.workers
        return {
            "batch": list(self._engine.batches),
            "workers": len(workers),
            "bytes": sum(worker.bytes for worker in workers),
            "graph_launches": sum(worker.launches for worker in workers),
            "shapes": [
                {"batch": shape.batch, "points": shape.points, "cuda_graph": captured}
                for worker in workers
                for shape, captured in worker.shapes.items()
            ],
            "notes": list(dict.fromkeys(note for worker in workers for note in worker.notes)),
        }

    def close(self) -> None:
        """Wait for batches under way and free everything. Further calls do nothing."""
        sampling = self._sampling
        if not self._pool.close(lambda worker: sampling.in_context(worker.close)):
            return
        # Not in `in_context`: a file may be waited for, and nobody else is to wait too.
        with suppress(CudaError), sampling.device.current():
            self._engine.keep_compiled()
        sampling.in_context(self._engine.close)
        sampling.close()

    def _make_worker(self) -> EngineWorker:
        with self._sampling.device.current():
            return EngineWorker(self._sampling, self._engine)
