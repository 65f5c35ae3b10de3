"""A base with the class embeddings of another text model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from crossmost.checkpoints.base import Architecture, check_text_model, save_base
from crossmost.cli import app
from crossmost.errors import InputError
from crossmost.models.student import DualEncoder
from crossmost.runtime.vocabulary import Vocabulary

ULIP, OPENAI = "slip-vit-b-16/slip_base_100ep", "ViT-B-16-quickgelu/openai"
BIGG = "ViT-bigG-14/laion2b_s39b_b160k"


def pair(base: Architecture, text: str, dim: int, tag: str, width: int) -> None:
    vocabulary = Vocabulary.create(("mug", "bowl"), np.eye(2, width), logit_scale=100.0, tag=tag)
    check_text_model(vocabulary, base._replace(text=text, dim=dim))


def test_another_width_names_both_models_and_the_command(tiny_architecture: Architecture) -> None:
    with pytest.raises(InputError) as error:
        pair(tiny_architecture, BIGG, 1280, OPENAI, 512)
    line = str(error.value)
    assert line.startswith(
        f"expected text embeddings of 1280 numbers for this base ({BIGG}), found 512 ({OPENAI}): "
    )
    assert f"`crossmost vocabulary --clip {BIGG} " in line


def test_the_same_width_of_another_model_is_another_space(tiny_architecture: Architecture) -> None:
    with pytest.raises(InputError) as error:
        pair(tiny_architecture, ULIP, 512, OPENAI, 512)
    assert str(error.value) == (
        f"this base was aligned with {ULIP}, found class embeddings of {OPENAI}: these are different spaces, although "
        f"both have 512 numbers; make them with `crossmost vocabulary --clip {ULIP} --clip-weights "
        "slip_base_100ep.pt --names FILE --out classes.npz`"
    )


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        (OPENAI, "ViT-B-16/openai"),
        (ULIP, ULIP),
        (ULIP, ""),
        (ULIP, "ViT-B-16/random"),
        (BIGG, "ViT-bigG-14/open_clip_model.safetensors"),
        ("random directions", OPENAI),
        ("", OPENAI),
        (OPENAI, "local-dir:clip"),
    ],
)
def test_what_fits_or_cannot_be_told_passes(tiny_architecture: Architecture, text: str, tag: str) -> None:
    pair(tiny_architecture, text, 512, tag, 512)


def test_training_and_export_refuse_it_in_one_line(
    tiny_architecture: Architecture, tiny_vocabulary: Vocabulary, shapes_file: Path, tmp_path: Path
) -> None:
    base, classes = tmp_path / "base.safetensors", tmp_path / "classes.npz"
    point, image, dim, _ = tiny_architecture
    save_base(base, DualEncoder(point, image, dim), tiny_architecture._replace(text=ULIP), {})
    replace(tiny_vocabulary, tag=OPENAI).save(classes)
    for command in (
        ["train", shapes_file, "--base", base, "--out", tmp_path / "run", "--device", "cpu"],
        ["export", base, "--out", tmp_path / "bundle"],
    ):
        result = CliRunner().invoke(app, [str(each) for each in (*command, "--vocabulary", classes)])
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(
            f"error: this base was aligned with {ULIP}, found class embeddings of {OPENAI}"
        )
        assert result.stderr.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base.safetensors", "classes.npz"]
