import copy

import pytest
import torch
from torch import nn

from crossmost.errors import InputError
from crossmost.models.clip import import_open_clip
from crossmost.models.image_tower import ImageCard, ImageTower, build_image_tower, layer_id

TINY = ImageCard(image_size=32, patch_size=8, width=64, layers=2, heads=2, output_dim=24)


@pytest.fixture
def tower() -> ImageTower:
    torch.manual_seed(0)
    return build_image_tower(TINY).eval()


def as_open_clip(tower: ImageTower) -> nn.Module:
    """open_clip's own module with the tower's weights."""
    visual = copy.deepcopy(tower.visual)
    visual.proj = nn.Parameter(tower.projection.detach().clone())
    return visual


def embed(tower: ImageTower, images: torch.Tensor) -> torch.Tensor:
    return tower.project(tower(images).cls)


def test_sizes_are_read_off_the_tower(tower):
    found = tower.size, tower.patch, tower.grid, tower.width, tower.dim, tower.depth
    assert found == (32, 8, 4, 64, 24, 2)
    assert tower.projection.shape == (64, 24)
    assert tower.visual.proj is None
    assert dict(tower.named_parameters())["projection"] is tower.projection


@torch.no_grad()
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_without_a_mask_it_is_open_clip_explicit(quick_gelu):
    card = ImageCard(**{**TINY.__dict__, "quick_gelu": quick_gelu})
    tower = build_image_tower(card).eval()
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(embed(tower, images), as_open_clip(tower)(images))
    activations = {type(module).__name__ for module in tower.modules()} & {"GELU", "QuickGELU"}
    assert activations == {"QuickGELU" if quick_gelu else "GELU"}


