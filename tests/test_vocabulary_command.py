"""`crossmost vocabulary`: from names to the file that other commands and bundles take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from crossmost.cli import app
from crossmost.models.text_tower import PROMPTS, embed_classes
from crossmost.runtime.vocabulary import load_vocabulary
from crossmost.words import Words


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def tower(tiny_clip: Any) -> tuple[str, ...]:
    return "vocabulary", "--clip", tiny_clip.name, "--clip-weights", str(tiny_clip.weights), "--device", "cpu"


def test_names_become_a_vocabulary(tower: tuple[str, ...], tiny_clip: Any, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("# kitchen\nmug\nnight_stand\n")
    out = tmp_path / "classes.npz"
    result = invoke(*tower, "--names", names, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    made = load_vocabulary(out)
    assert json.loads(result.stdout) == {
        "path": str(out),
        "classes": ["mug", "night_stand"],
        "dim": 24,
        "text_model": f"{tiny_clip.name}/{tiny_clip.weights.name}",
        "prompts": 64,
        "logit_scale": made.logit_scale,
    }
    expected = embed_classes(made.names, clip=tiny_clip.name, weights=str(tiny_clip.weights), spaces=True)
    np.testing.assert_array_equal(made.embeddings, expected.embeddings)
    assert made.prompts == PROMPTS


def test_templates_and_underscores_are_the_users(
    tower: tuple[str, ...], tiny_clip: Any, tmp_path: Path
) -> None:
    (tmp_path / "templates.txt").write_text("a scan of a {}.\n\n{} #1\n")
    options = ("--names", "night_stand,mug", "--templates", tmp_path / "templates.txt", "--underscores")
    result = invoke(*tower, *options, "--out", tmp_path / "classes.npz")
    assert result.stdout == f"{tmp_path / 'classes.npz'}\n"
    made = load_vocabulary(tmp_path / "classes.npz")
    assert made.prompts == ("a scan of a {}.", "{} #1")
    expected = embed_classes(
        made.names, clip=tiny_clip.name, weights=str(tiny_clip.weights), templates=made.prompts, spaces=False
    )
    np.testing.assert_array_equal(made.embeddings, expected.embeddings)


def test_a_file_is_replaced_only_on_demand(tower: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "classes.npz"
    out.write_bytes(b"precious")
    arguments = (*tower, "--names", "mug,bowl", "--out", out)
    result = invoke(*arguments)
    assert (result.exit_code, out.read_bytes()) == (2, b"precious")
    assert "--overwrite" in result.stderr
    failed = invoke(*arguments, "--overwrite", "--templates", tmp_path / "none.txt")
    assert (failed.exit_code, out.read_bytes()) == (2, b"precious")
    assert invoke(*arguments, "--overwrite").exit_code == 0
    assert load_vocabulary(out).names == ("mug", "bowl")
    assert [file.name for file in tmp_path.iterdir()] == ["classes.npz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--names": "mug,Mug"}, "CLIP ignores case"),
        ({"--names": "nowhere.txt"}, "found 'nowhere.txt'"),
        ({"--out": "classes.txt"}, "expected an .npz to write"),
        ({"--out": "nowhere/classes.npz"}, "expected a folder to write classes.npz into"),
        ({"--clip": "ViT-B-61"}, "did you mean"),
        ({"--clip": "ViT-B/32"}, "found 'ViT-B/32'; did you mean 'ViT-B-32'"),
        ({"--clip-weights": "nowhere.pt"}, "expected a weights file or a tag"),
        ({"--clip": "slip-vit-b-16"}, "expected a file of SLIP or ULIP"),
        ({"--device": "abacus"}, "device 'abacus' cannot be used"),
        ({"--templates": "one.txt"}, "expected one {} in every prompt template, found 'a mug'"),
    ],
)
def test_what_is_wrong_is_one_line(
    change: dict[str, str],
    message: str,
    tower: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text("a mug\n")
    options = dict(zip(tower[1::2], tower[2::2], strict=True))
    options |= {"--names": "mug,bowl", "--out": "classes.npz"} | change
    result = invoke("vocabulary", *(each for option in options.items() for each in option))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert "--vocabulary" not in result.stderr
    assert not Path("classes.npz").exists()


def test_a_base_says_which_tower_its_classes_need(tiny_clip: Any) -> None:
    """The tag of a base is taken for --clip, and a file for the weights that the tag names."""
    tag = f"{tiny_clip.name}/published"
    assert Words().tower(tag) == (tag, None)
    assert Words(clip_weights="FILE").tower(tag) == (tag, "FILE")
    assert Words(clip=tiny_clip.name).tower(tag) == (tag, None)
    assert Words(clip="ViT-B-32", clip_weights="openai").tower(tag) == ("ViT-B-32", "openai")
    assert Words().tower("hf-hub:owner/repo") == ("hf-hub:owner/repo", None)
