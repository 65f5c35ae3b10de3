from __future__ import annotations

import copy

import pytest
import torch

from crossmost.export.graph import EncoderGraph
from crossmost.models.student import Projection, unit


@pytest.fixture
def inputs(make_encoder):
    card = make_encoder().card
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(5, card.groups, card.neighbors, 3, generator=generator) * 0.1
    return patches, torch.randn(5, card.groups, 3, generator=generator) * 0.5


@pytest.fixture
def projection(make_encoder):
    return torch.randn(2 * make_encoder().card.width, 16, generator=torch.Generator().manual_seed(2))


def test_it_computes_what_encoder_and_projection_compute(make_encoder, inputs, projection):
    encoder = make_encoder().double()
    with torch.no_grad():
        exact = encoder(*(each.double() for each in inputs)).feature @ projection.double()
        found = EncoderGraph(make_encoder(), Projection(projection), "fp32")(*inputs)
    torch.testing.assert_close(found, unit(exact), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.99999), ("bf16", 0.999)])
def test_half_precision_is_close(make_encoder, inputs, projection, precision, least):
    with torch.no_grad():
        exact = EncoderGraph(make_encoder(), Projection(projection), "fp32")(*inputs)
        found = EncoderGraph(make_encoder(), Projection(projection), precision)(*inputs)
    assert found.dtype == torch.float32
    assert (exact * found).sum(dim=1).min() > least
    assert not torch.equal(exact, found)


def test_the_encoder_is_left_as_it_is(make_encoder, projection):
    encoder = make_encoder()
    before = copy.deepcopy(encoder.state_dict())
    EncoderGraph(encoder, Projection(projection), "fp16")
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert before.keys() == encoder.state_dict().keys()


def test_batch_norms_are_folded_and_heads_of_training_are_gone(make_encoder, projection):
    graph = EncoderGraph(make_encoder(), Projection(projection), "fp32")
    assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in graph.modules())
    assert not any("lm_head" in name or "patch_head" in name for name in graph.state_dict())


def test_float32_islands_keep_the_weights_unrounded(make_encoder, projection):
    encoder = make_encoder()
    graph = EncoderGraph(encoder, Projection(projection), "fp16")
    for name, parameter in graph.named_parameters():
        island = "pos_embed" in name or name.startswith("projection.")
        assert parameter.dtype == (torch.float32 if island else torch.float16), name
    island = dict(graph.encoder.pos_embed.named_parameters())
    for name, parameter in encoder.pos_embed.named_parameters():
        assert torch.equal(island[f"module.{name}"], parameter)
    assert torch.equal(graph.projection.matrix, projection)


def test_far_centers_are_not_rounded_to_half(make_encoder, projection, inputs):
    """Two centres that half precision cannot tell apart must still give two embeddings."""
    graph = EncoderGraph(make_encoder(), Projection(projection), "fp16")
    near = torch.full_like(inputs[1], 0.7)
    moved = near + 1e-4  # half precision steps by 5e-4 there
    assert torch.equal(near.half(), moved.half())
    island = graph.encoder.pos_embed.module
    with torch.no_grad():
        assert not torch.equal(island(near), island(moved))


@torch.no_grad()
def test_a_center_is_subtracted_before_lengths_are_taken(make_encoder, projection, inputs):
    encoder, center = make_encoder(), torch.randn(projection.shape[1])
    exact = copy.deepcopy(encoder).double()(*(each.double() for each in inputs)).feature @ projection.double()
    expected = torch.nn.functional.normalize(exact - center.double(), dim=1)
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 5e-3)):
        found = EncoderGraph(encoder, Projection(projection, center), precision)(*inputs)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
