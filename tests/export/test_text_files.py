from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossmost.errors import InputError
from crossmost.export import text_files
from crossmost.export.text_files import TextOptions, check_text, some_prompts, write_text_encoder
from crossmost.models.text_tower import embed_classes
from crossmost.runtime.text_encoder import TextEncoder

TEMPLATES = ("a photo of a {}.", "the {}")


@pytest.fixture(scope="module")
def options(tiny_clip):
    return TextOptions(tiny_clip.name, str(tiny_clip.weights))


@pytest.fixture(scope="module")
def vocabulary(options):
    names = ("mug", "night stand", "floor lamp", "chair")
    return embed_classes(names, clip=options.clip, weights=options.weights, templates=TEMPLATES)


@pytest.mark.parametrize(("precision", "written"), [("fp32", "fp32"), ("fp16", "fp16"), ("bf16", "fp32")])
def test_new_names_on_the_robot_are_embedded_as_open_clip_does(
    tmp_path, vocabulary, options, precision, written
):
    facts, checks = write_text_encoder(vocabulary, options, precision, tmp_path, 1)
    assert facts["cosine"] > 0.999
    assert facts["tag"] == vocabulary.tag
    assert all(check.passed for check in checks)
    assert {(check.graph, check.precision) for check in checks} == {("text_encoder.onnx", written)}

    new = ("Wine Bottle", "crate")
    found = TextEncoder.load(tmp_path, threads=1).vocabulary(
        new,
        vocabulary.prompts,
        logit_scale=vocabulary.logit_scale,
        tag=vocabulary.tag,
        spaces=facts["spaces"],
    )
    expected = embed_classes(new, clip=options.clip, weights=options.weights, templates=TEMPLATES)
    np.testing.assert_allclose(
        found.embeddings, expected.embeddings, atol=1e-4 if written == "fp32" else 1e-2
    )


def test_a_tower_that_is_not_the_vocabularys_is_refused(tmp_path, vocabulary, options):
    other = replace(vocabulary, embeddings=np.roll(vocabulary.embeddings, 1, axis=1))
    with pytest.raises(InputError, match="leave out --text-encoder"):
        write_text_encoder(other, options, "fp32", tmp_path, 1)


def test_what_is_wrong_is_known_before_the_work(vocabulary, options):
    check_text(vocabulary, options)
    with pytest.raises(InputError, match="says its prompts, found ready-made embeddings"):
        check_text(replace(vocabulary, prompts=()), options)
    with pytest.raises(InputError, match="expected one of open_clip's"):
        check_text(vocabulary, TextOptions("ViT-B-99", None))


def test_a_graph_that_departs_from_open_clip_fails_a_check(tmp_path, vocabulary, options, monkeypatch):
    true = text_files.embed_all
    monkeypatch.setattr(text_files, "embed_all", lambda *arguments: np.roll(true(*arguments), 1, axis=1))
    _, checks = write_text_encoder(vocabulary, options, "fp32", tmp_path, 1)
    assert not all(check.passed for check in checks)


def test_prompts_take_turns(vocabulary):
    assert some_prompts(vocabulary)[:3] == [
        "a photo of a mug.",
        "the night stand",
        "a photo of a floor lamp.",
    ]
