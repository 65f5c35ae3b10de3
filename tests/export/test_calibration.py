from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.errors import InputError
from crossmost.export.calibration import FOREIGN, threshold_from_labels, threshold_without_labels
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.vocabulary import Vocabulary


@pytest.fixture
def bank():
    return ClassBank.plain(Vocabulary.create(("mug", "bowl", "can"), np.eye(3), logit_scale=8.0))


def unit_rows(rng, count):
    rows = rng.standard_normal((count, 3)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5])
def test_the_wanted_share_is_unknown(bank, rng, rate):
    embedding = unit_rows(rng, 400)
    found = threshold_without_labels(bank, embedding, rate)
    assert found.predict(embedding)[2].mean() == pytest.approx(rate, abs=1 / 400)
    assert "400 unlabelled clouds" in found.unknown_rule


def test_of_none_it_stays_clear_of_the_least_similar(bank, rng):
    """Another precision gives that cloud a similarity that is a little lower."""
    embedding = unit_rows(rng, 400)
    found = threshold_without_labels(bank, embedding, 0.0)
    least = bank.similarity(embedding).min()
    assert least - 0.01 < found.unknown_similarity < least - 5e-4


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(bank, rng, rate):
    with pytest.raises(InputError, match="unknown-rate"):
        threshold_without_labels(bank, unit_rows(rng, 10), rate)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(8, 60), steps=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_no_other_threshold_separates_better(seed, count, steps):
    bank = ClassBank.plain(Vocabulary.create(("mug", "bowl", "can"), np.eye(3), logit_scale=8.0))
    rng = np.random.default_rng(seed)
    embedding = np.round(unit_rows(rng, count) * steps) / steps  # coarse, so that scores tie
    embedding[np.abs(embedding).sum(axis=1) == 0] = (1, 0, 0)
    best, answers = bank.similarity(embedding), bank.scores(embedding).argmax(axis=1)
    labels = np.where(rng.random(count) < 0.6, answers, FOREIGN)
    labels[:2] = answers[0], FOREIGN
    found = threshold_from_labels(bank, embedding, labels).unknown_similarity
    assert found is not None
    right = answers == labels

    def youden(threshold: float) -> float:
        kept = best >= threshold
        return float(kept[right].mean() - kept[~right].mean())

    assert youden(found) == pytest.approx(max(youden(t) for t in [*best, -1.0]))
    assert np.abs(best - found).min() > 1e-4  # rounding decides about no cloud


def test_foreign_clouds_are_told_apart(bank):
    sure = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    unsure = np.full((4, 3), 3**-0.5, np.float32)
    labels = np.array([0, 1, 2, 0, 1, 2, *[FOREIGN] * 4])
    found = threshold_from_labels(bank, np.concatenate([sure, unsure]), labels)
    assert found.predict(np.concatenate([sure, unsure]))[2].tolist() == [False] * 6 + [True] * 4
    assert "10 labelled clouds" in found.unknown_rule


@pytest.mark.parametrize("labels", [[0, 1, 2] * 3, [FOREIGN] * 9, [0, 1, FOREIGN]])
def test_labels_that_separate_nothing_are_refused(bank, labels):
    embedding = np.eye(3, dtype=np.float32)[np.arange(len(labels)) % 3]
    with pytest.raises(InputError, match="use --unknown-rate"):
        threshold_from_labels(bank, embedding, np.array(labels))
