"""How well a number tells clouds of known classes from others, and right answers from wrong ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from crossmost.evaluation.metrics import softmax

KEPT = 0.95
"""Share of the known clouds that the false positive rate is read at."""
CALIBRATED, TRAINED, ENTROPY, LOGIT, ENERGY = (
    "max softmax, calibrated",
    "max softmax, T = 1",
    "entropy, calibrated",
    "max logit",
    "energy, calibrated",
)
SCORES = (CALIBRATED, TRAINED, ENTROPY, LOGIT, ENERGY)


def familiarity(logits: NDArray[np.float64], temperature: float) -> dict[str, NDArray[np.float64]]:
    """Numbers that are larger for clouds of known classes, (n,) each; the first is the runtime's score.

    Args:
        logits: (n, C).
        temperature: the calibrated one.
    """
    scaled = logits / temperature
    posteriors = softmax(scaled)
    return {
        CALIBRATED: posteriors.max(axis=1),
        TRAINED: softmax(logits).max(axis=1),
        ENTROPY: (posteriors * np.log(np.maximum(posteriors, 1e-300))).sum(axis=1),
        LOGIT: logits.max(axis=1),
        ENERGY: temperature * logsumexp(scaled, axis=1),
    }


def auroc(known: NDArray[np.float64], unknown: NDArray[np.float64]) -> float:
    """How often a known cloud scores above an unknown one; ties count half."""
    truth = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    return float(roc_auc_score(truth, np.r_[known, unknown]))


def false_positive_rate(
    known: NDArray[np.float64], unknown: NDArray[np.float64], kept: float = KEPT
) -> float:
    """Share of the unknown clouds that pass the highest threshold that so many of the known ones pass."""
    threshold = np.quantile(known, 1 - kept, method="lower")
    return float((unknown >= threshold).mean())


def risk_coverage(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The share of wrong answers among the k surest clouds, for k from 1 to n: (n,).

    Clouds that are equally sure are answered together: each k inside such a group gets the risk expected of a
    random choice within it.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = (~right[order]).astype(np.float64)
    _, start, size = np.unique(-confidence[order], return_index=True, return_counts=True)
    mean_wrong = np.repeat(np.add.reduceat(wrong, start) / size, size)
    return np.cumsum(mean_wrong) / np.arange(1, len(wrong) + 1)


def area_under_risk(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """AURC: the mean of `risk_coverage` over all coverages; smaller is better."""
    return float(risk_coverage(confidence, right).mean())
