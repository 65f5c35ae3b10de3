"""benchmarks/few_classes.py on embeddings that were made up: which clouds it looks at, and what it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import few_classes
from baseline_features import Frozen, Split

from crossmost.runtime.vocabulary import Vocabulary


def shifted_target(classes: int = 4, each: int = 30) -> Frozen:
    """Clouds at their class's embedding, all moved the same way, towards the first class."""
    rng = np.random.default_rng(0)
    theta = np.eye(classes, 8, dtype=np.float32)
    labels = np.repeat(np.arange(classes), each)
    rows = theta[labels] + 1.2 * theta[0] + 0.05 * rng.standard_normal((len(labels), 8)).astype(np.float32)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    split = Split(rows, rows, labels)
    return Frozen(Vocabulary.create(tuple("abcd"), theta, logit_scale=20.0), split, split)


def mean(looks: list[dict[str, float]], figure: str) -> float:
    return float(np.mean([one[figure] for one in looks]))


def test_the_center_helps_where_all_classes_are_there_and_not_where_one_is() -> None:
    found = few_classes.measure(shifted_target(), seed=0, draws=6)
    assert list(found) == ["4", "2", "1"]
    for branch in ("point", "image"):
        assert mean(found["4"]["zero-shot"], branch) < 0.5
        assert mean(found["4"]["centered"], branch) > 0.95
        assert mean(found["1"]["centered"], branch) < 0.7  # what is left of one class is noise
    assert len(found["2"]["centered"]) == 6
    assert mean(found["1"]["centered"], "agree") == 1.0  # the branches of these clouds are the same


def test_the_table_has_a_line_for_each_number_of_classes(tmp_path: Path) -> None:
    assert few_classes.table(tmp_path) == ""
    for seed in (0, 1):
        row = {"pair": "p3", "seed": seed, "classes": 4, "machine": "a computer"}
        row["present"] = few_classes.measure(shifted_target(), seed, draws=2)
        (tmp_path / f"p3_{seed}.json").write_text(json.dumps(row))
    lines = few_classes.table(tmp_path).splitlines()
    assert lines[0].endswith("a computer")
    assert [line.split("|")[2].strip() for line in lines[4:7]] == ["4 of 4", "2 of 4", "1 of 4"]
    assert all(line.rstrip().endswith("| 2 |") for line in lines[4:7])
    assert {line.count("|") for line in lines[2:7]} == {10}


def test_draws_are_counted_by_how_the_agreement_changed() -> None:
    def look(right: float, agree: float) -> dict[str, float]:
        return {"point": right, "image": right, "agree": agree}

    zero = [look(0.5, 0.5)] * 4
    centered = [look(0.3, 0.4), look(0.4, 0.5), look(0.6, 0.54), look(0.9, 0.8)]
    lines = few_classes.agreement_lines([{"present": {"2": {"zero-shot": zero, "centered": centered}}}])
    assert [line.split("|")[2:6] for line in lines[2:]] == [
        [" -15.0 ", " -20.0 ", " 0% ", " 2 "],
        [" +10.0 ", " +10.0 ", " 100% ", " 1 "],
        [" +40.0 ", " +40.0 ", " 100% ", " 1 "],
    ]
