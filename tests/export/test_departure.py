from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
import torch

from crossmost.export.departure import (
    TOLERANCES,
    departure_in_torch,
    first_departure,
    layer_outputs,
    layer_tensors,
)
from crossmost.export.graph import EncoderGraph
from crossmost.export.onnx_encoder import encoder_model
from crossmost.export.weights import save_with_weights
from crossmost.models.student import Projection

BLOCK = "encoder.blocks.blocks"


@pytest.fixture(scope="module")
def encoder(make_encoder):
    """Two blocks whose layer norms have weights of their own: equal ones are stored once."""
    encoder = make_encoder(depth=2)
    for layer in encoder.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.bias, -0.5, 0.5)
    return encoder


@pytest.fixture(scope="module")
def projection(encoder):
    return torch.randn(2 * encoder.card.width, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def module(encoder, projection):
    return EncoderGraph(encoder, Projection(projection), "fp32")


@pytest.fixture(scope="module")
def inputs(encoder):
    card, rng = encoder.card, np.random.default_rng(0)
    patches = rng.normal(size=(2, card.groups, card.neighbors, 3), scale=0.1)
    return patches.astype(np.float32), rng.normal(size=(2, card.groups, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def graphs(encoder, projection, tmp_path_factory):
    """The encoder's graph in float32 and float16, each in a folder of its own."""
    folders = {}
    for precision in ("fp32", "fp16"):
        folder = tmp_path_factory.mktemp(precision)
        model = encoder_model(EncoderGraph(encoder, Projection(projection), precision))
        save_with_weights([(model, folder / "encoder.onnx")], folder / "weights.bin")
        folders[precision] = folder
    return folders


@pytest.fixture
def copied(graphs, tmp_path):
    """A copy of a graph that may be damaged."""

    def copy(precision):
        shutil.copytree(graphs[precision], tmp_path / precision)
        return tmp_path / precision / "encoder.onnx"

    return copy


def damage(path, name, by=5.0):
    """Change one weight of a graph, where it is stored."""
    model = onnx.load(path, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        values = np.frombuffer(tensor.raw_data, dtype).copy()
        values[0] += dtype.type(by)
        tensor.raw_data = values.tobytes()
        path.write_bytes(model.SerializeToString())
        return
    facts = {entry.key: entry.value for entry in tensor.external_data}
    with (path.parent / facts["location"]).open("r+b") as file:
        file.seek(int(facts["offset"]))
        value = np.frombuffer(file.read(dtype.itemsize), dtype) + dtype.type(by)
        file.seek(int(facts["offset"]))
        file.write(value.astype(dtype).tobytes())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_faithful_graph_departs_nowhere_and_is_left_alone(graphs, module, inputs, precision):
    before = {path: path.read_bytes() for path in graphs[precision].iterdir()}
    path = graphs[precision] / "encoder.onnx"
    assert first_departure(path, module, *inputs, tolerance=TOLERANCES[precision]) is None
    assert {path: path.read_bytes() for path in graphs[precision].iterdir()} == before


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("weight", "layer"),
    [
        ("encoder.encoder.first_conv.0.bias", "encoder.encoder.first_conv.0"),
        ("encoder.encoder.second_conv.3.bias", "encoder.encoder.second_conv.3"),
        ("encoder.reduce_dim.bias", "encoder.reduce_dim"),
        (f"{BLOCK}.0.norm1.weight", f"{BLOCK}.0.norm1"),
        (f"{BLOCK}.0.attn.proj.bias", f"{BLOCK}.0.attn.proj"),
        (f"{BLOCK}.1.mlp.fc1.bias", f"{BLOCK}.1.mlp.fc1"),
        ("encoder.norm.bias", "encoder.norm"),
        ("projection.matrix", "projection"),
    ],
)
def test_it_names_the_layer_whose_weight_was_damaged(copied, module, inputs, precision, weight, layer):
    path = copied(precision)
    damage(path, weight)
    assert first_departure(path, module, *inputs, tolerance=TOLERANCES[precision]) == layer


def test_the_damage_may_be_a_single_number_in_the_file_of_weights(copied, module, inputs):
    path = copied("fp32")
    model = onnx.load(path, load_external_data=False)
    external = {t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    # Weights of linear layers that follow a reshape are stored transposed, under a name of the exporter's.
    uses = {name: node for node in model.graph.node for name in node.input if name in external}
    name = next(name for name, node in uses.items() if f"{BLOCK}.1.mlp.fc2" in node.metadata_props[0].value)
    damage(path, name)
    assert first_departure(path, module, *inputs, tolerance=1e-4) == f"{BLOCK}.1.mlp.fc2"


def test_what_is_not_a_number_departs(copied, module, inputs):
    path = copied("fp32")
    damage(path, f"{BLOCK}.1.norm2.bias", by=np.nan)
    assert first_departure(path, module, *inputs, tolerance=1e-4) == f"{BLOCK}.1.norm2"


def test_layers_come_in_the_order_of_execution_and_have_a_tensor_each(graphs, module, inputs):
    outputs, tensors = layer_outputs(module, *inputs), layer_tensors(graphs["fp32"] / "encoder.onnx")
    order = list(outputs)
    wanted = ["encoder.encoder.first_conv.0", f"{BLOCK}.0.norm1", f"{BLOCK}.0.attn.qkv", f"{BLOCK}.1.mlp.fc2"]
    assert sorted(wanted, key=order.index) == wanted
    assert order[-1] == "projection"
    weighted = {name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    # The first linear layer of the second stage is used as two products, not called.
    assert weighted - {"encoder.encoder.second_conv.0"} <= outputs.keys() & tensors.keys()
    assert tensors["projection"] == "embedding"


def test_an_activation_in_place_does_not_change_what_was_kept(module, inputs):
    outputs = layer_outputs(module, *inputs)
    assert outputs["encoder.encoder.first_conv.0"].min() < 0 <= outputs["encoder.encoder.first_conv.2"].min()


def test_hooks_are_taken_off_again(module, inputs):
    layer_outputs(module, *inputs)
    assert not any(layer._forward_hooks for layer in module.modules())


def test_the_same_module_in_another_precision_is_compared_in_torch(encoder, projection, module, inputs):
    half = EncoderGraph(encoder, Projection(projection), "fp16")
    assert departure_in_torch(half, module, *inputs, tolerance=TOLERANCES["fp16"]) is None
    half.get_submodule(f"{BLOCK}.1.attn.proj").bias.data += 100
    assert departure_in_torch(half, module, *inputs, tolerance=TOLERANCES["fp16"]) == f"{BLOCK}.1.attn.proj"
