"""What a worker on the GPU wants of the library that runs the encoder there: TensorRT or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from crossmost.runtime.errors import RuntimeFailure

Answer = TypeVar("Answer")


class EngineFailed(RuntimeFailure):
    """TensorRT or ONNX Runtime refused an engine or a batch; the message holds what the library last said."""


class EncoderEngine(Protocol):
    """An encoder that works on a stream and at addresses that it is given."""

    @property
    def batches(self) -> tuple[int, int]:
        """The smallest and the largest batch it takes."""

    def make_context(self, stream: int) -> Any:
        """What runs batches of one shape on a stream, with the methods of TensorRT's `IExecutionContext`.

        Raises:
            EngineFailed: the library refused.
        """

    def apart(self, work: Callable[[], Answer]) -> Answer:
        """Have work done in the thread that the library wants for all its own, where it wants one."""

    def leave(self, stream: int) -> None:
        """Hold on to a stream no longer, whose contexts are gone: it is destroyed next."""

    def keep_compiled(self) -> None:
        """Keep the kernels that were compiled here, where the library compiles any, for the next process."""

    def failed(self, what: str) -> EngineFailed:
        """The error to raise where a context answered with False."""

    def close(self) -> None:
        """Free it; its contexts are gone, the GPU's is current."""
