"""The command line: one line for whatever is wrong, JSON for programs, and a run from its start to its report."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plyfile
import pytest
import torch
import yaml
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from crossmost import __version__, pretraining
from crossmost.checkpoints.base import Architecture, load_base, save_base
from crossmost.checkpoints.run import load_run
from crossmost.checkpoints.store import Weights, load_weights, save_weights
from crossmost.cli import app
from crossmost.config import TrainConfig
from crossmost.data.shapes import make_shape
from crossmost.data.upright import CANDIDATES
from crossmost.models.student import DualEncoder
from crossmost.progress import RunProgress
from crossmost.runtime.vocabulary import Vocabulary

BRANCHES = {"point", "image", "both"}
SHORT = ("--set", "batch_size=8", "--set", "views=2", "--set", "warmup_epochs=0", "--device", "cpu")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


FEW = "warning: 24 clouds are few: "
"""How the line begins that every run of the tests' shapes is told once it has begun."""


def refused(*arguments: object, code: int = 2, begun: bool = False) -> str:
    """The one line a command ends in; once a run has `begun`, behind that of its few clouds."""
    result = invoke(*arguments)
    said = result.stderr
    if begun:
        warning, _, said = said.partition("\n")
        assert warning.startswith(FEW)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert said.endswith("\n")
    assert "Traceback" not in said
    return said


@pytest.fixture(scope="module")
def vocabulary_file(tmp_path_factory: pytest.TempPathFactory, tiny_vocabulary: Vocabulary) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "classes.npz"
    tiny_vocabulary.save(path)
    return path


@pytest.fixture
def train(
    tmp_path: Path, shapes_file: Path, tiny_base: Path, vocabulary_file: Path
) -> Callable[..., list[object]]:
    """The arguments of a run of one epoch, some of them changed or left out (None)."""

    def arguments(*more: object, data: Path = shapes_file, **changes: object) -> list[object]:
        options = {
            "base": tiny_base,
            "vocabulary": vocabulary_file,
            "out": tmp_path / "run",
            "epochs": 1,
        } | changes
        given = [
            part for name, value in options.items() if value is not None for part in (f"--{name}", value)
        ]
        return ["train", data, *given, *SHORT, *more]

    return arguments


Arguments = Callable[..., list[object]]


def write_folder(folder: Path, count: int, *classes: str) -> Path:
    """A folder of .npy clouds, in class folders in turn, or without any."""
    rng = np.random.default_rng(0)
    for index in range(count):
        name = classes[index % len(classes)] if classes else ""
        (folder / name).mkdir(parents=True, exist_ok=True)
        shape = name if name in ("bottle", "chair", "monitor", "table") else "chair"
        np.save(folder / name / f"{index:02}.npy", make_shape(shape, rng, 96))
    return folder


def write_vocabulary(path: Path, names: list[str], width: int = 16, **arrays: Any) -> Path:
    rows = np.random.default_rng(0).standard_normal((len(names), width)).astype(np.float32)
    made = {"names": np.array(names, dtype=np.str_), "embeddings": rows, "logit_scale": np.float64(100)}
    np.savez(path, **(made | arrays))
    return path


def write_truncated_ply(path: Path) -> None:
    table = np.zeros(50, dtype=[(axis, "f4") for axis in "xyz"])
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")]).write(str(path))
    path.write_bytes(path.read_bytes()[:-100])


