"""The memory of confident clouds: what it adds, what it keeps, that it ends, and that order is all it depends on."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.runtime import test_time_cache as memory
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.vocabulary import Vocabulary

FEW = settings(max_examples=30, deadline=None)


def rows(count, seed=0, dim=12):
    found = np.random.default_rng(seed).normal(size=(count, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def bank(temperature=1.0, scale=20.0):
    vocabulary = Vocabulary.create(["a", "b", "c"], rows(3, seed=9), logit_scale=scale)
    return ClassBank(vocabulary, np.ones(3, np.float32), temperature)


def slow_scores(cache, classes, stream):
    """The definition, one cloud after the other, in lists."""
    kept = {index: [] for index in range(len(classes))}  # of (entropy, embedding)
    answers = []
    for row in stream:
        logits = classes.logits(row[None])[0].astype(np.float64)
        for index, entries in kept.items():
            near = [np.exp(-cache.beta * (1 - float(entry @ row))) for _, entry in entries]
            logits[index] += cache.alpha * (sum(near) / len(near) if near else 0)
        powers = np.exp((logits - logits.max()) / classes.temperature)
        answers.append(powers / powers.sum())
        plain = classes.scores(row[None])[0]
        label, entropy = int(plain.argmax()), -sum(p * np.log(p) for p in plain if p > 0)
        if plain[label] < cache.least_score:
            continue
        if len(kept[label]) == cache.per_class:
            worst = max(range(cache.per_class), key=lambda i: (kept[label][i][0], -i))
            if entropy >= kept[label][worst][0]:
                continue
            kept[label][worst] = (entropy, row)
        else:
            kept[label].append((entropy, row))
    return np.array(answers)


@given(
    seed=st.integers(0, 1000),
    per_class=st.integers(1, 4),
    alpha=st.floats(0, 10),
    beta=st.floats(0, 10),
    least=st.sampled_from([0.0, 0.4, 0.8]),
    temperature=st.sampled_from([0.5, 2.0]),
)
@FEW
def test_it_does_what_its_definition_says(seed, per_class, alpha, beta, least, temperature):
    cache = memory.TestTimeCache(per_class=per_class, alpha=alpha, beta=beta, least_score=least)
    stream, classes = rows(30, seed), bank(temperature)
    expected = slow_scores(cache, classes, stream)
    np.testing.assert_allclose(cache.scores(classes, stream), expected, atol=1e-5)
    assert len(cache) <= 3 * per_class


def test_one_call_or_many_give_the_same_and_reset_forgets():
    cache, classes, stream = memory.TestTimeCache(), bank(), rows(40)
    at_once = cache.scores(classes, stream)
    assert len(cache) > 0
    cache.reset()
    assert len(cache) == 0
    one_by_one = np.concatenate([cache.scores(classes, row[None]) for row in stream])
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-6)


def test_the_first_cloud_is_answered_as_without_it_and_a_like_one_is_surer():
    cache, classes, row = memory.TestTimeCache(least_score=0.0), bank(scale=2.0), rows(1)
    plain = classes.scores(row)
    np.testing.assert_allclose(cache.scores(classes, row), plain, atol=1e-12)
    assert cache.scores(classes, row).max() > plain.max() + 0.1


def test_its_size_has_a_bound():
    cache, classes = memory.TestTimeCache(per_class=2, least_score=0.0), bank()
    cache.scores(classes, rows(500))
    assert len(cache) == 6


def test_unsure_clouds_are_not_remembered():
    cache = memory.TestTimeCache(least_score=0.99)
    cache.scores(bank(scale=0.01), rows(20))
    assert len(cache) == 0


def test_clouds_that_resemble_no_class_are_not_remembered_however_sure_their_score():
    cache, classes, stream = memory.TestTimeCache(least_score=0.9), bank(scale=100.0), rows(40)
    similarity = classes.similarity(stream)
    threshold = float(np.median(similarity))
    strict = dataclasses.replace(classes, unknown_similarity=threshold, unknown_rule="the median")
    foreign = stream[(similarity < threshold) & (classes.scores(stream).max(axis=1) > 0.9)]
    assert len(foreign) > 0
    cache.scores(strict, foreign)
    assert len(cache) == 0
    cache.scores(classes, foreign)
    assert len(cache) > 0


def test_threads_share_it_without_harm():
    cache, classes, stream = memory.TestTimeCache(per_class=3), bank(), rows(200)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: cache.scores(classes, row[None]), stream))
    assert np.isfinite(answers).all()
    assert len(cache) <= 9
    np.testing.assert_allclose(np.concatenate(answers).sum(axis=1), 1)


def test_a_fresh_one_is_empty_with_the_same_settings():
    cache = memory.TestTimeCache(per_class=2, alpha=1.0, beta=3.0, least_score=0.5)
    cache.scores(bank(), rows(10))
    assert len(cache.fresh()) == 0
    assert cache.fresh().settings() == cache.settings()


@pytest.mark.parametrize(
    "settings_",
    [
        {"per_class": 0},
        {"alpha": -1},
        {"beta": float("nan")},
        {"least_score": 1.5},
        {"alpha": float("inf")},
        {"per_class": "8"},
        {"per_class": 2.5},
        {"alpha": "x"},
        {"alpha": 1e308},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings_):
    with pytest.raises(memory.InvalidCache, match="expected"):
        memory.TestTimeCache(**settings_)
