"""Noticing without labels which way is up: what is turned, what is compared, and what the user is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossmost.adaptation import up_axis as module
from crossmost.adaptation.diagnosis import Diagnosis
from crossmost.adaptation.run import train
from crossmost.adaptation.up_axis import ENOUGH, MARGIN, axis_warning, likelier_axis, scores_by_up_axis
from crossmost.checkpoints.run import load_run
from crossmost.config import TrainConfig
from crossmost.data.dataset import CloudDataset, open_dataset
from crossmost.data.upright import CANDIDATES
from crossmost.evaluation.run_report import warnings
from crossmost.runtime.vocabulary import Vocabulary

CPU = torch.device("cpu")


@pytest.fixture
def poles(tmp_path: Path) -> CloudDataset:
    """Cones that point along -y in their files, which are read as if z were up."""
    rng = np.random.default_rng(0)
    for number in range(ENOUGH):
        height = rng.random(100)
        xyz = np.stack(
            [0.1 * height * rng.normal(size=100), height, 0.1 * height * rng.normal(size=100)], axis=1
        )
        np.save(tmp_path / f"{number:03d}.npy", xyz)
    return open_dataset(tmp_path, points=64, least=12)


def knows_cones(_: Any, batches: Any, *__: Any) -> Diagnosis:
    """A classifier of four classes that tells them apart where a cloud stands on its tip, and else says the first."""
    logits = []
    for batch in batches:
        for number, cloud in zip(batch.indices.tolist(), batch.points.points, strict=True):
            spread = cloud.std(dim=0)
            on_tip = spread[2] > 2 * spread[0] and cloud[:, 2].argmin() == cloud[:, :2].norm(dim=1).argmin()
            logits.append(
                9 * torch.nn.functional.one_hot(torch.tensor(number % 4 if on_tip else 0), 4).float()
            )
    stacked = torch.stack(logits)
    return Diagnosis(torch.arange(len(stacked)), stacked, stacked)


@pytest.mark.parametrize("mode", ["joint", "point-only"])
def test_the_axis_that_clouds_stand_on_looks_best(
    poles: CloudDataset, make_student: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(module, "diagnose", knows_cones)
    config = TrainConfig(mode=mode, views=1)  # type: ignore[arg-type]
    found = scores_by_up_axis(make_student(), poles, config, CPU)
    assert set(found) == set(CANDIDATES)
    assert max(found, key=found.__getitem__) in ("y", "-y")
    assert likelier_axis(found, "z") == max(found, key=found.__getitem__)
    assert likelier_axis(found, max(found, key=found.__getitem__)) is None
    assert poles.preparation.up_axis == "z"  # it is still read as the user said


def test_too_few_clouds_say_nothing(poles: CloudDataset, make_student: Any) -> None:
    found = scores_by_up_axis(make_student(), poles.subset(range(ENOUGH - 1)), TrainConfig(), CPU)
    assert found == {}
    assert likelier_axis(found, "z") is None
    assert axis_warning(found, "z") is None


def test_a_real_student_gets_a_score_for_each_axis(poles: CloudDataset, make_student: Any) -> None:
    found = scores_by_up_axis(make_student().eval(), poles, TrainConfig(views=1), CPU)
    assert list(found) == list(CANDIDATES)
    assert all(0 <= value <= 2 for value in found.values())


@given(st.dictionaries(st.sampled_from(CANDIDATES), st.floats(0, 2), min_size=6), st.sampled_from(CANDIDATES))
def test_only_a_clearly_better_axis_is_named(scores: dict[str, float], axis: str) -> None:
    found = likelier_axis(scores, axis)
    if found is None:
        assert max(scores.values()) - scores[axis] <= MARGIN
    else:
        assert scores[found] == max(scores.values())
        assert scores[found] > scores[axis] + MARGIN


def test_a_run_warns_before_training_and_in_its_report(
    shapes: CloudDataset,
    tiny_base: Path,
    tiny_vocabulary: Vocabulary,
    tiny_config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = dict.fromkeys(CANDIDATES, 0.4) | {"y": 1.3}
    monkeypatch.setattr("crossmost.adaptation.run.scores_by_up_axis", lambda *_: scores)
    said: list[str] = []
    quiet = {"on_batch": lambda _: None, "on_epoch": lambda _: said.append("epoch")}
    train(
        shapes,
        tiny_base,
        tiny_vocabulary,
        tiny_config(epochs=1),
        tmp_path / "run",
        **quiet,
        on_warning=said.append,
    )
    assert said.pop(0).startswith("24 clouds are few")
    assert said[1:] == ["epoch", "epoch"]
    assert "with y up than with z up (label-free score 1.30 against 0.40)" in said[0]
    assert "--up-axis y" in said[0]
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["up_axis_scores"] == scores
    shown = warnings(load_run(tmp_path / "run"), shapes)
    assert [text.lower() for text in shown] == [f"{said[0].lower()}."]
