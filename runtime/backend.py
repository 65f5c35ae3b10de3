"""What runs the encoder: the one protocol behind which ONNX Runtime and TensorRT stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.errors import RuntimeFailure


class BackendUnavailable(RuntimeFailure):
    """A backend that cannot run here or not this bundle; one line says why, and what to type."""


class EmbeddingFailed(RuntimeFailure):
    """An encoder that answers with NaN or infinity: any class would do for that, and none is right."""


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


def check_finite(embedding: NDArray[np.float32], name: str) -> None:
    """Refuse embeddings (B, D) that are no numbers.

    Raises:
        EmbeddingFailed: says which backend it was.
    """
    if not np.isfinite(embedding).all():
        rows = int((~np.isfinite(embedding).all(axis=1)).sum())
        raise EmbeddingFailed(
            f"{name} embedded {rows} of {len(embedding)} clouds as NaN or infinity; where half precision overflows, "
            "export without --fp16 or with --bf16"
        )


def trial_cloud(count: int, channels: int) -> NDArray[np.float32]:
    """A prepared cloud (count, channels) to try an encoder with: points evenly on the unit sphere, grey if coloured."""
    cloud = np.full((count, channels), 0.5, np.float32)
    step = np.arange(count)
    height = (2 * step + 1) / count - 1
    angle = step * math.pi * (3 - math.sqrt(5.0))
    radius = np.sqrt(1 - height**2)
    cloud[:, :3] = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)
    return cloud
