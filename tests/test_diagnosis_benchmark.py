"""benchmarks/diagnosis.py on logits and clouds that were made up: what it counts, measures and writes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from crossmost.adaptation.diagnosis import Diagnosis

diagnosis, tables = (importlib.import_module(name) for name in ("diagnosis", "diagnosis_table"))


class Made:
    """A dataset of clouds that are already there."""

    def __init__(self, *clouds: NDArray[np.float64]):
        self.clouds = clouds

    def __len__(self) -> int:
        return len(self.clouds)

    def load(self, index: int) -> NDArray[np.float64]:
        return self.clouds[index]


def said(answers: list[int], sure: list[float], classes: int = 3) -> torch.Tensor:
    """Logits that name these classes, the higher the surer."""
    logits = torch.zeros(len(answers), classes)
    logits[torch.arange(len(answers)), torch.tensor(answers)] = torch.tensor(sure)
    return logits


def answers() -> Diagnosis:
    """Ten clouds of class 0: the points take the two least sure of them for class 1, the images all for class 2."""
    point = said([0] * 8 + [1, 1], [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    return Diagnosis(torch.arange(10), point, said([2] * 10, [0.1] * 10))


def test_pseudo_labels_are_counted_among_all_and_among_those_that_are_kept() -> None:
    found = diagnosis.pseudo_labels(answers(), np.zeros(10, np.int64))
    assert found["point"]["right"] == pytest.approx(0.8)
    assert found["point"]["kept_right"] == pytest.approx(
        6 / 8
    )  # the surest of each class: 6 of 8, and 2 of 2
    assert found["image"]["right"] == found["image"]["kept_right"] == 0
    assert found["image"]["ece"] == pytest.approx(found["image"]["confidence"])  # always wrong
    assert set(found) == {"point", "image", "both"}


def test_confusions_name_the_class_that_is_there_first() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    logits = said([1, 1, 1, 0, 2, 1, 2], [9.0] * 7)
    found = diagnosis.confusions(Diagnosis(torch.arange(7), logits, logits), labels, ("bush", "car", "pole"))
    assert found[0] == {"is": "bush", "said": "car", "share": 0.75}
    assert found[1] == {"is": "car", "said": "pole", "share": 0.5}


def test_the_shape_of_a_grid_and_of_noise_about_it() -> None:
    step = 0.1
    x, z = np.meshgrid(np.arange(10) * step, np.arange(20) * step)
    wall = np.stack([x.ravel(), np.zeros(200), z.ravel()], axis=1)
    flat = diagnosis.shape_of(Made(wall, np.concatenate([wall, wall])))  # points that repeat are one place
    assert flat["points"] == 200
    assert flat["spacing"] == pytest.approx(step)
    assert flat["roughness"] == pytest.approx(0, abs=1e-6)
    assert flat["height"] == pytest.approx(19 / 9)
    rough = diagnosis.shape_of(
        Made(wall + np.random.default_rng(0).normal(scale=[0, 0.05, 0], size=wall.shape))
    )
    assert rough["roughness"] > 0.05


def result(seed: int) -> dict[str, Any]:
    """What a pair and seed leave in a file."""
    labels = {"right": 0.5, "kept_right": 0.6, "confidence": 0.75, "ece": 0.26}
    confused = [{"is": "bush", "said": "car", "share": 0.4 + 0.2 * seed}]
    moment = {
        "labels": dict.fromkeys(("point", "image", "both"), labels),
        "agreement": 0.7,
        "confused": confused,
    }
    shape = {"points": 512.0, "spacing": 0.05, "roughness": 0.2, "height": 1.5}
    axes = dict.fromkeys(("x", "-x", "y", "-y", "z", "-z"), 0.3) | {"z" if seed else "y": 0.9}
    return {
        "pair": "p3", "seed": seed, "machine": "a computer", "axes": {"joint": axes},
        "shape": {"source": shape, "target": shape},
        "moments": dict.fromkeys(("zero-shot", "centered", "joint"), moment),
    }  # fmt: skip


def test_the_tables_say_what_the_files_hold(tmp_path: Path) -> None:
    assert tables.table(tmp_path) == ""
    for seed in (0, 1):
        (tmp_path / f"p3_{seed}.json").write_text(json.dumps(result(seed)))
    written = tables.table(tmp_path)
    assert "seeds 0, 1; a computer" in written
    assert "| p3 | zero-shot | 60.0 ± 0.0 (50.0) |" in written
    assert "| +25.0 ± 0.0 (26.0) | 70.0 ± 0.0 |" in written
    assert "| bush as car 50 % |" in written  # the mean of both seeds
    assert "| p3 | target | 512 | 0.050 | 0.200 | 1.50 |" in written
    assert "| 1 of 2 | 5 of 10 |" in written  # seed 0 takes y for up: warned of z, and of no axis towards z
