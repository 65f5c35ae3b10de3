"""The encoder in TensorRT or TensorRT-RTX; sampling and grouping are CUDA kernels on the same stream.

TensorRT ends the process where there is no driver, so nothing here imports it before the driver named a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.backend import BackendUnavailable, Embedded, check_finite, trial_cloud
from crossmost.runtime.cuda_calls import CudaError
from crossmost.runtime.cuda_driver import Gpu, probe_cuda
from crossmost.runtime.engine_cache import cache_folder as default_cache_folder
from crossmost.runtime.engine_opening import OpenedEngine, open_engine
from crossmost.runtime.engine_packages import TensorRt, Unavailable, find_tensorrt
from crossmost.runtime.engine_pool import WorkerPool
from crossmost.runtime.engine_shapes import Shape, chunks, padded_batch, padded_points
from crossmost.runtime.engine_worker import EngineWorker
from crossmost.runtime.gpu_sampling import GpuSampling
from crossmost.runtime.manifest import Manifest

WORKERS = 2


class FirstPassFailed(BackendUnavailable):
    """An engine that loads and cannot embed here."""


class TensorRtBackend:
    """An engine, and workers that run it: see `Backend`.

    Any number of threads may embed. `workers` of them are on the GPU at the same time, each with a stream, memory
    and CUDA graphs of its own; the others wait. Two keep a GPU busy while the host fills the next batch, and each
    further one costs the memory of its largest batch.
    """

    def __init__(
        self,
        bundle: Path | str,
        manifest: Manifest,
        *,
        package: Literal["tensorrt", "tensorrt-rtx"],
        device: int | None = None,
        rebuild: bool = False,
        cache_folder: Path | None = None,
        workers: int = WORKERS,
    ) -> None:
        """Find an engine that fits this GPU, in the bundle or among those built here, load it and try it out.

        Args:
            bundle: the folder.
            manifest: of the bundle.
            package: which TensorRT.
            device: index of the GPU; None for the first.
            rebuild: where no engine fits, build one from `encoder.onnx` and keep it in the cache.
            cache_folder: of engines built and kernels compiled here; None for that of `engine_cache.cache_folder`.
            workers: batches that can be on the GPU at once.

        Raises:
            BackendUnavailable: why, and the command that builds an engine.
            FirstPassFailed: TensorRT or the GPU failed at a first cloud.
            InvalidBundle: the graph that is to be built or its weights are damaged.
        """
        self.name: str = package
        self._tensorrt = _find_package(package, device or 0)
        self._sampling = GpuSampling(manifest.encoder, self._gpu, device or 0)
        with ExitStack() as undo:
            undo.callback(self._sampling.close)
            with self._sampling.device.current():
                cache = cache_folder or default_cache_folder()
                self._opened: OpenedEngine | None = open_engine(
                    Path(bundle), manifest, self._tensorrt, cache=cache, rebuild=rebuild
                )
            self._pool = WorkerPool(self._make_worker, workers)
            undo.pop_all()
            undo.callback(self.close)
            self._try_out()
            undo.pop_all()

    def embed(self, clouds: Sequence[NDArray[np.float32]]) -> Embedded:
        """Embed B clouds, in as few batches as the engine takes: see `Backend.embed`.

        Raises:
            ValueError: clouds that are not prepared, or the backend is closed.
            EngineFailed: TensorRT refused a batch.
            CudaError: the GPU failed, or its memory is full.
        """
        self._sampling.check(clouds)
        rows: list[NDArray[np.float32]] = []
        seconds: dict[str, float] = {}
        with self._pool.borrow() as worker, self._sampling.device.current():
            assert self._opened is not None
            least, most = self._opened.engine.batches
            for part in chunks(len(clouds), most):
                batch = clouds[part]
                points = padded_points(max(map(len, batch)), self._sampling.points[1])
                embedding, took = worker.embed(batch, Shape(padded_batch(len(batch), least, most), points))
                rows.append(embedding)
                seconds = {stage: seconds.get(stage, 0.0) + took[stage] for stage in took}
        return Embedded(np.concatenate(rows), seconds)

    def info(self) -> dict[str, Any]:
        """The package, the engine, the GPU and what workers hold: see `Backend.info`."""
        workers, opened = self._pool.workers, self._opened
        notes = dict.fromkeys(note for worker in workers for note in worker.notes)
        facts: dict[str, Any] = {
            "package": str(self._tensorrt),
            "gpu": str(self._tensorrt.gpu),
            "driver": self._tensorrt.driver,
            "workers": len(workers),
            "bytes": sum(worker.bytes for worker in workers),
            "graph_launches": sum(worker.launches for worker in workers),
            "shapes": [
                {"batch": shape.batch, "points": shape.points, "cuda_graph": captured}
                for worker in workers
                for shape, captured in worker.shapes.items()
            ],
        }
        if opened is None:
            return facts
        engine, compiled = opened.engine.facts, opened.engine.compiled
        unkept = [compiled.note] if compiled is not None and compiled.note else []
        return facts | {
            "engine": opened.origin,
            "precision": engine.precision,
            "batch": list(engine.recipe.profile["batch"]),
            "notes": [*opened.notes, *unkept, *notes],
        }

    def close(self) -> None:
        """Wait for batches under way and free everything: see `Backend.close`."""
        sampling = self._sampling
        if not self._pool.close(lambda worker: sampling.in_context(worker.close)):
            return
        opened, self._opened = self._opened, None
        if opened is not None:
            # Not in `in_context`: a file may be waited for, and nobody else is to wait too.
            with suppress(CudaError), sampling.device.current():
                opened.engine.keep_compiled()
            sampling.in_context(opened.engine.close)
        sampling.close()

    def _try_out(self) -> None:
        """Embed one cloud, enqueued and as a graph: what TensorRT or the driver lack may show only then."""
        if why := self._first_failure():
            raise FirstPassFailed(f"{self._tensorrt}'s first pass on {self._gpu} failed: {why}")

    def _first_failure(self) -> str:
        """Why a cloud cannot be embedded; "" where it can."""
        cloud, why = trial_cloud(self._sampling.points[0], self._sampling.encoder.channels), ""
        try:
            with (
                self._sampling.device.current()
            ):  # TensorRT's objects may hang on the error alone, which ends here
                try:
                    for _ in range(2):
                        check_finite(self.embed([cloud]).embedding, self.name)
                except Exception as error:  # a vendor's library may raise anything
                    why = " ".join(str(error).split()) or type(error).__name__
        except CudaError as error:  # the context itself has gone
            return why or str(error)
        return why

    def _make_worker(self) -> EngineWorker:
        assert self._opened is not None
        with self._sampling.device.current():
            return EngineWorker(self._sampling, self._opened.engine)

    @property
    def _gpu(self) -> Gpu:
        assert self._tensorrt.gpu is not None
        return self._tensorrt.gpu


def _find_package(package: Literal["tensorrt", "tensorrt-rtx"], device: int) -> TensorRt:
    driver = probe_cuda()
    if not driver.gpus:
        raise BackendUnavailable(driver.reason)
    found = find_tensorrt(package, device=device, probe=lambda: driver)
    if isinstance(found, Unavailable):
        raise BackendUnavailable(found.reason)
    return found
