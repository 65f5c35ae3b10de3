"""Two sets of embeddings of the same clouds, compared: every metric of a verification but the sampled indices.

The largest difference and the mean cosine come from polygraphy's comparators, whose verdict is the gate's. What they
flatten over the batch is ours: the cosine, the top-1 class and the finiteness of each cloud, which name it. Its
runners are left out: they cast, rename and reshape a feed until it fits, and would hide a graph with wrong inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polygraphy.comparator import (
    Comparator,
    CosineSimilarityCompareFunc,
    RunResults,
    SimpleCompareFunc,
)
from polygraphy.logger import G_LOGGER

from crossmost.export.parity import (
    COSINE_MEAN,
    COSINE_MIN,
    DIFFERENCE,
    FINITE,
    TOP1,
    Check,
    Gate,
    passes,
)
from crossmost.export.precision import Precision
from crossmost.runtime.class_bank import ClassBank

OUTPUT = "embedding"


@dataclass(frozen=True)
class Subject:
    """What is compared; see `Check` for the fields."""

    name: str
    graph: str
    precision: Precision
    batch: int
    gates: Mapping[str, Gate]

    def check(
        self,
        metric: str,
        value: float,
        ids: Sequence[str],
        badness: NDArray[np.float64],
        beyond: NDArray[np.bool_],
        *,
        passed: bool | None = None,
    ) -> Check:
        """Judge a value.

        Args:
            metric: a key of the gates.
            value: over all clouds.
            ids: of the n clouds; tiled ones appear more than once.
            badness: (n,), how far each cloud is from what was expected; 0 for one that is right.
            beyond: (n,), which of them are to blame if the gate fails.
            passed: the verdict, where another has it already.
        """
        limit = self.gates[metric].among(len(set(ids)))
        verdict = passes(metric, value, limit) if passed is None else passed
        order = np.argsort(-badness, kind="stable")
        blamed = [row for row in order if beyond[row]] or order[:1]
        failing = () if verdict else tuple(dict.fromkeys(ids[row] for row in blamed))
        worst = ids[order[0]] if badness[order[0]] > 0 else ""
        return Check(
            self.name, self.graph, self.precision, self.batch, metric, float(value), limit, verdict, worst,
            len(set(ids)), failing,
        )  # fmt: skip


def embedding_checks(
    subject: Subject,
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    ids: Sequence[str],
    bank: ClassBank,
) -> list[Check]:
    """Compare embeddings (n, D), unit rows where they are right, by each metric that has a gate.

    Where a number is not finite that is the only check: no other metric means anything.
    """
    infinite: NDArray[np.bool_] = np.logical_not(np.isfinite(found).all(axis=1))
    checks = [subject.check(FINITE, 1.0 - infinite.mean(), ids, infinite.astype(np.float64), infinite)]
    if infinite.any():
        return checks
    checks += comparator_checks(subject, expected, found, ids)
    cosines = row_cosines(expected, found)
    least = subject.gates[COSINE_MIN].limit
    checks.append(subject.check(COSINE_MIN, cosines.min(), ids, 1.0 - cosines, cosines < least))
    differs: NDArray[np.bool_] = bank.logits(expected).argmax(axis=1) != bank.logits(found).argmax(axis=1)
    # Tiled clouds count once, as for the gate.
    changed = {name for name, turned in zip(ids, differs, strict=True) if turned}
    same = 1.0 - len(changed) / len(set(ids))
    checks.append(subject.check(TOP1, same, ids, differs.astype(np.float64), differs))
    return checks


def comparator_checks(
    subject: Subject, expected: NDArray[np.float32], found: NDArray[np.float32], ids: Sequence[str]
) -> list[Check]:
    """The largest difference and the mean cosine, each where it has a gate, judged by polygraphy."""
    checks = []
    if DIFFERENCE in subject.gates:
        limit = subject.gates[DIFFERENCE].limit
        value, verdict = most_difference(expected, found, limit)
        apart = np.abs(expected.astype(np.float64) - found).max(axis=1)
        checks.append(subject.check(DIFFERENCE, value, ids, apart, apart > limit, passed=verdict))
    if COSINE_MEAN in subject.gates:
        limit = subject.gates[COSINE_MEAN].limit
        value, verdict = mean_cosine(expected, found, limit)
        cosines = row_cosines(expected, found)
        checks.append(subject.check(COSINE_MEAN, value, ids, 1.0 - cosines, cosines < limit, passed=verdict))
    return checks


def most_difference(
    expected: NDArray[np.float32], found: NDArray[np.float32], limit: float
) -> tuple[float, bool]:
    """max|d| over all numbers and whether polygraphy finds it within the limit."""
    # It fails what exceeds the absolute and the relative tolerance; the latter is 0, so the former decides.
    result = compare(SimpleCompareFunc(check_error_stat="max", atol=limit, rtol=0.0), expected, found)
    return result.max_absdiff, bool(result)


def mean_cosine(
    expected: NDArray[np.float32], found: NDArray[np.float32], limit: float
) -> tuple[float, bool]:
    """The mean of the rows' cosines and whether polygraphy finds it at the limit or above.

    Its cosine is that of all rows joined to one vector, which for rows of unit length is the mean of theirs.
    """
    result = compare(CosineSimilarityCompareFunc(limit), unit_rows(expected), unit_rows(found))
    return result.cosine_similarity, bool(result)


def compare(function: Any, expected: NDArray[Any], found: NDArray[Any]) -> Any:
    """Hand two arrays to a comparator of polygraphy, in float64 and in silence; gives its result."""
    results = RunResults()
    for name, rows in (("torch", expected), ("export", found)):
        results.add([{OUTPUT: rows.astype(np.float64)}], runner_name=name)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        (compared,) = Comparator.compare_accuracy(results, compare_func=function)
    return compared["torch", "export"][0][OUTPUT]


def row_cosines(expected: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each pair of rows, (n,)."""
    return (unit_rows(expected) * unit_rows(found)).sum(axis=1)


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows (n, D) at unit length in float64; a row of zeros stays one."""
    exact = rows.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(lengths > 0, lengths, 1.0)