@torch.no_grad()
def test_a_tower_without_a_norm_before_its_blocks_and_with_another_epsilon():
    card = ImageCard(**{**TINY.__dict__, "pre_norm": False, "norm_eps": 1e-3})
    tower, images = build_image_tower(card).eval(), torch.randn(3, 3, 32, 32)
    assert not any(name.startswith("visual.ln_pre") for name in tower.state_dict())
    norms = [m for m in tower.visual.modules() if isinstance(m, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-3] * 5  # two in each block, one behind them
    assert torch.equal(embed(tower, images), as_open_clip(tower)(images))
    with_norm = build_image_tower(ImageCard(**{**TINY.__dict__, "norm_eps": 1e-3})).eval()
    with_norm.load_state_dict({**with_norm.state_dict(), **tower.state_dict()})
    assert not torch.allclose(embed(with_norm, images), embed(tower, images))


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_without_a_mask_it_is_open_clip_by_name(name):
    tower = build_image_tower(ImageCard(clip=name)).eval()
    with torch.device("meta"):
        original = import_open_clip().create_model(name, device="meta").visual
    original = original.to_empty(device="cpu").eval()
    original.load_state_dict({**tower.visual.state_dict(), "proj": tower.projection})
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(embed(tower, images), original(images))


@torch.no_grad()
@pytest.mark.parametrize("fixture", ["tiny_clip", "tiny_quickgelu_clip"])
def test_weights_come_from_the_file(fixture, request):
    clip = request.getfixturevalue(fixture)
    card = ImageCard(clip=clip.name, weights=str(clip.weights))
    images = torch.randn(2, 3, 32, 32)
    expected = clip.model.encode_image(images)
    assert torch.equal(embed(build_image_tower(card).eval(), images), expected)
    assert not torch.allclose(embed(build_image_tower(card, load_weights=False).eval(), images), expected)


def test_parameters_of_vit_b_16_are_as_many_as_published():
    with torch.device("meta"):
        card = ImageCard(image_size=224, patch_size=16, width=768, layers=12, heads=12, output_dim=512)
        tower = build_image_tower(card)
    counts = {name: p.numel() for name, p in tower.named_parameters()}
    assert counts.pop("projection") == 393_216
    assert sum(counts.values()) == 86_392_320  # METHOD 1.3: with mask token, ln_patch and decoder


def plain_forward(
    tower: ImageTower, images: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """METHOD 1.2 in float64, token by token."""
    tower = copy.deepcopy(tower).double()
    visual = tower.visual
    h = visual.conv1(images.double())  # (B, width, grid, grid)
    m = mask.double()[:, None]
    h = h * (1 - m) + tower.mask_token.view(1, -1, 1, 1) * m
    rows = [[h[b, :, i, j] for i in range(tower.grid) for j in range(tower.grid)] for b in range(len(h))]
    x = (
        torch.stack([torch.stack([visual.class_embedding, *row]) for row in rows])
        + visual.positional_embedding
    )
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks:
        x = block(x)
    return visual.ln_post(x)[:, 0], x[:, 1:]


@torch.no_grad()
def test_masked_forward_agrees_with_the_formula(tower):
    images, mask = torch.randn(3, 3, 32, 32), torch.rand(3, 4, 4) < 0.4
    cls, patches = plain_forward(tower, images, mask)
    found = tower(images, mask)
    assert found.patches.shape == (3, 16, 64)
    torch.testing.assert_close(found.cls.double(), cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.patches.double(), patches, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_pixels_do_not_leak(tower):
    images, mask = torch.randn(1, 3, 32, 32), torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    changed = images.clone()
    changed[:, :, 8:16, 16:24] = 9.0
    assert torch.equal(tower(images, mask).cls, tower(changed, mask).cls)
    assert not torch.allclose(tower(images).cls, tower(changed).cls)


def test_the_mask_token_learns_only_where_it_is_used(tower):
    images, mask = torch.randn(2, 3, 32, 32), torch.zeros(2, 4, 4, dtype=torch.bool)
    tower(images, mask).cls.sum().backward()
    assert tower.mask_token.grad.abs().max() == 0
    tower(images, ~mask).cls.square().sum().backward()
    assert tower.mask_token.grad.abs().max() > 0


@torch.no_grad()
def test_a_patch_is_decoded_to_its_own_pixels(tower):
    tokens = torch.zeros(1, 16, 64)
    background = tower.reconstruct(tokens)
    assert background.shape == (1, 3, 32, 32)
    tokens[0, 1 * 4 + 2] = 1.0  # row 1, column 2
    changed = (tower.reconstruct(tokens) != background).any(dim=1)[0]
    assert changed[8:16, 16:24].all()
    changed[8:16, 16:24] = False
    assert not changed.any()


def test_mask_token_starts_small():
    wide = build_image_tower(
        ImageCard(image_size=8, patch_size=8, width=1024, layers=1, heads=1, output_dim=4)
    )
    assert wide.mask_token.shape == (1, 1, 1024)
    assert wide.mask_token.std().item() == pytest.approx(0.02, rel=0.15)


def test_layer_ids_are_those_of_the_method(tower):
    ids = {name: layer_id(name, tower.depth) for name, _ in tower.named_parameters()}
    first = {"visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight"}
    first |= {"visual.ln_pre.weight", "visual.ln_pre.bias"}
    assert {name for name, number in ids.items() if number == 0} == first
    assert {n for name, n in ids.items() if ".resblocks.0." in name} == {1}
    assert {n for name, n in ids.items() if ".resblocks.1." in name} == {2}
    rest = {name for name, number in ids.items() if number == 3}
    assert {
        "projection",
        "mask_token",
        "ln_patch.weight",
        "decoder.0.weight",
        "visual.ln_post.weight",
    } <= rest
    assert set(ids.values()) == {0, 1, 2, 3}
    # Held by a student, and a point encoder's embedding beside it.
    assert layer_id("image_tower.visual.transformer.resblocks.11.ln_1.weight", 12) == 12
    assert layer_id("point_encoder.pos_embed.0.weight", 12) == 13
    assert layer_id("point_encoder.token_embedding.conv1.weight", 12) == 13


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("RN50", "is a ResNet"),
        ("ViT-B-16-SigLIP", "is timm's"),
        ("ViT-L-14-CLIPA", "pools without a class token"),
        ("coca_ViT-B-32", "pools without a class token"),
    ],
)
def test_towers_that_cannot_be_masked_are_refused(name, what):
    with pytest.raises(InputError, match=f"{what}; expected .*ViT-B-16"):
        build_image_tower(ImageCard(clip=name))


def test_patch_dropout_is_refused(tower):
    visual = as_open_clip(tower)
    visual.patch_dropout = import_open_clip().transformer.PatchDropout(0.5)
    with pytest.raises(InputError, match="patch dropout"):
        ImageTower(visual)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({}, "needs image_size, patch_size, width, layers, heads, output_dim too"),
        ({"clip": "ViT-B-32", "width": 64}, "an open_clip name or sizes"),
        ({"clip": "ViT-B-32", "quick_gelu": True}, "an open_clip name or sizes"),
        ({"clip": "ViT-B-32", "pre_norm": False}, "an open_clip name or sizes"),
        ({"clip": "ViT-B-32", "norm_eps": 1e-6}, "an open_clip name or sizes"),
        ({**TINY.__dict__, "weights": "openai"}, "need an open_clip name"),
        ({**TINY.__dict__, "patch_size": 7}, "image_size to be a multiple of patch_size, found 32 and 7"),
        ({**TINY.__dict__, "heads": 3}, "width to be a multiple of heads, found 64 and 3"),
        ({**TINY.__dict__, "norm_eps": 0.0}, "norm_eps above 0"),
        ({**TINY.__dict__, "layers": 0}, "layers of at least 1, found 0"),
    ],
)
def test_a_card_that_makes_no_tower_is_refused(fields, what):
    with pytest.raises(InputError, match=what):
        ImageCard(**fields)


def test_weights_that_are_asked_for_and_missing_are_an_error():
    with pytest.raises(InputError, match=r"expected a weights file or a tag of 'ViT-B-32'"):
        build_image_tower(ImageCard(clip="ViT-B-32", weights="nowhere.safetensors"))
