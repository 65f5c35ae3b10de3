"""Uni3D as it is exported: the same embeddings from a graph of few kinds of nodes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from crossmost.export.departure import first_departure
from crossmost.export.exported_layers import in_parts
from crossmost.export.exported_uni3d import fused_qkv
from crossmost.export.graph import EncoderGraph
from crossmost.export.onnx_encoder import encoder_model
from crossmost.export.verify import constants
from crossmost.models.point_cards import Uni3DCard
from crossmost.models.student import Projection, unit
from crossmost.models.uni3d import Uni3D
from crossmost.runtime.onnx_session import create_session

KINDS = {"gelu": True, "packed-swiglu": True, "swiglu": False}
PRECISIONS = ("fp32", "fp16")
WIDTH, DIM = 24, 16


@pytest.fixture(scope="module")
def encoders(used_norms: Callable[..., Uni3D]) -> dict[str, Uni3D]:
    """An encoder of two blocks for each kind of MLP, its norms and biases not neutral."""
    made = {}
    for kind, fused in KINDS.items():
        torch.manual_seed(3)
        card = Uni3DCard(
            name="test", points=64, groups=7, neighbors=5, channels=6, token_widths=(8, 12, 16, 20), width=WIDTH,
            depth=2, heads=3, mlp_width=38, mlp=kind, fused_qkv=fused,  # type: ignore[arg-type]
        )  # fmt: skip
        encoder = Uni3D(card)
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if name.endswith("bias"):
                    parameter.uniform_(-0.3, 0.3)
        made[kind] = used_norms(encoder)
    return made


@pytest.fixture(scope="module")
def graphs(encoders: dict[str, Uni3D], projection: torch.Tensor) -> dict[tuple[str, str], EncoderGraph]:
    return {
        (kind, precision): EncoderGraph(encoders[kind], Projection(projection), precision)  # type: ignore[arg-type]
        for kind, precision in itertools.product(KINDS, PRECISIONS)
    }


@pytest.fixture(scope="module")
def models(graphs: dict[tuple[str, str], EncoderGraph]) -> dict[tuple[str, str], onnx.ModelProto]:
    return {key: encoder_model(graph) for key, graph in graphs.items()}


@pytest.fixture(scope="module")
def projection() -> torch.Tensor:
    return torch.randn(WIDTH + 1, DIM, generator=torch.Generator().manual_seed(2))


def draw(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    patches = torch.randn(batch, 7, 5, 6, generator=generator) * 0.3
    return patches, torch.randn(batch, 7, 3, generator=generator) * 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_form_computes_what_the_encoder_computes(encoders, graphs, projection, kind):
    inputs = draw(4)
    exact = copy.deepcopy(encoders[kind]).double()
    with torch.no_grad():
        expected = unit(exact(*(each.double() for each in inputs)).feature @ projection.double())
        torch.testing.assert_close(graphs[kind, "fp32"](*inputs), expected, atol=2e-6, rtol=0)
        half = graphs[kind, "fp16"](*inputs)
    assert half.dtype == torch.float32
    assert (half * expected).sum(dim=1).min() > 0.9999
    assert not torch.equal(half, expected)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_gives_what_torch_gives(graphs, models, tmp_path, kind, precision, batch):
    onnx.save(models[kind, precision], tmp_path / "encoder.onnx")
    inputs = draw(batch)
    session = create_session(tmp_path / "encoder.onnx", threads=1)
    feed = dict(zip(("patches", "centers"), (each.numpy() for each in inputs), strict=True))
    (found,) = session.run(["embedding"], feed)
    with torch.no_grad():
        expected = graphs[kind, precision](*inputs).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6 if precision == "fp32" else 2e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_is_standard_and_has_few_kinds_of_nodes(models, kind, precision):
    model = models[kind, precision]
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    inner = 2 if kind == "swiglu" else 0
    assert kinds.count("LayerNormalization") == 2 * 2 + 1 + inner
    assert kinds.count("Softmax") == 2
    assert kinds.count("Sigmoid") == (0 if kind == "gelu" else 2)
    assert "BatchNormalization" not in kinds
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    epsilons = [note.f for node in norms for note in node.attribute if note.name == "epsilon"]
    assert epsilons == pytest.approx([1e-6] * len(norms))
    attention = {
        node.op_type for node in model.graph.node if any("attn" in note.value for note in node.metadata_props)
    }
    assert not {"Shape", "Slice", "Squeeze", "Gather"}.intersection(attention)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_of_the_blocks_are_one_node_each(models, kind):
    nodes = models[kind, "fp32"].graph.node
    weights = {name for node in nodes if node.op_type == "Gemm" for name in node.input[1:]}
    mlp = ("fc1",) if kind == "gelu" else ("fc1_g", "fc1_x")
    for block in range(2):
        for layer in ("attn.qkv", "attn.proj", *(f"mlp.{each}" for each in (*mlp, "fc2"))):
            path = f"encoder.visual.blocks.{block}.{layer}"
            assert {f"{path}.weight", f"{path}.bias"} <= weights


@pytest.mark.parametrize("kind", KINDS)
def test_the_verification_knows_every_number_in_the_graph(graphs, models, kind):
    """It gives numbers the digits back that the exporter rounded off in half precision: those it knows."""
    model = models[kind, "fp16"].graph
    nodes = [attribute.t for node in model.node for attribute in node.attribute if attribute.name == "value"]
    numbers = {
        float(onnx.numpy_helper.to_array(each).item())
        for each in (*model.initializer, *nodes)
        if each.data_type == onnx.TensorProto.FLOAT16 and not each.dims
    }
    known = torch.tensor([*constants(graphs[kind, "fp16"].encoder.card), 0.5, 1.0]).half().tolist()
    assert numbers <= set(known)


@pytest.mark.parametrize("kind", KINDS)
def test_queries_keys_and_values_come_from_one_layer(encoders, kind):
    attention = encoders[kind].visual.blocks[0].attn
    layer, x = fused_qkv(attention), torch.randn(6, WIDTH)
    with torch.no_grad():
        keys = layer(x).split(WIDTH, dim=1)[1]
        weight = attention.k_proj.weight if attention.qkv is None else attention.qkv.weight[WIDTH : 2 * WIDTH]
        torch.testing.assert_close(keys, x @ weight.T)


def test_the_position_code_stays_float32_and_its_weights_unrounded(encoders, graphs):
    graph = graphs["swiglu", "fp16"]
    for name, parameter in graph.named_parameters():
        island = "pos_embed" in name or name.startswith("projection.")
        assert parameter.dtype == (torch.float32 if island else torch.float16), name
    for name, parameter in encoders["swiglu"].pos_embed.named_parameters():
        assert torch.equal(graph.encoder.pos_embed.module.get_parameter(name), parameter)


def test_the_encoder_is_left_as_it_is(encoders, projection):
    encoder = encoders["packed-swiglu"]
    before = copy.deepcopy(encoder.state_dict())
    EncoderGraph(encoder, Projection(projection), "fp16")
    assert before.keys() == encoder.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_parts_are_the_whole(encoders, projection, monkeypatch):
    from crossmost.export import exported_layers

    graph, inputs = EncoderGraph(encoders["gelu"], Projection(projection), "fp32"), draw(2)
    with torch.no_grad():
        whole = graph(*inputs)
        monkeypatch.setattr(exported_layers, "POINTS_AT_ONCE", 3 * 5)
        in_parts(graph.encoder.encoder, 5)
        torch.testing.assert_close(graph(*inputs), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_layer_is_named(graphs, models, tmp_path: Path, kind):
    damaged = copy.deepcopy(models[kind, "fp32"])
    name = "encoder.visual.blocks.1.mlp.fc2"
    for tensor in damaged.graph.initializer:
        if tensor.name == f"{name}.bias":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, tensor.name))
    onnx.save(damaged, tmp_path / "encoder.onnx")
    patches, centers = (each.numpy() for each in draw(2))
    found = first_departure(tmp_path / "encoder.onnx", graphs[kind, "fp32"], patches, centers, tolerance=1e-4)
    assert found == name
