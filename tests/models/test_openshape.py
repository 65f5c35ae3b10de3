"""OpenShape's Point-BERT against its description written out in float64 NumPy, its mask and its gradients."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from crossmost.adaptation import losses
from crossmost.models.grouping import ball_indices, farthest_point_indices, group
from crossmost.models.openshape import OpenShapeEncoder
from crossmost.models.point_cards import OpenShapeCard, load_point_card
from crossmost.models.student import unit

Array = NDArray[np.float64]
Patches = tuple[torch.Tensor, torch.Tensor]
LIMIT = 5e-5


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """openshape_reference.py, loaded by path: with importlib's import mode a folder of tests is no package."""
    spec = importlib.util.spec_from_file_location(
        "openshape_reference", Path(__file__).with_name("openshape_reference.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_card(**changes: Any) -> OpenShapeCard:
    numbers = {
        "name": "test", "points": 300, "groups": 12, "neighbors": 16, "radius": 0.4, "channels": 6,
        "token_widths": (8, 12, 20), "width": 24, "depth": 3, "heads": 4, "mlp_width": 40, "drop_path": 0.0,
    }  # fmt: skip
    return OpenShapeCard(**{**numbers, **changes})


def make_encoder(card: OpenShapeCard, seed: int = 0) -> OpenShapeEncoder:
    """An encoder in evaluation mode whose norms and tokens are anything but neutral."""
    torch.manual_seed(seed)
    encoder = OpenShapeEncoder(card)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2)
        for token in (encoder.cls_token, encoder.mask_token):
            token.normal_(std=0.5)
        for name, weight in encoder.transformer.named_parameters():
            if "fn" in name and name.endswith("weight"):
                weight.mul_(3)  # as drawn, the blocks would add so little that a slip in them could hide
        # So small before its norm that the norm's epsilon counts.
        for parameter in (encoder.lift.linear.weight, encoder.lift.linear.bias):
            parameter.mul_(0.1)
    return encoder.eval()


def make_cloud(points: int, seed: int = 0) -> NDArray[np.float32]:
    """A colored blob in the unit sphere, (n, 6) float32: dense in the middle, with single points outside."""
    draw = np.random.default_rng(seed)
    xyz = draw.normal(size=(points, 3))
    xyz -= xyz.mean(axis=0)
    xyz /= np.linalg.norm(xyz, axis=1).max()
    return np.concatenate([xyz, draw.random((points, 3))], axis=1).astype(np.float32)


def patches_of(card: OpenShapeCard, batch: int = 1, seed: int = 0) -> Patches:
    clouds = np.stack([make_cloud(card.points, seed + 100 * each) for each in range(batch)])
    return tuple(group(torch.from_numpy(clouds), card.groups, card.neighbors, radius=card.radius))  # type: ignore


@torch.no_grad()
def stages(
    encoder: OpenShapeEncoder, cloud: NDArray[np.float32], projection: Array, mask: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """The same of the module under test."""
    card, points = encoder.card, torch.from_numpy(cloud)[None]
    assert card.radius is not None
    chosen = farthest_point_indices(points, card.groups)
    centers = points[:, chosen[0], :3]
    found = {"sampled": chosen, "members": ball_indices(points, centers, card.neighbors, card.radius)}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.update({name: output})

    blocks = enumerate(encoder.transformer.layers)
    hooks = [encoder.encoder.register_forward_hook(keep("set abstraction"))]
    hooks += [block.register_forward_hook(keep(f"block {index}")) for index, block in blocks]
    groups = group(points, card.groups, card.neighbors, radius=card.radius)
    features = encoder(groups.patches, groups.centers, None if mask is None else mask[None])
    for hook in hooks:
        hook.remove()
    found |= {"tokens": features.tokens, "feature": features.feature}
    found["embedding"] = unit(features.feature @ torch.from_numpy(projection).float())
    return {name: value[0] for name, value in found.items()}


def deviations(found: dict[str, torch.Tensor], expected: dict[str, Array]) -> dict[str, float]:
    """max |d| / rms of each stage."""
    assert set(found) == set(expected)
    return {
        name: float(np.abs(found[name].numpy() - exact).max() / np.sqrt((exact**2).mean()))
        for name, exact in expected.items()
        if found[name].shape == exact.shape
    }


def make_projection(card: OpenShapeCard) -> Array:
    draw = np.random.default_rng(1)
    return draw.normal(size=(card.feature_width, 32)).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("name", ["openshape-pointbert-vitg14", "openshape-pointbert-vitl14"])
def test_the_published_encoders_agree_stage_by_stage(reference: ModuleType, name: str) -> None:
    card = load_point_card(name)
    assert isinstance(card, OpenShapeCard)
    encoder, cloud, projection = make_encoder(card), make_cloud(4000), make_projection(card)
    expected = reference.Exact(card, encoder.state_dict())(cloud, projection)
    found = stages(encoder, cloud, projection)
    full = (expected["members"][:, 1:] > expected["members"][:, :-1]).all(axis=1)
    assert 0 < full.sum() < card.groups  # some balls are cut at K, some are filled up to it
    for stage in ("sampled", "members"):
        assert np.array_equal(found[stage].numpy(), expected[stage])
    found_deviations = deviations(found, expected)
    assert len(found_deviations) == card.depth + 6
    assert max(found_deviations.values()) <= LIMIT


@pytest.mark.parametrize("seed", [0, 1])
def test_a_tiny_encoder_agrees_masked_and_in_training(reference: ModuleType, seed: int) -> None:
    card = tiny_card()
    encoder, cloud, projection = make_encoder(card, seed), make_cloud(300, seed), make_projection(card)
    mask = torch.arange(12) % 3 == seed
    exact = reference.Exact(card, encoder.state_dict())
    expected = exact(cloud, projection, mask.numpy())
    expected["tokens"] = exact(cloud, projection)["tokens"]  # as they were before masking
    assert max(deviations(stages(encoder, cloud, projection, mask), expected).values()) <= LIMIT
    exact = reference.Exact(card, encoder.state_dict(), batch_statistics=True)
    found = stages(encoder.train(), cloud, projection)
    assert max(deviations(found, exact(cloud, projection)).values()) <= LIMIT


@pytest.mark.parametrize(
    ("slip", "first"),
    [
        ({"gelu": "tanh_gelu"}, "block 0"),
        ({"heads": 2}, "block 0"),
        ({"epsilon": 1e-6}, "tokens"),
        ({"missing": 1}, "set abstraction"),
        ({"absolute_first": True}, "set abstraction"),
        ({"feature_first": True}, "tokens"),
        ({"last_norm": True}, "feature"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_small_slip_would_show_from_its_stage_on(
    reference: ModuleType, slip: dict[str, Any], first: str
) -> None:
    card = tiny_card(depth=2)
    encoder, cloud, projection = make_encoder(card), make_cloud(300), make_projection(card)
    if "gelu" in slip:
        slip = {"gelu": reference.tanh_gelu}
    wrong = reference.Exact(card, encoder.state_dict(), **slip)
    found = deviations(stages(encoder, cloud, projection), wrong(cloud, projection))
    order = [*(name for name in found if name not in ("feature", "embedding")), "feature", "embedding"]
    start = order.index(first)
    assert all(found[name] <= LIMIT for name in order[:start])
    assert all(found[name] > LIMIT for name in order[start:])


def test_what_the_encoder_returns() -> None:
    card = tiny_card()
    found = make_encoder(card)(*patches_of(card, 2))
    assert found.feature.shape == (2, 25)
    assert found.patches.shape == found.tokens.shape == (2, 12, 24)
    assert torch.equal(found.feature[:, :-1], found.cls)
    assert torch.equal(found.feature[:, -1], torch.ones(2))


@pytest.mark.parametrize("seed", range(3))
def test_a_patch_is_a_set_of_points_and_a_cloud_a_set_of_patches(seed: int) -> None:
    card, draw = tiny_card(), torch.Generator().manual_seed(seed)
    encoder, (patches, centers) = make_encoder(card), patches_of(card, 2, seed)
    points, groups = torch.randperm(16, generator=draw), torch.randperm(12, generator=draw)
    with torch.no_grad():
        found = encoder(patches, centers).feature
        of_points = encoder(patches[:, :, points], centers).feature
        of_groups = encoder(patches[:, groups], centers[:, groups]).feature
    torch.testing.assert_close(of_points, found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_groups, found, rtol=1e-4, atol=1e-5)


def test_a_cloud_alone_is_the_cloud_in_a_batch() -> None:
    card = tiny_card()
    encoder, (patches, centers) = make_encoder(card), patches_of(card, 3)
    with torch.no_grad():
        batch = encoder(patches, centers).feature
        alone = torch.cat([encoder(patches[[row]], centers[[row]]).feature for row in range(3)])
    torch.testing.assert_close(alone, batch, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(batch[0], batch[1], atol=1e-2)


def test_a_mask_hides_content_and_keeps_position() -> None:
    card = tiny_card()
    encoder, (patches, centers) = make_encoder(card), patches_of(card)
    mask = torch.arange(12)[None] == 3
    other, moved = patches.clone(), centers.clone()
    other[0, 3] += 1
    moved[0, 3] += 1
    with torch.no_grad():
        found = encoder(patches, centers, mask)
        assert torch.equal(found.feature, encoder(other, centers, mask).feature)
        assert not torch.allclose(found.feature, encoder(other, centers).feature)
        assert not torch.allclose(found.feature, encoder(patches, moved, mask).feature)
        other[0, 4] += 1
        assert not torch.allclose(found.feature, encoder(other, centers, mask).feature)
        assert torch.equal(found.tokens, encoder(patches, centers).tokens)  # as they were before masking
        nothing = encoder(patches, centers, torch.zeros_like(mask)).feature
        torch.testing.assert_close(nothing, encoder(patches, centers).feature)
        encoder.mask_token.neg_()
        assert not torch.allclose(found.feature, encoder(patches, centers, mask).feature)


def test_everything_hidden_leaves_positions_and_a_finite_answer() -> None:
    card = tiny_card()
    encoder, (patches, centers) = make_encoder(card), patches_of(card, 2)
    hidden = torch.ones(2, 12, dtype=torch.bool)
    found = encoder(patches, centers, hidden).feature
    assert torch.isfinite(found).all()
    assert torch.equal(found, encoder(5 * patches, centers, hidden).feature)
    assert not torch.allclose(found[0], found[1])


def test_a_cloud_of_equal_points_has_a_finite_feature() -> None:
    found = make_encoder(tiny_card())(torch.zeros(1, 12, 16, 6), torch.zeros(1, 12, 3))
    assert torch.isfinite(found.feature).all()


@pytest.mark.parametrize("target", ["token", "mask-token", "patch", None])
def test_training_reaches_every_parameter_it_should(target: str | None) -> None:
    """Without a mask nothing asks for the mask token; a head learns from its own target alone."""
    card = tiny_card()
    encoder, (patches, centers) = make_encoder(card).train(), patches_of(card, 2)
    mask = None if target is None else torch.arange(12).expand(2, -1) % 3 == 0
    features = encoder(patches, centers, mask)
    loss = features.feature.square().sum() + features.patches.square().sum()
    idle = {"lm_head", "patch_head"}
    if mask is None:
        idle.add("mask_token")
    elif target == "patch":
        loss = loss + losses.patch_reconstruction(encoder.patch_head(features.patches), patches, mask)
        idle.remove("patch_head")
    else:
        predicted = encoder.lm_head(features.patches)
        loss = loss + (
            losses.token_regression(predicted, features.tokens, mask)
            if target == "token"
            else losses.mask_token_regression(predicted, encoder.mask_token, mask)
        )
        idle.remove("lm_head")
    loss.backward()
    for name, parameter in encoder.named_parameters():
        reached = parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
        assert reached == (name.split(".")[0] not in idle), name
        # A batch norm takes away what a bias before it adds: its gradient is zero but for rounding.
        if reached and not (name.startswith("sa.mlp_convs") and name.endswith("bias")):
            assert parameter.grad.abs().max() > 0, name  # type: ignore[union-attr]


def test_the_patch_encoder_can_be_frozen_and_is_no_second_set_of_parameters() -> None:
    encoder = OpenShapeEncoder(tiny_card())
    assert not any(name.startswith("encoder") for name in encoder.state_dict())
    encoder.train().encoder.requires_grad_(False).eval()
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in encoder.named_parameters() if name.startswith("sa.")}
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder(*patches_of(tiny_card(), 2)).feature.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_stochastic_depth_rises_linearly_and_only_trains() -> None:
    card = tiny_card(drop_path=0.5)
    encoder, inputs = make_encoder(card), patches_of(card, 4)
    rates = [half.drop_path.rate for block in encoder.transformer.layers for half in block]
    assert rates == pytest.approx([0, 0, 0.25, 0.25, 0.5, 0.5])
    with torch.no_grad():
        assert torch.equal(encoder(*inputs).feature, encoder(*inputs).feature)
        encoder.transformer.train()
        assert not torch.equal(encoder(*inputs).feature, encoder(*inputs).feature)
