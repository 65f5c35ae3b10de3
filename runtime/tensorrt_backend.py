"""The encoder in TensorRT or TensorRT-RTX; sampling and grouping are CUDA kernels on the same stream.

TensorRT ends the process where there is no driver, so nothing here imports it before the driver named a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.backend import BackendUnavailable, Embedded
from crossmost.runtime.cuda_driver import probe_cuda
from crossmost.runtime.engine_cache import cache_folder as default_cache_folder
from crossmost.runtime.engine_opening import OpenedEngine, open_engine
from crossmost.runtime.engine_packages import TensorRt, Unavailable, find_tensorrt
from crossmost.runtime.gpu_pipeline import GpuPipeline
from crossmost.runtime.gpu_sampling import GpuSampling
from crossmost.runtime.manifest import Manifest

WORKERS = 2
"""They keep a GPU busy while the host fills the next batch; each further one costs the memory of its largest batch."""


class FirstPassFailed(BackendUnavailable):
    """An engine that loads and cannot embed here."""


class TensorRtBackend:
    """An engine, and workers that run it: see `Backend`."""

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
        assert self._tensorrt.gpu is not None
        sampling = GpuSampling(manifest.encoder, self._tensorrt.gpu, device or 0)
        with ExitStack() as undo:
            undo.callback(sampling.close)
            with sampling.device.current():
                cache = cache_folder or default_cache_folder()
                self._opened: OpenedEngine = open_engine(
                    Path(bundle), manifest, self._tensorrt, cache=cache, rebuild=rebuild
                )
            undo.pop_all()
        self._pipeline = GpuPipeline(sampling, self._opened.engine, workers)
        if why := self._pipeline.try_out(package):
            raise FirstPassFailed(f"{self._tensorrt}'s first pass on {self._tensorrt.gpu} failed: {why}")

    def embed(self, clouds: Sequence[NDArray[np.float32]]) -> Embedded:
        """Embed B clouds: see `GpuPipeline.embed`."""
        return self._pipeline.embed(clouds)

    def info(self) -> dict[str, Any]:
        """The package, the engine, the GPU and what workers hold: see `Backend.info`."""
        engine, found = self._opened.engine, self._pipeline.info()
        unkept = [engine.compiled.note] if engine.compiled is not None and engine.compiled.note else []
        return {
            "package": str(self._tensorrt),
            "gpu": str(self._tensorrt.gpu),
            "driver": self._tensorrt.driver,
            **found,
            "engine": self._opened.origin,
            "precision": engine.facts.precision,
            "batch": list(engine.facts.recipe.profile["batch"]),
            "notes": [*self._opened.notes, *unkept, *found["notes"]],
        }

    def close(self) -> None:
        """Wait for batches under way and free everything: see `Backend.close`."""
        self._pipeline.close()


def _find_package(package: Literal["tensorrt", "tensorrt-rtx"], device: int) -> TensorRt:
    driver = probe_cuda()
    if not driver.gpus:
        raise BackendUnavailable(driver.reason)
    found = find_tensorrt(package, device=device, probe=lambda: driver)
    if isinstance(found, Unavailable):
        raise BackendUnavailable(found.reason)
    return found
