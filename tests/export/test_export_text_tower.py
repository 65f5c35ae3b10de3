import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from crossmost.errors import InputError
from crossmost.export.text_tower import Alignment, check_alignment, export_text_encoder
from crossmost.export.tokenizer import write_tokenizer
from crossmost.models.clip import SMALL_VISION, import_open_clip
from crossmost.models.text_tower import text_model, text_tokenizer
from crossmost.runtime.onnx_session import create_session
from crossmost.runtime.text_encoder import TextEncoder
from crossmost.runtime.vocabulary import Vocabulary

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
BIDIRECTIONAL = {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
TEXTS = ["a mug", "a photo of a night stand.", "!", "", "long " * 100, *(f"{n} chairs" for n in range(35))]


def make_clip(kind):
    open_clip = import_open_clip()
    torch.manual_seed(3)
    whole = open_clip.CustomTextCLIP if kind.startswith("custom") else open_clip.CLIP
    text = BIDIRECTIONAL if kind == "custom-bidirectional" else TEXT
    model = whole(embed_dim=24, vision_cfg=SMALL_VISION, text_cfg=text, quick_gelu=kind == "quickgelu").eval()
    del model.visual
    with torch.no_grad():  # as open_clip starts them, blocks barely change what passes through
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def reference(model, tokens):
    with torch.no_grad():
        return model.encode_text(torch.as_tensor(tokens), normalize=True).numpy()


def run(path, tokens):
    return create_session(path, threads=1).run(None, {"tokens": tokens})[0]


@pytest.fixture(scope="module")
def tokens():
    """(40, 77)."""
    return text_tokenizer("ViT-B-32")(TEXTS).numpy()


@pytest.fixture(scope="module")
def plain():
    return make_clip("plain")


@pytest.fixture(scope="module")
def fp32(tmp_path_factory, plain):
    return export_text_encoder(plain, tmp_path_factory.mktemp("fp32"), precision="fp32")


def test_the_tests_tower_tells_texts_apart(plain, tokens):
    rows = reference(plain, tokens[:4])
    assert (rows @ rows.T)[np.triu_indices(4, 1)].max() < 0.99


def test_the_graph_gives_open_clips_embeddings(fp32, plain, tokens):
    session = create_session(fp32, threads=1)
    for batch in (1, 3, 40):
        (rows,) = session.run(None, {"tokens": tokens[:batch]})
        np.testing.assert_allclose(rows, reference(plain, tokens[:batch]), atol=1e-5)


def test_padding_may_be_left_out(fp32, plain, tokens):
    session = create_session(fp32, threads=1)
    for length in (2, 5, 12, 76):
        rows = tokens[tokens[:, length:].sum(axis=1) == 0]
        (cut,) = session.run(None, {"tokens": rows[:, :length]})
        assert len(cut) >= 1
        np.testing.assert_allclose(cut, reference(plain, rows), atol=1e-5)


@pytest.mark.parametrize("kind", ["quickgelu", "custom", "custom-bidirectional"])
def test_every_kind_of_text_transformer(kind, tokens, tmp_path):
    model = make_clip(kind)
    path = export_text_encoder(model, tmp_path, precision="fp32")
    session = create_session(path, threads=1)
    for batch in (1, 40):
        (rows,) = session.run(None, {"tokens": tokens[:batch]})
        np.testing.assert_allclose(rows, reference(model, tokens[:batch]), atol=1e-5)
    # Where every token sees every other one, padding is part of the text.
    length = session.get_inputs()[0].shape[1]
    assert length == (77 if kind == "custom-bidirectional" else "length")


def test_half_precision_is_close_and_typed(plain, tokens, tmp_path):
    before = copy.deepcopy(plain.state_dict())
    path = export_text_encoder(plain, tmp_path, precision="fp16")
    rows = run(path, tokens)
    assert rows.dtype == np.float32
    assert np.abs(np.linalg.norm(rows, axis=1) - 1.0).max() < 1e-5  # scaled in float32
    assert (rows * reference(plain, tokens)).sum(axis=1).min() >= 0.999
    assert float_types(path) == {onnx.TensorProto.FLOAT16}
    for name, tensor in plain.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_bfloat16_is_typed(plain, tmp_path):
    # ONNX Runtime has no bfloat16 kernels on a CPU: the checker and shape inference of the export must do.
    path = export_text_encoder(plain, tmp_path, precision="bf16")
    assert float_types(path) == {onnx.TensorProto.BFLOAT16}
    assert onnx.load(path).graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def float_types(path):
    """The types of the weights that are numbers of more than one entry."""
    weights = [tensor for tensor in onnx.load(path).graph.initializer if np.prod(tensor.dims) > 1]
    return {tensor.data_type for tensor in weights} - {onnx.TensorProto.INT64}


def test_what_the_graph_says_of_itself(fp32):
    model = onnx.load(fp32, load_external_data=False)
    assert fp32.name == "text_encoder.onnx"
    assert sorted(file.name for file in fp32.parent.iterdir()) == ["text_encoder.onnx", "text_weights.bin"]
    assert (model.ir_version, [(opset.domain, opset.version) for opset in model.opset_import]) == (
        10,
        [("", 18)],
    )
    session = create_session(fp32, threads=1)
    described = [
        (value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())
    ]
    assert described == [
        ("tokens", "tensor(int64)", ["batch", "length"]),
        ("embedding", "tensor(float)", ["batch", 24]),
    ]
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 2 * TEXT["layers"] + 1
    assert not {"Pow", "ReduceMean"} & {node.op_type for node in model.graph.node}
    assert fp32.stat().st_size < 100_000
    for folder in (Path(torch.__file__).parent.parent, Path(__file__).parents[2]):
        assert str(folder).encode() not in fp32.read_bytes()


def test_weights_go_where_they_are_told(plain, tmp_path):
    path = export_text_encoder(plain, tmp_path, precision="fp32", weights_name="other.bin")
    assert (tmp_path / "other.bin").stat().st_size > 49408 * 64 * 4
    (tmp_path / "other.bin").unlink()
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        create_session(path)


def test_other_text_towers_are_refused(tmp_path):
    model = make_clip("custom")
    model.text = nn.Embedding(4, 4)
    for clip, found in ((model, "Embedding in CustomTextCLIP"), (nn.Linear(2, 2), "Linear in Linear")):
        with pytest.raises(InputError, match=rf"found {found}: leave out --text-encoder"):
            export_text_encoder(clip, tmp_path, precision="fp32")


class Directions:
    """A text tower that gives every text a direction of its own."""

    def __call__(self, texts):
        rows = [np.random.default_rng(list(text.encode())).standard_normal(32) for text in texts]
        return np.array([row / np.linalg.norm(row) for row in rows], np.float32)


PROMPTS = ("a {}", "the {}.")
NAMES = ("mug", "night_stand", "table_lamp", "bowl")


def vocabulary_of(embed, spaces=False, names=NAMES, prompts=PROMPTS):
    words = [name.replace("_", " ") if spaces else name for name in names]
    rows = [embed([prompt.format(word) for prompt in prompts]).mean(axis=0) for word in words]
    return Vocabulary.create(names, np.array(rows), logit_scale=100.0, prompts=prompts, tag="test/directions")


@pytest.mark.parametrize("spaces", [False, True])
def test_alignment_tells_how_names_were_written(spaces):
    found = check_alignment(vocabulary_of(Directions(), spaces), Directions())
    assert found == Alignment(spaces=spaces, cosine=pytest.approx(1.0, abs=1e-5))


def test_names_without_underscores_leave_it_to_the_default():
    vocabulary = vocabulary_of(Directions(), names=("mug", "bowl"))
    assert check_alignment(vocabulary, Directions()).spaces is True


def test_alignment_compares_some_of_many_names():
    names = (*(f"class {index}" for index in range(1000)), "night_stand")
    texts = []

    def embed(batch):
        texts.extend(batch)
        return Directions()(batch)

    assert check_alignment(vocabulary_of(Directions(), True, names), embed).spaces is True
    assert "a night stand" in texts
    assert len(texts) <= 2 * 16 * len(PROMPTS)


def test_another_text_tower_does_not_align():
    turned = vocabulary_of(lambda texts: np.roll(Directions()(texts), 1, axis=1))
    with pytest.raises(InputError, match=r"of at least 0.98\), found -?0\.\d+: .*test/directions.*leave out"):
        check_alignment(turned, Directions())


def test_one_wrong_class_does_not_align():
    rows = vocabulary_of(Directions()).embeddings.copy()
    rows[3] = rows[0]
    wrong = Vocabulary.create(NAMES, rows, logit_scale=100.0, prompts=PROMPTS)
    with pytest.raises(InputError, match="it has no tag"):
        check_alignment(wrong, Directions())
    assert check_alignment(wrong, Directions(), minimum_cosine=-1.0).cosine < 0.5


def test_mean_centered_embeddings_do_not_align():
    near = np.ones(32, np.float32)

    def cone(texts):  # the vectors of one CLIP are close to each other
        rows = Directions()(texts) + near
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    whole = vocabulary_of(cone)
    assert check_alignment(whole, cone).cosine > 0.999
    centered = whole.embeddings - whole.embeddings.mean(axis=0)
    vocabulary = Vocabulary.create(NAMES, centered, logit_scale=100.0, prompts=PROMPTS)
    with pytest.raises(InputError, match="mean-centred"):
        check_alignment(vocabulary, cone)


def test_alignment_needs_prompts_and_the_same_width():
    ready = Vocabulary.create(NAMES, np.eye(4), logit_scale=100.0)
    with pytest.raises(
        InputError, match="says its prompts, found ready-made embeddings: leave out --text-encoder"
    ):
        check_alignment(ready, Directions())
    narrow = Vocabulary.create(NAMES, np.eye(4), logit_scale=100.0, prompts=PROMPTS)
    with pytest.raises(InputError, match="D = 4, found 32"):
        check_alignment(narrow, Directions())


def test_a_vit_b_32_text_tower_names_lvis_as_open_clip_does(shared_data, tmp_path):
    with np.load(shared_data / "clip_text_vitb32.npz") as archive:
        names = archive["names"][archive["source"] == "lvis"].tolist()
    assert len(names) == 1203
    texts = [f"a {name}" for name in names]
    torch.manual_seed(0)
    model = text_model("ViT-B-32", None, allow_random=True)
    export_text_encoder(model, tmp_path, precision="fp32")
    write_tokenizer("ViT-B-32", tmp_path / "tokenizer.json")
    made = TextEncoder.load(tmp_path, threads=torch.get_num_threads()).embed(texts)

    tokens = text_tokenizer("ViT-B-32")(texts)
    rows = reference_without_padding(model, tokens)
    np.testing.assert_allclose(rows[::50], reference(model, tokens[::50]), atol=1e-5)
    np.testing.assert_allclose(made, rows, atol=1e-4)
    nearest = np.partition(rows @ rows.T, -2, axis=1)[:, -2]
    assert nearest.mean() < 0.999  # or any name would do for any other


def reference_without_padding(model, tokens):
    """What `reference` gives, by the same tower with a shorter context: padding is nine tenths of its work."""
    short = copy.copy(model)
    short._parameters, short._buffers = dict(model._parameters), dict(model._buffers)
    lengths = tokens.ne(0).sum(dim=1)
    rows = np.empty((len(tokens), model.text_projection.shape[1]), np.float32)
    for batch in lengths.argsort().split(64):
        length = int(lengths[batch].max())
        short.positional_embedding = nn.Parameter(model.positional_embedding[:length])
        short.attn_mask = model.attn_mask[:length, :length]
        rows[batch] = reference(short, tokens[batch, :length])
    return rows
