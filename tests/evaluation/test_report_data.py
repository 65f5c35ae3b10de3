import numpy as np
import pytest

from crossmost.errors import InputError
from crossmost.evaluation.metrics import softmax
from crossmost.evaluation.report import ReportData, confused_pairs

NAMES = ("mug", "bowl", "vase", "cup")


def posteriors(seed):
    return softmax(np.random.default_rng(seed).normal(size=(100, 4)))


@pytest.fixture
def labels():
    return np.arange(100) % 4


def test_most_confused_pairs_are_the_largest_off_diagonal_counts():
    before = np.array([[9, 1, 0], [4, 5, 0], [0, 0, 0]])
    after = np.array([[5, 0, 5], [0, 9, 0], [0, 0, 0]])
    assert confused_pairs(before, after, "abc") == [
        {"truth": "a", "predicted": "c", "before": 0, "after": 5},
        {"truth": "b", "predicted": "a", "before": 4, "after": 0},
        {"truth": "a", "predicted": "b", "before": 1, "after": 0},
    ]
    assert before[0, 0] == 9


def test_parts_that_do_not_belong_together(labels):
    given = {"point": posteriors(0), "image": posteriors(1)}
    full = ReportData.from_posteriors("t", NAMES, given, given, labels)
    five = [{"epoch": 0, "histogram": [1] * 5}]
    with pytest.raises(InputError, match="both before and after, or neither"):
        ReportData("t", NAMES, full.changes, before=full.before)
    with pytest.raises(InputError, match="expected metrics of"):
        ReportData("t", NAMES, {"point": full.changes["point"]}, before=full.before, after=full.after)
    with pytest.raises(InputError, match="branches among"):
        ReportData("t", NAMES, {"depth": full.changes["point"]})
    with pytest.raises(InputError, match="expected 3 counts"):
        ReportData("t", NAMES[:3], full.changes)
    with pytest.raises(InputError, match="expected 4 counts"):
        ReportData("t", NAMES, full.changes, training=five)
    with pytest.raises(InputError, match="same branches"):
        ReportData.from_posteriors("t", NAMES, given, {"point": given["point"]})


def test_both_is_the_mean_of_the_two(labels):
    before, after = ({"point": posteriors(seed), "image": posteriors(seed + 1)} for seed in (0, 2))
    data = ReportData.from_posteriors("t", NAMES, before, after, labels)
    mean = (after["point"] + after["image"]) / 2
    assert data.after["both"].top1 == (mean.argmax(axis=1) == labels).mean()
    assert list(data.changes) == ["point", "image", "both"]
