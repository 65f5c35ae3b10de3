from __future__ import annotations

import pytest
import torch

from crossmost.export.exported_layers import gelu, in_parts
from crossmost.export.graph import EncoderGraph
from crossmost.export.onnx_encoder import encoder_model
from crossmost.models.student import Projection


@pytest.fixture(scope="module")
def graph(make_encoder):
    encoder = make_encoder(depth=2)
    return EncoderGraph(encoder, Projection(torch.randn(2 * encoder.card.width, 16)), "fp32")


def test_linear_layers_with_a_bias_are_one_node(graph):
    nodes = encoder_model(graph).graph.node
    weights = {name for node in nodes if node.op_type == "Gemm" for name in node.input[1:]}
    for block in range(2):
        for layer in ("attn.proj", "mlp.fc1", "mlp.fc2"):
            path = f"encoder.blocks.blocks.{block}.{layer}"
            assert {f"{path}.weight", f"{path}.bias"} <= weights
        assert f"encoder.blocks.blocks.{block}.attn.qkv.weight" in weights


def test_attention_asks_for_no_shapes(graph):
    kinds = [
        node.op_type
        for node in encoder_model(graph).graph.node
        if any("attn" in note.value for note in node.metadata_props)
    ]
    assert kinds.count("Softmax") == 2
    assert not {"Shape", "Slice", "Squeeze", "Gather"}.intersection(kinds)


def test_gelu_is_torchs():
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    torch.testing.assert_close(gelu(x), torch.nn.functional.gelu(x))


@pytest.mark.parametrize("at_once", [1, 3, 5, 100])
def test_parts_are_the_whole(make_encoder, at_once, monkeypatch):
    from crossmost.export import exported_layers

    encoder = make_encoder(groups=10)
    graph = EncoderGraph(encoder, Projection(torch.eye(2 * encoder.card.width)), "fp32")
    patches, centers = torch.randn(2, 10, encoder.card.neighbors, 3), torch.randn(2, 10, 3)
    with torch.no_grad():
        whole = graph(patches, centers)
        monkeypatch.setattr(exported_layers, "POINTS_AT_ONCE", at_once * encoder.card.neighbors)
        in_parts(graph.encoder.encoder, graph.encoder.card.neighbors)
        torch.testing.assert_close(graph(patches, centers), whole)
