"""Verification of an export: torch against every graph, in every way its precision can be checked on a CPU.

float32 and float16 graphs run in ONNX Runtime as they are. Its CPU provider computes much of a float16 graph in
float32 and runs no bfloat16 graph at all. So in half precision torch computes some of the clouds, rounding after every
operation, and a bfloat16 graph is run with its types widened to float32 and its rounded weights as they are.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossmost.adaptation.devices import cpu_threads
from crossmost.export.comparison import Subject, embedding_checks
from crossmost.export.departure import (
    TOLERANCES,
    departure_in_torch,
    first_departure,
    sampling_departure,
)
from crossmost.export.exported_layers import Float32Island
from crossmost.export.graph import EncoderGraph
from crossmost.export.graph_checks import (
    EMBEDDING,
    FILLED,
    INDICES,
    Comparison,
    Embeddings,
    graph_checks,
    most_rows,
)
from crossmost.export.graph_files import ENCODER, MODEL
from crossmost.export.graph_parts import widen
from crossmost.export.parity import (
    GATES,
    RUNS,
    SAME_INDICES,
    SAME_UNIT,
    TITLES,
    Check,
    Parity,
    limit_text,
    value_text,
)
from crossmost.export.precision import Precision
from crossmost.export.verification_clouds import FedClouds, VerificationClouds, feed_clouds
from crossmost.models.point_cards import PointCard
from crossmost.models.point_encoder import PointEncoder
from crossmost.models.student import Projection
from crossmost.runtime.class_bank import ClassBank

EAGER = "every operation rounded, in torch"
EAGER_CLOUDS = 4
"""Clouds that torch computes in half precision: a CPU is slow at it."""
NAMED = 3
"""Clouds that a failure names."""


class Reference(nn.Module):
    """The student's own path from patches to embedding: nothing folded, nothing cast."""

    def __init__(self, encoder: PointEncoder, head: Projection):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, patches: Tensor, centers: Tensor) -> Tensor:
        """(B, G, K, C) and (B, G, 3) float32 to (B, D) float32 unit rows."""
        return self.head(self.encoder(patches, centers).feature)


class Verification:
    """The clouds, the torch side, and what is known about both; `verify` is its story."""

    def __init__(
        self,
        encoder: PointEncoder,
        head: Projection,
        precision: Precision,
        bank: ClassBank,
        fed: FedClouds,
        batches: tuple[int, int, int],
        threads: int | None,
    ):
        self.encoder, self.head, self.precision, self.bank = encoder, head, precision, bank
        self.fed, self.batches, self.threads = fed, batches, threads

    @cached_property
    def expected(self) -> Embeddings:
        """What the student says of all clouds, (n, D) float32."""
        return self.embed(Reference(self.encoder, self.head), len(self.fed.ids))

    def module(self, precision: Precision) -> EncoderGraph:
        """The exported module, whose layers the graph's are named after."""
        return EncoderGraph(self.encoder, self.head, precision)

    def layers(self) -> EncoderGraph:
        """The module, in float32, that the graph must follow layer by layer."""
        return widened(self.module("bf16")) if self.precision == "bf16" else self.module("fp32")

    @torch.inference_mode()
    def embed(self, module: nn.Module, count: int) -> Embeddings:
        """Embeddings (count, D) float32 of the first clouds, by torch."""
        size = min(sorted(self.batches)[1], most_rows(self.encoder.card, self.fed))
        parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        patches, centers = self.fed.patches, self.fed.centers
        rows = [module(torch.from_numpy(patches[part]), torch.from_numpy(centers[part])) for part in parts]
        return torch.cat(rows).numpy()

    def comparisons(self, bundle: Path, folder: Path) -> list[Comparison]:
        """The graphs, as they are or widened into `folder`, with what torch makes of the same weights."""
        if self.precision != "bf16":
            name, gates = f"{self.precision} in ONNX Runtime", GATES[self.precision]
            return [
                Comparison(name, graph, bundle / graph, self.precision, self.expected, gates)
                for graph in (ENCODER, MODEL)
            ]
        name = "bf16 weights in float32, in ONNX Runtime"
        expected = self.embed(self.layers(), len(self.fed.ids))
        for graph in (ENCODER, MODEL):
            widen(bundle / graph, folder / graph, constants(self.encoder.card))
        return [
            Comparison(name, graph, folder / graph, self.precision, expected, GATES["fp32"])
            for graph in (ENCODER, MODEL)
        ]

    def run(self, comparison: Comparison) -> tuple[list[Check], Embeddings | None]:
        """Checks of a graph and its embeddings of all clouds."""
        card = self.encoder.card
        return graph_checks(comparison, self.fed, card, self.bank, self.batches, threads=self.threads)

    def eager_checks(self) -> list[Check]:
        """In half precision: torch rounding every operation against torch in float32, on the first clouds."""
        if self.precision == "fp32":
            return []
        count = min(EAGER_CLOUDS, len(self.fed.ids))
        expected = self.embed(Reference(self.encoder, self.head), count)
        found = self.embed(self.module(self.precision), count)
        name, gates = f"{self.precision}, {EAGER}", GATES[self.precision]
        subject = Subject(name, "exported module", self.precision, count, gates)
        return embedding_checks(subject, expected, found, self.fed.ids[:count], self.bank)

    def explain(self, check: Check, comparisons: list[Comparison]) -> str:
        """One line about a failed check."""
        about = f"{check.graph} ({check.name}, batch {check.batch})"
        if check.metric == RUNS:
            return f"{about} does not run: {check.note}"
        output = {SAME_UNIT: FILLED, SAME_INDICES: INDICES}.get(check.metric, EMBEDDING)
        found = f"{value_text(check.metric, check.value)}, expected {limit_text(check.metric, check.gate)}"
        named = ", ".join(check.failing[:NAMED]) + (", ..." if len(check.failing) > NAMED else "")
        row = self.fed.ids.index(check.failing[0])
        place = "Normalize or Fill" if check.metric == SAME_UNIT else self.departure(check, comparisons, row)
        first = f"first layer that departs: {place}" if place else "no single layer departs beyond rounding"
        return (
            f"{about}: {output}: {TITLES[check.metric]} {found}, on {len(check.failing)} of {check.clouds} "
            f"clouds ({named}); {first}"
        )

    def departure(self, check: Check, comparisons: list[Comparison], row: int) -> str | None:
        """The first layer that departs from torch on one cloud."""
        patches, centers = self.fed.patches[[row]], self.fed.centers[[row]]
        path = next((one.path for one in comparisons if one.graph == check.graph), None)
        tolerance = TOLERANCES["fp32" if path and self.precision == "bf16" else self.precision]
        if path is None:
            half, full = self.module(self.precision), self.module("fp32")
            return departure_in_torch(half, full, patches, centers, tolerance=tolerance)
        place = None
        if check.graph == MODEL:
            expected: dict[str, NDArray[Any]] = {
                "filled": self.fed.filled[row][None],
                "indices": self.fed.indices[[row]],
                "patches": patches,
                "centers": centers,
            }
            place = sampling_departure(path, self.fed.points[row][None], expected)
        return place or first_departure(path, self.layers(), patches, centers, tolerance=tolerance)


