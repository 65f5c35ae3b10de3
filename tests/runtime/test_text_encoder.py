import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from crossmost.runtime.errors import RuntimeFailure
from crossmost.runtime.text_encoder import (
    BATCH,
    GROUP,
    InvalidTextEncoder,
    TextEncoder,
    clean,
    embed_names,
)
from crossmost.runtime.vocabulary import InvalidVocabulary

CLIP = "crossmost-test-runtime-text"
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
SEED = 11
NAMES = ("mug", "night_stand", "Floor Lamp", "fish &amp; chips", "{0} mug", "very " * 100 + "long")
PROMPTS = ("a photo of a {}.", "itap of my {}.", "the {}")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A folder with a text encoder and its tokenizer, of a CLIP whose weights follow from SEED."""
    import torch

    from crossmost.export.text_tower import export_text_encoder
    from crossmost.export.tokenizer import write_tokenizer
    from crossmost.models.clip import import_open_clip
    from crossmost.models.text_tower import text_model

    folder = tmp_path_factory.mktemp("bundle")
    config = tmp_path_factory.mktemp("clip") / f"{CLIP}.json"
    config.write_text(json.dumps({"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}))
    import_open_clip().add_model_config(config)
    torch.manual_seed(SEED)
    export_text_encoder(text_model(CLIP, None, allow_random=True), folder, precision="fp32")
    write_tokenizer(CLIP, folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def encoder(bundle):
    return TextEncoder.load(bundle, threads=1)


class Recorded:
    """A session that keeps the shapes of what it was asked for, and can be of a fixed length."""

    def __init__(self, session, length=None):
        self.session, self.length, self.shapes = session, length, []

    def get_inputs(self):
        (tokens,) = self.session.get_inputs()
        return [type("Input", (), {"shape": [tokens.shape[0], self.length or tokens.shape[1]]})]

    def get_outputs(self):
        return self.session.get_outputs()

    def run(self, names, feed):
        self.shapes.append(feed["tokens"].shape)
        return self.session.run(names, feed)


@pytest.fixture
def recorded(bundle):
    """Make an encoder and the record of its passes."""
    from tokenizers import Tokenizer

    from crossmost.runtime.onnx_session import create_session

    def make(length=None):
        session = Recorded(create_session(bundle / "text_encoder.onnx", threads=1), length)
        return TextEncoder(session, Tokenizer.from_file(str(bundle / "tokenizer.json"))), session.shapes

    return make


@pytest.mark.parametrize("spaces", [True, False])
def test_the_vocabulary_is_the_one_that_training_would_make(encoder, spaces):
    import torch

    from crossmost.models.text_tower import embed_classes

    torch.manual_seed(SEED)
    theirs = embed_classes(
        NAMES, clip=CLIP, weights=None, templates=PROMPTS, spaces=spaces, allow_random=True
    )
    made = encoder.vocabulary(NAMES, PROMPTS, logit_scale=theirs.logit_scale, tag=theirs.tag, spaces=spaces)
    np.testing.assert_allclose(made.embeddings, theirs.embeddings, atol=1e-5)
    assert (made.names, made.prompts, made.tag) == (theirs.names, theirs.prompts, theirs.tag)
    assert made.logit_scale == theirs.logit_scale


def test_spaces_are_written_by_default_and_names_are_kept(encoder):
    made = encoder.vocabulary(("night_stand",), PROMPTS, logit_scale=100.0, tag="")
    spaced = encoder.vocabulary(("night stand",), PROMPTS, logit_scale=100.0, tag="")
    assert made.names == ("night_stand",)
    np.testing.assert_array_equal(made.embeddings, spaced.embeddings)


def test_rows_are_unit_float32_in_the_order_of_the_texts(encoder):
    texts = [f"{'very ' * (index % 7)}small mug {index}" for index in range(2 * BATCH + 3)]
    rows = encoder.embed(texts)
    assert rows.shape == (len(texts), encoder.dim)
    assert encoder.dim == 24
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(rows, np.concatenate([encoder.embed([text]) for text in texts]), atol=1e-5)


def test_no_texts_are_no_rows(encoder):
    assert encoder.embed([]).shape == (0, 24)


def test_passes_are_small_and_without_padding(recorded):
    encoder, shapes = recorded()
    encoder.embed(["mug"] * BATCH + ["long " * 200] + ["bowl"] * BATCH)
    assert shapes == [(BATCH, 3), (BATCH, 3), (1, 77)]


def test_a_graph_of_fixed_length_gets_all_tokens(recorded, encoder):
    fixed, shapes = recorded(length=77)
    np.testing.assert_allclose(
        fixed.embed(["mug", "the bowl"]), encoder.embed(["mug", "the bowl"]), atol=1e-5
    )
    assert shapes == [(2, 77)]


def test_names_are_embedded_a_group_at_a_time():
    calls = []

    def embed(texts):
        calls.append(len(texts))
        return np.ones((len(texts), 4), np.float32)

    names = [f"class {index}" for index in range(3000)]
    assert embed_names(embed, names, PROMPTS, spaces=False).shape == (3000, 4)
    assert max(calls) < GROUP + len(PROMPTS)
    assert sum(calls) == 3000 * len(PROMPTS)


def test_threads_share_an_encoder(encoder):
    lists = [[f"{word} {index}" for index in range(40)] for word in ("mug", "a red bowl", "chair", "x " * 60)]
    expected = [encoder.embed(texts) for texts in lists]
    with ThreadPoolExecutor(8) as pool:
        for rows, wanted in zip(pool.map(encoder.embed, lists * 8), expected * 8, strict=True):
            np.testing.assert_array_equal(rows, wanted)


def test_neither_torch_nor_open_clip_is_needed(bundle, encoder):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'open_clip', 'onnx', 'ftfy', 'regex']))\n"
        "from crossmost.runtime.text_encoder import TextEncoder\n"
        "assert 'tokenizers' not in sys.modules and 'onnxruntime' not in sys.modules\n"
        f"print(TextEncoder.load({str(bundle)!r}, threads=1).embed(['a mug'])[0].tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=dict(os.environ), check=False
    )
    assert run.returncode == 0, run.stderr
    np.testing.assert_allclose(json.loads(run.stdout), encoder.embed(["a mug"])[0], atol=1e-6)


def test_without_tokenizers_the_line_to_type_is_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InvalidTextEncoder, match=r'pip install "crossmost\[text\]"'):
        TextEncoder.load(bundle)


@pytest.mark.parametrize("missing", ["text_encoder.onnx", "tokenizer.json"])
def test_a_bundle_without_a_text_encoder(bundle, missing, tmp_path):
    for name in {"text_encoder.onnx", "tokenizer.json"} - {missing}:
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    with pytest.raises(InvalidTextEncoder, match=f"expected {missing} in it.*--text-encoder"):
        TextEncoder.load(tmp_path)


@pytest.mark.parametrize("damaged", ["text_encoder.onnx", "tokenizer.json", "text_weights.bin"])
def test_damaged_files_are_named(bundle, damaged, tmp_path):
    for path in bundle.iterdir():
        whole = path.read_bytes()
        (tmp_path / path.name).write_bytes(whole[: len(whole) // 2] if path.name == damaged else whole)
    named = "tokenizer.json" if damaged == "tokenizer.json" else "text_encoder.onnx"
    with pytest.raises(InvalidTextEncoder, match=f"{named}: expected a file of crossmost export, found ."):
        TextEncoder.load(tmp_path)


@pytest.mark.parametrize(
    ("texts", "what"), [("mug", "found the text 'mug': put it in a list"), (["mug", 3], "found int")]
)
def test_what_is_no_sequence_of_texts(encoder, texts, what):
    with pytest.raises(InvalidTextEncoder, match=what):
        encoder.embed(texts)


@pytest.mark.parametrize("prompts", [(), ("a photo.",), ("{} and {}",), ("the {}", "a")])
def test_prompts_are_checked(encoder, prompts):
    with pytest.raises(InvalidTextEncoder, match=r"templates with one \{\} for the name"):
        encoder.vocabulary(("mug",), prompts, logit_scale=100.0, tag="")


@pytest.mark.parametrize("names", [(), ("mug", "mug"), ("mug", " ")])
def test_names_are_checked(encoder, names):
    with pytest.raises(InvalidVocabulary):
        encoder.vocabulary(names, PROMPTS, logit_scale=100.0, tag="")


def test_cleaning():
    assert clean("caf&eacute; &amp;lt;3 &#39;") == "café <3 '"
    assert clean("\ud83d\ude00 \udc80") == "😀 \ufffd"
    assert clean("plain “text”") == "plain “text”"


def test_a_pass_that_fails_is_work_that_failed(speaking):
    def run(*_):
        raise OSError("no memory\nleft")

    encoder = TextEncoder.load(speaking, threads=1)
    encoder._session = SimpleNamespace(run=run)
    with pytest.raises(RuntimeFailure, match=r"^ONNX Runtime's pass failed: no memory left$"):
        encoder.embed(["a mug"])