class TestData:
    def test_no_such_folder(self, train: Arguments, tmp_path: Path) -> None:
        assert "nowhere" in refused(*train(data=tmp_path / "nowhere"))
        assert not (tmp_path / "run").exists()

    def test_a_folder_without_clouds(self, train: Arguments, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "notes.txt").write_text("none")
        assert "found none" in refused(*train(data=tmp_path / "empty"))

    def test_an_unknown_class_in_the_folder_names(self, train: Arguments, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "data", 12, "bottle", "spaceship")
        line = refused(*train(data=folder))
        assert "'spaceship'" in line
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("folders", [("session1", "session2"), ("bottle", "spaceship")])
    def test_folders_that_are_no_classes_may_be_ignored(
        self, train: Arguments, tmp_path: Path, folders: tuple[str, ...]
    ) -> None:
        folder = write_folder(tmp_path / "data", 12, *folders)
        assert "--ignore-labels" in refused(*train(data=folder))
        result = invoke(*train("--ignore-labels", data=folder))
        assert result.exit_code == 0, result.stderr
        assert "12 clouds without labels" in result.stderr

    def test_a_folder_named_like_a_split_is_never_to_be_ignored(
        self, train: Arguments, tmp_path: Path
    ) -> None:
        folder = write_folder(tmp_path / "data", 12, "train", "raw")
        line = refused(*train(data=folder))
        assert "--ignore-labels" not in line
        assert "train/ is taken for a class because of the folders beside it: give train/ itself" in line

    def test_labels_that_are_none_may_be_ignored(
        self, train: Arguments, tmp_path: Path, write_shapes: Callable[..., Path]
    ) -> None:
        data = write_shapes(tmp_path / "odd.npz", labels=np.linspace(0, 1, 24))
        assert "whole-number labels" in refused(*train(data=data))
        result = invoke(*train("--ignore-labels", data=data))
        assert result.exit_code == 0, result.stderr
        assert "24 clouds without labels" in result.stderr
        again = invoke("train", data, "--resume", "--ignore-labels", "--out", tmp_path / "run")
        assert again.exit_code == 0, again.stderr

    def test_what_is_left_out_is_one_line(self, train: Arguments, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "data", 12, "bottle", "chair")
        for number in range(3):
            (folder / f"{number}.vtk").touch()
        said = "3 .vtk files were left out: not a format that is read"
        assert invoke(*train(data=folder)).stderr.splitlines().count(said) == 1
        found = invoke("eval", tmp_path / "run", folder, "--device", "cpu")
        assert found.stderr.splitlines().count(said) == 1

    def test_a_name_that_is_no_utf_8_reaches_the_report(self, train: Arguments, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "data", 19)
        try:
            shutil.copy(folder / "00.npy", os.fsdecode(os.fsencode(folder) + b"/caf\xe9.npy"))
        except OSError:
            pytest.skip("this file system takes no such name")
        Path(os.fsdecode(os.fsencode(folder) + b"/broken\xe9.npy")).write_bytes(b"rubbish")
        result = invoke(*train(data=folder))
        assert result.exit_code == 0, result.output
        assert "broken\ufffd" in (tmp_path / "run" / "report.html").read_text("utf-8")
        assert invoke("inspect", folder).exit_code == 0

    def test_a_truncated_ply_among_many_is_skipped_and_named(self, train: Arguments, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "data", 19, "Bottle", "CHAIR")  # as people write them
        write_truncated_ply(folder / "CHAIR" / "broken.ply")
        result = invoke(*train(data=folder))
        assert result.exit_code == 0, result.stderr
        assert re.search(r"skipped 1 that could not be read:\n  \S*CHAIR/broken\S*: .+\n", result.stderr)
        assert "CHAIR/broken" in (tmp_path / "run" / "report.html").read_text("utf-8")
        assert "top-1 on 19 clouds" in result.stderr

    def test_truncated_plys_among_few_are_refused(self, train: Arguments, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "data", 17)
        for index in range(3):
            write_truncated_ply(folder / f"broken{index}.ply")
        line = refused(*train(data=folder))
        assert "at most a tenth of bad files, found 3 of 20" in line
        assert "broken0.ply" in line
        assert not (tmp_path / "run").exists()

    def test_pickled_objects(self, train: Arguments, tmp_path: Path) -> None:
        np.savez(tmp_path / "evil.npz", points=np.array([{"a": 1}, None], dtype=object))
        assert "pickled" in refused(*train(data=tmp_path / "evil.npz"))

    def test_pickled_labels(
        self, train: Arguments, tmp_path: Path, write_shapes: Callable[..., Path]
    ) -> None:
        labels = np.array(["chair"] * 24, dtype=object)
        assert "pickled" in refused(*train(data=write_shapes(tmp_path / "evil.npz", labels=labels)))

    def test_all_nan_clouds(
        self, train: Arguments, tmp_path: Path, write_shapes: Callable[..., Path]
    ) -> None:
        line = refused(*train(data=write_shapes(tmp_path / "nan.npz", bad=range(24))))
        assert "found 24 of 24" in line
        assert "NaN" in line

    def test_a_file_that_is_no_cloud(self, train: Arguments, tmp_path: Path) -> None:
        (tmp_path / "cloud.txt").write_text("0 0 0")
        assert "cloud.txt" in refused(*train(data=tmp_path / "cloud.txt"))

    @pytest.mark.parametrize(
        ("option", "value", "word"),
        [
            ("split", "validation", "validation"),
            ("up-axis", "w", "w"),
            ("columns", "abc", "abc"),
            ("color", "blue", "blue"),
            ("device", "tpu", "tpu"),
        ],
    )
    def test_an_option_that_does_not_fit(
        self, train: Arguments, tmp_path: Path, option: str, value: str, word: str
    ) -> None:
        assert word in refused(*train(f"--{option}", value))
        assert not (tmp_path / "run").exists()

    def test_test_data_that_is_not_there_is_noticed_before_the_training(
        self, train: Arguments, tmp_path: Path
    ) -> None:
        assert "nowhere" in refused(*train("--test", tmp_path / "nowhere"))
        assert not (tmp_path / "run").exists()


class TestWithoutTraining:
    def test_no_epochs_find_the_centers_and_the_temperatures_alone(
        self, train: Arguments, tmp_path: Path, shapes_file: Path
    ) -> None:
        result = invoke(*train(epochs=0))
        assert result.exit_code == 0, result.stderr
        assert "top-1 on 24 clouds" in result.stderr
        run = load_run(tmp_path / "run")
        before, after = run.zero_shot.state_dict(), run.adapted.state_dict()
        assert {name for name in before if not torch.equal(before[name], after[name])} == {
            "point_center", "image_center", "logit_scale",
        }  # fmt: skip
        assert (tmp_path / "run" / "report.html").is_file()
        assert invoke("eval", tmp_path / "run", shapes_file, "--device", "cpu").exit_code == 0
        again = invoke("train", shapes_file, "--resume", "--out", tmp_path / "run")
        assert again.exit_code == 0, again.stderr