def verify(
    bundle: Path,
    encoder: PointEncoder,
    head: Projection,
    precision: Precision,
    class_bank: ClassBank,
    clouds: VerificationClouds,
    *,
    batches: tuple[int, int, int] = (1, 8, 64),
    threads: int | None = None,
) -> Parity:
    """Compare the graphs of a bundle with the torch modules they were made from; the bundle stays as it is.

    A failed gate does not raise: `failure` of the report says which.

    Args:
        bundle: folder with `encoder.onnx`, `model.onnx` and their weights.
        encoder: in evaluation mode, float32, on the CPU.
        head: behind the encoder.
        precision: of the graphs.
        class_bank: whose top-1 class must stay.
        clouds: at least one.
        batches: smallest, typical and largest size; all clouds run at the typical one. Less where memory ends.
        threads: of one inference; None for one a core.

    Raises:
        InputError: a cloud that the encoder cannot read.
    """
    started = time.perf_counter()
    fed = feed_clouds(clouds, encoder.card)
    with cpu_threads(threads), tempfile.TemporaryDirectory() as folder:
        verification = Verification(encoder, head, precision, class_bank, fed, batches, threads)
        comparisons = verification.comparisons(bundle, Path(folder))
        checks: list[Check] = []
        embeddings: dict[str, Embeddings | None] = {}
        for comparison in comparisons:
            found, embeddings[comparison.graph] = verification.run(comparison)
            checks += found
        checks += verification.eager_checks()
        failed = next((check for check in checks if not check.passed), None)
        failure = verification.explain(failed, comparisons) if failed else ""
        accuracy = {}
        if clouds.labels is not None:
            accuracy = accuracies({"torch": verification.expected, **embeddings}, class_bank, clouds.labels)
    sizes = [len(cloud) for cloud in fed.points]
    about = {"name": clouds.name, "count": len(sizes), "points": [min(sizes), max(sizes)]}
    return Parity(about, tuple(checks), time.perf_counter() - started, failure, accuracy)


def widened(module: EncoderGraph) -> EncoderGraph:
    """Let a module in half precision compute in float32, its rounded weights as they are; in place."""
    module.float()
    module.dtype = torch.float32
    for part in module.modules():
        if isinstance(part, Float32Island):
            part.dtype = torch.float32
    return module


def constants(card: PointCard) -> tuple[float, ...]:
    """What the exporter writes as numbers: of the GELU, and the root by which attention scales its queries."""
    return 2**0.5, (card.width / card.heads) ** -0.5


def accuracies(
    embeddings: Mapping[str, Embeddings | None], bank: ClassBank, labels: NDArray[np.int64]
) -> dict[str, float]:
    """Share of the clouds with a known label whose top-1 class is right, by what computed it."""
    known = labels >= 0
    if not known.any():
        return {}
    return {
        name: float((bank.logits(rows[known]).argmax(axis=1) == labels[known]).mean())
        for name, rows in embeddings.items()
        if rows is not None
    }
