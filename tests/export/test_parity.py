from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from crossmost.export.comparison import Subject, embedding_checks
from crossmost.export.parity import (
    COSINE_MEAN,
    COSINE_MIN,
    DIFFERENCE,
    FINITE,
    GATES,
    RUNS,
    SAME_INDICES,
    SAME_UNIT,
    TOP1,
    Check,
    Parity,
    passes,
)
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.vocabulary import Vocabulary

IDS = tuple(f"cloud{row}" for row in range(8))


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def expected(rng):
    return unit(rng.standard_normal((8, 16)))


@pytest.fixture
def bank(rng):
    return ClassBank.plain(Vocabulary.create("abcd", rng.standard_normal((4, 16)), logit_scale=100.0))


def turned(rows, row, cosine):
    """Rows of which one was turned until it has that cosine with itself."""
    found = rows.astype(np.float64)
    aside = np.roll(found[row], 1)
    aside -= found[row] * (aside @ found[row]) / (found[row] @ found[row])
    found[row] = cosine * found[row] + np.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside)
    return unit(found)


def compared(expected, found, bank, precision="fp32"):
    subject = Subject("in ONNX Runtime", "encoder.onnx", precision, 8, GATES[precision])
    return {check.metric: check for check in embedding_checks(subject, expected, found, IDS, bank)}


def failed(checks):
    return {metric for metric, check in checks.items() if not check.passed}


@pytest.mark.parametrize("precision", GATES)
def test_equal_embeddings_pass_every_gate_of_embeddings(expected, bank, precision):
    checks = compared(expected, expected.copy(), bank, precision)
    assert not failed(checks)
    assert checks.keys() == GATES[precision].keys() - {RUNS, SAME_UNIT, SAME_INDICES}
    assert all(check.worst == "" or check.value == pytest.approx(1.0) for check in checks.values())


@pytest.mark.parametrize("apart", [2e-4, -2e-4])
def test_a_single_number_may_not_differ_by_more_than_the_gate(expected, bank, apart):
    found = expected.copy()
    found[5, 3] += apart
    checks = compared(expected, found, bank)
    assert failed(checks) == {DIFFERENCE}
    assert checks[DIFFERENCE].value == pytest.approx(2e-4, rel=1e-3)
    assert checks[DIFFERENCE].worst == "cloud5"
    assert checks[DIFFERENCE].failing == ("cloud5",)
    found[5, 3] = expected[5, 3] + apart / 4
    assert not failed(compared(expected, found, bank))


@pytest.mark.parametrize(
    ("precision", "good", "bad"),
    [("fp32", 0.9999999, 0.99998), ("fp16", 0.9995, 0.998), ("bf16", 0.993, 0.98)],
)
def test_the_worst_cloud_decides_over_the_least_cosine(expected, bank, precision, good, bad):
    close = compared(expected, turned(expected, 2, good), bank, precision)
    assert close[COSINE_MIN].passed
    assert close[COSINE_MIN].worst == "cloud2"
    assert close[COSINE_MIN].value == pytest.approx(good, abs=1e-6)
    far = compared(expected, turned(expected, 2, bad), bank, precision)
    assert not far[COSINE_MIN].passed
    assert far[COSINE_MIN].failing == ("cloud2",)


@pytest.mark.parametrize(("precision", "cosine"), [("fp16", 0.9995), ("bf16", 0.995)])
def test_many_small_errors_fail_the_mean_where_none_fails_alone(expected, bank, precision, cosine):
    found = expected
    for row in range(8):
        found = turned(found, row, cosine)
    checks = compared(expected, found, bank, precision)
    assert failed(checks) - {TOP1} == {COSINE_MEAN}
    assert checks[COSINE_MEAN].value == pytest.approx(cosine, abs=1e-5)
    assert set(checks[COSINE_MEAN].failing) == set(IDS)


def test_a_cloud_that_changes_its_class_fails_however_close_it_is(bank):
    rows = bank.vocabulary.embeddings.astype(np.float64)
    expected = unit(np.stack([rows[0] + rows[1] + 1e-6 * rows[0]] * 8))
    found = expected.copy()
    found[6] = unit((rows[0] + rows[1] + 1e-6 * rows[1])[None])
    checks = compared(expected, found, bank)
    assert failed(checks) == {TOP1}
    assert checks[TOP1].value == 7 / 8
    assert checks[TOP1].failing == ("cloud6",)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounding_may_turn_one_answer_of_few_clouds_and_no_second(bank, precision):
    rows = bank.vocabulary.embeddings.astype(np.float64)
    expected = unit(np.stack([rows[0] + rows[1] + 1e-6 * rows[0]] * 8))
    found = expected.copy()
    ids = [*IDS, "cloud6"]  # the last one again, to fill a batch
    for row, passed in ((6, True), (3, False)):
        found[row] = unit((rows[0] + rows[1] + 1e-6 * rows[1])[None])
        subject = Subject("in ONNX Runtime", "encoder.onnx", precision, 9, GATES[precision])
        again = [np.concatenate([each, each[6:7]]) for each in (expected, found)]
        (check,) = (c for c in embedding_checks(subject, *again, ids, bank) if c.metric == TOP1)
        assert check.passed == passed
    assert check.value == 6 / 8
    assert set(check.failing) == {"cloud3", "cloud6"}


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_not_finite_fails_and_leaves_a_report_that_is_json(expected, bank, number):
    found = expected.copy()
    found[4, 0] = number
    checks = compared(expected, found, bank, "fp16")
    assert failed(checks) == {FINITE} == checks.keys()
    assert checks[FINITE].failing == ("cloud4",)
    report = Parity({"name": "x", "count": 8, "points": [5, 9]}, tuple(checks.values()), 1.0).to_dict()
    assert "NaN" not in json.dumps(report, allow_nan=False)


