"""The cards of OpenShape's published encoders, and their parameters by name."""

import pytest
import torch
from pydantic import ValidationError

from crossmost.models.architectures import build_point_encoder
from crossmost.models.point_cards import OpenShapeCard, load_point_card


def published_state(encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Without what masked modelling adds."""
    ours = ("mask_token", "lm_head", "patch_head")
    return {name: value for name, value in encoder.state_dict().items() if not name.startswith(ours)}


@pytest.mark.parametrize(
    ("name", "patches", "radius", "widths", "hidden", "up", "projected", "numbers"),
    [
        ("openshape-pointbert-vitg14", (384, 64), 0.2, (64, 64, 256), 1536, "z-mirrored", 1280, 32_326_851),
        ("openshape-pointbert-vitl14", (64, 256), 0.4, (64, 64, 128), 1024, "y", 768, 25_692_227),
        ("openshape-pointbert-vitb32", (64, 256), 0.4, (64, 64, 128), 1024, "y", None, 25_298_243),
    ],
)
def test_the_published_cards(name, patches, radius, widths, hidden, up, projected, numbers):
    """`numbers` is what a published file holds: 4 bytes each, that is its size, or a third of it with an optimizer."""
    card = load_point_card(name)
    assert isinstance(card, OpenShapeCard)
    assert (card.points, card.channels, card.color_filler, card.drop_path) == (10000, 6, 0.4, 0.0)
    assert (card.groups, card.neighbors) == patches
    assert (card.radius, card.up_axis, card.token_widths, card.mlp_width) == (radius, up, widths, hidden)
    assert (card.width, card.depth, card.heads) == (512, 12, 8)
    held = sum(value.numel() for value in published_state(build_point_encoder(card)).values())
    assert held + (0 if projected is None else card.feature_width * projected) == numbers


def test_parameters_have_their_published_names_and_shapes():
    expected = {"cls_token": (512,), "lift.0.weight": (512, 259)}
    expected |= dict.fromkeys(("lift.0.bias", "lift.2.weight", "lift.2.bias"), (512,))
    for layer, (inputs, outputs) in enumerate([(9, 64), (64, 64), (64, 256)]):
        expected[f"sa.mlp_convs.{layer}.weight"] = (outputs, inputs)
        expected[f"sa.mlp_convs.{layer}.bias"] = (outputs,)
        for each in ("weight", "bias", "running_mean", "running_var"):
            expected[f"sa.mlp_bns.{layer}.{each}"] = (outputs,)
        expected[f"sa.mlp_bns.{layer}.num_batches_tracked"] = ()
    for layer in range(2):
        attention, mlp = (f"transformer.layers.{layer}.{half}" for half in (0, 1))
        for half in (attention, mlp):
            expected |= dict.fromkeys((f"{half}.norm.weight", f"{half}.norm.bias"), (512,))
        expected[f"{attention}.fn.to_qkv.weight"] = (1536, 512)
        expected |= {f"{attention}.fn.to_out.0.weight": (512, 512), f"{attention}.fn.to_out.0.bias": (512,)}
        expected |= {f"{mlp}.fn.net.0.weight": (1536, 512), f"{mlp}.fn.net.0.bias": (1536,)}
        expected |= {f"{mlp}.fn.net.3.weight": (512, 1536), f"{mlp}.fn.net.3.bias": (512,)}
    card = load_point_card("openshape-pointbert-vitg14").model_copy(update={"depth": 2})
    found = published_state(build_point_encoder(card))
    assert {name: tuple(value.shape) for name, value in found.items()} == expected


def test_a_card_without_color_is_refused():
    numbers = load_point_card("openshape-pointbert-vitg14").model_dump()
    OpenShapeCard(**numbers)
    with pytest.raises(ValidationError, match="channels"):
        OpenShapeCard(**numbers | {"channels": 3})
