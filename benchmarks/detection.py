"""Numbers that tell clouds of known classes from others, and how well one tells right answers from wrong ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from crossmost.evaluation.metrics import softmax

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