class TestUpAxis:
    def test_a_likelier_axis_is_one_line_and_the_training_goes_on(
        self, train: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scores = dict.fromkeys(CANDIDATES, 0.4) | {"-y": 1.3}
        monkeypatch.setattr("crossmost.adaptation.run.scores_by_up_axis", lambda *_: scores)
        result = invoke(*train())
        assert result.exit_code == 0, result.stderr
        few, line = (line for line in result.stderr.splitlines() if line.startswith("warning: "))
        assert few.startswith(FEW)
        assert "--up-axis -y" in line
        assert "warning" not in result.stdout
        assert (tmp_path / "run" / "student.safetensors").is_file()


class TestFewPoints:
    """Clouds of 1, 2 and 10 points are answered, never with NaN."""

    @pytest.mark.parametrize("count", [1, 2, 10])
    def test_they_are_classified(self, finished_run: Path, tmp_path: Path, count: int) -> None:
        run = shutil.copytree(finished_run, tmp_path / "run")
        rng = np.random.default_rng(count)
        (tmp_path / "few" / "chair").mkdir(parents=True)
        for index in range(4):
            np.save(tmp_path / "few" / "chair" / f"{index}.npy", rng.standard_normal((count, 3)))
        result = invoke("eval", run, tmp_path / "few", "--json", "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert found["n"] == 4
        for moment in ("zero_shot", "adapted"):
            assert all(value is not None and 0 <= value <= 1 for value in found[moment].values())

    def test_they_are_trained_on(
        self, train: Arguments, tmp_path: Path, write_shapes: Callable[..., Path]
    ) -> None:
        with np.load(write_shapes(tmp_path / "whole.npz")) as whole:
            points = whole["points"]
        for row, count in zip(points, [1, 2, 10, 96] * 6, strict=True):
            row[count:] = np.nan  # NaN points are dropped
        result = invoke(*train(data=write_shapes(tmp_path / "few.npz", points=points)))
        assert result.exit_code == 0, result.stderr
        assert "skipped" not in result.stderr
        for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines():
            assert None not in json.loads(line).values()


class TestClasses:
    @pytest.mark.parametrize(
        ("classes", "words"),
        [
            ("chair,table,chair", ["'chair'", "more than once"]),
            ("Chair,chair", ["'Chair'", "'chair'"]),
            (",", ["none"]),
            ("chair", ["'chair'", "one class name a line"]),
            ("mug,bowl", ["--vocabulary"]),  # no text tower here
        ],
    )
    def test_names_that_cannot_be_used(self, train: Arguments, classes: str, words: list[str]) -> None:
        line = refused(*train(vocabulary=None, classes=classes))
        assert all(word in line for word in words)

    @pytest.mark.parametrize("content", ["", "\n  \n# nothing but a comment\n"])
    def test_a_file_without_names(self, train: Arguments, tmp_path: Path, content: str) -> None:
        (tmp_path / "classes.txt").write_text(content)
        line = refused(*train(vocabulary=None, classes=tmp_path / "classes.txt"))
        assert "classes.txt" in line
        assert "none" in line

    def test_neither_classes_nor_vocabulary(self, train: Arguments) -> None:
        assert "--classes or --vocabulary" in refused(*train(vocabulary=None))

    def test_both(self, train: Arguments) -> None:
        assert "found both" in refused(*train(classes="a,b"))

    @pytest.mark.parametrize(
        ("names", "word"),
        [(["chair", "table", "chair"], "more than once"), ([], "found none"), ([""], "empty")],
    )
    def test_a_vocabulary_that_cannot_be_used(
        self, train: Arguments, tmp_path: Path, names: list[str], word: str
    ) -> None:
        line = refused(*train(vocabulary=write_vocabulary(tmp_path / "classes.npz", names)))
        assert "classes.npz" in line
        assert word in line

    def test_a_vocabulary_of_another_width_than_the_base(self, train: Arguments, tmp_path: Path) -> None:
        names = ["bottle", "chair", "monitor", "table"]
        line = refused(*train(vocabulary=write_vocabulary(tmp_path / "classes.npz", names, width=12)))
        assert "16" in line
        assert "12" in line
        assert not (tmp_path / "run").exists()

    def test_a_vocabulary_with_pickled_objects(self, train: Arguments, tmp_path: Path) -> None:
        tag = np.array({"a": 1}, dtype=object)
        path = write_vocabulary(tmp_path / "classes.npz", ["bottle", "chair", "monitor", "table"], tag=tag)
        assert "pickled" in refused(*train(vocabulary=path))

    def test_no_vocabulary_there(self, train: Arguments, tmp_path: Path) -> None:
        assert "no such file" in refused(*train(vocabulary=tmp_path / "classes.npz"))


class TestBase:
    @pytest.fixture
    def tensors(self, tiny_base: Path) -> Weights:
        return load_weights(tiny_base)

    def test_weights_are_missing(self, train: Arguments, tmp_path: Path, tensors: Weights) -> None:
        weights, metadata = tensors
        del weights["point_projection"]
        save_weights(tmp_path / "other.safetensors", weights, metadata)
        line = refused(*train(base=tmp_path / "other.safetensors"))
        assert "lacks weight 'point_projection'" in line
        assert "another architecture" in line
        assert not (tmp_path / "run").exists()

    def test_a_weight_of_another_shape(self, train: Arguments, tmp_path: Path, tensors: Weights) -> None:
        weights, metadata = tensors
        weights["point_projection"] = weights["point_projection"][:-1].clone()
        save_weights(tmp_path / "other.safetensors", weights, metadata)
        line = refused(*train(base=tmp_path / "other.safetensors"))
        assert "(32, 16), found (31, 16)" in line

    def test_a_card_that_does_not_fit_its_weights(
        self, train: Arguments, tmp_path: Path, tiny_base: Path, tiny_architecture: Architecture
    ) -> None:
        model, _ = load_base(tiny_base)
        deeper = tiny_architecture.point.model_copy(update={"depth": 2})
        save_base(tmp_path / "other.safetensors", model, tiny_architecture._replace(point=deeper), {})
        line = refused(*train(base=tmp_path / "other.safetensors"))
        assert "blocks.1" in line

    @pytest.mark.parametrize("change", [{"heads": 3}, {"points": "many"}, {"token_widths": [8, 8]}])
    def test_a_card_that_no_encoder_can_have(
        self,
        train: Arguments,
        tmp_path: Path,
        tensors: Weights,
        change: dict[str, Any],
    ) -> None:
        weights, metadata = tensors
        card = json.dumps(json.loads(metadata["point_card"]) | change)
        save_weights(tmp_path / "other.safetensors", weights, metadata | {"point_card": card})
        assert "other.safetensors" in refused(*train(base=tmp_path / "other.safetensors"))

    def test_a_file_that_is_no_base(self, train: Arguments, tmp_path: Path, finished_run: Path) -> None:
        assert "crossmost-base/1" in refused(*train(base=finished_run / "student.safetensors"))
        save_file({}, tmp_path / "bare.safetensors")
        assert "no format note" in refused(*train(base=tmp_path / "bare.safetensors"))
        save_file({}, tmp_path / "published.safetensors", metadata={"format": "pt"})
        line = refused(*train(base=tmp_path / "published.safetensors"))
        assert "found pt: `crossmost convert` makes a base of published weights" in line
        (tmp_path / "noise.safetensors").write_bytes(b"not safetensors at all")
        assert "noise.safetensors" in refused(*train(base=tmp_path / "noise.safetensors"))
        assert "found none" in refused(*train(base=tmp_path / "none.safetensors"))

    def test_its_weights_are_not_read_for_what_is_refused(
        self, train: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def load_weights(path: Path) -> None:
            raise AssertionError(f"{path} was read")

        monkeypatch.setattr("crossmost.checkpoints.base.load_weights", load_weights)
        assert "found nothing there" in refused(*train(data=tmp_path / "nowhere"))

    def test_a_truncated_base(self, train: Arguments, tmp_path: Path, tiny_base: Path) -> None:
        (tmp_path / "cut.safetensors").write_bytes(tiny_base.read_bytes()[:-50])
        assert "truncated or damaged" in refused(*train(base=tmp_path / "cut.safetensors"))


class TestOptions:
    def test_print_config_needs_nothing_and_reads_back(self, tmp_path: Path) -> None:
        result = invoke("train", "--print-config", "--recipe", "reference", "--set", "epochs=3")
        assert result.exit_code == 0
        (tmp_path / "config.yaml").write_text(result.stdout)
        again = invoke("train", "--print-config", "--config", tmp_path / "config.yaml")
        assert again.stdout == result.stdout
        printed = yaml.safe_load(result.stdout)
        assert (printed["recipe"], printed["epochs"], printed["threshold"]) == ("reference", 3, "fixed")
        assert printed.keys() == TrainConfig.model_fields.keys()

    def test_an_assignment_wins_over_an_option_and_that_over_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("epochs: 3\nseed: 3\nviews: 3\n")
        result = invoke(
            "train", "--print-config", "--config", tmp_path / "config.yaml",
            "--epochs", 5, "--seed", 5, "--set", "epochs=7",
        )  # fmt: skip
        printed = yaml.safe_load(result.stdout)
        assert (printed["epochs"], printed["seed"], printed["views"]) == (7, 5, 3)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--set", "epoch=3"], ["'epoch'", "'epochs'"]),
            (["--set", "epochs"], ["key=value"]),
            (["--set", "epochs=many"], ["epochs", "'many'"]),
            (["--epochs", "-1"], ["epochs"]),
            (["--seed", "-1"], ["seed"]),
            (["--workers", "-1"], ["workers"]),
            (["--mode", "both"], ["mode", "'both'"]),
            (["--recipe", "paper"], ["recipe", "'paper'"]),
            (["--config", "none.yaml"], ["none.yaml"]),
            (["--set", "precision=float16"], ["float16"]),
            (["--set", "class_prior=[0.5,0.5]"], ["class_prior", "4 shares, found 2"]),
        ],
    )
    def test_a_wrong_option(
        self, train: Arguments, tmp_path: Path, arguments: list[str], words: list[str]
    ) -> None:
        line = refused(*train(*arguments, epochs=None))
        assert all(word in line for word in words)
        assert not (tmp_path / "run").exists()

    def test_data_base_and_out_are_needed(self, train: Arguments, tmp_path: Path, tiny_base: Path) -> None:
        assert "DATA, --base and --out" in refused("train")
        assert "DATA, --base and --out" in refused(*train(base=None))
        assert "DATA, --base and --out" in refused(*train(out=None))

    def test_a_folder_that_holds_a_run_or_none(
        self, train: Arguments, tmp_path: Path, shapes_file: Path, finished_run: Path
    ) -> None:
        run = shutil.copytree(finished_run, tmp_path / "run")
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        assert "--resume" in refused(*train())
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
        assert "no run to resume" in refused("train", shapes_file, "--resume", "--out", tmp_path / "none")

    def test_a_folder_that_holds_somebodys_files(
        self, train: Arguments, tmp_path: Path, tiny_base: Path
    ) -> None:
        (tmp_path / "run").mkdir()
        base = shutil.copy(tiny_base, tmp_path / "run" / "base.safetensors")
        (tmp_path / "run" / "classes.npz").write_text("mine")
        line = refused(*train(data=tmp_path / "nowhere", base=base))  # before anything is read
        assert "found base.safetensors, classes.npz in" in line
        assert "choose another --out" in line
        assert base.read_bytes() == tiny_base.read_bytes()
        assert (tmp_path / "run" / "classes.npz").read_text("utf-8") == "mine"

    @pytest.mark.parametrize(
        "option",
        [("--epochs", 9), ("--set", "views=1"), ("--classes", "a,b"), ("--seed", 0), ("--mode", "joint")],
    )
    def test_an_option_that_a_resumed_run_cannot_take(
        self, tmp_path: Path, shapes_file: Path, finished_run: Path, option: tuple[object, ...]
    ) -> None:
        run = shutil.copytree(finished_run, tmp_path / "run")
        line = refused("train", shapes_file, "--resume", "--out", run, *option)
        assert f"no {option[0]} with --resume" in line

    def test_a_file_in_the_place_of_the_run(self, train: Arguments, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("mine")
        assert "run" in refused(*train())
        assert (tmp_path / "run").read_text("utf-8") == "mine"

    def test_a_disk_that_is_full(
        self, train: Arguments, tmp_path: Path, full_disk: Callable[[int], Any]
    ) -> None:
        with full_disk(20_000):
            line = refused(*train(), code=1, begun=True)
        assert "File too large" in line

    def test_a_gpu_without_enough_memory(
        self, train: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run_out(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

        monkeypatch.setattr("crossmost.adaptation.trainer.Trainer.fit", run_out)
        assert "lower batch_size" in refused(*train(), code=1, begun=True)

    def test_debug_shows_the_traceback(self, tmp_path: Path) -> None:
        result = invoke("--debug", "inspect", tmp_path / "nowhere")
        assert result.exception is not None
        assert "nowhere" in str(result.exception)
        assert result.exc_info is not None
        refused("inspect", tmp_path / "nowhere")  # and it is off again


def shape_of_eval(found: dict[str, Any]) -> None:
    """What programs read."""
    assert {"n", "split", "zero_shot", "adapted"} <= found.keys()
    for moment in ("zero_shot", "adapted"):
        assert found[moment].keys() == BRANCHES
        assert all(0 <= value <= 1 for value in found[moment].values())


@pytest.fixture(scope="module")
def split_run(
    tmp_path_factory: pytest.TempPathFactory,
    write_shapes: Callable[..., Path],
    tiny_base: Path,
    vocabulary_file: Path,
) -> tuple[Result, Path]:
    """Two epochs on the train split of a data set with a test split, with TensorBoard where it is."""
    folder = tmp_path_factory.mktemp("split")
    data = write_shapes(folder / "both.npz", split=np.repeat(["train", "test"], [16, 8]))
    more = ["--tensorboard"] if importlib.util.find_spec("tensorboard") else []
    result = invoke(
        "train", data, "--base", tiny_base, "--vocabulary", vocabulary_file, "--out", folder / "run",
        "--epochs", 2, *SHORT, *more,
    )  # fmt: skip
    return result, folder / "run"


class TestFlow:
    def test_train_interrupted_resumed_and_evaluated(
        self, train: Arguments, tmp_path: Path, shapes_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = invoke(*train(out=tmp_path / "whole", epochs=2))
        assert whole.exit_code == 0, whole.stderr
        done = []

        def press_ctrl_c(_progress: RunProgress, figures: dict[str, Any]) -> None:
            done.append(figures)
            if len(done) == 4:
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(RunProgress, "batch", press_ctrl_c)
            stopped = invoke(*train(epochs=2))
        assert stopped.exit_code == 1
        assert stopped.stderr.splitlines()[-1] == "interrupted; a run that was saved continues with --resume"
        assert "Traceback" not in stopped.stderr
        run = tmp_path / "run"
        assert not (run / "report.html").exists()

        resumed = invoke("train", shapes_file, "--resume", "--out", run, "--device", "cpu", "--workers", 1)
        assert resumed.exit_code == 0, resumed.stderr
        assert resumed.stdout == f"{run / 'report.html'}\n"
        for name in ("student.safetensors", "teacher.safetensors", "metrics.jsonl", "config.yaml"):
            assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

        evaluated = invoke("eval", run, shapes_file, "--json", "--device", "cpu")
        assert evaluated.exit_code == 0, evaluated.stderr
        assert evaluated.stdout.count("\n") == 1
        found = json.loads(evaluated.stdout)
        shape_of_eval(found)
        assert (found["n"], found["split"]) == (24, "all")
        assert json.loads((run / "evaluation.json").read_text("utf-8")) == found
        for_people = invoke("eval", run, shapes_file, "--device", "cpu").stdout
        for branch, top1 in found["adapted"].items():
            assert any(branch in line and f"{top1:.1%}" in line for line in for_people.splitlines())

    def test_a_train_and_a_test_split(self, split_run: tuple[Result, Path]) -> None:
        result, run = split_run
        assert result.exit_code == 0, result.stderr
        assert "top-1 on 8 clouds (test)" in result.stderr
        made = json.loads((run / "provenance.json").read_text("utf-8"))
        assert (made["clouds"], made["split"]) == (16, "train")

    def test_an_epoch_is_one_line_where_there_is_no_terminal(self, split_run: tuple[Result, Path]) -> None:
        lines = split_run[0].stderr.splitlines()
        while lines[0].startswith("warning: "):
            lines.pop(0)
        assert [line.split("  ")[0] for line in lines[:3]] == ["at first", "epoch 1", "epoch 2"]
        assert all("kept" in line and "agree" in line for line in lines[:3])
        assert lines[3] == "comparing zero-shot and adapted on 8 clouds"
        assert lines[4].startswith("top-1 on 8 clouds")

    def test_what_was_kept_and_that_clouds_are_few_is_said(self, split_run: tuple[Result, Path]) -> None:
        result, run = split_run
        assert "warning: 16 clouds are few: below 64 the up axis is not checked" in result.stderr
        last = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
        kept = f"kept: the teacher of epoch {last['chosen_epoch'] + 1} of 2, chosen without labels"
        assert kept in result.stderr.splitlines()

    def test_embeddings_of_no_named_text_model_are_told(self, train: Arguments, tmp_path: Path) -> None:
        names = ["bottle", "chair", "monitor", "table"]
        vocabulary = write_vocabulary(tmp_path / "mine.npz", names)
        told = "warning: the class names' embeddings say of no text model that they are of it: this base needs those"
        assert told in invoke(*train(vocabulary=vocabulary)).stderr
        tagged = write_vocabulary(tmp_path / "tagged.npz", names, tag=np.array("random"))
        assert told not in invoke(*train(vocabulary=tagged, out=tmp_path / "other")).stderr

    def test_tensorboard_gets_the_figures(self, split_run: tuple[Result, Path]) -> None:
        pytest.importorskip("tensorboard")
        (events,) = (split_run[1] / "tensorboard").iterdir()
        assert b"selection_score" in events.read_bytes()

    def test_clouds_without_labels(
        self, train: Arguments, tmp_path: Path, write_shapes: Callable[..., Path]
    ) -> None:
        plain = write_shapes(tmp_path / "plain.npz", labels=None, class_names=None)
        result = invoke(*train(data=plain))
        assert result.exit_code == 0, result.stderr
        assert "24 clouds without labels" in result.stderr
        evaluated = invoke("eval", tmp_path / "run", plain, "--json", "--device", "cpu")
        found = json.loads(evaluated.stdout)
        assert (found["n"], found["zero_shot"], found["adapted"]) == (24, None, None)
        assert set(found["changed"]) == BRANCHES

    def test_a_bad_file_in_a_worker_is_named_too(
        self,
        train: Arguments,
        tmp_path: Path,
        write_shapes: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # A large data set is not read as a whole before it starts: here, not at all.
        monkeypatch.setattr("crossmost.data.dataset.CloudDataset.probe", lambda *_: None)
        damaged = write_shapes(tmp_path / "damaged.npz", bad=[7])
        result = invoke(*train("--workers", 1, data=damaged))
        assert result.exit_code == 0, result.stderr
        assert re.search(r"skipped 1 that could not be read:\n  shape7: .+\n", result.stderr)

    def test_what_was_skipped_in_an_evaluation_is_named(
        self, tmp_path: Path, finished_run: Path, write_shapes: Callable[..., Path]
    ) -> None:
        run = shutil.copytree(finished_run, tmp_path / "run")
        damaged = write_shapes(tmp_path / "damaged.npz", bad=[7])
        result = invoke("eval", run, damaged, "--json", "--device", "cpu")
        assert json.loads(result.stdout)["n"] == 23
        assert re.search(r"skipped 1 that could not be read:\n  shape7: .+\n", result.stderr)

    @pytest.mark.parametrize(("more", "n", "split"), [((), 8, "test"), (("--split", "all"), 24, "all")])
    def test_eval_takes_the_test_split_where_there_is_one(
        self, split_run: tuple[Result, Path], tmp_path: Path, more: tuple[str, ...], n: int, split: str
    ) -> None:
        run = shutil.copytree(split_run[1], tmp_path / "run")
        result = invoke("eval", run, split_run[1].parent / "both.npz", "--json", "--device", "cpu", *more)
        found = json.loads(result.stdout)
        assert (found["n"], found["split"]) == (n, split)

    def test_eval_of_something_else_than_a_run(
        self, tmp_path: Path, shapes_file: Path, finished_run: Path
    ) -> None:
        assert "expected a run" in refused("eval", tmp_path, shapes_file)
        assert "nowhere" in refused("eval", finished_run, tmp_path / "nowhere")
        (tmp_path / "data" / "spaceship").mkdir(parents=True)
        np.save(tmp_path / "data" / "spaceship" / "one.npy", np.eye(3))
        assert "'spaceship'" in refused("eval", finished_run, tmp_path / "data")

    def test_a_run_with_a_damaged_file(self, tmp_path: Path, shapes_file: Path, finished_run: Path) -> None:
        run = shutil.copytree(finished_run, tmp_path / "run")
        (run / "teacher.safetensors").write_bytes((run / "teacher.safetensors").read_bytes()[:-9])
        assert "teacher.safetensors" in refused("eval", run, shapes_file)
        (run / "teacher.safetensors").unlink()
        assert "teacher.safetensors" in refused("eval", run, shapes_file)


class TestInspectAndRender:
    def test_inspect_json(self, shapes_file: Path) -> None:
        result = invoke("inspect", shapes_file, "--json", "--points", 64)
        assert result.exit_code == 0
        found = json.loads(result.stdout)
        assert found["clouds"] == 24
        assert found["points"] == [96, 96, 96]
        assert found["classes"] == dict.fromkeys(("bottle", "chair", "monitor", "table"), 6)
        assert found["warnings"] == []

    def test_inspect_for_people(self, shapes_file: Path) -> None:
        lines = invoke("inspect", shapes_file).stdout.splitlines()
        assert "clouds       24" in lines
        assert any(line.startswith("warning") and "1024" in line for line in lines)

    def test_inspect_a_base_and_a_vocabulary(
        self, tmp_path: Path, tiny_base: Path, points_base: Path, vocabulary_file: Path
    ) -> None:
        _, architecture = load_base(tiny_base)
        said = invoke("inspect", tiny_base).stdout
        card = architecture.point
        assert (
            f"{card.name}: N {card.points}, G {card.groups}, K {card.neighbors}, xyz, D 16, up axis z" in said
        )
        assert f"text model   {architecture.text}" in said
        found = json.loads(invoke("inspect", tiny_base, "--json").stdout)
        assert (found["dim"], found["encoder"]["points"]) == (16, card.points)
        assert "image tower  none: it trains point-only" in invoke("inspect", points_base).stdout
        said = invoke("inspect", vocabulary_file).stdout
        assert "D 16" in said
        assert re.search(r"^classes +4: bottle, chair, monitor, table$", said, re.MULTILINE)
        found = json.loads(invoke("inspect", vocabulary_file, "--json").stdout)
        assert found["names"] == ["bottle", "chair", "monitor", "table"]
        (tmp_path / "base.safetensors").write_bytes(b"nothing")
        assert "found a text file" in refused("inspect", tmp_path / "base.safetensors")
        assert "'mug' more than once" in refused(
            "inspect", write_vocabulary(tmp_path / "v.npz", ["mug", "mug"])
        )

    def test_inspect_nothing(self, tmp_path: Path) -> None:
        assert "nowhere" in refused("inspect", tmp_path / "nowhere")
        assert "found none" in refused("inspect", tmp_path)

    def test_render_writes_a_contact_sheet(self, tmp_path: Path, shapes_file: Path) -> None:
        out = tmp_path / "new" / "sheet.png"
        result = invoke("render", shapes_file, "--out", out, "--clouds", 3, "--views", 2, "--size", 32)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == f"{out}\n"
        with Image.open(out) as sheet:
            assert sheet.format == "PNG"
            assert len(sheet.convert("L").getcolors() or []) > 10  # something is drawn

    def test_render_names_what_it_cannot_read(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "data", 3)
        write_truncated_ply(folder / "broken.ply")
        (tmp_path / "data" / "views" / "00").mkdir(parents=True)
        (tmp_path / "data" / "views" / "00" / "0.png").write_bytes(b"\x89PNG")
        result = invoke("render", folder, "--out", tmp_path / "a.png", "--size", 32)
        assert result.exit_code == 0, result.stderr
        first, picture, cloud = result.stderr.splitlines()
        assert first == "skipped 2 that could not be read:"
        assert re.fullmatch(r"  \S*views/00/0\.png: \S.+", picture)
        assert re.fullmatch(r"  \S*broken\.ply: \S.+", cloud)

    def test_render_draws_as_many_points_as_are_asked_for(self, tmp_path: Path) -> None:
        np.save(tmp_path / "ball.npy", np.random.default_rng(0).normal(size=(5000, 3)))
        sheets = []
        for points in ([], ["--points", 4096], ["--points", 64]):
            out = tmp_path / "sheet.png"
            result = invoke("render", tmp_path / "ball.npy", "--out", out, "--size", 64, *points)
            assert result.exit_code == 0, result.stderr
            sheets.append(out.read_bytes())
        assert sheets[0] == sheets[1] != sheets[2]

    def test_render_shows_a_users_own_pictures(
        self, tmp_path: Path, write_shapes: Callable[..., Path]
    ) -> None:
        data = write_shapes(tmp_path / "shapes.npz", 2)
        (tmp_path / "views" / "shape1").mkdir(parents=True)
        Image.new("RGB", (50, 40), (255, 0, 0)).save(tmp_path / "views" / "shape1" / "0.png")
        result = invoke("render", data, "--out", tmp_path / "a.png", "--views", 2, "--size", 32)
        assert result.exit_code == 0, result.stderr
        with Image.open(tmp_path / "a.png") as sheet:
            assert {color: count for count, color in sheet.getcolors(1 << 16) or []}[255, 0, 0] == 32 * 32

    def test_render_nothing_and_render_into_no_picture(self, tmp_path: Path, shapes_file: Path) -> None:
        assert "nowhere" in refused("render", tmp_path / "nowhere")
        np.save(tmp_path / "nan.npy", np.full((9, 3), np.nan))
        assert "NaN" in refused("render", tmp_path / "nan.npy", "--out", tmp_path / "a.png")
        assert ".xyz" in refused("render", shapes_file, "--out", tmp_path / "a.xyz")


class TestPretrain:
    @pytest.fixture
    def tiny(self, monkeypatch: pytest.MonkeyPatch, tiny_architecture: Architecture) -> None:
        """Have `pretrain` make tiny encoders."""
        monkeypatch.setattr(pretraining, "load_point_card", lambda _: tiny_architecture.point)
        monkeypatch.setattr(pretraining, "tiny_image_tower", lambda _: tiny_architecture.image)

    def pretrain(self, data: Path, vocabulary: Path, out: Path, *more: object) -> list[object]:
        short = ["--epochs", 1, "--batch-size", 8, "--device", "cpu"]
        return ["pretrain", data, "--vocabulary", vocabulary, "--out", out, *short, *more]

    @pytest.mark.usefixtures("tiny")
    def test_it_makes_a_base_that_can_be_trained(
        self,
        train: Arguments,
        tmp_path: Path,
        shapes_file: Path,
        vocabulary_file: Path,
        tiny_architecture: Architecture,
    ) -> None:
        out = tmp_path / "own.safetensors"
        result = invoke(*self.pretrain(shapes_file, vocabulary_file, out))
        assert result.exit_code == 0, result.stderr
        assert result.stdout == f"{out}\n"
        assert "epoch 1/1" in result.stderr
        model, architecture = load_base(out)
        assert isinstance(model, DualEncoder)
        assert (architecture.point, architecture.image) == tiny_architecture[:2]
        trained = invoke(*train(base=out))
        assert trained.exit_code == 0, trained.stderr

    @pytest.mark.usefixtures("tiny")
    def test_class_names_are_found_as_people_write_them(
        self, tmp_path: Path, vocabulary_file: Path, write_shapes: Callable[..., Path]
    ) -> None:
        data = write_shapes(
            tmp_path / "a.npz", class_names=np.array(["Bottle", "CHAIR", "moni-tor", "table"])
        )
        done = invoke(*self.pretrain(data, vocabulary_file, tmp_path / "own.safetensors"))
        assert done.exit_code == 0, done.stderr
        data = write_shapes(tmp_path / "b.npz", class_names=np.array(["botle", "chair", "monitor", "table"]))
        line = refused(*self.pretrain(data, vocabulary_file, tmp_path / "other.safetensors"))
        assert "no embedding of 'botle' (1 such captions)" in line

    @pytest.mark.usefixtures("tiny")
    def test_own_pictures_are_not_used_and_that_is_said(
        self, tmp_path: Path, shapes_file: Path, vocabulary_file: Path
    ) -> None:
        data = Path(shutil.copy(shapes_file, tmp_path))
        (tmp_path / "views" / "shape3").mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "views" / "shape3" / "1.png")
        done = invoke(*self.pretrain(data, vocabulary_file, tmp_path / "own.safetensors"))
        assert "the pictures in views/ are not used" in done.stderr

    @pytest.mark.usefixtures("tiny")
    def test_captions_from_a_file(
        self, tmp_path: Path, shapes_file: Path, vocabulary_file: Path, write_shapes: Callable[..., Path]
    ) -> None:
        plain = write_shapes(tmp_path / "plain.npz", 8, labels=None, class_names=None)
        out, captions = tmp_path / "own.safetensors", tmp_path / "captions.json"
        assert "--captions" in refused(*self.pretrain(plain, vocabulary_file, out))
        captions.write_text(json.dumps({f"shape{index}": "chair" for index in range(7)}))
        line = refused(*self.pretrain(plain, vocabulary_file, out, "--captions", captions))
        assert "no caption for shape7" in line
        captions.write_text(json.dumps({f"shape{index}": "spaceship" for index in range(8)}))
        line = refused(*self.pretrain(plain, vocabulary_file, out, "--captions", captions))
        assert "'spaceship'" in line
        captions.write_text(json.dumps({f"shape{index}": "chair" for index in range(8)}))
        result = invoke(*self.pretrain(plain, vocabulary_file, out, "--captions", captions))
        assert result.exit_code == 0, result.stderr
        for content in ("[]", "{", ""):
            captions.write_text(content)
            assert "JSON object" in refused(
                *self.pretrain(plain, vocabulary_file, out, "--captions", captions, "--overwrite")
            )

    @pytest.mark.usefixtures("tiny")
    def test_more_than_a_tenth_of_bad_clouds_ends_it_at_its_start(
        self, tmp_path: Path, vocabulary_file: Path, write_shapes: Callable[..., Path]
    ) -> None:
        out = tmp_path / "own.safetensors"
        data = write_shapes(tmp_path / "bad.npz", bad=range(3))
        line = refused(*self.pretrain(data, vocabulary_file, out))
        assert "expected at most a tenth of bad files, found 3 of 24 tried" in line
        assert not out.exists()

    @pytest.mark.usefixtures("tiny")
    def test_captions_that_read_alike_are_embedded_as_one(
        self, tmp_path: Path, write_shapes: Callable[..., Path], tiny_clip: Any
    ) -> None:
        plain = write_shapes(tmp_path / "plain.npz", 8, labels=None, class_names=None)
        spellings = ("a red thing", "A Red Thing", "a_red_thing", "a-red thing")
        texts = {f"shape{index}": spellings[index % 4] for index in range(7)} | {"shape7": "a chair"}
        captions, out = tmp_path / "captions.json", tmp_path / "own.safetensors"
        captions.write_text(json.dumps(texts))
        tower = ["--clip", tiny_clip.name, "--clip-weights", tiny_clip.weights, "--image", tiny_clip.name]
        short = ["--epochs", 1, "--batch-size", 8, "--device", "cpu"]
        result = invoke("pretrain", plain, "--captions", captions, "--out", out, *tower, *short)
        assert result.exit_code == 0, result.stderr
        load_base(out)

    def test_a_wrong_option(self, tmp_path: Path, shapes_file: Path, vocabulary_file: Path) -> None:
        out = tmp_path / "own.safetensors"
        line = refused(*self.pretrain(shapes_file, vocabulary_file, out, "--card", "point-huge"))
        assert "point-tiny" in line
        line = refused(*self.pretrain(shapes_file, vocabulary_file, out, "--learning-rate", 0))
        assert "learning_rate" in line
        line = refused(*self.pretrain(shapes_file, vocabulary_file, out, "--image", "ViT-Z"))
        assert "ViT-Z" in line
        line = refused(*self.pretrain(shapes_file, vocabulary_file, out, "--image", "ViT-B-16"))
        assert "--clip-weights" in line

    @pytest.mark.usefixtures("tiny")
    def test_a_test_split_is_not_trained_on(
        self, tmp_path: Path, vocabulary_file: Path, write_shapes: Callable[..., Path]
    ) -> None:
        data = write_shapes(tmp_path / "both.npz", split=np.repeat(["train", "test"], [16, 8]))
        for more, clouds in (((), "16"), (("--split", "all"), "24")):
            out = tmp_path / f"{clouds}.safetensors"
            result = invoke(*self.pretrain(data, vocabulary_file, out, *more))
            assert result.exit_code == 0, result.stderr
            assert load_weights(out).metadata["clouds"] == clouds

    @pytest.mark.parametrize(
        ("place", "said"),
        [
            ("own.pt", "expected a .safetensors to write"),
            ("absent/own.safetensors", "expected a folder at"),
            ("folder.safetensors", "found a folder at"),
            ("mine.safetensors", "mine.safetensors exists: give --overwrite"),
        ],
    )
    def test_a_place_that_will_not_do_is_refused_before_anything_is_read(
        self, tmp_path: Path, place: str, said: str
    ) -> None:
        (tmp_path / "folder.safetensors").mkdir()
        (tmp_path / "mine.safetensors").write_text("mine")
        line = refused(*self.pretrain(tmp_path / "nowhere", tmp_path / "none.npz", tmp_path / place))
        assert said in line
        assert (tmp_path / "mine.safetensors").read_text("utf-8") == "mine"

    def test_its_inputs_are_never_replaced(
        self, tmp_path: Path, shapes_file: Path, vocabulary_file: Path
    ) -> None:
        words = tmp_path / "classes.safetensors"
        shutil.copy(vocabulary_file, words)
        line = refused(*self.pretrain(shapes_file, words, words, "--overwrite"))
        assert f"found {words} at {words}" in line
        assert words.read_bytes() == vocabulary_file.read_bytes()

    @pytest.mark.usefixtures("tiny")
    def test_the_image_tower_has_to_be_of_the_text_embeddings_model(
        self, tmp_path: Path, shapes_file: Path, tiny_clip: Any
    ) -> None:
        names, out = ["bottle", "chair", "monitor", "table"], tmp_path / "own.safetensors"
        words = write_vocabulary(tmp_path / "openai.npz", names, tag=np.array("ViT-B-32-quickgelu/openai"))
        other = ("--image", "ViT-B-32-quickgelu", "--clip-weights", "laion400m_e32")
        line = refused(*self.pretrain(shapes_file, words, out, *other))
        assert "found that of ViT-B-32-quickgelu/laion400m_e32, another space" in line
        assert "--image ViT-B-32-quickgelu --clip-weights openai, or --image tiny" in line
        words = write_vocabulary(
            tmp_path / "tiny.npz", names, 24, tag=np.array(f"{tiny_clip.name}/published")
        )
        result = invoke(
            *self.pretrain(
                shapes_file, words, out, "--image", tiny_clip.name, "--clip-weights", tiny_clip.weights
            )
        )
        assert result.exit_code == 0, result.stderr
        origin = f"{tiny_clip.name}/{tiny_clip.weights.name}"  # a file is taken at its word
        assert load_weights(out).metadata["image_tower"] == origin

    @pytest.mark.usefixtures("tiny")
    def test_another_base_is_replaced_on_demand(
        self, tmp_path: Path, shapes_file: Path, vocabulary_file: Path
    ) -> None:
        out = tmp_path / "own.safetensors"
        out.write_text("of last week")
        result = invoke(*self.pretrain(shapes_file, vocabulary_file, out, "--overwrite"))
        assert result.exit_code == 0, result.stderr
        load_base(out)

    def test_ctrl_c_promises_no_resuming(
        self, tmp_path: Path, shapes_file: Path, vocabulary_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def press(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(pretraining, "make_base", press)
        result = invoke(*self.pretrain(shapes_file, vocabulary_file, tmp_path / "own.safetensors"))
        assert (result.exit_code, result.stderr) == (1, "interrupted\n")

    def test_the_cards_are_listed_as_the_help_says(self) -> None:
        assert "--card list" in invoke("pretrain", "--help").stdout
        result = invoke("pretrain", "--card", "list")
        assert result.exit_code == 0
        assert "point-tiny" in result.stdout.splitlines()


class TestProcess:
    """What only a process of its own can show."""

    def run(self, *arguments: object, code: str = "") -> subprocess.CompletedProcess[str]:
        main = code + "from crossmost.cli import main; main()"
        command = [sys.executable, "-c", main, *(str(argument) for argument in arguments)]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=False)

    def test_one_line_on_stderr_and_exit_2(self, train: Arguments, tmp_path: Path) -> None:
        arguments = [str(argument) for argument in train(data=tmp_path / "nowhere")]
        command = [sys.executable, "-m", "crossmost", *arguments]
        found = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=False)
        assert found.returncode == 2
        assert found.stdout == ""
        assert found.stderr.startswith("error: ")
        assert found.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("missing", "extra"), [("torch", "train"), ("yaml", "train"), ("jinja2", "report")]
    )
    def test_a_missing_extra_is_named_with_the_line_to_type(
        self, train: Arguments, tmp_path: Path, missing: str, extra: str
    ) -> None:
        found = self.run(*train(), code=f"import sys; sys.modules['{missing}'] = None; ")
        assert found.returncode == 2, found.stderr
        assert found.stderr.count("\n") == 1
        assert missing in found.stderr
        assert f"crossmost[{extra}]" in found.stderr
        assert not (tmp_path / "run").exists()

    def test_help_and_version_load_nothing_heavy(self) -> None:
        heavy = "['torch', 'numpy', 'yaml', 'rich.progress']"
        check = (
            "import atexit, sys; "
            f"atexit.register(lambda: print('loaded', [m for m in {heavy} if m in sys.modules])); "
        )
        for arguments in (["--help"], ["train", "--help"], ["--version"]):
            found = self.run(*arguments, code=check)
            assert found.returncode == 0
            assert found.stdout.endswith("loaded []\n")
        assert found.stdout.startswith(__version__)

    def test_a_missing_reader_is_named(self, tmp_path: Path) -> None:
        write_truncated_ply(tmp_path / "cloud.ply")
        found = self.run(
            "inspect", tmp_path / "cloud.ply", code="import sys; sys.modules['plyfile'] = None; "
        )
        assert found.returncode == 2
        assert "crossmost[io]" in found.stderr
        assert found.stderr.count("\n") == 1
