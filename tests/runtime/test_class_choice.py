"""Other classes for a bundle: by name, as vocabulary, as bank, as file."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from crossmost.runtime import class_choice
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.class_choice import NOTHING_UNKNOWN, ClassChoice
from crossmost.runtime.manifest import InvalidBundle, load_manifest
from crossmost.runtime.text_encoder import InvalidTextEncoder, TextEncoder
from crossmost.runtime.vocabulary import InvalidVocabulary, Vocabulary


def choice(bundle):
    return ClassChoice(bundle, load_manifest(bundle), 1)


def test_names_are_embedded_like_the_bundles_own(speaking):
    chosen = choice(speaking)
    bank = chosen.bank(["night_stand", "mug"])
    own = chosen.own.vocabulary
    expected = TextEncoder.load(speaking, 1).vocabulary(
        ["night_stand", "mug"], own.prompts, logit_scale=own.logit_scale, tag=own.tag, spaces=True
    )
    assert bank.vocabulary.names == ("night_stand", "mug")
    np.testing.assert_array_equal(bank.vocabulary.embeddings, expected.embeddings)
    assert (bank.vocabulary.logit_scale, bank.vocabulary.tag) == (own.logit_scale, own.tag)
    assert bank.unknown_similarity is None


def test_a_name_is_embedded_once(speaking, monkeypatch):
    asked = []
    whole = TextEncoder.embed

    def embed(self, texts):
        asked.append(len(texts))
        return whole(self, texts)

    monkeypatch.setattr(TextEncoder, "embed", embed)
    chosen = choice(speaking)
    prompts = len(chosen.own.vocabulary.prompts)
    first = chosen.bank(["mug", "cup"]).vocabulary
    both = chosen.bank(["wine glass", "cup", "mug"]).vocabulary
    chosen.bank(["cup"])
    assert asked == [2 * prompts, prompts]
    np.testing.assert_array_equal(both.select(["mug", "cup"]).embeddings, first.embeddings)


def test_names_that_are_no_longer_kept_are_embedded_anew(speaking, monkeypatch):
    monkeypatch.setattr(class_choice, "MOST_KEPT", 2)
    chosen = choice(speaking)
    expected = chosen.bank(["mug", "cup"]).vocabulary.embeddings
    chosen.bank(["wine glass", "cup"])
    found = chosen.bank(["mug", "cup"]).vocabulary.embeddings
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("names", [["mug", "Mug"], ["wine glass", "wine_glass"], ["mug", " mug "]])
def test_names_that_the_text_encoder_cannot_tell_apart_are_refused(speaking, names):
    with pytest.raises(InvalidVocabulary, match="CLIP ignores case"):
        choice(speaking).bank(names)


def test_underscores_stay_where_the_export_found_that_they_did(speaking, tmp_path):
    bundle = tmp_path / "copy"
    shutil.copytree(speaking, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["provenance"] = {"text_encoder": {"spaces": False}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    kept, spaced = (choice(each).bank(["night_stand"]).vocabulary.embeddings for each in (bundle, speaking))
    assert not np.array_equal(kept, spaced)


def test_calibration_holds_for_new_names_and_the_threshold_does_not(speaking):
    chosen = choice(speaking)
    lengths = np.array([1, 2, 3, 10], np.float32)
    chosen.own = ClassBank(chosen.own.vocabulary, lengths, 1.7, 0.3, "rule")
    bank = chosen.bank(["mug", "bowl"])
    assert (bank.temperature, bank.unknown_similarity) == (1.7, None)
    assert bank.lengths.tolist() == [2.5, 2.5]


def test_a_text_encoder_that_was_changed_is_refused(speaking, tmp_path):
    bundle = tmp_path / "copy"
    shutil.copytree(speaking, bundle)
    (bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidBundle, match=r"tokenizer\.json: expected .* it was changed"):
        choice(bundle).bank(["mug"])


def test_the_bundles_own_names_need_no_text_encoder(exported):
    chosen = choice(exported)
    bank = chosen.bank(iter(["table", "bottle"]))
    assert bank.vocabulary.names == ("table", "bottle")
    for name, length in zip(bank.vocabulary.names, bank.lengths, strict=True):
        place = chosen.own.vocabulary.names.index(name)
        assert length == chosen.own.lengths[place]
    assert bank.temperature == chosen.own.temperature
    assert bank.unknown_similarity is None


def test_all_of_its_own_names_bring_the_threshold_back(exported):
    chosen = choice(exported)
    assert chosen.own.unknown_similarity is not None
    assert chosen.bank(chosen.own.vocabulary.names[::-1]).unknown_similarity == chosen.own.unknown_similarity


def test_without_a_text_encoder_other_names_say_how_to_get_one(exported):
    with pytest.raises(InvalidTextEncoder, match="export the bundle with --text-encoder"):
        choice(exported).bank(["table", "mug"])


def test_files_that_no_export_wrote_are_no_text_encoder(exported, tmp_path):
    bundle = tmp_path / "b"
    shutil.copytree(exported, bundle)
    for name in ("text_encoder.onnx", "tokenizer.json"):
        (bundle / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("{}")
    with pytest.raises(InvalidTextEncoder, match="export the bundle with --text-encoder"):
        choice(bundle).bank(["table", "mug"])


def test_a_missing_onnxruntime_is_one_line(speaking, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InvalidTextEncoder, match="pip install onnxruntime"):
        choice(speaking).bank(["mug"])


def assert_same(found: Vocabulary, given: Vocabulary) -> None:
    """Alike but for the scale, and no part of it shared."""
    assert (found.names, found.tag) == (given.names, given.tag)
    np.testing.assert_array_equal(found.embeddings, given.embeddings)
    assert not np.shares_memory(found.embeddings, given.embeddings)


def test_banks_are_taken_as_they_are(exported, tmp_path):
    chosen = choice(exported)
    rows = np.random.default_rng(0).normal(size=(2, 16))
    vocabulary = Vocabulary.create(["x", "y"], rows, logit_scale=7.0)
    bank = ClassBank(vocabulary, np.ones(2, np.float32), 2.0, 0.25)
    found = chosen.bank(bank)
    assert_same(found.vocabulary, vocabulary)
    assert found.vocabulary.logit_scale == 7.0
    assert (found.temperature, found.unknown_similarity) == (2.0, 0.25)
    assert chosen.bank(ClassBank.plain(vocabulary)).vocabulary.logit_scale == 7.0
    bank.save(tmp_path / "classes.npz")
    for path in (tmp_path / "classes.npz", str(tmp_path / "classes.npz")):
        assert chosen.bank(path).unknown_similarity == 0.25


@pytest.fixture
def calibrated(exported):
    """The choice of a bundle whose numbers are no defaults."""
    chosen = choice(exported)
    own = replace(chosen.own.vocabulary, logit_scale=20.0)
    chosen.own = ClassBank(own, np.array([1, 2, 3, 10], np.float32), 1.7, 0.3, "rule")
    return chosen


@pytest.mark.parametrize("how", ["vocabulary", "file"])
def test_a_vocabulary_gets_the_calibration_of_the_bundle(calibrated, tmp_path, how):
    rows = np.random.default_rng(0).normal(size=(2, 16))
    given = vocabulary = Vocabulary.create(["x", "y"], rows, logit_scale=100.0)
    if how == "file":
        given = tmp_path / "classes.npz"
        vocabulary.save(given)
    bank = calibrated.bank(given)
    assert_same(bank.vocabulary, vocabulary)
    assert (bank.vocabulary.logit_scale, bank.temperature) == (20.0, 1.7)
    assert bank.lengths.tolist() == [2.5, 2.5]
    assert (bank.unknown_similarity, bank.unknown_rule) == (None, "")


def test_the_threshold_is_kept_by_the_very_vectors_it_was_found_with(calibrated):
    calibrated.own = replace(calibrated.own, lengths=np.ones(4, np.float32))
    own = calibrated.own.vocabulary
    same = Vocabulary.create(own.names[::-1], own.embeddings[::-1], logit_scale=100.0)
    bank = calibrated.bank(same)
    assert (bank.unknown_similarity, bank.unknown_rule) == (0.3, "rule")
    other = calibrated.bank(Vocabulary.create(own.names, np.eye(4, 16), logit_scale=100.0))
    assert (other.unknown_similarity, calibrated.note(other)) == (None, NOTHING_UNKNOWN)
    calibrated.own = replace(calibrated.own, lengths=np.array([1, 2, 3, 10], np.float32))
    assert calibrated.bank(same).unknown_similarity is None
    assert calibrated.note(bank) == ""


def test_a_threshold_that_is_lost_is_told(calibrated):
    assert calibrated.note(calibrated.own) == ""
    for classes in (["table", "chair"], Vocabulary.create(["x"], np.eye(1, 16), logit_scale=100.0)):
        assert "no cloud will be unknown" in calibrated.note(calibrated.bank(classes))
    calibrated.own = replace(calibrated.own, unknown_similarity=None)
    assert calibrated.note(calibrated.bank(["table", "chair"])) == ""


@pytest.mark.parametrize("classes", [[], ["a", "a"], [""], [3], "no/such/file.npz"])
def test_what_names_no_classes_is_refused(exported, classes):
    with pytest.raises(InvalidVocabulary, match="expected"):
        choice(exported).bank(classes)


def test_embeddings_for_another_encoder_are_refused(exported):
    wide = Vocabulary.create(["x"], np.ones((1, 24)), logit_scale=1.0)
    with pytest.raises(
        InvalidVocabulary, match="expected class embeddings of the encoder's 16 numbers, found 24"
    ):
        choice(exported).bank(wide)


ULIP = "slip-vit-b-16/slip_base_100ep"


@pytest.fixture
def tagged(exported, tmp_path):
    """Make a copy of a bundle whose encoder was aligned with a text model."""

    def make(text):
        bundle = tmp_path / "tagged.bundle"
        shutil.copytree(exported, bundle)
        manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
        manifest["provenance"]["text"] = text
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        return bundle

    return make


def of_model(tag, dim=16):
    return Vocabulary.create(["x", "y"], np.eye(2, dim), logit_scale=100.0, tag=tag)


def test_classes_of_another_text_model_are_refused_however_they_are_given(tagged, tmp_path):
    bundle = tagged(ULIP)
    other = of_model("ViT-B-16-quickgelu/openai")
    other.save(tmp_path / "classes.npz")
    line = rf"tagged\.bundle was aligned with {ULIP}, found .*openai: .*although both have 16 numbers"
    for classes in (other, ClassBank.plain(other), tmp_path / "classes.npz"):
        with pytest.raises(InvalidVocabulary, match=line):
            choice(bundle).bank(classes)


@pytest.mark.parametrize("tag", [ULIP, "slip-vit-b-16/slip.pt", "", "random directions"])
def test_classes_of_the_same_model_or_of_an_unknown_one_are_taken(tagged, tag):
    vocabulary = of_model(tag)
    assert_same(choice(tagged(ULIP)).bank(vocabulary).vocabulary, vocabulary)


@pytest.mark.parametrize("text", ["random directions", None, 3, ["a"]])
def test_a_bundle_that_does_not_say_its_text_model_takes_any(tagged, text):
    assert choice(tagged(text)).bank(of_model("ViT-B-16/openai"))


def test_embeddings_of_another_width_name_both_models(tagged):
    line = (
        rf"16 numbers, found 24 \(ViT-L-14/x\): it was aligned with {ULIP}; make them with `crossmost vocab"
    )
    with pytest.raises(InvalidVocabulary, match=line):
        choice(tagged(ULIP)).bank(of_model("ViT-L-14/x", 24))


@pytest.mark.parametrize("text", ["airplane,lamp", "mug", ""])
def test_a_text_is_no_list_of_names(exported, text):
    with pytest.raises(
        InvalidVocabulary, match=f"a list of class names, or the path .* found the text '{text}'"
    ):
        choice(exported).bank(text)
