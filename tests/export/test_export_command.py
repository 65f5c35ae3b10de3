from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from crossmost.cli import app


@pytest.fixture
def crossmost():
    def run(*arguments: object):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def test_a_run_becomes_a_bundle_that_inspect_reads(tmp_path, crossmost, finished_run):
    out = tmp_path / "scans.bundle"
    done = crossmost("export", finished_run, "--fp16", "--out", out, "--verify-clouds", 4)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert "Verification passed: 4 clouds" in done.stderr

    shown = crossmost("inspect", out)
    assert shown.exit_code == 0
    assert "precision    fp16" in shown.stdout
    assert "bottle, chair, monitor, table" in shown.stdout
    assert json.loads(crossmost("inspect", out, "--json").stdout)["precision"] == "fp16"

    again = crossmost("export", finished_run, "--out", out)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    replaced = crossmost("export", finished_run, "--out", out, "--overwrite", "--verify-clouds", 2, "--json")
    assert json.loads(replaced.stdout)["precision"] == "fp32"

    weights = out / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    damaged = crossmost("inspect", out)
    assert damaged.exit_code == 2
    assert "weights.bin" in damaged.stderr
    assert len(damaged.stderr.splitlines()) == 1


def test_a_base_and_clouds_of_the_user(tmp_path, crossmost, tiny_base, tiny_vocabulary, shapes_file):
    tiny_vocabulary.save(tmp_path / "classes.npz")
    done = crossmost(
        "export", tiny_base, "--vocabulary", tmp_path / "classes.npz", "--verify", shapes_file,
        "--out", tmp_path / "b", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["parity"]["clouds"]["count"] == 24
    assert set(manifest["parity"]["accuracy"]) == {"torch", "encoder.onnx", "model.onnx"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fp16", "--bf16"], "found both"),
        (["--int8", "--fp16"], "leave out --fp16"),
        (["--batch", "8:1:64"], "1 <= min <= opt <= max"),
        (["--batch", "many"], "1:8:64"),
        (["--unknown-rate", "1.5"], "--unknown-rate"),
        (["--strip-weights"], "add --tensorrt"),
        (["--points", "1024:2048:8192"], "add --tensorrt"),
        (["--vocabulary", "nowhere.npz"], "is a run and has its classes"),
        (["--verify", "nowhere"], "nowhere"),
        (["--up-axis", "y"], "add --verify"),
        (["--split", "test"], "add --verify"),
        (["--clip", "ViT-B-32"], "add --text-encoder"),
        (["--unknown-rate", "0.1", "--unknown-labels", "labelled"], "found both"),
        (["--text-encoder"], "random directions"),
        (["--text-encoder", "--clip", "ViT-B-32"], "says its prompts"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(tmp_path, crossmost, finished_run, options, message):
    done = crossmost("export", finished_run, "--out", tmp_path / "b", *options)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "b").exists()


def test_what_the_threshold_cannot_be_found_with_is_refused_before_any_work(
    tmp_path, crossmost, finished_run, rng
):
    (tmp_path / "scans").mkdir()
    np.save(tmp_path / "scans/a.npy", rng.standard_normal((80, 3)))
    for options, message in (
        (["--unknown-rate", "5"], "of at least 0 and less than 1, such as 0.05, found 5"),
        (["--unknown-rate", "nan"], "found nan"),
        (["--unknown-labels", tmp_path / "scans"], "expected a class folder or a label for each cloud"),
    ):
        done = crossmost("export", finished_run, "--out", tmp_path / "b", *options)
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert message in line


def test_up_axis_and_columns_reach_the_clouds(tmp_path, crossmost, finished_run, rng):
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in range(3):
        np.save(folder / f"{index}.npy", rng.standard_normal((80, 4)))
    done = crossmost(
        "export",
        finished_run,
        "--verify",
        folder,
        "--columns",
        "xyz_",
        "--up-axis",
        "y",
        "--out",
        tmp_path / "b",
    )
    assert done.exit_code == 0, done.stderr
    assert "verifying on 3 clouds: scans" in done.stderr
