"""What runs the encoder: the one protocol behind which ONNX Runtime and TensorRT stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class BackendUnavailable(RuntimeError):
    """A backend that cannot run here or not this bundle; one line says why, and what to type."""


class Embedded(NamedTuple):
    """The answer of a backend.

    Attributes:
        embedding: (B, D) float32, unit rows.
        seconds: how long each stage took for all clouds together, such as `group` and `encode`.
    """

    embedding: NDArray[np.float32]
    seconds: dict[str, float]


class Backend(Protocol):
    """From prepared clouds to embeddings; every method may be called from several threads at once."""

    @property
    def name(self) -> str:
        """`onnxruntime-cpu`, `onnxruntime-cuda`, `tensorrt` or `tensorrt-rtx`."""

    def embed(self, clouds: Sequence[NDArray[np.float32]]) -> Embedded:
        """Embed B > 0 clouds, each (n, C) float32 as `crossmost.runtime.preprocess` makes them.

        An embedding does not depend on the clouds beside it.
        """

    def info(self) -> dict[str, Any]:
        """Facts about the backend, its device and its libraries, as JSON types."""

    def close(self) -> None:
        """Free what it holds; further calls do nothing."""
