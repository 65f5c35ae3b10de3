"""What the backends of benchmarks/gpu.py are compared with: `encoder.onnx` in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gpu_clouds import Cloud, hard_clouds
from numpy.typing import NDArray

from crossmost.runtime.clouds_in import CloudsIn
from crossmost.runtime.manifest import Manifest
from crossmost.runtime.onnx_backend import GRAPH, OnnxBackend

Embedding = NDArray[np.float32]

AT_ONCE = 32
NOT_ON_A_CPU = "bf16"
"""The precision that ONNX Runtime does not compute on the CPU."""


@dataclass(frozen=True, eq=False)
class Compared:
    """Clouds that every backend embeds.

    Attributes:
        name: what they are.
        clouds: (n_i, 3).
        reference: their embeddings by ONNX Runtime on the CPU; None where nothing computes them there.
        ungated: metrics that are reported only.
    """

    name: str
    clouds: list[Cloud]
    reference: Embedding | None
    ungated: tuple[str, ...] = ()


class References:
    """What each of the bundles is compared with; computed when it is first asked for."""

    def __init__(self, bundles: Mapping[str, tuple[Path, Manifest]], clouds: list[Cloud]) -> None:
        """Take note of folders and manifests by name, and of clouds (n_i, 3)."""
        hard = list(hard_clouds(2000, np.random.default_rng(0)).values())
        # Of clouds full of ties no class is right, and they are too few for a share.
        self._parts = (("the clouds", clouds, ()), ("hard clouds", hard, ("top1_agreement",)))
        self._bundles = bundles
        self._found: dict[str | None, list[Compared]] = {}

    def of(self, name: str) -> list[Compared]:
        """What a bundle is compared with: itself or, in bf16, the fp32 bundle of the same weights, if that is there.

        Raises:
            BackendUnavailable: ONNX Runtime is missing, or cannot run the bundle on the CPU.
        """
        source = self._source(name)
        if source not in self._found:
            self._found[source] = [
                Compared(what, clouds, None if source is None else self._embed(source, clouds), ungated)
                for what, clouds, ungated in self._parts
            ]
        return self._found[source]

    def _source(self, name: str) -> str | None:
        _, manifest = self._bundles[name]
        if manifest.precision != NOT_ON_A_CPU:
            return name
        siblings = (other for other, (_, found) in self._bundles.items() if _same_network(manifest, found))
        return next(siblings, None)

    def _embed(self, name: str, clouds: Sequence[Cloud]) -> Embedding:
        """By `encoder.onnx`, also where the bundle has 8-bit integers for CPUs."""
        bundle, manifest = self._bundles[name]
        prepare = CloudsIn(manifest.encoder, "z").prepare
        with closing(OnnxBackend(bundle, manifest, graph=GRAPH)) as backend:
            rows = [
                backend.embed([prepare(cloud).points for cloud in clouds[at : at + AT_ONCE]]).embedding
                for at in range(0, len(clouds), AT_ONCE)
            ]
        return np.concatenate(rows)


def _same_network(manifest: Manifest, other: Manifest) -> bool:
    """Whether the other one is in fp32 and was exported from the same weights."""
    weights = manifest.provenance.get("weights_sha256")
    same = weights is not None and weights == other.provenance.get("weights_sha256")
    return same and other.precision == "fp32" and other.encoder == manifest.encoder
