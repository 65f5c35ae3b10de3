"""When to say `unknown`: a threshold on the similarity to the nearest class, found without labels or from a few."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crossmost.data.catalog import UNKNOWN
from crossmost.errors import InputError
from crossmost.runtime.class_bank import ClassBank

FOREIGN = UNKNOWN
"""Label of a cloud whose class is not in the vocabulary."""
BESIDE = 1e-3
"""So much below the least similar cloud is a threshold that keeps all: more than precisions differ by."""
FEWEST_LABELS = 8


def check_rate(rate: float) -> None:
    """Refuse what is no share of clouds.

    Raises:
        InputError: less than 0, or 1 and more.
    """
    if not 0 <= rate < 1:
        raise InputError(
            f"expected --unknown-rate of at least 0 and less than 1, such as 0.05, found {rate:g}"
        )


def threshold_without_labels(bank: ClassBank, embedding: NDArray[np.float32], rate: float) -> ClassBank:
    """Call the share of clouds like these unknown that are least similar to any class.

    Args:
        bank: without a threshold.
        embedding: (n, D) of unlabelled clouds from where the classifier will work.
        rate: the share, 0 or more and less than 1.

    Returns:
        The bank with its threshold: the `rate` quantile of the similarities, a little less where that is the least.

    Raises:
        InputError: no such share.
    """
    check_rate(rate)
    best = bank.similarity(embedding)
    level = float(np.quantile(best, rate))
    if level <= best.min():  # at the very similarity of a cloud, rounding would decide about it
        level -= BESIDE
    rule = f"the {rate:g} quantile of the similarities of {len(best)} unlabelled clouds"
    return replace(bank, unknown_similarity=level, unknown_rule=rule)


def threshold_from_labels(
    bank: ClassBank, embedding: NDArray[np.float32], labels: NDArray[np.int64]
) -> ClassBank:
    """Separate right answers from wrong ones, foreign classes among them, as well as one threshold can.

    Args:
        bank: without a threshold.
        embedding: (n, D).
        labels: (n,) positions in the vocabulary, or `FOREIGN`.

    Returns:
        The bank with its threshold: the one of greatest Youden's J, the share of right answers that are kept
        less the share of wrong ones that are kept; half way between two clouds.

    Raises:
        InputError: fewer than `FEWEST_LABELS` clouds, or none that is answered wrongly, or none rightly.
    """
    best, right = bank.similarity(embedding), bank.scores(embedding).argmax(axis=1) == labels
    if len(best) < FEWEST_LABELS or right.all() or not right.any():
        raise InputError(
            f"expected at least {FEWEST_LABELS} labelled clouds, some of them answered wrongly or of a class outside "
            f"the vocabulary, found {len(best)} with {int(right.sum())} right answers: use --unknown-rate"
        )
    order = np.argsort(best, kind="stable")
    ranked, sorted_right = best[order], right[order]
    # Threshold at the i-th similarity keeps i and all above it.
    kept_right = np.cumsum(sorted_right[::-1])[::-1] / right.sum()
    kept_wrong = np.cumsum(~sorted_right[::-1])[::-1] / (~right).sum()
    first = np.flatnonzero(np.r_[True, np.diff(ranked) > 0])  # what is equal is kept together
    chosen = first[np.argmax((kept_right - kept_wrong)[first])]
    # Between what is kept and what is not: at the very similarity of a cloud, rounding would decide about it.
    below = ranked[chosen - 1] if chosen else ranked[0] - BESIDE
    rule = f"greatest Youden's J on {len(best)} labelled clouds"
    return replace(bank, unknown_similarity=float((below + ranked[chosen]) / 2), unknown_rule=rule)
