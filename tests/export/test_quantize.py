from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from crossmost.errors import InputError
from crossmost.export.graph import EncoderGraph
from crossmost.export.graph_files import ENCODER, METADATA, write_graphs
from crossmost.export.parity import TOP1
from crossmost.export.quantize import (
    GATES,
    INT8_WEIGHTS,
    feed,
    int8_checks,
    quantize_encoder,
)
from crossmost.export.verification_clouds import VerificationClouds
from crossmost.models.student import Projection
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.manifest import INT8, Encoder
from crossmost.runtime.onnx_session import create_session
from crossmost.runtime.preprocess import prepare
from crossmost.runtime.sampling import group
from crossmost.runtime.vocabulary import Vocabulary

CLOUDS = 12


@pytest.fixture(scope="module")
def encoder(make_encoder):
    return make_encoder(depth=2, groups=20, neighbors=16)


@pytest.fixture(scope="module")
def projection(encoder):
    return torch.randn(2 * encoder.card.width, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def clouds():
    rng = np.random.default_rng(4)
    return [
        (rng.standard_normal((200, 3)) * rng.uniform(0.2, 1, 3)).astype(np.float32) for _ in range(CLOUDS)
    ]


@pytest.fixture(scope="module")
def bundle(encoder, projection, clouds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    card = encoder.card
    facts = Encoder("tiny", card.points, card.groups, card.neighbors, card.channels, card.up_axis, 0.4, 16)
    graph = EncoderGraph(encoder, Projection(projection), "fp32")
    write_graphs(graph, facts, "fp32", folder)
    before = (folder / ENCODER).read_bytes()
    assert quantize_encoder(folder, graph, clouds[:6]) == folder / INT8
    assert (folder / ENCODER).read_bytes() == before
    return folder


@pytest.fixture(scope="module")
def bank():
    rows = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return ClassBank.plain(Vocabulary(("a", "b", "c"), rows, 1.0))


def run(path, feeds):
    return create_session(path, threads=1).run(None, feeds)[0]


def batch(clouds, card):
    feeds = [feed(cloud, card) for cloud in clouds]
    return {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]}


def test_it_is_close_to_float32_and_not_the_same(bundle, encoder, clouds):
    feeds = batch(clouds, encoder.card)
    exact, found = run(bundle / ENCODER, feeds), run(bundle / INT8, feeds)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (exact * found).sum(axis=1).min() > 0.997
    assert np.abs(exact - found).max() > 1e-6


def test_linear_layers_are_integers_and_the_rest_is_not(bundle, encoder):
    model = onnx.load(bundle / INT8)
    onnx.checker.check_model(model, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    scaled = {
        node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    weights = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Gemm"}
    exact = [name for name in weights.values() if name not in scaled]
    assert exact
    assert set(exact) == {"encoder.encoder.first_conv.0.weight"}
    assert all(types[scaled[name]] == TensorProto.INT8 for name in weights.values() if name in scaled)
    # Every layer of the blocks is among them.
    assert sum("blocks" in scaled.get(name, "") for name in weights.values()) == 4 * encoder.card.depth
    products = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input}
    assert not products & scaled.keys()


def test_weights_leave_room_for_sums_of_16_bits(bundle):
    tensors = onnx.load(bundle / INT8).graph.initializer
    weights = [each for each in tensors if each.data_type == TensorProto.INT8 and len(each.dims) == 2]
    assert weights
    for tensor in weights:
        assert np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() <= 64


def test_each_weight_is_stored_once_and_outside_the_graph(bundle):
    model = onnx.load(bundle / INT8, load_external_data=False)
    large = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) >= 32 * 32]
    assert large
    places = {entry.value for tensor in large for entry in tensor.external_data if entry.key == "location"}
    assert places == {INT8_WEIGHTS}
    found = [
        tuple(entry.value for entry in tensor.external_data if entry.key == "offset") for tensor in large
    ]
    assert len(set(found)) == len(found)


def test_it_says_what_it_is(bundle):
    model = onnx.load(bundle / INT8, load_external_data=False)
    (note,) = (json.loads(entry.value) for entry in model.metadata_props if entry.key == METADATA)
    assert (note["graph"], note["precision"], note["encoder"]["name"]) == (INT8, "int8", "tiny")
    assert {entry.domain for entry in model.opset_import} == {""}
    assert str(bundle).encode() not in (bundle / INT8).read_bytes()


def test_the_batch_changes_nothing(bundle, encoder, clouds):
    together = run(bundle / INT8, batch(clouds, encoder.card))
    alone = np.concatenate([run(bundle / INT8, feed(cloud, encoder.card)) for cloud in clouds])
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_patches_in_parts_are_the_same_patches(bundle, encoder, projection, clouds, tmp_path, monkeypatch):
    from crossmost.export import exported_layers
    from crossmost.export.onnx_encoder import encoder_model

    monkeypatch.setattr(exported_layers, "POINTS_AT_ONCE", 7 * encoder.card.neighbors)
    graph = EncoderGraph(encoder, Projection(projection), "fp32")
    exported_layers.in_parts(graph.encoder.encoder, graph.encoder.card.neighbors)
    onnx.save(encoder_model(graph), tmp_path / ENCODER)
    feeds = batch(clouds, encoder.card)
    np.testing.assert_allclose(run(tmp_path / ENCODER, feeds), run(bundle / ENCODER, feeds), atol=1e-6)


def test_it_is_calibrated_on_the_patches_of_its_card(encoder, clouds):
    card = encoder.card.model_copy(update={"radius": 0.3})
    points = prepare(clouds[0], most=card.points, least=card.least, scattered=card.scattered)
    patches, _ = group(points, card.groups, card.neighbors, 0.3)
    np.testing.assert_array_equal(feed(clouds[0], card)["patches"], patches[None])


def test_no_cloud_to_calibrate_with_is_said(encoder, projection, tmp_path):
    with pytest.raises(InputError, match="expected clouds"):
        quantize_encoder(tmp_path, EncoderGraph(encoder, Projection(projection), "fp32"), [])


def test_checks_pass_and_a_broken_graph_fails_them(bundle, encoder, projection, clouds, bank, tmp_path):
    subject = VerificationClouds("some", tuple(map(str, range(CLOUDS))), tuple(clouds))
    options = {"batches": (1, 2, 4), "threads": 1}
    checks, accuracy = int8_checks(bundle, encoder, Projection(projection), bank, subject, **options)
    assert checks
    assert accuracy == {}
    marked = replace(subject, labels=np.zeros(CLOUDS, np.int64))
    _, accuracy = int8_checks(bundle, encoder, Projection(projection), bank, marked, **options)
    assert list(accuracy) == [INT8]
    assert 0 <= accuracy[INT8] <= 1
    assert all(check.passed and check.graph == INT8 for check in checks)
    assert {check.batch for check in checks} == {1, 2, 4}
    failed, _ = int8_checks(bundle, encoder, Projection(-projection), bank, subject, **options)
    assert not all(check.passed for check in failed)
    (tmp_path / INT8).write_bytes(b"no graph")
    (refused,), accuracy = int8_checks(tmp_path, encoder, Projection(projection), bank, marked, **options)
    assert accuracy == {}
    assert not refused.passed


@pytest.mark.parametrize(("clouds", "least"), [(1, 0.0), (32, 31 / 32), (100, 0.99), (907, 0.99)])
def test_a_few_clouds_may_hold_one_change(clouds, least):
    assert GATES[TOP1].among(clouds) == pytest.approx(least)
