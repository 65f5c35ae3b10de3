"""How well a number tells clouds of known classes from others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KEPT = 0.95
"""Share of the known clouds that the false positive rate is read at."""


def auroc(known: NDArray[np.floating], unknown: NDArray[np.floating]) -> float:
    """How often a known cloud scores above an unknown one; ties count half.

    Args:
        known: (n,) scores of clouds of known classes, n at least 1; larger is more familiar.
        unknown: (m,) scores of the others, m at least 1.
    """
    ranked = np.sort(unknown)
    below, up_to = (np.searchsorted(ranked, known, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(ranked)))


def false_positive_rate(
    known: NDArray[np.floating], unknown: NDArray[np.floating], kept: float = KEPT
) -> float:
    """Share of the unknown clouds that pass the highest threshold that so many of the known ones pass.

    Args:
        known: (n,) scores, as in `auroc`.
        unknown: (m,) of the others.
        kept: share of the known clouds.
    """
    threshold = np.quantile(known, 1 - kept, method="lower")
    return float((unknown >= threshold).mean())
