"""The numerics of benchmarks/open_set.py: scores, rules and calibration on inputs whose answers are known."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.vocabulary import Vocabulary

detection, splits, measures = (
    import_module(name) for name in ("detection", "open_set_splits", "open_set_measures")
)


@pytest.fixture
def bank() -> ClassBank:
    vocabulary = Vocabulary.create(("a", "b", "c", "d"), np.eye(4), logit_scale=10.0)
    return ClassBank(vocabulary, np.array([1.0, 2.0, 3.0, 4.0], np.float32), temperature=2.0)


def test_risk_grows_with_coverage_where_the_surest_are_right():
    confidence, right = np.array([0.2, 0.9, 0.5, 0.7]), np.array([False, True, False, True])
    assert detection.risk_coverage(confidence, right) == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert detection.area_under_risk(confidence, right) == pytest.approx((1 / 3 + 1 / 2) / 4)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_order_of_equally_sure_clouds_does_not_matter(answers):
    confidence, right = (np.array(column) for column in zip(*answers, strict=True))
    curve = detection.risk_coverage(confidence, right)
    assert curve[-1] == pytest.approx(1 - right.mean())
    backwards = detection.risk_coverage(confidence[::-1], right[::-1])
    assert backwards == pytest.approx(curve)


def test_every_score_is_larger_for_a_clear_answer_than_for_a_vague_one():
    logits = np.array([[20.0, 0.0, 0.0], [6.0, 5.0, 5.0]])
    for score, (clear, vague) in detection.familiarity(logits, 2.0).items():
        assert clear > vague, score


def test_scores_have_their_closed_forms():
    found = detection.familiarity(np.array([[np.log(4.0), 0.0]]), 2.0)
    assert found[detection.TRAINED] == pytest.approx(4 / 5)
    assert found[detection.CALIBRATED] == pytest.approx(2 / 3)
    assert found[detection.ENTROPY] == pytest.approx(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert found[detection.LOGIT] == pytest.approx(np.log(4))
    assert found[detection.ENERGY] == pytest.approx(2 * np.log(3))


@pytest.mark.parametrize("classes", [10, 4])
def test_every_class_is_held_out_once_a_round(classes):
    found = splits.held_out(classes)
    assert len(found) == splits.ROUNDS * splits.PARTS
    for start in range(0, len(found), splits.PARTS):
        of_round = [one for part in found[start : start + splits.PARTS] for one in part]
        assert sorted(of_round) == list(range(classes))
    assert found[: splits.PARTS] != found[splits.PARTS : 2 * splits.PARTS]


def test_a_bank_of_some_classes_gives_their_logits(bank):
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    part = measures.chosen(bank, ["b", "d"])
    assert part.temperature == bank.temperature
    assert part.logits(rows) == pytest.approx(bank.logits(rows)[:, [1, 3]])


def test_rules_call_unknown_what_lies_below_their_threshold(bank):
    sure, vague = np.eye(4, dtype=np.float32)[[0, 1]], np.full((3, 4), 0.5, np.float32)
    some = np.concatenate([np.repeat(np.eye(4, dtype=np.float32), 5, axis=0), vague[:1]])
    labels = np.array([0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [-1])
    found = measures.by_rule(bank, sure, np.array([0, 0]), vague, (some, labels))
    rule = found[f"unlabelled {measures.RATES[0]:g}"]
    assert rule["known and right"] == 0
    assert set(found) >= {measures.ORACLE_RULE, measures.SUPERVISED_RULE}
    assert found[measures.SUPERVISED_RULE]["unknown"] == 1
    assert all(0 <= share <= 1 for each in found.values() for share in each.values())


def test_only_marked_rules_look_at_labels(bank):
    rows = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = np.arange(64) % 5 - 1
    marked = {measures.ORACLE_RULE, measures.SUPERVISED_RULE}
    first = measures.by_rule(bank, rows[:9], labels[:9] % 4, rows[9:], (rows, labels))
    second = measures.by_rule(bank, rows[:9], labels[:9] % 4, rows[9:], (rows, labels[::-1]))
    assert {rule for rule in first if first[rule] != second[rule]} <= marked


def test_the_oracle_temperature_undoes_a_known_one(bank):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 4)) * 2
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(4, p=chance) for chance in chances])
    found = measures.temperatures(bank, 3 * logits, labels)
    assert (found["trained"], found["label-free"]) == (1, 2)
    assert found["oracle"] == pytest.approx(3, rel=0.15)
    worse, better = (measures.calibration(3 * logits, labels, t) for t in (1.0, found["oracle"]))
    assert better["ece"] < 0.03 < worse["ece"]
    assert better["top1"] == worse["top1"] == 1 - better["risk"][-1]
    assert better["coverage"][-1] == 1
    assert len(better["risk"]) == measures.POINTS_OF_CURVE
