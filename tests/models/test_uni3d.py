"""Uni3D against its description in float64 NumPy, stage by stage; its batches, patches, mask and gradients."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from crossmost.models.grouping import farthest_point_indices, gather_points, group, nearest_indices
from crossmost.models.student import unit
from crossmost.models.uni3d import Uni3D

KINDS = ("gelu", "packed-swiglu", "swiglu")


@torch.no_grad()
def stages(
    encoder: Uni3D, cloud: NDArray[np.float32], projection: Tensor, mask: Any = None
) -> dict[str, Tensor]:
    """What `Exact.stages` returns, by the encoder itself."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: found.__setitem__(name, output[0])

    hooks = [
        block.register_forward_hook(keep(f"visual.blocks.{index}"))
        for index, block in enumerate(encoder.visual.blocks)
    ]
    groups = group(torch.from_numpy(cloud)[None], encoder.card.groups, encoder.card.neighbors)
    features = encoder(groups.patches, groups.centers, mask)
    for hook in hooks:
        hook.remove()
    embedding = unit(features.feature @ projection)[0]
    return {"tokens": features.tokens[0], **found, "cls": features.cls[0], "embedding": embedding}


def deviations(uni3d: ModuleType, found: dict[str, Tensor], expected: dict[str, Any]) -> dict[str, float]:
    assert list(found) == list(expected)
    return {name: uni3d.deviation(found[name], expected[name]) for name in expected}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_points_are_sampled_and_grouped(uni3d: ModuleType, seed: int) -> None:
    card, cloud = uni3d.small_card("gelu"), uni3d.make_cloud(seed=seed)
    exact, points = uni3d.Exact(uni3d.make_encoder(card)), torch.from_numpy(cloud)[None]
    chosen = farthest_point_indices(points, card.groups)
    assert chosen[0].tolist() == exact.sampled(cloud.astype(np.float64))
    nearest = nearest_indices(points, gather_points(points[..., :3], chosen), card.neighbors)
    for index, row in zip(chosen[0].tolist(), nearest[0].tolist(), strict=True):
        assert row == exact.neighbors(cloud.astype(np.float64), cloud[index, :3].astype(np.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_stage_agrees_with_the_description(uni3d: ModuleType, kind: str, seed: int) -> None:
    encoder, cloud = uni3d.make_encoder(uni3d.small_card(kind), seed), uni3d.make_cloud(seed=seed)
    projection = uni3d.make_projection(encoder.card.width)
    found = stages(encoder, cloud, projection)
    expected = uni3d.Exact(encoder).stages(cloud.astype(np.float64), projection.double().numpy())
    worst = deviations(uni3d, found, expected)
    assert max(worst.values()) <= uni3d.TOLERANCE, worst
    mask = torch.rand(1, encoder.card.groups, generator=torch.Generator().manual_seed(seed)) < 0.4
    exact = uni3d.Exact(encoder)
    expected = exact.stages(cloud.astype(np.float64), projection.double().numpy(), mask[0].numpy())
    worst = deviations(uni3d, stages(encoder, cloud, projection, mask), expected)
    assert max(worst.values()) <= uni3d.TOLERANCE, worst


ALL = ["one neighbour less", "torch's epsilon", "tanh", "rotary", "position before every block"]
SLIPS = [(kind, slip) for kind in KINDS for slip in ALL] + [
    ("swiglu", "halves exchanged"), ("packed-swiglu", "halves exchanged"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "slip"), SLIPS)
def test_a_small_slip_would_show(uni3d: ModuleType, kind: str, slip: str) -> None:
    encoder, cloud = uni3d.make_encoder(uni3d.small_card(kind)), uni3d.make_cloud()
    projection = uni3d.make_projection(encoder.card.width)
    wrong = uni3d.Exact(encoder, slip).stages(cloud.astype(np.float64), projection.double().numpy())
    found = deviations(uni3d, stages(encoder, cloud, projection), wrong)
    assert max(found.values()) > 2 * uni3d.TOLERANCE, found


@pytest.mark.parametrize("kind", KINDS)
def test_a_cloud_does_not_depend_on_its_batch(uni3d: ModuleType, kind: str) -> None:
    card = uni3d.small_card(kind)
    encoder, (patches, centers) = uni3d.make_encoder(card), uni3d.patches_of(card, 3)
    with torch.no_grad():
        together = encoder(patches, centers)
        assert together.feature.shape == (3, card.feature_width)
        assert together.patches.shape == together.tokens.shape == (3, card.groups, card.width)
        assert torch.equal(together.feature, torch.cat([together.cls, torch.ones(3, 1)], dim=1))
        for row in range(3):
            alone = encoder(patches[row : row + 1], centers[row : row + 1])
            torch.testing.assert_close(alone.feature[0], together.feature[row], rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 1000), kind=st.sampled_from(sorted(KINDS)))
@settings(max_examples=12, deadline=None)
def test_a_patch_is_a_set_of_points_and_a_cloud_a_set_of_patches(
    uni3d: ModuleType, seed: int, kind: str
) -> None:
    card, draw = uni3d.small_card(kind), torch.Generator().manual_seed(seed)
    encoder, (patches, centers) = uni3d.make_encoder(card), uni3d.patches_of(card, 1, seed)
    points = torch.randperm(card.neighbors, generator=draw)
    groups = torch.randperm(card.groups, generator=draw)
    with torch.no_grad():
        found = encoder(patches, centers).feature
        torch.testing.assert_close(
            encoder(patches[:, :, points], centers).feature, found, rtol=1e-4, atol=1e-5
        )
        shuffled = encoder(patches[:, groups], centers[:, groups]).feature
    torch.testing.assert_close(shuffled, found, rtol=1e-4, atol=1e-5)


def test_a_mask_hides_content_and_keeps_position(uni3d: ModuleType) -> None:
    card = uni3d.small_card("swiglu")
    encoder, (patches, centers) = uni3d.make_encoder(card), uni3d.patches_of(card, 1)
    mask = torch.zeros(1, card.groups, dtype=torch.bool)
    mask[0, 3] = True
    other, moved = patches.clone(), centers.clone()
    other[0, 3] += 1
    moved[0, 3] += 1
    with torch.no_grad():
        found = encoder(patches, centers, mask)
        assert torch.equal(found.feature, encoder(other, centers, mask).feature)
        assert not torch.allclose(found.feature, encoder(patches, moved, mask).feature)
        assert torch.equal(found.tokens, encoder(patches, centers).tokens)  # as they were before masking


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_the_embedding_gets_a_gradient(uni3d: ModuleType, kind: str) -> None:
    card = uni3d.small_card(kind)
    encoder, inputs = uni3d.make_encoder(card).train(), uni3d.patches_of(card, 3)
    mask = torch.zeros(3, card.groups, dtype=torch.bool)
    mask[:, ::3] = True
    (encoder(*inputs, mask).feature @ uni3d.make_projection(card.width)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        if not name.startswith(("lm_head.", "patch_head.")):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            # A bias right before a batch norm changes nothing.
            assert parameter.grad.abs().max() > 0 or name.endswith("_conv.0.bias"), name


def test_stochastic_depth_rises_linearly_and_only_trains(uni3d: ModuleType) -> None:
    card = uni3d.small_card("gelu", drop_path=0.5)
    encoder, inputs = uni3d.make_encoder(card), uni3d.patches_of(card, 4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.visual.blocks]
    assert rates == pytest.approx([0, 0.25, 0.5])
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in encoder.visual.blocks]
    with torch.no_grad():
        assert torch.equal(encoder(*inputs).feature, encoder(*inputs).feature)
        encoder.visual.train()
        assert not torch.equal(encoder(*inputs).feature, encoder(*inputs).feature)
    assert len(Uni3D(uni3d.small_card("gelu", depth=1, drop_path=0.5)).visual.blocks) == 1
