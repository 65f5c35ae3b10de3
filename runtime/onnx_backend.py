"""The encoder in ONNX Runtime, on the CPU or an NVIDIA GPU; sampling and grouping are NumPy's."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.backend import BackendUnavailable, Embedded, check_finite, trial_cloud
from crossmost.runtime.manifest import Manifest, locate
from crossmost.runtime.onnx_session import create_session
from crossmost.runtime.sampling import group

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
        else:
            self._session = _open_cuda(runtime, path, device or 0, threads)
            self._try_out()

    def embed(self, clouds: Sequence[NDArray[np.float32]]) -> Embedded:
        """Embed B clouds, a few at a time: see `Backend.embed`."""
        session = self._session
        if session is None:
            raise ValueError("expected an open backend, found a closed one: load the bundle again")
        seconds = {"group": 0.0, "encode": 0.0}
        rows = []
        for start in range(0, len(clouds), self._clouds):
            began = time.perf_counter()
            patches, centers = self._group(clouds[start : start + self._clouds])
            grouped = time.perf_counter()
            rows.append(session.run(None, {"patches": patches, "centers": centers})[0])
            seconds["group"] += grouped - began
            seconds["encode"] += time.perf_counter() - grouped
        return Embedded(np.concatenate(rows), seconds)

    def info(self) -> dict[str, Any]:
        """The library, its provider and the limits: see `Backend.info`."""
        return {
            "onnxruntime": self._version,
            "graph": self._graph,
            "provider": PROVIDERS[self.name.rpartition("-")[2]],
            "threads": self._threads or "one a core",
            "clouds_at_once": self._clouds,
        }

    def close(self) -> None:
        """Let the session go; passes under way end as they would have."""
        self._session = None

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

    def _try_out(self) -> None:
        """Embed one cloud: what CUDA lacks, such as cuDNN, shows only in the first pass."""
        card = self._encoder
        cloud = trial_cloud(max(card.groups, card.neighbors), card.channels)
        try:
            check_finite(self.embed([cloud]).embedding, self.name)
        except Exception as error:  # ONNX Runtime has classes of its own, which depend on the version
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
