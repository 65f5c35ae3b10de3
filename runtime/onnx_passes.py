"""Passes of ONNX Runtime behind NumPy's sampling and grouping: on a CPU, and on a GPU that lacks the kernels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.backend import Embedded
from crossmost.runtime.errors import InvalidCall
from crossmost.runtime.manifest import Encoder
from crossmost.runtime.onnx_session import run_session
from crossmost.runtime.sampling import group


class HostPasses:
    """One session, shared by all threads; their passes run in parallel."""

    def __init__(self, session: Any, encoder: Encoder, most: int) -> None:
        """Take the session over.

        Args:
            session: of ONNX Runtime.
            encoder: of the bundle.
            most: clouds of a pass, which bounds its memory.
        """
        self._session, self._encoder, self._most = session, encoder, most

    def embed(self, clouds: Sequence[NDArray[np.float32]]) -> Embedded:
        """Embed B clouds, a few at a time: see `Backend.embed`."""
        session = self._session
        if session is None:
            raise InvalidCall("expected an open backend, found a closed one: load the bundle again")
        seconds = {"group": 0.0, "encode": 0.0}
        rows = []
        for start in range(0, len(clouds), self._most):
            began = time.perf_counter()
            patches, centers = self._group(clouds[start : start + self._most])
            grouped = time.perf_counter()
            rows.append(run_session(session, {"patches": patches, "centers": centers}))
            seconds["group"] += grouped - began
            seconds["encode"] += time.perf_counter() - grouped
        return Embedded(np.concatenate(rows), seconds)

    def info(self) -> dict[str, Any]:
        """There is nothing to add."""
        return {}

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
