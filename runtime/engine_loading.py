"""From a checked plan to an engine that makes execution contexts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossmost.runtime.encoder_engine import Answer, EngineFailed
from crossmost.runtime.engine_compiled import CompiledKernels, compiled_file
from crossmost.runtime.engine_facts import EngineFacts, InvalidEngine, check_plan
from crossmost.runtime.engine_log import Messages, make_logger
from crossmost.runtime.engine_packages import TensorRt
from crossmost.runtime.manifest import Encoder


@dataclass(eq=False)
class LoadedEngine:
    """TensorRT's objects of one engine; all of them must live as long as its contexts.

    TensorRT allocates while it makes a context: only one thread of the process may do so at a time, see
    `cuda_exclusion`.

    Attributes:
        tensorrt: the package.
        facts: the engine's sidecar.
        runtime: what deserialized it.
        engine: the engine.
        messages: what its logger was told.
        config: of its contexts, where the package compiles kernels when it runs (TensorRT-RTX); else None.
        compiled: the kernels that its contexts share then; else None.
    """

    tensorrt: TensorRt
    facts: EngineFacts
    runtime: Any
    engine: Any
    messages: Messages
    config: Any = None
    compiled: CompiledKernels | None = None

    @property
    def batches(self) -> tuple[int, int]:
        """The smallest and the largest batch it takes."""
        least, _, most = self.facts.recipe.profile["batch"]
        return least, most

    def make_context(self, stream: int) -> Any:
        """An execution context whose scratch memory is yet to be set.

        Args:
            stream: handle of the stream it will be used on.

        Raises:
            EngineFailed: TensorRT refused.
        """
        trt = self.tensorrt.module
        how = self.config or trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.engine.create_execution_context(how)
        if context is None:
            raise self.failed("made no execution context")
        # Only the first context of an engine has a profile from the start.
        if context.active_optimization_profile != 0 and not context.set_optimization_profile_async(0, stream):
            raise self.failed("did not select the profile")
        return context

    def apart(self, work: Callable[[], Answer]) -> Answer:
        """Any thread will do."""
        return work()

    def leave(self, stream: int) -> None:
        """Nothing but contexts held it."""

    def keep_compiled(self) -> None:
        """Keep the kernels that were compiled here, where the package compiles any, for the next process."""
        if self.compiled is not None:
            self.compiled.keep()

    def close(self) -> None:
        """Let TensorRT free the engine; its contexts are gone, the GPU's is current."""
        self.compiled = self.config = self.engine = self.runtime = None

    def failed(self, what: str) -> EngineFailed:
        """The error to raise where TensorRT answered with None or False."""
        return EngineFailed(
            f"{self.tensorrt} {what} for engine {self.facts.key}: {self.messages.last_error()}"
        )


def load_engine(
    tensorrt: TensorRt, plan: bytes, facts: EngineFacts, graph: Path, cache: Path | None = None
) -> LoadedEngine:
    """Deserialize a plan for the GPU whose context is current, and give it its weights if they were left out.

    Args:
        tensorrt: of the facts' package and version.
        plan: content of the .engine file.
        facts: of the plan; `engine_preflight.preflight` found nothing against them.
        graph: the ONNX graph it was built from, for the weights.
        cache: folder of what was built here, for the kernels TensorRT-RTX compiles; None to keep them nowhere.

    Raises:
        InvalidEngine: the plan is not the one of the facts.
        EngineFailed: TensorRT refused.
    """
    check_plan(plan, facts)
    trt, messages = tensorrt.module, Messages()
    logger = make_logger(trt, messages)
    runtime = trt.Runtime(logger)
    if facts.recipe.flags.version_compatible:  # such a plan holds code for the host: the lean runtime
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    loaded = LoadedEngine(tensorrt, facts, runtime, engine, messages)
    if engine is None:
        raise loaded.failed("could not load the plan")
    if facts.recipe.flags.strip_weights:
        _refit(loaded, logger, graph)
    if tensorrt.portable:
        _compile_for_contexts(loaded, cache)
    return loaded


def check_tensors(facts: EngineFacts, encoder: Encoder) -> None:
    """Make sure that an engine has the inputs and the output of the encoder, so that memory fits.

    Raises:
        InvalidEngine: other names, shapes or dtypes.
    """
    groups, neighbors = encoder.groups, encoder.neighbors
    expected = {
        "patches": (groups, neighbors, encoder.channels),
        "centers": (groups, 3),
        "embedding": (encoder.dim,),
    }
    tensors = (*facts.inputs, *facts.outputs)
    found = {tensor.name: tensor.shape[1:] for tensor in tensors if tensor.dtype == "float32"}
    if found != expected or len(tensors) != len(expected) or set(facts.recipe.profile) != {"batch"}:
        raise InvalidEngine(
            f"engine {facts.key}: expected float32 tensors {expected} with a batch axis, found {found}"
        )


def _refit(loaded: LoadedEngine, logger: Any, graph: Path) -> None:
    trt = loaded.tensorrt.module
    if not hasattr(trt, "OnnxParserRefitter"):
        raise EngineFailed(
            f"engine {loaded.facts.key} has no weights, and {loaded.tensorrt} cannot refit them from {graph.name}"
        )
    refitter = trt.Refitter(loaded.engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        raise loaded.failed(f"could not refit {graph.name}")


def _compile_for_contexts(loaded: LoadedEngine, cache: Path | None) -> None:
    """Have TensorRT-RTX compile kernels once for all contexts and processes, and for the contexts' very shapes.

    A graph would otherwise hold the slower kernels for any shape for good.
    """
    trt, config = loaded.tensorrt.module, loaded.engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    kernels = config.create_runtime_cache()
    path = None if cache is None else compiled_file(cache, loaded.facts, loaded.tensorrt)
    loaded.compiled = CompiledKernels(kernels, path)
    loaded.messages.errors.clear()  # of a file that does not fit: no later failure is its
    config.set_runtime_cache(kernels)
    loaded.config = config
