"""A base without an image branch through the command line: trained, resumed, evaluated, reported, exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import Result
from safetensors import safe_open
from typer.testing import CliRunner

from crossmost.checkpoints.base import load_base
from crossmost.cli import app
from crossmost.runtime.vocabulary import Vocabulary

SHORT = ("--set", "batch_size=8", "--set", "warmup_epochs=0", "--epochs", "1", "--device", "cpu")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    shapes_file: Path,
    points_base: Path,
    tiny_vocabulary: Vocabulary,
) -> tuple[Result, Path]:
    """A run without a word of modes; to be left as it is."""
    folder = tmp_path_factory.mktemp("points")
    tiny_vocabulary.save(folder / "classes.npz")
    result = invoke(
        "train", shapes_file, "--base", points_base, "--vocabulary", folder / "classes.npz", "--out",
        folder / "run", *SHORT,
    )  # fmt: skip
    return result, folder / "run"


def test_the_file_says_that_there_are_no_images(points_base: Path) -> None:
    with safe_open(points_base, framework="pt") as file:
        metadata = json.loads(file.metadata()["crossmost"])
        names = set(file.keys())
    assert metadata["image_card"] == "null"
    assert not any(name.startswith("image_tower") for name in names)
    model, architecture = load_base(points_base)
    assert architecture.image is None
    assert model.image_tower is None
    assert model.image_size is None


def test_training_is_point_only_and_says_so_in_one_line(trained: tuple[Result, Path]) -> None:
    result, run = trained
    assert result.exit_code == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "no image branch" in line]
    assert said == ["this base has no image branch: training mode=point-only"]
    assert "agree" not in result.stderr
    assert yaml.safe_load((run / "config.yaml").read_text("utf-8"))["mode"] == "point-only"
    table = [line.split()[0] for line in result.stderr.splitlines() if "points" in line and "%" in line]
    assert table == ["point"]


def test_options_of_the_images_are_told_to_do_nothing(
    tmp_path: Path, shapes_file: Path, points_base: Path, trained: tuple[Result, Path]
) -> None:
    result = invoke(
        "train", shapes_file, "--base", points_base, "--vocabulary", trained[1] / "classes.npz", "--out",
        tmp_path / "run", "--set", "alignment_weight=2", *SHORT[:-4], "--epochs", "0",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    warned = [line for line in result.stderr.splitlines() if "no effect" in line]
    assert warned == [
        "warning: alignment_weight has no effect with mode=point-only: it needs mode=joint",
    ]


def test_asking_for_it_is_as_good_and_says_nothing(
    tmp_path: Path, shapes_file: Path, points_base: Path, trained: tuple[Result, Path]
) -> None:
    _, run = trained
    result = invoke(
        "train", shapes_file, "--base", points_base, "--vocabulary", run / "classes.npz", "--out",
        tmp_path / "run", "--mode", "point-only", *SHORT,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "no image branch" not in result.stderr
    for name in ("config.yaml", "metrics.jsonl", "student.safetensors", "teacher.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize("given", ["option", "assignment", "file"])
def test_a_mode_of_images_is_one_line(
    tmp_path: Path, points_base: Path, trained: tuple[Result, Path], given: str
) -> None:
    (tmp_path / "options.yaml").write_text("mode: joint\n")
    asked = {
        "option": ("--mode", "joint"),
        "assignment": ("--set", "mode=joint"),
        "file": ("--config", tmp_path / "options.yaml"),
    }[given]
    result = invoke(
        "train", tmp_path / "nowhere", "--base", points_base, "--vocabulary", trained[1] / "classes.npz",
        "--out", tmp_path / "run", *asked,
    )  # fmt: skip
    assert result.exit_code == 2
    assert result.stderr == (
        "error: mode=joint: this base has no image branch; convert it again with --image, or --set mode=point-only\n"
    )


def test_a_finished_run_is_resumed(tmp_path: Path, shapes_file: Path, trained: tuple[Result, Path]) -> None:
    run = shutil.copytree(trained[1], tmp_path / "run")
    result = invoke("train", shapes_file, "--resume", "--out", run)
    assert result.exit_code == 0, result.stderr
    assert (run / "student.safetensors").read_bytes() == (trained[1] / "student.safetensors").read_bytes()


def test_eval_keeps_its_shape(tmp_path: Path, shapes_file: Path, trained: tuple[Result, Path]) -> None:
    run = shutil.copytree(trained[1], tmp_path / "run")
    result = invoke("eval", run, shapes_file, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    for moment in ("zero_shot", "adapted"):
        assert list(found[moment]) == ["point", "image", "both"]
        assert 0 <= found[moment]["point"] <= 1
        assert found[moment]["image"] is found[moment]["both"] is None
        assert found["details"][moment]["point"]["top1"] == found[moment]["point"]
        assert found["details"][moment]["image"] is None
    assert json.loads((run / "evaluation.json").read_text("utf-8")) == found


def test_eval_without_labels(
    tmp_path: Path, write_shapes: Callable[..., Path], trained: tuple[Result, Path]
) -> None:
    run = shutil.copytree(trained[1], tmp_path / "run")
    data = write_shapes(tmp_path / "unlabelled.npz", labels=None, class_names=None)
    result = invoke("eval", run, data, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "24 clouds without labels" in result.stdout


def test_the_report_leaves_images_out(trained: tuple[Result, Path]) -> None:
    page = (trained[1] / "report.html").read_text("utf-8")
    assert "the base has no image branch" in page
    for absent in (
        "Images",
        "Both (mean of the two)",
        "Points and images",
        "agreement of the branches",
    ):
        assert absent not in page
    assert "Reliability of points" in page


def test_run_and_base_are_embedded(
    tmp_path: Path, shapes_file: Path, points_base: Path, tiny_base: Path, trained: tuple[Result, Path]
) -> None:
    rows = {}
    for name, model in (("run", trained[1]), ("points", points_base), ("both", tiny_base)):
        result = invoke("embed", model, shapes_file, "--out", tmp_path / f"{name}.npy")
        assert result.exit_code == 0, result.stderr
        rows[name] = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(np.linalg.norm(rows[name], axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(rows["points"], rows["both"])
    assert not np.allclose(rows["run"], rows["points"])


def test_run_and_base_are_exported(
    tmp_path: Path, shapes_file: Path, points_base: Path, trained: tuple[Result, Path]
) -> None:
    for name, model, words in (
        ("run", trained[1], ()),
        ("base", points_base, ("--vocabulary", trained[1] / "classes.npz")),
    ):
        out = tmp_path / f"{name}.bundle"
        result = invoke("export", model, *words, "--out", out)
        assert result.exit_code == 0, (result.stdout, result.stderr)
        found = invoke("embed", out, shapes_file, "--out", tmp_path / "bundle.npy")
        assert found.exit_code == 0, found.stderr
        invoke("embed", model, shapes_file, "--out", tmp_path / "torch.npy")
        exported, expected = np.load(tmp_path / "bundle.npy"), np.load(tmp_path / "torch.npy")
        assert np.abs(exported - expected).max() / np.sqrt((expected**2).mean()) <= 5e-5
