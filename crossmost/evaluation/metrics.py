"""Accuracy, calibration and change of posteriors over classes, for a branch or for both together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crossmost.errors import InputError

BINS = 15
"""Equal-width confidence bins of the expected calibration error (Guo et al. 2017)."""
ROW_SUM_TOLERANCE = 1e-3
"""How far a row may be from summing to one: room for posteriors that were computed in half precision."""
SMALLEST = 1e-12
"""Probabilities are raised to this before the logarithm, so that one saturated mistake costs 27.6 nats."""


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal-width bins `(edges[i], edges[i + 1]]`; NaN where one is empty."""

    edges: NDArray[np.float64]  # (bins + 1,)
    count: NDArray[np.int64]  # (bins,)
    confidence: NDArray[np.float64]  # (bins,) mean confidence of the bin
    accuracy: NDArray[np.float64]  # (bins,) share of the bin that is right

    @property
    def ece(self) -> float:
        """Expected calibration error in 0..1: the gap of each bin, weighted by how full it is."""
        full = self.count > 0
        gap = np.abs(self.accuracy[full] - self.confidence[full])
        return float(np.average(gap, weights=self.count[full]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists; an empty bin holds None."""
        return {
            "edges": self.edges.tolist(),
            "count": self.count.tolist(),
            "confidence": _plain(self.confidence),
            "accuracy": _plain(self.accuracy),
        }


@dataclass(frozen=True)
class BranchMetrics:
    """What labels say about one branch's posteriors; shares are in 0..1."""

    names: tuple[str, ...]
    n: int
    top1: float
    per_class: NDArray[np.float64]  # (C,) recall, NaN for a class that no cloud has
    mean_per_class: float  # over the classes that are there
    confusion: NDArray[np.int64]  # (C, C), rows are the truth
    reliability: Reliability
    ece: float
    nll: float  # nats a cloud

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; the recall of an absent class is None."""
        return {
            "n": self.n,
            "top1": self.top1,
            "mean_per_class": self.mean_per_class,
            "ece": self.ece,
            "nll": self.nll,
            "per_class": dict(zip(self.names, _plain(self.per_class), strict=True)),
            "confusion": self.confusion.tolist(),
            "reliability": self.reliability.to_dict(),
        }


@dataclass(frozen=True)
class Change:
    """How one branch's predictions on the same clouds moved; `won` and `lost` need labels."""

    n: int
    changed: int
    histogram_before: NDArray[np.int64]  # (C,) predictions a class
    histogram_after: NDArray[np.int64]  # (C,)
    confidence_before: float  # mean of the largest probability
    confidence_after: float
    won: int | None = None  # wrong before, right after
    lost: int | None = None  # right before, wrong after

    @property
    def margin(self) -> float | None:
        """Half width of the 95 % interval of the change in top-1 (0..1): the clouds are paired.

        By Agresti and Min (2005), with half a cloud added to each way in which a cloud can go: without it a few
        clouds that all went one way would leave no doubt at all.
        """
        if self.won is None or self.lost is None:
            return None
        won, lost, n = self.won + 0.5, self.lost + 0.5, self.n + 2
        return float(1.96 * np.sqrt(won + lost - (won - lost) ** 2 / n) / n)

    @property
    def p_value(self) -> float | None:
        """How often as many clouds or more would have gone one way by chance: McNemar's exact test, two-sided."""
        if self.won is None or self.lost is None:
            return None
        from scipy.stats import binomtest  # takes half a second to import

        moved = self.won + self.lost
        return float(binomtest(self.won, moved).pvalue) if moved else 1.0


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Turn logits into posteriors over the last axis, in float64.

    Args:
        logits: (..., C), finite, any real dtype; the temperature is already in them.

    Raises:
        InputError: no class axis, or values that are not finite.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise InputError(f"expected logits of shape (..., C) with C >= 1, found {scores.shape}")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        raise InputError(f"expected finite logits, found {bad} NaN or infinite in {scores.shape}")
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def branch_metrics(probabilities: ArrayLike, labels: ArrayLike, names: Sequence[str]) -> BranchMetrics:
    """Score one branch's posteriors against the labels.

    Args:
        probabilities: (n, C), rows sum to one.
        labels: (n,) integers in 0..C-1.
        names: the C class names, all different.

    Raises:
        InputError: shapes that do not belong together, rows that are not posteriors, labels out of range.
    """
    posteriors = _posteriors(probabilities)
    truth = _labels(labels, posteriors)
    classes = posteriors.shape[1]
    if len(names) != classes or len(set(names)) != classes:
        raise InputError(
            f"expected {classes} different class names for probabilities of shape {posteriors.shape}, "
            f"found {len(names)} of which {len(set(names))} differ"
        )
    cells = truth * classes + posteriors.argmax(axis=1)
    confusion = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    support = confusion.sum(axis=1)
    per_class = np.divide(confusion.diagonal(), support, out=np.full(classes, np.nan), where=support > 0)
    table = reliability(posteriors, truth)
    likelihood = posteriors[np.arange(len(truth)), truth]
    return BranchMetrics(
        names=tuple(names),
        n=len(truth),
        top1=float(confusion.trace() / len(truth)),
        per_class=per_class,
        mean_per_class=float(np.nanmean(per_class)),
        confusion=confusion.astype(np.int64),
        reliability=table,
        ece=table.ece,
        nll=float(-np.log(np.maximum(likelihood, SMALLEST)).mean()),
    )


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> Reliability:
    """Compare confidence (the largest probability) with accuracy, bin by bin.

    Args:
        probabilities: (n, C), rows sum to one.
        labels: (n,) integers in 0..C-1.
        bins: equal-width bins of (0, 1], each closed on the right.

    Raises:
        InputError: as `branch_metrics`, or fewer than one bin.
    """
    if bins < 1:
        raise InputError(f"expected at least one bin, found {bins}")
    posteriors = _posteriors(probabilities)
    right = posteriors.argmax(axis=1) == _labels(labels, posteriors)
    confidence = posteriors.max(axis=1)
    edges = np.linspace(0.0, 1.0, bins + 1)
    # A row of half-precision numbers may sum to a little over one; it belongs to the last bin.
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    full = count > 0

    def mean_per_bin(values: NDArray[Any]) -> NDArray[np.float64]:
        total = np.bincount(index, weights=values, minlength=bins)
        return np.divide(total, count, out=np.full(bins, np.nan), where=full)

    return Reliability(edges, count.astype(np.int64), mean_per_bin(confidence), mean_per_bin(right))


def both_branches(point: ArrayLike, image: ArrayLike) -> NDArray[np.float64]:
    """Return the mean of the two branches' posteriors, (n, C) float64.

    Raises:
        InputError: the two are not posteriors of one shape.
    """
    first, second = _pair(point, image)
    return (first + second) / 2


def agreement(point: ArrayLike, image: ArrayLike) -> float:
    """Return the share (0..1) of clouds for which the two branches name the same class.

    Raises:
        InputError: the two are not posteriors of one shape.
    """
    first, second = _pair(point, image)
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


def class_histogram(probabilities: ArrayLike) -> NDArray[np.int64]:
    """Count the predictions of each class: posteriors (n, C) to (C,) int64.

    Raises:
        InputError: the rows are not posteriors.
    """
    posteriors = _posteriors(probabilities)
    return np.bincount(posteriors.argmax(axis=1), minlength=posteriors.shape[1]).astype(np.int64)


def compare(before: ArrayLike, after: ArrayLike, labels: ArrayLike | None = None) -> Change:
    """Compare two posteriors of the same clouds, with or without labels.

    Args:
        before: (n, C) posteriors of the zero-shot model.
        after: (n, C) posteriors of the adapted model.
        labels: (n,) integers in 0..C-1, or None.

    Raises:
        InputError: shapes that do not belong together, rows that are not posteriors, labels out of range.
    """
    first, second = _pair(before, after, "before", "after")
    old, new = first.argmax(axis=1), second.argmax(axis=1)
    won = lost = None
    if labels is not None:
        truth = _labels(labels, first)
        won = int(((old != truth) & (new == truth)).sum())
        lost = int(((old == truth) & (new != truth)).sum())
    return Change(
        n=len(first),
        changed=int((old != new).sum()),
        histogram_before=class_histogram(first),
        histogram_after=class_histogram(second),
        confidence_before=float(first.max(axis=1).mean()),
        confidence_after=float(second.max(axis=1).mean()),
        won=won,
        lost=lost,
    )


def _posteriors(probabilities: ArrayLike, name: str = "probabilities") -> NDArray[np.float64]:
    rows = np.asarray(probabilities, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"expected {name} of shape (n, C) with n, C >= 1, found {rows.shape}")
    sums = rows.sum(axis=1)
    # Comparisons with NaN are false, so this one also finds NaN.
    if not ((rows >= 0).all() and (np.abs(sums - 1) <= ROW_SUM_TOLERANCE).all()):
        raise InputError(
            f"expected {name} {rows.shape} whose rows are non-negative and sum to 1, found a minimum of "
            f"{rows.min():.4g} and sums of {sums.min():.4g} to {sums.max():.4g}; pass logits through softmax"
        )
    return rows


def _labels(labels: ArrayLike, posteriors: NDArray[np.float64]) -> NDArray[np.int64]:
    n, classes = posteriors.shape
    truth = np.asarray(labels)
    if truth.shape != (n,) or not np.issubdtype(truth.dtype, np.integer):
        raise InputError(
            f"expected integer labels of shape ({n},) for probabilities {posteriors.shape}, "
            f"found {truth.dtype} of shape {truth.shape}"
        )
    if truth.min() < 0 or truth.max() >= classes:
        raise InputError(
            f"expected labels in 0..{classes - 1} for probabilities {posteriors.shape}, "
            f"found {truth.min()}..{truth.max()}"
        )
    return truth.astype(np.int64)


def _pair(
    first: ArrayLike, second: ArrayLike, first_name: str = "point", second_name: str = "image"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, two = _posteriors(first, first_name), _posteriors(second, second_name)
    if one.shape != two.shape:
        raise InputError(
            f"expected {first_name} and {second_name} posteriors of one shape, "
            f"found {one.shape} and {two.shape}"
        )
    return one, two


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
