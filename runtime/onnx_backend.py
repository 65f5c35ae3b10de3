"""The encoder in ONNX Runtime, on the CPU, or on an NVIDIA GPU beside the kernels that sample and group there."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.backend import BackendUnavailable, Embedded, check_finite, trial_cloud
from crossmost.runtime.cuda_driver import probe_cuda
from crossmost.runtime.gpu_sampling import GpuSampling
from crossmost.runtime.manifest import Encoder, Manifest, locate
from crossmost.runtime.onnx_passes import GpuPass, HostPass, Pass
from crossmost.runtime.onnx_session import create_session

GRAPH, INT8 = "encoder.onnx", "encoder.int8.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
POINTS_AT_ONCE = {"cpu": 1 << 14, "cuda": 1 << 18}
"""Points of all patches of a pass, which bounds its memory."""

MISSING = (
    'ONNX Runtime is not installed: pip install "crossmost[cpu]", or pip install "crossmost[gpu]" with a GPU'
)
LONGEST_REASON = 300
"""A vendor's message can be a page; its first words say what is missing."""


class OnnxBackend:
    """One ONNX Runtime session, shared by all threads; their passes run in parallel."""

    def __init__(
        self,
        bundle: Path | str,
        manifest: Manifest,
        *,
        provider: str = "cpu",
        device: int | None = None,
        threads: int | None = None,
        graph: str | None = None,
    ) -> None:
        """Open `encoder.onnx`, or on a CPU `encoder.int8.onnx` where the bundle has one; the caller checked digests.

        Args:
            bundle: the folder.
            manifest: of the bundle.
            provider: `cpu` or `cuda`.
            device: index of the GPU; None for the first.
            threads: of one pass on the CPU; None for one a core.
            graph: one of the two by name, `GRAPH` or `INT8`; None for the choice above.

        Raises:
            BackendUnavailable: ONNX Runtime is missing, or cannot run this bundle or use the GPU.
        """
        runtime = import_onnxruntime()
        self.name = f"onnxruntime-{provider}"
        self._encoder = manifest.encoder
        self._threads = threads
        self._version = str(runtime.__version__)
        self._clouds = max(1, POINTS_AT_ONCE[provider] // (self._encoder.groups * self._encoder.neighbors))
        # Whoever exported with --int8 wanted it where it is the faster one: on CPUs.
        self._graph = graph or (INT8 if provider == "cpu" and INT8 in manifest.files else GRAPH)
        path = locate(Path(bundle), self._graph)
        if provider == "cpu":
            self._session: Any = _open_cpu(path, manifest.precision, threads)
            self._pass: Pass = HostPass(self._encoder)
        else:
            self._session = _open_cuda(runtime, path, device or 0, threads)
            self._pass = _open_pass(self._encoder, device or 0)
            self._try_out()

    def embed(self, clouds: Sequence[NDArray[np.float32]]) -> Embedded:
        """Embed B clouds, a few at a time: see `Backend.embed`."""
        session = self._session
        if session is None:
            raise ValueError("expected an open backend, found a closed one: load the bundle again")
        rows: list[NDArray[np.float32]] = []
        seconds: dict[str, float] = {}
        for start in range(0, len(clouds), self._clouds):
            embedding, took = self._pass.run(session, clouds[start : start + self._clouds])
            rows.append(embedding)
            seconds = {stage: seconds.get(stage, 0.0) + took[stage] for stage in took}
        return Embedded(np.concatenate(rows), seconds)

    def info(self) -> dict[str, Any]:
        """The library, its provider and the limits: see `Backend.info`."""
        return {
            "onnxruntime": self._version,
            "graph": self._graph,
            "provider": PROVIDERS[self.name.rpartition("-")[2]],
            "threads": self._threads or "one a core",
            "clouds_at_once": self._clouds,
            "sampling": self._pass.sampling,
            **self._pass.info(),
        }

    def close(self) -> None:
        """Let the session go; passes under way end as they would have."""
        self._session = None
        self._pass.close()

    def _try_out(self) -> None:
        """Embed one cloud: what CUDA lacks, such as cuDNN, shows only in the first pass."""
        card = self._encoder
        cloud = trial_cloud(max(card.groups, card.neighbors), card.channels)
        try:
            check_finite(self.embed([cloud]).embedding, self.name)
        except Exception as error:  # ONNX Runtime has classes of its own, which depend on the version
            self.close()
            raise BackendUnavailable(
                f"ONNX Runtime's first pass on the GPU failed: {_reason(error)}"
            ) from error


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        BackendUnavailable: it is missing; says what to type.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(MISSING) from error
    return onnxruntime


def _open_cpu(graph: Path, precision: str, threads: int | None) -> Any:
    if precision == "bf16":
        raise BackendUnavailable(
            "ONNX Runtime has no bf16 on the CPU: export the bundle with --fp16, or in fp32 without an option"
        )
    try:
        return create_session(graph, threads=threads)
    except Exception as error:  # as above
        raise BackendUnavailable(f"ONNX Runtime cannot open {graph}: {_reason(error)}") from error


def _open_cuda(runtime: ModuleType, graph: Path, device: int, threads: int | None) -> Any:
    """A session on the GPU: ONNX Runtime itself would fall back to the CPU without a word."""
    if PROVIDERS["cuda"] not in runtime.get_available_providers():
        raise BackendUnavailable(
            f"onnxruntime {runtime.__version__} has no CUDA: pip uninstall onnxruntime, then "
            'pip install "crossmost[gpu]"'
        )
    # TF32 would round the coordinates of float32 graphs to ten bits.
    provider: Any = (PROVIDERS["cuda"], {"device_id": str(device), "use_tf32": "0"})
    with _captured() as said:
        try:
            if hasattr(runtime, "preload_dlls"):  # finds the CUDA libraries that pip installed
                runtime.preload_dlls()
            session = create_session(graph, providers=(provider,), threads=threads)
        except Exception as error:  # as above
            raise BackendUnavailable(f"ONNX Runtime cannot use the GPU: {_reason(error)}") from error
    found = session.get_providers()[0]
    if found != PROVIDERS["cuda"]:
        raise BackendUnavailable(
            f"ONNX Runtime fell back from CUDA to {found}: {_reason(said.getvalue()) or 'it gave no reason'}; "
            'pip install "crossmost[gpu]" brings the CUDA libraries'
        )
    return session


def _open_pass(encoder: Encoder, device: int) -> Pass:
    """Sampling and grouping on the GPU, or by NumPy where something that they need is missing."""
    gpus = probe_cuda().gpus
    if device >= len(gpus):  # ONNX Runtime counts one more than the driver: it shall not fail for that
        return HostPass(encoder, f"the driver names no GPU {device}")
    try:
        return GpuPass(GpuSampling(encoder, gpus[device], device), device)
    except BackendUnavailable as error:
        return HostPass(encoder, str(error))


_CAPTURE = threading.Lock()


@contextlib.contextmanager
def _captured() -> Any:
    """Catch what ONNX Runtime prints instead of raising; one thread at a time, since stdout is everyone's."""
    said = io.StringIO()
    with _CAPTURE, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


def _reason(error: object) -> str:
    """A message as one line of bounded length."""
    return " ".join(str(error).split())[:LONGEST_REASON]
