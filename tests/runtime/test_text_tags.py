"""Tags of text models: which are the same space, and what is said of those that are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossmost.runtime.text_tags import explain_other_model, remedy, same_text_model, text_model

OPENAI = "ViT-B-16-quickgelu/openai"
SLIP = "slip-vit-b-16/slip_base_100ep"


@pytest.mark.parametrize(
    ("tag", "other", "same"),
    [
        (OPENAI, OPENAI, True),
        (OPENAI, "ViT-B-16/openai", True),
        (OPENAI, "vit-b-16/OpenAI", True),
        ("ViT-B-32/laion2b-s34b-b79k", "ViT-B-32/laion2b_s34b_b79k", True),
        (OPENAI, SLIP, False),
        (OPENAI, "ViT-B-32-quickgelu/openai", False),
        (OPENAI, "ViT-B-16/laion2b_s34b_b88k", False),
        ("EVA02-E-14-plus/laion2b_s9b_b144k", "EVA02-E-14/laion2b_s4b_b115k", False),
        # What cannot be told.
        (OPENAI, "", None),
        (OPENAI, "ViT-B-16/random", None),
        (OPENAI, "ViT-B-16/open_clip_model.safetensors", None),
        (OPENAI, "ViT-B-16/weights (file)", None),
        (OPENAI, "local-dir:clip", None),
        (OPENAI, "hf-hub:laion/CLIP-ViT-B-16", None),
        (OPENAI, "ViT-B-16-quickgelu/openai, mean-centred", None),
        ("random directions", "random directions", None),
    ],
)
def test_which_models_are_the_same(tag: str, other: str, same: bool | None) -> None:
    assert same_text_model(tag, other) is same
    assert same_text_model(other, tag) is same


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_may_be_a_tag(tag: str, other: str) -> None:
    assert same_text_model(tag, tag) in (None, True)
    assert same_text_model(tag, other) is same_text_model(other, tag)
    assert text_model(f"{tag}/x.pt") is None


def test_the_line_names_both_and_gives_the_command() -> None:
    line = explain_other_model("this base", SLIP, OPENAI, 512)
    assert line is not None
    assert "\n" not in line
    assert line.startswith(f"this base was aligned with {SLIP}, found class embeddings of {OPENAI}: ")
    assert "different spaces, although both have 512 numbers" in line
    assert f"`crossmost vocabulary --clip {SLIP} --clip-weights slip_base_100ep.pt --names" in line


def test_there_is_nothing_to_say_of_models_that_fit_or_are_not_known() -> None:
    assert explain_other_model("this base", OPENAI, "ViT-B-16/openai", 512) is None
    assert explain_other_model("this base", "random directions", OPENAI, 512) is None


def test_the_remedy_names_a_model_that_can_be_had() -> None:
    bigg = "ViT-bigG-14/laion2b_s39b_b160k"
    assert (
        remedy(bigg) == f"make them with `crossmost vocabulary --clip {bigg} --names FILE --out classes.npz`"
    )
    assert "crossmost" not in remedy("random directions")
