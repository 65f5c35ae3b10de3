"""ONNX Runtime on a stream of the runtime's own, so that a whole batch, sampling included, becomes one CUDA graph.

Its own way to CUDA graphs, `enable_cuda_graph`, is not taken: it captures so that no other thread of the process may
allocate on the GPU meanwhile, and a robot's other networks may. Here the worker captures, for its own thread alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from crossmost.runtime.cuda_device import CudaDevice
from crossmost.runtime.encoder_engine import Answer, EngineFailed
from crossmost.runtime.manifest import Encoder
from crossmost.runtime.own_thread import OwnThread

WITHOUT_WAITING = ("disable_synchronize_execution_providers", "1")


class OnnxEngine:
    """One session of ONNX Runtime for one worker, as an `EncoderEngine`.

    What it enqueues uses the handles and workspaces of cuBLAS that ONNX Runtime keeps for each thread and frees when
    the thread ends. Graphs would go on using them, so all its work is done in one thread that lives as long.
    """

    def __init__(
        self,
        open_session: Callable[[int], Any],
        run_options: Callable[[], Any],
        encoder: Encoder,
        device: CudaDevice,
        *,
        index: int,
        most: int,
    ) -> None:
        """Take note of everything; the session comes with the first context.

        Args:
            open_session: opens it for the stream of this handle.
            run_options: makes ONNX Runtime's `RunOptions`.
            encoder: of the bundle.
            device: the GPU.
            index: of it, for ONNX Runtime.
            most: clouds of the largest batch, which bounds the memory of a pass.
        """
        self._open_session, self._run_options = open_session, run_options
        self._encoder, self._device, self._index, self._most = encoder, device, index, most
        self._session: Any = None
        self._stream = 0
        self._contexts: weakref.WeakSet[OnnxContext] = weakref.WeakSet()
        self._thread = OwnThread("crossmost-onnxruntime")

    @property
    def batches(self) -> tuple[int, int]:
        """See `EncoderEngine.batches`."""
        return 1, self._most

    def make_context(self, stream: int) -> OnnxContext:
        """See `EncoderEngine.make_context`; every context must be for the stream of the first one."""
        if self._session is None:
            self._session, self._stream = self.apart(lambda: self._open_session(stream)), stream
        if stream != self._stream:
            raise self.failed("works on one stream, and was asked for another")
        options = self._run_options()
        options.add_run_config_entry(*WITHOUT_WAITING)
        context = OnnxContext(self._session, options, self._index, self._encoder.dim)
        self._contexts.add(context)
        return context

    def apart(self, work: Callable[[], Answer]) -> Answer:
        """In the one thread of this engine, whose context is the GPU's; interrupted it still waits for the work."""

        def there() -> Answer:
            with self._device.current():
                return work()

        return self._thread.run(there)

    def leave(self, stream: int) -> None:
        """End the session, which still has work for its stream then."""
        self.apart(self._end_session)

    def keep_compiled(self) -> None:
        """Nothing was."""

    def failed(self, what: str) -> EngineFailed:
        """See `EncoderEngine.failed`."""
        return EngineFailed(f"ONNX Runtime {what}")

    def close(self) -> None:
        """See `EncoderEngine.close`."""
        self._thread.close()

    def _end_session(self) -> None:
        """Drop every reference, also of contexts that an error which somebody keeps still holds."""
        for context in list(self._contexts):
            context.end()
        self._session = None


class OnnxContext:
    """Batches of one shape between fixed addresses, with the names of TensorRT's `IExecutionContext`."""

    def __init__(self, session: Any, options: Any, index: int, dim: int) -> None:
        self._session, self._options, self._index, self._dim = session, options, index, dim
        self._binding = session.io_binding()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._fresh = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Take note of an input's shape."""
        self._shapes[name] = shape
        self._shapes["embedding"] = (shape[0], self._dim)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        """Bytes of scratch memory to be given: none, ONNX Runtime has its own."""
        return 0

    def set_device_memory(self, address: int, size: int) -> None:
        """Nothing is needed."""

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Bind an input or the output to where it is on the GPU."""
        bind = self._binding.bind_output if name == "embedding" else self._binding.bind_input
        bind(name, "cuda", self._index, np.float32, self._shapes[name], address)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Enqueue a pass and return at once.

        The first one is enqueued twice: the second pass may still allocate, which a capture does not survive
        (microsoft/onnxruntime pull request 17355).

        Raises:
            EngineFailed: ONNX Runtime refused.
        """
        for _ in range(2 if self._fresh else 1):
            if why := self._run():
                raise EngineFailed(f"ONNX Runtime failed: {why}")
        self._fresh = False
        return True

    def end(self) -> None:
        """Let the session go; it runs no more."""
        self._session = self._binding = None

    def _run(self) -> str:
        """Why a pass could not be enqueued; "" where it was. Its error is not passed on, for it holds the session."""
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # ONNX Runtime has classes of its own, which depend on the version
            return " ".join(str(error).split()) or type(error).__name__
        return ""
