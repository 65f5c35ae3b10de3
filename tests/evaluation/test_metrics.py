import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.errors import InputError
from crossmost.evaluation import metrics

SEEDS = st.integers(0, 10_000)


def draw(seed, n=60, classes=5, sharpness=2.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) * sharpness
    logits[np.arange(n), labels] += sharpness
    return metrics.softmax(logits), labels


def names_of(classes):
    return tuple(f"class {index}" for index in range(classes))


def slow_ece(probabilities, labels, bins):
    """Guo et al. (2017), equation 3, one cloud at a time."""
    total = 0.0
    for index in range(bins):
        low, high = index / bins, (index + 1) / bins
        inside = [i for i, row in enumerate(probabilities) if low < max(row) <= high]
        if inside:
            accuracy = sum(int(np.argmax(probabilities[i])) == labels[i] for i in inside) / len(inside)
            confidence = sum(max(probabilities[i]) for i in inside) / len(inside)
            total += len(inside) / len(probabilities) * abs(accuracy - confidence)
    return total


@given(seed=SEEDS, n=st.integers(1, 80), classes=st.integers(1, 7), bins=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_ece_is_the_definition(seed, n, classes, bins):
    probabilities, labels = draw(seed, n, classes)
    table = metrics.reliability(probabilities, labels, bins)
    assert table.ece == pytest.approx(slow_ece(probabilities, labels, bins), abs=1e-12)
    assert table.count.sum() == n
    assert np.isnan(table.accuracy[table.count == 0]).all()


@given(seed=SEEDS, n=st.integers(1, 80), classes=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_branch_metrics_are_their_definitions(seed, n, classes):
    probabilities, labels = draw(seed, n, classes)
    found = metrics.branch_metrics(probabilities, labels, names_of(classes))
    confusion = [[0] * classes for _ in range(classes)]
    nll = 0.0
    for row, label in zip(probabilities, labels, strict=True):
        confusion[label][int(np.argmax(row))] += 1
        nll -= math.log(row[label]) / n
    assert found.confusion.tolist() == confusion
    assert found.confusion.dtype == np.int64
    assert found.top1 == pytest.approx(sum(confusion[c][c] for c in range(classes)) / n)
    recalls = [confusion[c][c] / sum(confusion[c]) if sum(confusion[c]) else math.nan for c in range(classes)]
    np.testing.assert_allclose(found.per_class, recalls)
    present = [recall for recall in recalls if not math.isnan(recall)]
    assert found.mean_per_class == pytest.approx(sum(present) / len(present))
    assert found.nll == pytest.approx(nll)
    assert found.ece == pytest.approx(slow_ece(probabilities, labels, 15), abs=1e-12)
    assert found.n == n


def test_rows_of_the_confusion_are_the_truth():
    found = metrics.branch_metrics([[0.1, 0.9]], [0], ("cup", "bowl"))
    assert found.confusion.tolist() == [[0, 1], [0, 0]]


def test_absent_class_has_no_recall_and_does_not_pull_the_mean_down():
    found = metrics.branch_metrics(np.eye(3)[[0, 1, 1]], [0, 1, 0], ("a", "b", "c"))
    assert found.per_class.tolist()[:2] == [0.5, 1.0]
    assert math.isnan(found.per_class[2])
    assert found.mean_per_class == 0.75


def test_bins_are_closed_on_the_right_and_certainty_is_in_the_last():
    table = metrics.reliability([[0.5, 0.5], [1.0, 0.0], [0.51, 0.49]], [0, 0, 1], bins=2)
    assert table.count.tolist() == [1, 2]
    assert table.confidence.tolist() == [0.5, pytest.approx(0.755)]
    assert table.accuracy.tolist() == [1.0, 0.5]


def test_a_saturated_mistake_costs_a_finite_nll():
    found = metrics.branch_metrics([[1.0, 0.0]], [1], ("a", "b"))
    assert found.nll == pytest.approx(-math.log(metrics.SMALLEST))


def test_to_dict_is_json_with_null_for_what_is_not_there():
    found = metrics.branch_metrics(np.eye(3)[[0, 1]], [0, 0], ("a", "b", "c"))
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["per_class"] == {"a": 0.5, "b": None, "c": None}
    assert read["confusion"] == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert read["top1"] == 0.5
    assert read["n"] == 2
    assert read["reliability"]["count"][-1] == 2
    assert read["reliability"]["accuracy"][0] is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_posteriors_of_lower_precision_are_taken(dtype):
    probabilities, labels = draw(0)
    exact = metrics.branch_metrics(probabilities, labels, names_of(5))
    coarse = metrics.branch_metrics(probabilities.astype(dtype), labels, names_of(5))
    assert coarse.ece == pytest.approx(exact.ece, abs=5e-3)


@given(seed=SEEDS, shift=st.floats(-1e3, 1e3))
@settings(max_examples=30, deadline=None)
def test_softmax_is_its_definition_and_ignores_a_shift(seed, shift):
    logits = np.random.default_rng(seed).normal(size=(3, 4)) * 5
    slow = [[math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in logits]
    np.testing.assert_allclose(metrics.softmax(logits), slow, rtol=1e-12)
    np.testing.assert_allclose(metrics.softmax(logits + shift), slow, rtol=1e-9)


def test_softmax_of_huge_half_precision_logits_is_finite():
    found = metrics.softmax(np.array([[60000, -60000]], dtype=np.float16))
    assert found.dtype == np.float64
    assert found.tolist() == [[1.0, 0.0]]


def test_both_branches_is_the_mean_of_the_posteriors():
    point, image = [[0.9, 0.1], [0.4, 0.6]], [[0.2, 0.8], [0.0, 1.0]]
    np.testing.assert_allclose(metrics.both_branches(point, image), [[0.55, 0.45], [0.2, 0.8]])


def test_agreement_is_about_the_named_class_not_the_confidence():
    point = [[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.6, 0.4]]
    image = [[0.2, 0.8], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    assert metrics.agreement(point, image) == 0.5


def test_class_histogram_counts_classes_that_nobody_predicts():
    assert metrics.class_histogram(np.eye(4)[[1, 1, 2]]).tolist() == [0, 2, 1, 0]


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_compare_counts_cloud_by_cloud(seed):
    before, labels = draw(seed, sharpness=1.0)
    after, _ = draw(seed + 1, sharpness=1.0)
    found = metrics.compare(before, after, labels)
    pairs = list(zip(before.argmax(1), after.argmax(1), labels, strict=True))
    assert found.changed == sum(old != new for old, new, _ in pairs)
    assert found.won == sum(old != truth and new == truth for old, new, truth in pairs)
    assert found.lost == sum(old == truth and new != truth for old, new, truth in pairs)
    assert found.histogram_after.tolist() == metrics.class_histogram(after).tolist()
    assert found.confidence_before == pytest.approx(np.mean([max(row) for row in before]))
    paired = [float(new == truth) - float(old == truth) for old, new, truth in pairs]
    # Agresti and Min: half a cloud more in each of the four cells, two clouds in all.
    padded = np.concatenate([paired, [1.0, -1.0, 0.0, 0.0]])
    weights = np.concatenate([np.ones(len(paired)), [0.5] * 4])
    spread = math.sqrt(np.average(padded**2, weights=weights) - np.average(padded, weights=weights) ** 2)
    assert found.margin == pytest.approx(1.96 * spread / math.sqrt(len(paired) + 2))


def moved(won: int, lost: int, n: int) -> metrics.Change:
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    before = [wrong] * won + [right] * (n - won)
    after = [right] * won + [wrong] * lost + [right] * (n - won - lost)
    return metrics.compare(before, after, [0] * n)


@pytest.mark.parametrize(
    ("won", "lost", "n", "p"),
    [(4, 0, 4, 0.125), (4, 0, 60, 0.125), (3, 0, 10, 0.25), (10, 1, 60, 2 * 12 / 2**11), (0, 0, 5, 1.0)],
)
def test_a_few_clouds_that_all_go_one_way_leave_doubt(won: int, lost: int, n: int, p: float) -> None:
    found = moved(won, lost, n)
    assert (found.won, found.lost) == (won, lost)
    assert found.p_value == pytest.approx(p)
    assert found.margin is not None
    assert found.margin > 0.02


def test_compare_without_labels_says_nothing_about_right_and_wrong():
    found = metrics.compare([[1.0, 0.0]], [[0.0, 1.0]])
    assert (found.n, found.changed) == (1, 1)
    assert found.won is found.lost is found.margin is found.p_value is None


TWO = [[0.5, 0.5], [0.25, 0.75]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: metrics.branch_metrics(TWO, [0], "ab"),
            r"shape \(2,\).*\(2, 2\).*found int64 of shape \(1,\)",
        ),
        (lambda: metrics.branch_metrics(TWO, [0, 2], "ab"), r"0\.\.1.*found 0\.\.2"),
        (lambda: metrics.branch_metrics(TWO, [0, -1], "ab"), r"0\.\.1.*found -1\.\.0"),
        (lambda: metrics.branch_metrics(TWO, [0.0, 1.0], "ab"), r"integer labels.*float64"),
        (lambda: metrics.branch_metrics(TWO, [0, 1], "abc"), r"2 different class names.*found 3"),
        (lambda: metrics.branch_metrics(TWO, [0, 1], "aa"), r"2 different class names.*1 differ"),
        (lambda: metrics.branch_metrics([[2.0, 3.0]], [0], "ab"), r"sum to 1.*softmax"),
        (lambda: metrics.branch_metrics([[1.5, -0.5]], [0], "ab"), r"non-negative.*-0.5"),
        (lambda: metrics.branch_metrics([[math.nan, 1.0]], [0], "ab"), r"sum to 1"),
        (lambda: metrics.branch_metrics(np.ones((0, 2)), [], "ab"), r"n, C >= 1, found \(0, 2\)"),
        (lambda: metrics.branch_metrics([0.5, 0.5], [0], "ab"), r"\(n, C\).*found \(2,\)"),
        (lambda: metrics.both_branches(TWO, [[1.0, 0.0]]), r"point and image.*\(2, 2\) and \(1, 2\)"),
        (lambda: metrics.compare(TWO, [[1.0, 0.0]]), r"before and after.*\(2, 2\) and \(1, 2\)"),
        (lambda: metrics.reliability(TWO, [0, 1], bins=0), r"at least one bin, found 0"),
        (lambda: metrics.softmax([[math.nan, 1.0]]), r"finite logits, found 1"),
        (lambda: metrics.softmax(np.ones((3, 0))), r"C >= 1, found \(3, 0\)"),
    ],
)
def test_wrong_input_is_one_line_with_the_shapes(call, words):
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