def test_the_worst_clouds_come_first_and_each_once(expected, bank):
    found = turned(turned(expected, 1, 0.9), 7, 0.5)
    subject = Subject("in ONNX Runtime", "encoder.onnx", "fp16", 16, GATES["fp16"])
    checks = embedding_checks(subject, np.tile(expected, (2, 1)), np.tile(found, (2, 1)), IDS * 2, bank)
    check = next(check for check in checks if check.metric == COSINE_MIN)
    assert check.failing == ("cloud7", "cloud1")
    assert check.clouds == 8


@pytest.mark.parametrize(
    "metric", [RUNS, FINITE, SAME_UNIT, SAME_INDICES, TOP1, COSINE_MIN, COSINE_MEAN, DIFFERENCE]
)
def test_nan_passes_no_gate(metric):
    assert not passes(metric, float("nan"), 0.0)


def test_the_gates_are_those_that_were_promised():
    limits = {
        (precision, metric): gate.limit
        for precision, gates in GATES.items()
        for metric, gate in gates.items()
    }
    assert limits["fp32", DIFFERENCE] == 1e-4
    assert limits["fp32", COSINE_MIN] == 0.99999
    assert (limits["fp16", COSINE_MIN], limits["fp16", COSINE_MEAN]) == (0.999, 0.9999)
    assert (limits["bf16", COSINE_MIN], limits["bf16", COSINE_MEAN]) == (0.99, 0.999)
    for precision in GATES:
        assert limits[precision, TOP1] == 0.995
        assert limits[precision, SAME_INDICES] == limits[precision, FINITE] == limits[precision, RUNS] == 1.0
    assert all(gate.source for gates in GATES.values() for gate in gates.values())


PASSED = Check(
    "fp32 in ONNX Runtime", "model.onnx", "fp32", 8, DIFFERENCE, 2e-7, 1e-4, True, worst="cup", clouds=30
)
ABOUT = {"name": "scans", "count": 30, "points": [700, 1024]}


def test_a_report_passes_when_each_check_does_and_there_is_one():
    bad = replace(PASSED, metric=TOP1, value=0.9, gate=0.995, passed=False, failing=("cup",))
    assert Parity(ABOUT, (PASSED,), 2.0).passed
    assert not Parity(ABOUT, (PASSED, bad), 2.0).passed
    assert not Parity(ABOUT, (), 2.0).passed


def test_the_dictionary_survives_json():
    report = Parity(ABOUT, (PASSED,), 2.04, accuracy={"torch": 0.5}).to_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["verdict"] == "passed"
    assert report["clouds"] == ABOUT
    assert report["checks"][0]["value"] == 2e-7
    assert report["checks"][0]["worst"] == "cup"
    assert report["accuracy"] == {"torch": 0.5}
    bad = Parity(ABOUT, (replace(PASSED, passed=False),), 2.04, "why").to_dict()
    assert (bad["verdict"], bad["failure"]) == ("failed", "why")


def test_the_table_shows_values_under_their_gates_and_marks_what_failed():
    bad = replace(PASSED, metric=TOP1, value=0.9, gate=0.995, passed=False)
    lines = Parity(ABOUT, (PASSED, bad), 2.0, accuracy={"torch": 0.5}).lines()
    text = "\n".join(lines)
    assert "FAILED: 30 clouds of scans (700 to 1024 points)" in lines[0]
    heads, gates, values = lines[1:4]
    assert heads.split() == ["batch", "clouds", "max|d|", "same", "top-1"]
    assert heads.index("max|d|") + len("max|d|") == gates.index("<= 0.0001") + len("<= 0.0001")
    assert gates.startswith("fp32 in ONNX Runtime")
    assert values.split() == ["model.onnx", "8", "30", "2.0e-07", "90.00%", "FAILED"]
    assert "50.0%" in text
    assert not any(line != line.rstrip() for line in lines)
