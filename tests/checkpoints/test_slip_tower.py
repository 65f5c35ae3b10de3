"""SLIP's image weights in an `ImageTower`, against timm's transformer, which they were trained in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from crossmost.checkpoints.slip_tower import IMAGENET_MEAN, IMAGENET_STD, SLIP_IMAGE, slip_image_tower
from crossmost.data.augment import CLIP_MEAN, CLIP_STD
from crossmost.errors import InputError
from crossmost.models.clip import import_open_clip
from crossmost.models.image_tower import ImageTower, build_image_tower

import_open_clip()  # first: it repairs a torchvision that timm cannot import

from timm import create_model  # noqa: E402

NOT_OF_SLIP = ("mask_token", "ln_patch.", "decoder.")
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def timm_model() -> Any:
    """Two blocks whose every weight is drawn: timm starts biases at zero and norms at one."""
    torch.manual_seed(0)
    model = create_model("vit_base_patch16_224", num_classes=0, depth=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def weights(timm_model: Any) -> Weights:
    """As SLIP's file names them."""
    projection = torch.randn(768, 512, generator=torch.Generator().manual_seed(1)) * 768**-0.5
    named = {f"visual.{name}": value for name, value in timm_model.state_dict().items()}
    return {**named, "image_projection": projection, "logit_scale": torch.tensor(4.6)}


@pytest.fixture(scope="module")
def tower(weights: Weights) -> ImageTower:
    torch.manual_seed(2)
    tower = build_image_tower(replace(SLIP_IMAGE, layers=2)).eval()
    tower.load_state_dict({**tower.state_dict(), **slip_image_tower(weights)})
    return tower


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(3))


def normalize(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """As every loader of pictures does: (B, 3, H, W) of 0 to 1."""
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def apart(found: Tensor, expected: Tensor) -> float:
    """Of max|d| / rms."""
    return float((found - expected).abs().max() / expected.square().mean().sqrt())


@torch.no_grad()
def test_the_same_pictures_have_the_same_embeddings(
    timm_model: Any, weights: Weights, tower: ImageTower, pixels: Tensor
) -> None:
    theirs = timm_model(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD))
    ours = tower(normalize(pixels, CLIP_MEAN, CLIP_STD)).cls
    assert apart(ours, theirs) <= 5e-5
    assert apart(tower.project(ours), theirs @ weights["image_projection"]) <= 5e-5


@torch.no_grad()
def test_a_hidden_patch_is_the_mask_token_and_the_constant_of_the_patches(
    timm_model: Any, weights: Weights, tower: ImageTower, pixels: Tensor
) -> None:
    mask = torch.rand(3, 14, 14, generator=torch.Generator().manual_seed(4)) < 0.3
    constant = tower.visual.positional_embedding[1:] - weights["visual.pos_embed"][0, 1:]
    torch.testing.assert_close(constant, constant[:1].expand(196, -1), atol=1e-6, rtol=0)
    hidden = tower.mask_token[0, 0] + constant[0]

    def hide(_: Any, __: Any, tokens: Tensor) -> Tensor:
        return torch.where(mask.flatten(1)[..., None], hidden, tokens)

    hook = timm_model.patch_embed.register_forward_hook(hide)
    theirs = timm_model(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD))
    hook.remove()
    assert apart(tower(normalize(pixels, CLIP_MEAN, CLIP_STD), mask).cls, theirs) <= 5e-5


def test_the_published_tower_is_filled_whole() -> None:
    with torch.device("meta"):
        published = create_model("vit_base_patch16_224", num_classes=0).state_dict()
        expected = build_image_tower(SLIP_IMAGE).state_dict()
    empty = {f"visual.{name}": torch.zeros(()).expand(value.shape) for name, value in published.items()}
    found = slip_image_tower({**empty, "image_projection": torch.zeros(768, 512)})
    wanted = {n: v.shape for n, v in expected.items() if not n.startswith(NOT_OF_SLIP)}
    assert {name: value.shape for name, value in found.items()} == wanted


def test_the_weights_given_stay_as_they_are(weights: Weights) -> None:
    exact = {name: value.double() for name, value in weights.items()}
    before = {name: value.clone() for name, value in exact.items()}
    found = slip_image_tower(exact)
    assert all(torch.equal(exact[name], value) for name, value in before.items())
    assert {value.dtype for value in found.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("lost", "added", "what"),
    [
        ("visual.blocks.1.attn.qkv.bias", None, r"lacks weight 'visual\.blocks\.1\.attn\.qkv\.bias'"),
        ("visual.patch_embed.proj.bias", None, r"lacks weight 'visual\.patch_embed\.proj\.bias'"),
        ("image_projection", None, "lacks weight 'image_projection'"),
        (None, "visual.norm_pre.weight", r"unknown weight 'visual\.norm_pre\.weight'"),
        (None, "visual.blocks.1.ls1.gamma", r"unknown weight 'visual\.blocks\.1\.ls1\.gamma'"),
    ],
)
def test_a_tower_of_another_kind_is_refused(
    weights: Weights, lost: str | None, added: str | None, what: str
) -> None:
    changed = {name: value for name, value in weights.items() if name != lost}
    if added is not None:
        changed[added] = torch.zeros(768)
    with pytest.raises(InputError, match=what):
        slip_image_tower(changed)


def test_no_tower_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="lacks weight"):
        slip_image_tower({"point_encoder.cls_token": torch.zeros(1, 1, 384)})
