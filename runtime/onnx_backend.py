"""The encoder in ONNX Runtime, on the CPU, or on an NVIDIA GPU beside the kernels that sample and group there."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.backend import BackendUnavailable, Embedded, check_finite, trial_cloud
from crossmost.runtime.cuda_calls import CudaError
from crossmost.runtime.cuda_driver import probe_cuda
from crossmost.runtime.cuda_exclusion import EXCLUSIVE
from crossmost.runtime.encoder_engine import EngineFailed
from crossmost.runtime.manifest import INT8, Encoder, InvalidBundle, Manifest, locate
from crossmost.runtime.onnx_passes import HostPasses
from crossmost.runtime.onnx_session import LONGEST_REASON, create_session, reason

if TYPE_CHECKING:
    from crossmost.runtime.gpu_pipeline import GpuPipeline

GRAPH = "encoder.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
POINTS_AT_ONCE = {"cpu": 1 << 14, "cuda": 1 << 18}
"""Points of all patches of a pass, which bounds its memory."""

MISSING = (
    'ONNX Runtime is not installed: pip install "crossmost[cpu]", or pip install "crossmost[gpu]" with a GPU'
)
WARNING, ERROR = 2, 3
"""Of ONNX Runtime's levels of severity; it starts with the first."""
SAME = 1e-3
"""Of an embedding's numbers, whose squares sum up to 1: far above rounding, far below another cloud's."""


