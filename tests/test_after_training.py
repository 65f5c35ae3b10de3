"""What later commands take from a run: how its clouds were read, what its report is of, and how far it came."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from crossmost.checkpoints.run import METRICS
from crossmost.checkpoints.run_files import read_provenance
from crossmost.cli import app
from crossmost.runtime.orientation import turn
from crossmost.runtime.vocabulary import Vocabulary

SHORT = ("--set", "batch_size=8", "--set", "views=2", "--set", "warmup_epochs=0", "--device", "cpu")


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def lying_file(tmp_path_factory: pytest.TempPathFactory, shapes_file: Path) -> Path:
    """The 24 shapes, y up."""
    with np.load(shapes_file) as stored:
        arrays = dict(stored)
    arrays["points"] = np.stack([turn(cloud, "z", "y") for cloud in arrays["points"]]).astype(np.float32)
    path = tmp_path_factory.mktemp("lying") / "lying.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def vocabulary_file(tmp_path_factory: pytest.TempPathFactory, tiny_vocabulary: Vocabulary) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "classes.npz"
    tiny_vocabulary.save(path)
    return path


@pytest.fixture(scope="module")
def lying_run(
    tmp_path_factory: pytest.TempPathFactory, lying_file: Path, tiny_base: Path, vocabulary_file: Path
) -> Path:
    """A run on those, read as they are; its report is of the labelled file that --test named."""
    out = tmp_path_factory.mktemp("lying-run") / "run"
    began = ["--base", tiny_base, "--vocabulary", vocabulary_file, "--up-axis", "y", "--ignore-labels"]
    result = invoke("train", lying_file, *began, "--epochs", 1, "--out", out, *SHORT)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def run(lying_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(lying_run, tmp_path / "run")


def test_a_run_is_evaluated_as_its_clouds_were_read(run: Path, lying_file: Path, shapes_file: Path) -> None:
    own = invoke("eval", run, lying_file, "--json")
    upright = invoke("eval", run, shapes_file, "--up-axis", "z", "--json")
    assert own.exit_code == upright.exit_code == 0
    assert "warning" not in own.stderr
    assert "warning: --up-axis z, but the run's own clouds were read with y" in upright.stderr
    found, same = json.loads(own.stdout), json.loads(upright.stdout)
    assert (found["zero_shot"], found["adapted"]) == (same["zero_shot"], same["adapted"])


def test_evaluating_leaves_the_report_of_the_training(run: Path, shapes_file: Path) -> None:
    before = (run / "report.html").read_bytes()
    result = invoke("eval", run, shapes_file, "--up-axis", "z")
    assert result.stdout.splitlines()[-1] == str(run / "evaluation.html")
    assert (run / "report.html").read_bytes() == before
    assert "Adapted to lying, measured on shapes" in (run / "evaluation.html").read_text("utf-8")


def test_folders_that_are_no_classes_can_be_evaluated(
    run: Path, tmp_path: Path, write_shapes: Callable[..., Path]
) -> None:
    foreign = write_shapes(tmp_path / "foreign.npz", 8, class_names=np.array(["mon", "tue", "wed", "thu"]))
    assert invoke("eval", run, foreign).exit_code == 2
    result = invoke("eval", run, foreign, "--ignore-labels", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["zero_shot"], found["adapted"]) == (None, None)
    assert set(found["changed"]) == {"point", "image", "both"}


def test_the_export_is_verified_on_clouds_read_as_the_run_read_its_own(
    run: Path, lying_file: Path, tmp_path: Path
) -> None:
    shares = []
    for name, given in (("own", ()), ("told", ("--up-axis", "y")), ("wrong", ("--up-axis", "z"))):
        out = tmp_path / f"{name}.bundle"
        result = invoke("export", run, "--verify", lying_file, "--out", out, "--batch", "1:2:4", *given)
        assert result.exit_code == 0, result.stderr
        with np.load(out / "classes.npz") as bank:
            shares.append(float(bank["unknown_similarity"]))
    assert shares[0] == shares[1] != shares[2]


def test_a_resumed_run_ends_with_the_report_it_began_for(run: Path, lying_file: Path) -> None:
    assert read_provenance(run)["report"]["ignore_labels"]
    result = invoke("train", lying_file, "--resume", "--out", run, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "24 clouds without labels" in result.stderr


def test_a_run_among_its_clouds_is_resumed_on_the_same(
    tmp_path: Path, lying_file: Path, tiny_base: Path, vocabulary_file: Path
) -> None:
    with np.load(lying_file) as stored:
        for index, cloud in enumerate(stored["points"]):
            np.save(tmp_path / f"{index}.npy", cloud)
    began = ("--base", tiny_base, "--vocabulary", vocabulary_file, "--epochs", 0)
    refused = invoke("train", tmp_path, *began, "--out", tmp_path, *SHORT)
    assert refused.exit_code == 2
    assert "expected --out elsewhere than the clouds" in refused.stderr
    assert invoke("train", tmp_path, *began, "--out", tmp_path / "run", *SHORT).exit_code == 0
    result = invoke("train", tmp_path, "--resume", "--out", tmp_path / "run", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert read_provenance(tmp_path / "run")["clouds"] == 24


def test_a_resumed_run_reads_the_split_it_began_with(
    tmp_path: Path, write_shapes: Callable[..., Path], tiny_base: Path, vocabulary_file: Path
) -> None:
    data = write_shapes(tmp_path / "split.npz", split=np.array(["train"] * 16 + ["test"] * 8))
    given = ("--base", tiny_base, "--vocabulary", vocabulary_file, "--split", "all", "--epochs", 1)
    began = invoke("train", data, *given, "--out", tmp_path / "run", *SHORT)
    assert began.exit_code == 0, began.stderr
    result = invoke("train", data, "--resume", "--out", tmp_path / "run", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    refused = invoke(
        "train", data, "--resume", "--out", tmp_path / "run", "--split", "test", "--device", "cpu"
    )
    assert refused.exit_code == 2
    assert "trained on other clouds" in refused.stderr


def test_the_dataset_of_the_report_is_remembered(
    tmp_path: Path, lying_file: Path, shapes_file: Path, tiny_base: Path, vocabulary_file: Path
) -> None:
    plain = tmp_path / "plain.npz"
    with np.load(shapes_file) as stored:
        np.savez(plain, points=stored["points"])
    began = ("--base", tiny_base, "--vocabulary", vocabulary_file, "--test", shapes_file, "--epochs", 0)
    first = invoke("train", plain, *began, "--out", tmp_path / "run", *SHORT)
    again = invoke("train", plain, "--resume", "--out", tmp_path / "run", "--device", "cpu")
    assert "top-1 on 24 clouds" in first.stderr
    assert "top-1 on 24 clouds" in again.stderr


def test_a_dataset_of_the_report_that_is_gone_is_asked_for(
    tmp_path: Path,
    write_shapes: Callable[..., Path],
    shapes_file: Path,
    tiny_base: Path,
    vocabulary_file: Path,
) -> None:
    test = write_shapes(tmp_path / "test.npz", 8)
    began = ("--base", tiny_base, "--vocabulary", vocabulary_file, "--test", test, "--epochs", 0)
    assert invoke("train", shapes_file, *began, "--out", tmp_path / "run", *SHORT).exit_code == 0
    moved = test.rename(tmp_path / "moved.npz")
    again = ("train", shapes_file, "--resume", "--out", tmp_path / "run", "--device", "cpu")
    refused = invoke(*again)
    assert refused.exit_code == 2
    assert f"{test}: the run was begun with it for --test, and it is not there: give --test" in refused.stderr
    assert invoke(*again, "--test", moved).exit_code == 0


def test_a_run_of_which_nothing_was_saved_says_how_to_go_on(run: Path, lying_file: Path) -> None:
    for name in ("student.safetensors", "teacher.safetensors", "state.pt"):
        (run / name).unlink()
    for command in (("eval", run, lying_file), ("inspect", run)):
        result = invoke(*command)
        assert result.exit_code == 2
        assert f"go on with `crossmost train DATA --resume --out {run}`" in result.stderr


@pytest.mark.parametrize("option", [("--split", "test"), ("--points", "512"), ("--up-axis", "y")])
def test_options_for_clouds_are_refused_where_none_are_inspected(run: Path, option: tuple[str, str]) -> None:
    refused = invoke("inspect", run, *option)
    assert refused.exit_code == 2
    assert f"expected no {option[0]} for {run}, which holds no clouds" in refused.stderr


def test_the_options_of_a_run_are_not_those_of_a_new_one(run: Path) -> None:
    refused = invoke("train", "--resume", "--out", run, "--print-config")
    assert refused.exit_code == 2
    assert "config.yaml" in refused.stderr


def test_a_run_embeds_clouds_as_it_read_its_own(
    tmp_path: Path, shapes_file: Path, tiny_base: Path, vocabulary_file: Path
) -> None:
    began = ("--base", tiny_base, "--vocabulary", vocabulary_file, "--up-axis", "y", "--epochs", 0)
    assert invoke("train", shapes_file, *began, "--out", tmp_path / "run", *SHORT).exit_code == 0
    rows = {}
    for name, more in (("own", ()), ("y", ("--up-axis", "y")), ("z", ("--up-axis", "z"))):
        out = tmp_path / f"{name}.npy"
        done = invoke("embed", tmp_path / "run", shapes_file, "--out", out, *more)
        assert done.exit_code == 0, done.stderr
        assert ("were read with y" in done.stderr) == (name == "z")
        rows[name] = np.load(out)
    np.testing.assert_array_equal(rows["own"], rows["y"])
    assert np.abs(rows["own"] - rows["z"]).max() > 1e-3


def test_own_pictures_are_counted_and_wrong_names_told(
    tmp_path: Path, tiny_base: Path, vocabulary_file: Path, write_shapes: Callable[..., Path]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with np.load(write_shapes(tmp_path / "shapes.npz", 8)) as stored:
        for number, points in enumerate(stored["points"]):
            np.save(data / f"{number}.npy", points)
    began = ("--base", tiny_base, "--vocabulary", vocabulary_file, "--epochs", 0, *SHORT)
    for name, line in (
        (
            "other",
            "no picture in views/ is of a cloud: its folders are named as the clouds are, such as views/0/",
        ),
        ("3", "own pictures of 1 of 8 clouds, in views/"),
    ):
        (data / "views" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(data / "views" / name / "1.png")
        result = invoke("train", data, *began, "--out", tmp_path / f"run-{name}")
        assert result.exit_code == 0, result.stderr
        assert line in result.stderr
        found = invoke("inspect", data).stdout
        assert (line in found) == (name == "other")
        assert ("pictures     of 1 of the clouds" in found) == (name == "3")


def test_an_unfinished_run_says_so_wherever_it_is_used(run: Path, lying_file: Path, tmp_path: Path) -> None:
    config = (run / "config.yaml").read_text().replace("\nepochs: 1\n", "\nepochs: 40\n")
    (run / "config.yaml").write_text(config)
    for command in (("eval", run, lying_file), ("export", run, "--out", tmp_path / "b")):
        result = invoke(*command)
        assert result.exit_code == 0, result.stderr
        assert "warning: The run was interrupted after 1 of 40 epochs" in result.stderr
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["provenance"]["epochs"] == {"done": 1, "planned": 40}
    center = json.loads((run / METRICS).read_text().splitlines()[-1])["center"]
    assert manifest["provenance"]["center"] == center


@pytest.mark.parametrize("option", ["--vocabulary", "--classes"])
@pytest.mark.parametrize("tower", ["--clip", "--clip-weights"])
@pytest.mark.parametrize("command", ["train", "pretrain", "export"])
def test_a_text_tower_beside_a_vocabulary_is_refused(
    tmp_path: Path,
    shapes_file: Path,
    tiny_base: Path,
    vocabulary_file: Path,
    command: str,
    option: str,
    tower: str,
) -> None:
    read = {"train": (shapes_file, "--base", tiny_base), "pretrain": (shapes_file,), "export": (tiny_base,)}
    out = tmp_path / ("base.safetensors" if command == "pretrain" else "out")
    result = invoke(command, *read[command], option, vocabulary_file, tower, "ViT-B-32", "--out", out)
    assert result.exit_code == 2
    assert "the vocabulary needs none: leave it out" in result.stderr
    assert not out.exists()


def test_another_recipe_beside_a_file_of_all_options_is_that_recipe(tmp_path: Path) -> None:
    whole = tmp_path / "full.yaml"
    whole.write_text(invoke("train", "--print-config", "--set", "epochs=7").stdout)
    beside = invoke("train", "--print-config", "--config", whole, "--recipe", "reference").stdout
    alone = invoke("train", "--print-config", "--recipe", "reference", "--set", "epochs=7").stdout
    assert beside == alone
    whole.write_text(whole.read_text().replace("recipe: crossmost", "recipe: reference"))
    result = invoke("train", "--print-config", "--config", whole)
    assert result.exit_code == 2
    assert "recipe=reference, but every switch is given with the other recipe's value" in result.stderr


def test_the_options_are_printed_with_what_they_mean_and_may_be() -> None:
    lines = invoke("train", "--print-config").stdout.splitlines()
    center = "center: target  # none | mean | balanced | target; what each branch subtracts"
    assert any(line.startswith(center) for line in lines)
    assert any(line.startswith("watched: 1024  # clouds on which") for line in lines)
    assert "strong_scale: [0.8, 1.25]  # student's clouds; published: 0.5 to 2" in lines


def test_an_output_that_nobody_reads_any_more_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "crossmost", "zoo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_run_is_no_folder_of_clouds(run: Path, tmp_path: Path) -> None:
    lines = invoke("inspect", run).stdout
    for said in (
        "Trained on",
        "lying, split all, 24 clouds, without labels",
        "Recipe, mode, seed",
        "report.html",
    ):
        assert said in lines
    facts = json.loads(invoke("inspect", run, "--json").stdout)
    assert facts["Options"]["epochs"] == 1
    assert facts["Measured"]["n"] == 24
    assert len(facts["Classes"]) == 4
    drawn = invoke("render", run, "--out", tmp_path / "sheet.png")
    assert drawn.exit_code == 2
    assert "found a run" in drawn.stderr


def test_one_stray_cloud_that_costs_the_labels_is_told(run: Path, shapes_file: Path, tmp_path: Path) -> None:
    with np.load(shapes_file) as stored:
        for index, (cloud, label) in enumerate(zip(stored["points"], stored["labels"], strict=True)):
            folder = tmp_path / "labelled" / str(stored["class_names"][label])
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{index}.npy", cloud)
        np.save(tmp_path / "labelled" / "background.npy", stored["points"][0])
    result = invoke("eval", run, tmp_path / "labelled", "--up-axis", "z")
    assert "no labels: 1 of 25 clouds lie outside the class folders" in result.stderr


def test_a_run_without_its_log_is_exported_all_the_same(run: Path, tmp_path: Path) -> None:
    (run / METRICS).unlink()
    result = invoke("export", run, "--out", tmp_path / "b")
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["provenance"]["epochs"] == {"done": None, "planned": 1}
    assert "teacher of epoch ? of 1" in invoke("inspect", run).stdout


def test_a_run_that_an_older_version_measured_without_labels_is_summed_up(run: Path) -> None:
    (run / "evaluation.json").write_text(json.dumps({"n": 24, "split": "all"}))
    result = invoke("inspect", run)
    assert result.exit_code == 0, result.stderr
    assert "last measured" not in result.stdout
