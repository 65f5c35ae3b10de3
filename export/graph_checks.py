"""One exported graph, run in ONNX Runtime at every batch size and compared with torch and NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from crossmost.export.comparison import Subject, embedding_checks
from crossmost.export.graph_files import ENCODER, MODEL
from crossmost.export.graph_parts import open_part
from crossmost.export.parity import RUNS, SAME_INDICES, SAME_UNIT, Check, Gate
from crossmost.export.precision import Precision
from crossmost.export.verification_clouds import PART, FedClouds, moved_clouds, plan_batches
from crossmost.models.point_cards import PointCard
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.onnx_session import create_session

EMBEDDING, FILLED, INDICES = "embedding", "filled", "indices"

UNIT_TOLERANCE = 1e-4
"""Between points of a unit cloud, normalised once in float32 and once in float64."""

MOST_ELEMENTS = 2**27
"""Numbers of the largest tensor of a batch, 512 MB in float32: a few of them live at once, and 4 GB must do."""

Embeddings = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A graph and what torch says its embeddings must be.

    Attributes:
        name: how the graph is run.
        graph: `ENCODER` or `MODEL`.
        path: the file that is run.
        precision: of the bundle.
        expected: (n, D) float32.
        gates: by metric.
    """

    name: str
    graph: str
    path: Path
    precision: Precision
    expected: Embeddings
    gates: Mapping[str, Gate]

    def subject(self, batch: int) -> Subject:
        """What the checks at one batch size are about."""
        return Subject(self.name, self.graph, self.precision, batch, self.gates)


def graph_checks(
    comparison: Comparison,
    fed: FedClouds,
    card: PointCard,
    bank: ClassBank,
    batches: tuple[int, int, int],
    *,
    threads: int | None = None,
) -> tuple[list[Check], Embeddings | None]:
    """Run a graph at the smallest, the typical and the largest batch.

    Returns:
        The checks; and the embeddings (n, D) of all clouds, None where the graph did not run.
    """
    groups = [np.arange(len(fed.ids))] if comparison.graph == ENCODER else fed.by_size()
    checks: list[Check] = []
    embeddings = np.zeros_like(comparison.expected)
    batch = 1
    # ONNX Runtime's exceptions have no base class but Exception; what it refuses is a finding, not an accident.
    try:
        session = create_session(comparison.path, threads=threads)
        sampling = open_part(comparison.path, ["points"], [INDICES]) if comparison.graph == MODEL else None
        if sampling is not None:
            unit = open_part(comparison.path, ["points"], [FILLED])
            checks.append(unit_check(unit, fed, card, comparison.subject(1)))
        for run in plan_batches(groups, batches, most_rows(card, fed)):
            batch = max(map(len, run))
            rows = np.concatenate(run)
            ids = [fed.ids[row] for row in rows]
            if sampling is not None:
                checks.append(sampling_check(sampling, fed, run, comparison.subject(batch)))
            expected = comparison.expected[rows]
            found = run_batches(session, fed, run, expected.shape[1])
            embeddings[rows] = found
            checks += embedding_checks(comparison.subject(batch), expected, found, ids, bank)
    except Exception as error:
        return [*checks, refusal(comparison.subject(batch), error, fed.ids)], None
    return checks, embeddings


def most_rows(card: PointCard, fed: FedClouds) -> int:
    """Clouds that may share a batch before its largest tensors outgrow the memory."""
    points = max(map(len, fed.points))
    patch_features = card.groups * card.neighbors * card.widest
    distances = 2 * card.groups * points  # twice: a sum and what is added to it
    return max(1, MOST_ELEMENTS // max(patch_features, distances))


def run_batches(
    session: onnxruntime.InferenceSession, fed: FedClouds, run: Sequence[Rows], dim: int
) -> Embeddings:
    """Embeddings (n, dim) float32 of batches, one after the other.

    Raises:
        ValueError: the graph gives another shape or dtype.
    """
    found = []
    for rows in run:
        (embedding,) = session.run([EMBEDDING], feed(session, fed, rows))
        if embedding.shape != (len(rows), dim) or embedding.dtype != np.float32:
            expected = f"({len(rows)}, {dim}) float32"
            raise ValueError(f"expected an embedding {expected}, found {embedding.shape} {embedding.dtype}")
        found.append(embedding)
    return np.concatenate(found)


def feed(session: onnxruntime.InferenceSession, fed: FedClouds, rows: Rows) -> dict[str, NDArray[np.float32]]:
    """What a graph, or a part of it, reads of some clouds."""
    if [value.name for value in session.get_inputs()] == ["points"]:
        return {"points": np.stack([fed.points[row] for row in rows])}
    return {"patches": fed.patches[rows], "centers": fed.centers[rows]}


def sampling_check(
    sampling: onnxruntime.InferenceSession, fed: FedClouds, run: Sequence[Rows], subject: Subject
) -> Check:
    """Compare the farthest points of batches with NumPy's: the share of clouds where all are the same."""
    rows = np.concatenate(run)
    found = np.concatenate([sampling.run([INDICES], feed(sampling, fed, part))[0] for part in run])
    wrong = (found != fed.indices[rows]).sum(axis=1)
    different = wrong > 0
    ids = [fed.ids[row] for row in rows]
    return subject.check(SAME_INDICES, 1.0 - different.mean(), ids, wrong.astype(np.float64), different)


def unit_check(
    unit: onnxruntime.InferenceSession, fed: FedClouds, card: PointCard, subject: Subject
) -> Check:
    """Compare unit clouds with NumPy's: the share of moved, scaled and sparse clouds where they are the same."""
    ids, apart = [], []
    for name, given, expected in moved_clouds(fed, card, PART):
        (found,) = unit.run([FILLED], {"points": given[None]})
        same = found.shape[1:] == expected.shape
        ids.append(name)
        apart.append(np.abs(found[0] - expected).max() if same else np.inf)
    badness = np.nan_to_num(np.asarray(apart, np.float64), nan=np.inf)
    different = badness > UNIT_TOLERANCE
    return subject.check(SAME_UNIT, 1.0 - different.mean(), ids, badness, different)


def refusal(subject: Subject, error: Exception, ids: Sequence[str]) -> Check:
    """The failed check of a graph that could not be loaded or run."""
    everyone = np.ones(len(ids))
    check = subject.check(RUNS, 0.0, ids, everyone, everyone > 0)
    note = " ".join(str(error).split())
    return replace(check, worst="", failing=(), note=note)
