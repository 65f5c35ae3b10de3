"""`crossmost demo` at a small size: its files and the shape of its summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from crossmost import demo
from crossmost.adaptation.pretrain import PretrainConfig
from crossmost.checkpoints.run import load_run
from crossmost.cli import app
from crossmost.config import TrainConfig, make_config
from crossmost.data.dataset import open_dataset
from crossmost.errors import InputError
from crossmost.runtime.vocabulary import load_vocabulary

BRANCHES = {"point", "image", "both"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes, a few shapes of each, two epochs each."""

    def pretraining(**options: Any) -> PretrainConfig:
        return PretrainConfig(**(options | {"epochs": 2, "batch_size": 12}))

    def training(options: dict[str, Any]) -> TrainConfig:
        return make_config(options | {"epochs": 2, "batch_size": 12})

    monkeypatch.setattr(demo, "CLASSES", demo.CLASSES[:3])
    for name, count in {"CLEAN": 8, "SCANNED": 8, "HELD_OUT": 4}.items():
        monkeypatch.setattr(demo, name, count)
    monkeypatch.setattr(demo, "PretrainConfig", pretraining)
    monkeypatch.setattr(demo, "make_config", training)


@pytest.mark.usefixtures("small")
def test_the_command_writes_its_summary_and_everything_behind_it(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / "base.safetensors").write_text("of a demo that was interrupted")
    result = CliRunner().invoke(app, ["demo", "--out", str(out), "--seed", "3"])
    assert result.exit_code == 0, result.stderr
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert summary.keys() == {"seed", "seconds", "n_test", "zero_shot", "adapted", "run"}
    assert (summary["seed"], summary["n_test"], summary["run"]) == (3, 12, str(out / "run"))
    assert summary["seconds"] > 0
    for moment in ("zero_shot", "adapted"):
        assert summary[moment].keys() == BRANCHES
        assert all(0 <= value <= 1 for value in summary[moment].values())
    assert (out / "run" / "report.html").is_file()
    with Image.open(out / "scans.png") as sheet:
        assert sheet.format == "PNG"
    run = load_run(out / "run")
    assert run.config.seed == 3
    assert run.vocabulary.names == demo.CLASSES == load_vocabulary(out / "classes.npz").names

    again = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert again.exit_code == 2
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1
    assert json.loads((out / "summary.json").read_text("utf-8")) == summary


@pytest.mark.usefixtures("small")
def test_the_data_is_the_seeds_alone_and_no_test_shape_is_trained_on(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        demo.write_data(tmp_path / name, seed)

    def points(name: str, file: str) -> np.ndarray:
        with np.load(tmp_path / name / file) as stored:
            return stored["points"]

    for file in ("clean.npz", "scans.npz"):
        assert np.array_equal(points("one", file), points("same", file), equal_nan=True)
        assert not np.array_equal(points("one", file), points("other", file), equal_nan=True)
    scans = open_dataset(tmp_path / "one" / "scans.npz")
    assert scans.splits == ("test", "train")
    assert [len(open_dataset(tmp_path / "one" / "scans.npz", split=s)) for s in scans.splits] == [12, 24]
    assert len(set(scans.ids)) == 36
    clouds = [scans.load(index).tobytes() for index in range(36)]
    assert len(set(clouds)) == 36
    assert all(scans.labels is not None and (scans.labels == label).sum() == 12 for label in range(3))


def test_each_class_name_has_a_direction_of_its_own() -> None:
    vocabulary = demo.demo_vocabulary()
    assert len(vocabulary) >= 10
    cosines = vocabulary.embeddings @ vocabulary.embeddings.T
    assert np.abs(cosines - np.eye(len(vocabulary))).max() < 0.5
    np.testing.assert_array_equal(vocabulary.embeddings, demo.demo_vocabulary().embeddings)


def test_an_older_demo_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="already holds a demo"):
        demo.run_demo(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
