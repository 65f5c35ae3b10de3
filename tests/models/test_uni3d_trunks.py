"""Uni3D against timm's own models, against the published keys and shapes, and its five cards."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossmost.models.architectures import build_point_encoder
from crossmost.models.point_cards import Uni3DCard, load_point_card
from crossmost.models.torchvision_cpu import repair_torchvision
from crossmost.models.uni3d import Uni3D

TRUNKS = {
    "uni3d-ti": "eva02_tiny_patch14_224", "uni3d-s": "eva02_small_patch14_224", "uni3d-b": "eva02_base_patch14_448",
    "uni3d-l": "eva02_large_patch14_448", "uni3d-g": "eva_giant_patch14_560",
}  # fmt: skip
HEADS_OF_TRAINING = ("lm_head.", "patch_head.", "mask_token")
LAYOUTS = Path(__file__).parents[3] / "shared" / "layouts"


def reference_trunk(name: str, **changes: Any) -> Any:
    """The image tower of timm, with random weights."""
    repair_torchvision()
    import timm

    return timm.create_model(TRUNKS[name], **changes).eval()


def shortened(uni3d: ModuleType, name: str) -> Uni3D:
    """An encoder of a published card's width, of two blocks, with as many patches as an image of 42 pixels."""
    card = load_point_card(name).model_copy(update={"depth": 2, "groups": 9, "neighbors": 16})
    assert isinstance(card, Uni3DCard)
    return uni3d.make_encoder(card)


@torch.no_grad()
def through_trunk(encoder: Uni3D, trunk: Any, inputs: tuple[Tensor, Tensor], rope: Tensor | None) -> Tensor:
    """The class token, by timm's blocks and norms in float64 with the encoder's weights, which it has by name."""
    ours = {
        name.removeprefix("visual."): value
        for name, value in encoder.state_dict().items()
        if "visual" in name
    }
    patches, centers = inputs
    missing, unexpected = trunk.load_state_dict(ours, strict=False)
    assert not unexpected
    assert not [each for each in missing if each.startswith(("blocks", "norm", "fc_norm"))]
    tokens = encoder.encoder2trans(encoder.encoder(patches))
    x = torch.cat([encoder.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    x = x + torch.cat([encoder.cls_pos.expand(len(tokens), -1, -1), encoder.pos_embed(centers)], dim=1)
    trunk, x = trunk.double(), x.double()
    for block in trunk.blocks:
        x = block(x, rope=rope)
    return trunk.fc_norm(trunk.norm(x[:, 0]))


@pytest.mark.parametrize("name", TRUNKS)
def test_timms_own_models_give_the_same_class_token(uni3d: ModuleType, name: str) -> None:
    encoder, trunk = shortened(uni3d, name), reference_trunk(name, depth=2, img_size=42)
    inputs = uni3d.patches_of(encoder.card, 2)
    with torch.no_grad():
        found = encoder(*inputs).cls
    assert uni3d.deviation(found, through_trunk(encoder, trunk, inputs, rope=None)) <= uni3d.TOLERANCE
    if trunk.rope is not None:
        rope = trunk.rope.get_embed().double()
        assert uni3d.deviation(found, through_trunk(encoder, trunk, inputs, rope=rope)) > uni3d.TOLERANCE


def full_size(name: str) -> Uni3D:
    with torch.device("meta"):
        encoder = build_point_encoder(load_point_card(name))
    assert isinstance(encoder, Uni3D)
    return encoder


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", TRUNKS)
def test_full_size_trunks_have_timms_names_and_shapes(name: str) -> None:
    encoder = full_size(name)
    with torch.device("meta"):
        trunk = reference_trunk(name)
    used = {
        key: shape for key, shape in shapes(trunk).items() if key.startswith(("blocks", "norm", "fc_norm"))
    }
    assert shapes(encoder.visual) == used
    block: Any = trunk.blocks[0]
    ours: Any = encoder.visual.blocks[0]
    assert (ours.attn.num_heads, ours.norm1.eps) == (block.attn.num_heads, block.norm1.eps)
    assert encoder.visual.fc_norm.eps == trunk.fc_norm.eps
    assert isinstance(trunk.norm, nn.Identity)


@pytest.mark.parametrize(("name", "layout"), [("uni3d-b", "uni3d_base"), ("uni3d-ti", "uni3d_tiny")])
def test_the_published_keys_and_shapes(name: str, layout: str) -> None:
    path = LAYOUTS / f"{layout}.json"
    if not path.is_file():
        pytest.skip("the layouts of the published files are not here")
    facts = json.loads(path.read_text("utf-8"))
    left_out = tuple(each.removesuffix("*") for each in facts["unused_by_the_embedding"])
    published = {
        key.removeprefix("point_encoder."): tuple(shape[:2] if "conv" in key else shape)
        for key, shape, _dtype in facts["keys"]
        if not key.startswith((*left_out, "point_encoder.trans2embed"))
    }
    found = shapes(full_size(name))
    assert {key: shape for key, shape in found.items() if not key.startswith(HEADS_OF_TRAINING)} == published
    numbers, card = facts["hyper_parameters"], load_point_card(name)
    assert isinstance(card, Uni3DCard)
    assert (card.groups, card.neighbors, card.token_widths[-1], card.width, card.depth, card.heads) == tuple(
        numbers[key]
        for key in ("num_group", "group_size", "pc_encoder_dim", "pc_feat_dim", "depth", "num_heads")
    )
    assert (card.channels, card.color_filler) == (6, facts["input"]["missing_colour"])
    assert facts["input"]["up_axis"].startswith(card.up_axis)
    assert [card.width + 1, numbers["embed_dim"]] == [card.feature_width, 1024]


@pytest.mark.parametrize("name", TRUNKS)
def test_cards_agree_on_what_all_sizes_share(name: str) -> None:
    card, base = load_point_card(name), load_point_card("uni3d-b")
    own = {"name", "width", "depth", "heads", "mlp_width", "mlp", "fused_qkv"}
    assert card.model_dump(exclude=own) == base.model_dump(exclude=own)
    assert card.points >= card.least == 512