class OnnxBackend:
    """The encoder in ONNX Runtime: see `Backend`.

    On a GPU one batch at a time is there, sampled and grouped by kernels on the stream that ONNX Runtime works on, a
    CUDA graph a shape; where the kernels cannot run, `info` says so and NumPy does their work.
    """

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
            InvalidBundle: the graph is not of the encoder that the manifest says.
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
        self._sampling, self._notes = "NumPy", list[str]()
        self._passes: GpuPipeline | HostPasses
        if provider == "cpu":
            session = _open_cpu(path, manifest.precision, threads)
            check_tensors(session, self._encoder, path)
            self._passes = HostPasses(session, self._encoder, self._clouds)
        else:
            self._passes = self._open_gpu(runtime, path, device or 0)

    def embed(self, clouds: Sequence[NDArray[np.float32]]) -> Embedded:
        """Embed B clouds, a few at a time: see `Backend.embed`."""
        return self._passes.embed(clouds)

    def info(self) -> dict[str, Any]:
        """The library, its provider and the limits: see `Backend.info`."""
        return {
            "onnxruntime": self._version,
            "graph": self._graph,
            "provider": PROVIDERS[self.name.rpartition("-")[2]],
            "threads": self._threads or "one a core",
            "clouds_at_once": self._clouds,
            "sampling": self._sampling,
            "notes": self._notes,
            **self._passes.info(),
        }

    def close(self) -> None:
        """Let everything go once passes under way have ended: see `Backend.close`."""
        self._passes.close()

    def _open_gpu(self, runtime: ModuleType, path: Path, device: int) -> GpuPipeline | HostPasses:
        """Behind the kernels, or behind NumPy where something that those need is missing; tried out."""
        _check_cuda(runtime)
        pipeline, why = self._open_pipeline(runtime, path, device)
        if pipeline is not None:
            self._sampling = "CUDA kernels"
            return pipeline
        self._notes = [f"sampling and grouping stay on the CPU, which is slower: {why}"]
        with EXCLUSIVE:  # it allocates, which another classifier's capture may not survive
            session = open_cuda(runtime, path, device, self._threads)
        passes = HostPasses(session, self._encoder, self._clouds)
        self._try_out(passes)
        return passes

    def _open_pipeline(self, runtime: ModuleType, path: Path, device: int) -> tuple[GpuPipeline | None, str]:
        """The kernels with ONNX Runtime on their stream; None, and why, where they do not work here."""
        # Only here: a robot without a GPU starts faster.
        from crossmost.runtime.gpu_pipeline import GpuPipeline
        from crossmost.runtime.gpu_sampling import GpuSampling
        from crossmost.runtime.onnx_engine import OnnxEngine

        gpus = probe_cuda().gpus
        if device >= len(gpus):
            return None, f"the driver names no GPU {device}"
        try:
            sampling = GpuSampling(self._encoder, gpus[device], device)
        except BackendUnavailable as error:
            return None, str(error)

        def open_session(stream: int) -> Any:
            return open_cuda(runtime, path, device, self._threads, stream)

        engine = OnnxEngine(
            open_session,
            runtime.RunOptions,
            self._encoder,
            sampling.device,
            index=device,
            most=self._clouds,
        )
        pipeline = GpuPipeline(sampling, engine, workers=1)  # ONNX Runtime works on one stream a session
        if why := pipeline.try_out(self.name):
            return None, f"the first pass behind the kernels failed: {why[:LONGEST_REASON]}"
        with contextlib.ExitStack() as undo:
            undo.callback(pipeline.close)
            try:
                why = self._first_change(pipeline)
            except (EngineFailed, CudaError) as error:
                why = reason(error)
            if not why:
                undo.pop_all()
        return (None, why) if why else (pipeline, "")

    def _first_change(self, pipeline: GpuPipeline) -> str:
        """Whether a graph still answers as at first once other passes ran; "" where it does.

        ONNX Runtime does not know that it is captured: a pass that read memory of the host would read what is there
        by then.
        """
        first = trial_cloud(self._encoder.least, self._encoder.channels)
        other = first * np.float32(0.5)
        # The largest batch first: where memory moves, graphs are forgotten.
        pipeline.embed([other, other, other])
        before = pipeline.embed([first]).embedding
        pipeline.embed([other, first])
        change = float(np.abs(pipeline.embed([first]).embedding - before).max())
        return "" if change < SAME else f"a CUDA graph's answers changed by up to {change:.2g}"

    def _try_out(self, passes: HostPasses) -> None:
        """Embed one cloud: what CUDA lacks, such as cuDNN, shows only in the first pass."""
        card = self._encoder
        cloud = trial_cloud(card.least, card.channels)
        try:
            check_finite(passes.embed([cloud]).embedding, self.name)
        except Exception as error:  # ONNX Runtime has classes of its own, which depend on the version
            raise BackendUnavailable(
                f"ONNX Runtime's first pass on the GPU failed: {reason(error.__cause__ or error)}"
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
        raise BackendUnavailable(f"ONNX Runtime cannot open {graph}: {reason(error)}") from error


def check_tensors(session: Any, encoder: Encoder, graph: Path) -> None:
    """Compare the inputs and the output of a graph with the encoder that a manifest says it is.

    Raises:
        InvalidBundle: they are of another encoder.
    """
    expected = {
        "patches": [encoder.groups, encoder.neighbors, encoder.channels],
        "centers": [encoder.groups, 3],
    }
    found = {each.name: list(each.shape[1:]) for each in session.get_inputs()}
    dim = session.get_outputs()[0].shape[-1]
    if found != expected or dim != encoder.dim:
        raise InvalidBundle(
            f"{graph}: expected the inputs {expected} and {encoder.dim} numbers a cloud of the manifest's encoder, "
            f"found {found} and {dim}: copy or export the bundle again"
        )


def _check_cuda(runtime: ModuleType) -> None:
    if PROVIDERS["cuda"] not in runtime.get_available_providers():
        raise BackendUnavailable(
            f"onnxruntime {runtime.__version__} has no CUDA: pip uninstall onnxruntime, then "
            'pip install "crossmost[gpu]"'
        )


def open_cuda(
    runtime: ModuleType, graph: Path, device: int, threads: int | None, stream: int | None = None
) -> Any:
    """A session on the GPU: ONNX Runtime itself would fall back to the CPU without a word.

    Args:
        runtime: the module `onnxruntime`.
        graph: the .onnx file.
        device: index of the GPU.
        threads: of what stays on the CPU; None for one a core.
        stream: handle of the stream it is to work on; None for one of its own.

    Raises:
        BackendUnavailable: it cannot; says why.
    """
    # TF32 would round the coordinates of float32 graphs to ten bits.
    options = {"device_id": str(device), "use_tf32": "0"}
    if stream is not None:
        options["user_compute_stream"] = str(stream)
    provider: Any = (PROVIDERS["cuda"], options)
    with _captured(runtime) as said:
        try:
            if hasattr(runtime, "preload_dlls"):  # finds the CUDA libraries that pip installed
                runtime.preload_dlls()
            session = create_session(graph, providers=(provider,), threads=threads)
        except Exception as error:  # as above
            raise BackendUnavailable(f"ONNX Runtime cannot use the GPU: {reason(error)}") from error
    found = session.get_providers()[0]
    if found != PROVIDERS["cuda"]:
        raise BackendUnavailable(
            f"ONNX Runtime fell back from CUDA to {found}: {reason(said.getvalue()) or 'it gave no reason'}; "
            'pip install "crossmost[gpu]" brings the CUDA libraries'
        )
    return session


_CAPTURE = threading.Lock()


@contextlib.contextmanager
def _captured(runtime: ModuleType) -> Any:
    """Catch what ONNX Runtime prints instead of raising; one thread at a time, since stdout is everyone's.

    1.31 warns on the process's own stderr that no plugin provides CUDA, which nobody asked for. Afterwards its default
    logger is at its own default level again: ONNX Runtime does not tell what it was.
    """
    said = io.StringIO()
    with _CAPTURE, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        runtime.set_default_logger_severity(ERROR)
        try:
            yield said
        finally:
            runtime.set_default_logger_severity(WARNING)
