"""Known against other clouds: by hand, and beside scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from crossmost.evaluation.detection import auroc, false_positive_rate

SCORES = st.lists(st.integers(0, 6), min_size=1, max_size=20)


def test_auroc_is_one_where_known_clouds_score_higher_and_a_half_where_all_are_equal() -> None:
    assert auroc(np.array([0.8, 0.9]), np.array([0.1, 0.7])) == 1
    assert auroc(np.array([0.1]), np.array([0.9])) == 0
    assert auroc(np.ones(3), np.ones(5)) == 0.5


def test_the_false_positive_rate_is_read_where_95_percent_of_the_known_pass() -> None:
    known = np.arange(100) / 100  # the threshold is 0.04: 96 of them pass, and no higher one lets 95 pass
    assert false_positive_rate(known, np.array([0.039, 0.04, 0.5, 0.0])) == 0.5
    assert (known >= 0.04).mean() >= 0.95
    assert false_positive_rate(np.ones(10), np.ones(10)) == 1


@given(known=SCORES, unknown=SCORES)
@settings(max_examples=100, deadline=None)
def test_auroc_is_scikit_learns_ties_included(known: list[int], unknown: list[int]) -> None:
    expected = roc_auc_score([1] * len(known) + [0] * len(unknown), known + unknown)
    assert auroc(np.array(known), np.array(unknown)) == pytest.approx(expected)
