"""benchmarks/few_classes.py on embeddings that were made up: which clouds it looks at, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import few_classes
import numpy as np
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


def mean(looks: list[dict[str, Any]], figure: str) -> float:
    return float(np.mean([one[figure] for one in looks]))


def test_the_mean_helps_where_all_classes_are_there_and_the_balanced_center_where_two_are() -> None:
    found = few_classes.measure(shifted_target(), seed=0, draws=6)
    assert list(found) == ["4", "2", "1"]
    for branch in ("point", "image"):
        assert mean(found["4"]["none"], branch) < 0.5
        assert mean(found["4"]["mean"], branch) > 0.95
        assert mean(found["1"]["mean"], branch) < 0.7  # what is left of one class is noise
        assert mean(found["2"]["balanced"], branch) >= mean(found["2"]["mean"], branch)
    assert len(found["2"]["mean"]) == 6
    for way in ("none", "mean", "balanced"):
        assert {one["way"] for looks in found.values() for one in looks[way]} == {way}


def test_the_table_has_a_line_for_each_number_of_classes_and_counts_the_draws(tmp_path: Path) -> None:
    assert few_classes.table(tmp_path) == ""
    for seed in (0, 1):
        row = {"pair": "p3", "seed": seed, "classes": 4, "machine": "a computer"}
        row["present"] = few_classes.measure(shifted_target(), seed, draws=2)
        (tmp_path / f"p3_{seed}.json").write_text(json.dumps(row))
    lines = few_classes.table(tmp_path).splitlines()
    assert lines[0].endswith("a computer")
    assert [line.split("|")[2].strip() for line in lines[4:7]] == ["4 of 4", "2 of 4", "1 of 4"]
    assert all(line.rstrip().endswith("| 2 |") for line in lines[4:7])
    assert {line.count("|") for line in lines[2:7]} == {13}
    assert [line.split("|")[6].strip() for line in lines[10:]] == [
        "2",
        "2",
        "2",
        "4",
        "4",
        "4",
        "4",
        "4",
        "4",
    ]


def test_draws_are_counted_by_what_the_center_did() -> None:
    def look(right: float) -> dict[str, float]:
        return {"point": right, "image": right}

    looks = {"none": [look(0.5)] * 4, "mean": [look(0.3), look(0.4), look(0.6), look(0.9)]}
    looks |= {"balanced": [look(0.6)] * 4, "target": [look(0.5)] * 4}
    _, rows = few_classes.changes([{"classes": 4, "present": dict.fromkeys(("4", "2", "1"), looks)}])
    assert rows[3:6] == [
        ["some", "mean", "+5.0", "-20.0", "50%", "4"],
        ["some", "balanced", "+10.0", "+10.0", "0%", "4"],
        ["some", "chosen", "+0.0", "+0.0", "0%", "4"],
    ]
