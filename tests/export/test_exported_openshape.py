"""The exported form of OpenShape's Point-BERT: the same numbers as the module's, in torch and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from crossmost.export.graph import EncoderGraph
from crossmost.export.onnx_encoder import encoder_model
from crossmost.export.quantize import EXACT
from crossmost.models.openshape import OpenShapeEncoder
from crossmost.models.point_cards import OpenShapeCard
from crossmost.models.student import Projection, unit
from crossmost.runtime.onnx_session import create_session

TYPES = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16}
DEPTH = 2
FLOAT32_ISLANDS = {"encoder.sa.of_patch.module", "encoder.lift.place.module"}


@pytest.fixture(scope="module")
def encoder(used_norms):
    torch.manual_seed(3)
    card = OpenShapeCard(
        name="test", points=200, groups=10, neighbors=8, radius=0.4, channels=6, token_widths=(16, 24, 32),
        width=48, depth=DEPTH, heads=4, mlp_width=80,
    )  # fmt: skip
    encoder = used_norms(OpenShapeEncoder(card))
    with torch.no_grad():
        for name, weight in encoder.transformer.named_parameters():
            if "fn" in name and name.endswith("weight"):
                weight.mul_(3)  # as drawn, the layers would add so little that all clouds are alike
    return encoder


@pytest.fixture(scope="module")
def projection(encoder):
    return torch.randn(encoder.card.feature_width, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def graphs(encoder, projection):
    return {
        precision: EncoderGraph(encoder, Projection(projection), precision)
        for precision in ("fp32", "fp16", "bf16")
    }


@pytest.fixture(scope="module")
def models(graphs):
    return {precision: encoder_model(graphs[precision]) for precision in TYPES}


def inputs(card, batch):
    draw = torch.Generator().manual_seed(batch)
    patches = torch.rand(batch, card.groups, card.neighbors, 6, generator=draw)
    patches[..., :3] = (patches[..., :3] - 0.5) * card.radius
    return patches, torch.randn(batch, card.groups, 3, generator=draw) * 0.4


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 3e-3), ("bf16", 1.2e-2)])
def test_the_exported_form_gives_the_encoders_embedding(encoder, projection, graphs, precision, tolerance):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with torch.no_grad():
        expected = unit(encoder(*inputs(encoder.card, 5)).feature @ projection)
        found = graphs[precision](*inputs(encoder.card, 5))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert (expected[0] - expected[1]).abs().max() > 3 * tolerance  # clouds are told apart
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("batch", [1, 2, 3, 17])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_any_batch_gives_what_torch_gives(graphs, models, tmp_path, precision, batch):
    onnx.save(models[precision], tmp_path / "encoder.onnx")
    patches, centers = inputs(graphs["fp32"].encoder.card, batch)
    session = create_session(tmp_path / "encoder.onnx", threads=1)
    (found,) = session.run(["embedding"], {"patches": patches.numpy(), "centers": centers.numpy()})
    with torch.no_grad():
        expected = graphs[precision](patches, centers).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 if precision == "fp32" else 3e-3)


@pytest.mark.parametrize("precision", TYPES)
def test_the_graph_is_standard_and_only_places_are_float32(models, precision):
    model = models[precision]
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LayerNormalization") == 2 * DEPTH + 1
    assert "BatchNormalization" not in kinds
    wide = {
        each.name.rpartition(".")[0]
        for each in model.graph.initializer
        if each.name.startswith("encoder.") and each.data_type == TYPES["fp32"]
    }
    types = {each.data_type for each in model.graph.initializer if each.name.startswith("encoder.")}
    assert types == {TYPES["fp32"], TYPES[precision]}
    assert wide >= FLOAT32_ISLANDS
    if precision != "fp32":
        assert wide == FLOAT32_ISLANDS


def test_layers_are_as_runtimes_like_them(models):
    nodes = models["fp32"].graph.node
    weights = {name for node in nodes if node.op_type == "Gemm" for name in node.input[1:]}
    for block in range(DEPTH):
        for layer in ("0.fn.proj", "1.fn.fc1", "1.fn.fc2"):
            path = f"encoder.transformer.layers.{block}.{layer}"
            assert {f"{path}.weight", f"{path}.bias"} <= weights
        assert f"encoder.transformer.layers.{block}.0.fn.qkv.weight" in weights
    kinds = [node.op_type for node in nodes if any(".fn" in note.value for note in node.metadata_props)]
    assert kinds.count("Softmax") == DEPTH
    assert not {"Shape", "Slice", "Squeeze", "Gather"}.intersection(kinds)


def test_int8_leaves_the_layers_that_read_coordinates(models):
    quantized = [
        name
        for node in models["fp32"].graph.node
        if node.op_type == "Gemm" and not any(name.endswith(EXACT) for name in node.input)
        for name in node.input
    ]
    assert any(name.startswith("encoder.sa.rest.") for name in quantized)
    assert not any(name.startswith(("encoder.sa.of_", "encoder.lift.place")) for name in quantized)


def test_places_are_read_in_float32_and_rounded_once(encoder, graphs):
    _, centers = inputs(encoder.card, 1)
    narrow, wide = graphs["fp16"].encoder, graphs["fp32"].encoder
    with torch.no_grad():
        assert torch.equal(narrow.sa.of_patch(centers), wide.sa.of_patch(centers).half())
        assert torch.equal(narrow.lift.place(centers), wide.lift.place(centers).half())
