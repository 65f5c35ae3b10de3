"""A published checkpoint becomes a base: each tensor in its place, whatever it was wrapped in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from crossmost.checkpoints.base import load_base
from crossmost.checkpoints.convert import convert_checkpoint
from crossmost.checkpoints.layout import Layout
from crossmost.checkpoints.layouts import LAYOUTS
from crossmost.checkpoints.recognition import recognize
from crossmost.checkpoints.store import load_weights
from crossmost.cli import app
from crossmost.errors import InputError, WorkFailed
from crossmost.models.clip import import_open_clip
from crossmost.models.grouping import group
from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import load_point_card
from crossmost.models.student import LOGIT_SCALE, DualEncoder
from crossmost.runtime.class_bank import load_class_bank
from crossmost.runtime.vocabulary import load_vocabulary

State = dict[str, Tensor]
NAMES = (
    "ulip-pointbert", "ulip2-pointbert", "crossmost-pointbert", "openshape-pointbert-vitg14",
    "openshape-pointbert-vitl14", "openshape-pointbert-vitb32",
    "uni3d-ti", "uni3d-s", "uni3d-b", "uni3d-l", "uni3d-g",
)  # fmt: skip
WIDE, DIM = 24, 8
IMAGE = ImageCard(image_size=16, patch_size=8, width=16, layers=2, heads=2, output_dim=DIM, quick_gelu=True)


def layout_of(name: str) -> Layout:
    return next(layout for layout in LAYOUTS if layout.card.name == name)


def small_layout(name: str) -> Layout:
    """A layout around a small point encoder and image tower."""
    layout = layout_of(name)
    smaller: dict[str, Any] = {"width": WIDE, "depth": 2, "heads": 2}
    smaller["token_widths"] = tuple(8 + 2 * index for index in range(len(layout.card.token_widths)))
    if "mlp_width" in type(layout.card).model_fields:
        smaller["mlp_width"] = 20 + NAMES.index(name)  # no two alike
    # A model without a projection has as many numbers as its encoder is wide.
    dim = WIDE if name == "openshape-pointbert-vitb32" else DIM
    image = layout.image and replace(
        layout.image,
        card=IMAGE if layout.image.card.pre_norm else replace(IMAGE, pre_norm=False, norm_eps=1e-6),
    )
    return replace(layout, card=layout.card.model_copy(update=smaller), dim=dim, image=image)


SMALL = tuple(small_layout(name) for name in NAMES)


def point_state(published: ModuleType, name: str, layout: Layout | None = None) -> State:
    """The point branch of a published checkpoint, without wrapper and prefix."""
    layout = layout or SMALL[NAMES.index(name)]
    card, dim = layout.card, layout.dim
    match name.split("-")[0], name:
        case ("ulip" | "ulip2", _):
            return published.fill(published.point_bert(card, dim))
        case ("crossmost", _):
            return published.fill(published.cross_most(card, dim))
        case ("openshape", "openshape-pointbert-vitb32"):
            return published.fill(published.openshape(card, None, ""))
        case ("openshape", _):
            return published.fill({"logit_scale": (), **published.openshape(card, dim)})
    head = 0 if card.fused_qkv and card.mlp == "packed-swiglu" else 5
    return published.fill(published.uni3d(card, dim, head=head), torch.float16)


def wrapped(published: ModuleType, name: str, state: State) -> dict[str, Any]:
    """As the scripts of its makers save it."""
    if name == "crossmost-pointbert":
        return published.self_training(state, {key: value + 1 for key, value in state.items()})
    if name == "openshape-pointbert-vitg14":
        rest = {key: value for key, value in state.items() if key != "logit_scale"}
        return published.openshape_train(rest, state["logit_scale"])
    if name.startswith("openshape"):
        return published.prefixed(state, "pc_encoder.")
    if name.startswith("uni3d"):
        return published.deepspeed(state, "module." if name == "uni3d-b" else "")
    return published.ddp(state)


def expected_tensor(state: State, ours: str) -> Tensor | None:
    """Where a base's tensor of the point branch must come from, by hand; None where it is drawn."""
    if "patch_head" in ours:
        return None
    if ours == "point_projection":
        if "pc_projection" in state:
            return state["pc_projection"]
        weight = state.get("proj.weight", state.get("point_encoder.trans2embed.weight"))
        bias = state.get("proj.bias", state.get("point_encoder.trans2embed.bias"))
        if weight is None or bias is None:
            return torch.cat([torch.eye(WIDE), torch.zeros(1, WIDE)])
        return torch.cat([weight.T, bias[None]])
    own = ours.removeprefix("point_encoder.")
    return next((state[key] for key in (ours, own, f"ppat.{own}") if key in state), None)


def check_point_branch(state: State, base: State) -> None:
    for ours, value in base.items():
        if ours.startswith("image_tower."):
            continue
        expected = expected_tensor(state, ours)
        if expected is None:
            assert "mask_token" in ours or "_head" in ours or ours == "logit_scale", ours
            assert value.isfinite().all()
        else:
            assert value.dtype == (torch.int64 if "num_batches" in ours else torch.float32)
            assert torch.equal(value, expected.to(value.dtype).reshape(value.shape)), ours


def convert(tmp_path: Path, content: Any, **options: Any) -> tuple[DualEncoder, Any]:
    torch.save(content, tmp_path / "checkpoint.pt")
    options = {"layouts": SMALL, "overwrite": True} | options
    made = convert_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "base.safetensors", **options)
    model, architecture = load_base(tmp_path / "base.safetensors")
    assert architecture == made.architecture
    return model, made


@pytest.mark.parametrize("name", NAMES)
def test_each_tensor_arrives_in_its_place(tmp_path: Path, published: ModuleType, name: str) -> None:
    state = point_state(published, name)
    content = wrapped(published, name, state)
    model, made = convert(tmp_path, content)
    check_point_branch(state, model.state_dict())
    architecture = made.architecture
    assert architecture.point == SMALL[NAMES.index(name)].card
    assert architecture.image is None
    assert architecture.text == layout_of(name).text
    # Each key and each entry of the file is used once, or left out with a reason.
    used = [key for keys in made.sources.values() for key in keys]
    assert len(used) == len(set(used))
    assert set(used) | (made.left_out.keys() & state.keys()) == state.keys()
    assert not set(used) & made.left_out.keys()
    assert all(made.left_out.values())
    beside = content.keys() - {"state_dict", "model", "module", "logit_scale"}
    if name not in ("openshape-pointbert-vitl14", "openshape-pointbert-vitb32"):
        assert beside <= made.left_out.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_base_embeds(tmp_path: Path, published: ModuleType, name: str) -> None:
    model, made = convert(tmp_path, wrapped(published, name, point_state(published, name)))
    card = made.architecture.point
    clouds = torch.randn(2, 64, card.channels, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    groups = group(clouds, 8, 4, radius=card.radius)
    with torch.inference_mode():
        rows = model.embed_point(model.point_features(groups))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))


def test_dimensions_and_text_models() -> None:
    found = {layout.card.name: (layout.dim, layout.text) for layout in LAYOUTS}
    assert tuple(found) == NAMES
    assert found["ulip-pointbert"] == (512, "slip-vit-b-16/slip_base_100ep")
    assert found["ulip2-pointbert"] == (1280, "ViT-bigG-14/laion2b_s39b_b160k")
    assert found["crossmost-pointbert"] == (512, "ViT-B-16-quickgelu/openai")
    assert found["openshape-pointbert-vitg14"] == (1280, "ViT-bigG-14/laion2b_s39b_b160k")
    assert found["openshape-pointbert-vitl14"] == (768, "ViT-L-14-quickgelu/openai")
    assert found["openshape-pointbert-vitb32"] == (512, "ViT-B-32-quickgelu/openai")
    assert {found[name] for name in NAMES[6:]} == {(1024, "EVA02-E-14-plus/laion2b_s9b_b144k")}


@pytest.mark.parametrize(
    ("name", "groups", "neighbors", "channels", "points", "depth"),
    [
        ("ulip-pointbert", 512, 32, 3, 8192, 12),
        ("ulip2-pointbert", 512, 32, 6, 10000, 18),
        ("crossmost-pointbert", 64, 32, 3, 8192, 12),
    ],
)
def test_cards_of_the_point_berts(
    name: str, groups: int, neighbors: int, channels: int, points: int, depth: int
) -> None:
    card = load_point_card(name)
    found = card.groups, card.neighbors, card.channels, card.points, card.depth
    assert found == (groups, neighbors, channels, points, depth)
    assert (card.width, card.heads, card.up_axis, card.color_filler, card.radius) == (384, 6, "y", 0.4, None)


@pytest.mark.parametrize(
    "name", ["ulip-pointbert", "openshape-pointbert-vitl14", "openshape-pointbert-vitb32", "uni3d-ti"]
)
def test_a_full_size_checkpoint(tmp_path: Path, published: ModuleType, name: str) -> None:
    state = point_state(published, name, layout_of(name))
    torch.save(wrapped(published, name, state), tmp_path / "a.pt")
    made = convert_checkpoint(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert made.architecture.point == load_point_card(name)
    tensors = load_weights(tmp_path / "a.safetensors").tensors
    if name.endswith("vitb32"):
        assert torch.equal(tensors.pop("point_projection"), torch.cat([torch.eye(512), torch.zeros(1, 512)]))
    check_point_branch(state, tensors)


@pytest.mark.parametrize(
    ("file", "layout", "name", "maker"),
    [
        ("ulip_pointbert", None, "ulip-pointbert", "point_bert"),
        ("ulip2_pointbert", None, "ulip2-pointbert", "point_bert"),
        ("crossmost_official", "checkpoint_best", "crossmost-pointbert", "cross_most"),
        ("crossmost_official", "ulip_june11", "crossmost-pointbert", "cross_most"),
        ("openshape_pointbert", None, "openshape-pointbert-vitg14", "openshape"),
        ("uni3d_tiny", "deepspeed_module", "uni3d-ti", "uni3d"),
        ("uni3d_base", "deepspeed_module_prefixed", "uni3d-b", "uni3d"),
    ],
)
def test_the_published_layouts(
    tmp_path: Path,
    published: ModuleType,
    shared_layouts: Path,
    file: str,
    layout: str | None,
    name: str,
    maker: str,
) -> None:
    described = json.loads((shared_layouts / f"{file}.json").read_text("utf-8"))
    keys = {key: tuple(shape) for key, shape, _ in described["keys"]}
    sizes: dict[str, Any] = {}
    if maker == "uni3d":
        sizes = {"patches": 256} if name == "uni3d-ti" else {"patches": 1024, "head": 1000}
    assert getattr(published, maker)(load_point_card(name), layout_of(name).dim, **sizes) == keys
    torch.save(published.from_layout(described, layout), tmp_path / "a.pt")
    made = convert_checkpoint(tmp_path / "a.pt", tmp_path / "a.safetensors", name=name)
    assert made.title == layout_of(name).title
    half = any(dtype == "float16" for _, _, dtype in described["keys"])
    state = published.fill(keys, torch.float16 if half else torch.float32)
    if "logit_scale" not in state:
        state["logit_scale"] = torch.tensor(
            described["layouts"][described["default_layout"]]["top_level"]["logit_scale"]["values"][
                "module.logit_scale"
            ]
        )
    check_point_branch(state, load_weights(tmp_path / "a.safetensors").tensors)


def test_new_heads_are_the_same_in_each_conversion(tmp_path: Path, published: ModuleType) -> None:
    content = wrapped(published, "ulip-pointbert", point_state(published, "ulip-pointbert"))
    torch.manual_seed(1)
    model, made = convert(tmp_path, content)
    first = (tmp_path / "base.safetensors").read_bytes()
    torch.manual_seed(2)
    after = torch.rand(1)
    torch.manual_seed(2)
    convert_checkpoint(
        tmp_path / "checkpoint.pt", tmp_path / "base.safetensors", layouts=SMALL, overwrite=True
    )
    assert torch.equal(torch.rand(1), after)  # nobody else's draws have moved
    assert (tmp_path / "base.safetensors").read_bytes() == first
    assert any("lm_head" in name for name in made.new)
    assert 0.01 < model.point_encoder.mask_token.std() < 0.03


def test_a_file_without_a_scale_gets_that_of_clip(tmp_path: Path, published: ModuleType) -> None:
    state = point_state(published, "openshape-pointbert-vitb32")
    assert "logit_scale" not in state
    model, made = convert(tmp_path, published.prefixed(state, "pc_encoder."))
    assert model.logit_scale.item() == pytest.approx(LOGIT_SCALE)
    assert "logit_scale" in made.new


def test_the_teacher(tmp_path: Path, published: ModuleType) -> None:
    state = point_state(published, "crossmost-pointbert")
    content = wrapped(published, "crossmost-pointbert", state)
    model, made = convert(tmp_path, content, network="teacher")
    check_point_branch({key: value + 1 for key, value in state.items()}, model.state_dict())
    assert "--network student" in made.left_out["model"]


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_other_forms_of_a_file_give_the_same_base(tmp_path: Path, published: ModuleType, suffix: str) -> None:
    state = point_state(published, "uni3d-b")
    model, _ = convert(tmp_path, published.deepspeed(state))
    other = tmp_path / f"other{suffix}"
    if suffix == ".bin":
        torch.save(state, other, _use_new_zipfile_serialization=False)
    else:
        save_file(state, other)
    convert_checkpoint(other, tmp_path / "other_base.safetensors", layouts=SMALL)
    again, _ = load_base(tmp_path / "other_base.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


# Image towers.


def cross_most_images(published: ModuleType, card: ImageCard = IMAGE, masked: bool = True) -> State:
    shapes = published.clip_visual(card.image_size, card.patch_size, card.width, card.layers)
    more = published.masked_visual(card.patch_size, card.width) if masked else {}
    return published.fill({**shapes, **more, "image_projection": (card.width, DIM)}, seed=5)


@pytest.mark.parametrize("masked", [True, False])
def test_cross_most_brings_its_image_tower(tmp_path: Path, published: ModuleType, masked: bool) -> None:
    images = cross_most_images(published, masked=masked)
    state = point_state(published, "crossmost-pointbert") | images
    model, made = convert(tmp_path, wrapped(published, "crossmost-pointbert", state))
    assert made.architecture.image == IMAGE
    check_point_branch(state, model.state_dict())
    tower = model.images()
    found = tower.state_dict()
    for key, value in images.items():
        ours = {"image_projection": "projection", "visual.mask_token_embedding": "mask_token"}.get(key, key)
        ours = ours.replace("visual.ln_patch", "ln_patch").replace("visual.decoder", "decoder")
        assert torch.equal(found[ours], value), key
    assert any("decoder" in name for name in made.new) == (not masked)


def test_its_image_tower_is_open_clips(tmp_path: Path, published: ModuleType) -> None:
    images = cross_most_images(published)
    model, _ = convert(tmp_path, point_state(published, "crossmost-pointbert") | images)
    parts = import_open_clip().transformer
    original = parts.VisionTransformer(
        image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=4, output_dim=DIM,
        act_layer=parts.QuickGELU,
    ).eval()  # fmt: skip
    masking = ("mask_token_embedding", "ln_patch.", "decoder.")
    own = {key.removeprefix("visual."): value for key, value in images.items() if key.startswith("visual.")}
    own = {key: value for key, value in own.items() if not key.startswith(masking)}
    original.load_state_dict({**own, "proj": images["image_projection"]})
    pictures = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tower = model.images()
        assert torch.equal(tower.project(tower(pictures).cls), original(pictures))


def test_ulip_june11_is_known_by_its_images(tmp_path: Path, published: ModuleType) -> None:
    state = point_state(published, "crossmost-pointbert") | cross_most_images(published)
    state |= published.fill(published.text_tower())
    _, made = convert(tmp_path, published.ddp(state))
    assert made.architecture.text == "ViT-B-16-quickgelu/openai"
    assert "text tower" in made.left_out["token_embedding.weight"]
    assert made.also == ()


def slip_images(published: ModuleType) -> State:
    return published.fill({**published.slip_visual(16, 8, 16, 2), "image_projection": (16, DIM)}, seed=6)


def test_ulip_brings_the_image_tower_of_slip(tmp_path: Path, published: ModuleType) -> None:
    images = slip_images(published)
    state = point_state(published, "ulip-pointbert") | images | published.fill(published.text_tower())
    model, made = convert(tmp_path, wrapped(published, "ulip-pointbert", state))
    assert made.architecture.image == replace(IMAGE, quick_gelu=True, pre_norm=False, norm_eps=1e-6)
    check_point_branch(state, model.state_dict())
    found = model.images().state_dict()
    assert torch.equal(found["projection"], images["image_projection"])
    assert torch.equal(found["visual.ln_post.bias"], images["visual.norm.bias"])
    block = "visual.transformer.resblocks.1"
    assert torch.equal(found[f"{block}.attn.in_proj_weight"], images["visual.blocks.1.attn.qkv.weight"])
    assert torch.equal(found[f"{block}.mlp.c_proj.bias"], images["visual.blocks.1.mlp.fc2.bias"])
    assert torch.equal(found["visual.class_embedding"], images["visual.cls_token"][0, 0])
    # What it makes of pictures is compared with timm in test_slip_tower.
    assert set(made.sources["image_tower.visual.positional_embedding"]) == {
        "visual.pos_embed",
        "visual.patch_embed.proj.bias",
    }
    assert made.also == ()


def big_g(published: ModuleType) -> State:
    towers = (
        published.clip_visual(16, 8, 16, 2, "visual.") | published.text_tower() | {"visual.proj": (16, DIM)}
    )
    return published.prefixed(published.fill(towers, seed=7), "open_clip_model.")


def test_ulip_2_brings_its_image_tower_on_demand(tmp_path: Path, published: ModuleType) -> None:
    images = big_g(published)
    state = point_state(published, "ulip2-pointbert") | images
    content = wrapped(published, "ulip2-pointbert", state)
    model, made = convert(tmp_path, content)
    assert model.image_tower is None
    assert images.keys() <= made.left_out.keys()
    assert "--image keep" in made.left_out["open_clip_model.visual.proj"]
    model, made = convert(tmp_path, content, image="keep")
    found = model.images().state_dict()
    assert torch.equal(found["projection"], images["open_clip_model.visual.proj"])
    assert torch.equal(found["visual.conv1.weight"], images["open_clip_model.visual.conv1.weight"])
    assert "text tower" in made.left_out["open_clip_model.ln_final.weight"]


def test_no_image_tower_is_kept_where_none_is_wanted(tmp_path: Path, published: ModuleType) -> None:
    images = cross_most_images(published)
    state = point_state(published, "crossmost-pointbert") | images
    model, made = convert(tmp_path, wrapped(published, "crossmost-pointbert", state), image="none")
    assert model.image_tower is None
    assert images.keys() <= made.left_out.keys()


def test_no_image_tower_can_be_kept_where_there_is_none(tmp_path: Path, published: ModuleType) -> None:
    content = wrapped(published, "uni3d-s", point_state(published, "uni3d-s"))
    with pytest.raises(InputError, match="expected an image tower in it for --image keep"):
        convert(tmp_path, content, image="keep")


def test_an_image_tower_from_a_file(tmp_path: Path, published: ModuleType, tiny_clip: Any) -> None:
    layouts = [replace(SMALL[0], text=f"{tiny_clip.name}/x", dim=24)]
    state = point_state(published, "ulip-pointbert", layouts[0])
    model, made = convert(tmp_path, state, layouts=layouts, image=str(tiny_clip.weights))
    assert made.architecture.image == ImageCard(clip=tiny_clip.name)
    assert not any(name.startswith("image_tower.") for name in made.new)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(tiny_clip.model.encode_image(pictures), dim=-1)
        torch.testing.assert_close(model.embed_image(model.image_features(pictures)), expected)
    origin = f"{tiny_clip.name}/{tiny_clip.weights.name}"  # a file says no more
    assert f"image tower  {origin}, from --image: none of this file" in made.lines()
    assert made.to_dict()["image_origin"] == origin
    assert load_weights(tmp_path / "base.safetensors").metadata["image_tower"] == origin


def test_a_base_without_a_foreign_tower_names_none(tmp_path: Path, published: ModuleType) -> None:
    _, made = convert(tmp_path, point_state(published, "ulip-pointbert") | slip_images(published))
    assert not any(line.startswith("image tower") for line in made.lines())
    assert "image_tower" not in load_weights(tmp_path / "base.safetensors").metadata


@pytest.mark.parametrize(
    ("text", "tag", "found"),
    [
        ("ViT-B-32-quickgelu/openai", "laion400m_e32", "ViT-B-32-quickgelu/laion400m_e32"),
        ("ViT-B-16/laion2b_s34b_b88k", "datacomp_xl_s13b_b90k", "ViT-B-16/datacomp_xl_s13b_b90k"),
    ],
)
def test_the_image_tower_of_another_clip_is_refused(
    tmp_path: Path, published: ModuleType, text: str, tag: str, found: str
) -> None:
    layouts = [replace(SMALL[0], text=text)]
    state = point_state(published, "ulip-pointbert", layouts[0])
    with pytest.raises(InputError) as refusal:
        convert(tmp_path, state, layouts=layouts, image=tag)
    assert str(refusal.value) == (
        f"expected the image tower of {text}, whose the text embeddings are, found that of {found}, another space: "
        f"give --image {text.partition('/')[2]}, or a file with these weights"
    )
    assert not (tmp_path / "base.safetensors").exists()


@pytest.mark.parametrize(("name", "said"), [("uni3d-ti", "is timm's"), ("ulip-pointbert", "slip-vit-b-16")])
def test_towers_that_cannot_be_masked_are_refused(
    tmp_path: Path, published: ModuleType, name: str, said: str
) -> None:
    content = wrapped(published, name, point_state(published, name))
    with pytest.raises(InputError, match=rf"--image cannot give.*{said}.*point-only"):
        convert(tmp_path, content, image="laion2b_s9b_b144k")


# Trained class vectors.


def trained(published: ModuleType) -> State:
    vectors = torch.randn(DIM, 3, generator=torch.Generator().manual_seed(2))
    return point_state(published, "crossmost-pointbert") | {"classifier": vectors}


def test_trained_class_vectors_become_a_vocabulary(tmp_path: Path, published: ModuleType) -> None:
    state = trained(published)
    content = wrapped(published, "crossmost-pointbert", state)
    _, made = convert(tmp_path, content)
    assert "--classes" in made.left_out["classifier"]
    _, made = convert(tmp_path, content, classes=("mug", "bowl", "night stand"))
    assert made.classes == tmp_path / "base.classes.npz"
    assert "classifier" not in made.left_out
    vocabulary = load_vocabulary(made.classes)
    assert vocabulary.names == ("mug", "bowl", "night stand")
    assert vocabulary.tag == "ViT-B-16-quickgelu/openai"
    rows = torch.nn.functional.normalize(state["classifier"].T, dim=1).numpy()
    np.testing.assert_allclose(vocabulary.embeddings, rows, atol=1e-6)
    # Its logits are those of the published model.
    embedding = torch.nn.functional.normalize(torch.randn(4, DIM), dim=1)
    expected = state["logit_scale"].exp() * embedding @ state["classifier"]
    np.testing.assert_allclose(load_class_bank(made.classes).logits(embedding.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("mug", "bowl"), r"\(8, 2\) for 2 names, found 'classifier' of shape \(8, 3\)"),
        (("a", "a", "b"), "more than once"),
    ],
)
def test_other_class_names_are_refused(
    tmp_path: Path, published: ModuleType, names: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        convert(tmp_path, wrapped(published, "crossmost-pointbert", trained(published)), classes=names)
    assert not (tmp_path / "base.safetensors").exists()


def test_class_names_for_a_file_without_class_vectors_are_refused(
    tmp_path: Path, published: ModuleType
) -> None:
    with pytest.raises(InputError, match="expected trained class vectors"):
        convert(tmp_path, published.ddp(point_state(published, "ulip-pointbert")), classes=("mug",))


# Files.


def test_an_existing_base_is_replaced_on_demand_only(tmp_path: Path, published: ModuleType) -> None:
    content = wrapped(published, "crossmost-pointbert", trained(published))
    (tmp_path / "base.safetensors").write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        convert(tmp_path, content, overwrite=False)
    assert (tmp_path / "base.safetensors").read_text("utf-8") == "mine"
    convert(tmp_path, content)
    (tmp_path / "base.safetensors").unlink()
    (tmp_path / "base.classes.npz").write_text("mine")
    with pytest.raises(InputError, match=r"base\.classes\.npz exists"):
        convert(tmp_path, content, overwrite=False, classes=("a", "b", "c"))


@pytest.mark.parametrize("out", ["base.pt", "absent/base.safetensors", "checkpoint.safetensors"])
def test_places_to_write_that_will_not_do(tmp_path: Path, published: ModuleType, out: str) -> None:
    save_file(point_state(published, "ulip-pointbert"), tmp_path / "checkpoint.safetensors")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match="expected a"):
        convert_checkpoint(tmp_path / "checkpoint.safetensors", tmp_path / out, layouts=SMALL, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, published: ModuleType, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    torch.save(wrapped(published, "crossmost-pointbert", trained(published)), tmp_path / "checkpoint.pt")
    for room in (100, 4000):  # the class vectors do not fit; they do and the base does not
        with full_disk(room), pytest.raises(WorkFailed, match="cannot save"):
            convert_checkpoint(
                tmp_path / "checkpoint.pt",
                tmp_path / "base.safetensors",
                classes=("a", "b", "c"),
                layouts=SMALL,
            )
        assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, published: ModuleType) -> None:
    state = point_state(published, "ulip-pointbert")
    state["pc_projection"][3, 4] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity for 'point_projection'"):
        convert(tmp_path, published.ddp(state))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("running_var", -1.0, "expected variances of 0 or more, found -1"),
        ("logit_scale", 100.0, "expected the logarithm of what cosines are multiplied by, .* found 100"),
    ],
)
def test_weights_that_no_training_leaves_behind_are_refused(
    tmp_path: Path, published: ModuleType, key: str, value: float, said: str
) -> None:
    state = point_state(published, "ulip-pointbert")
    found = next(name for name in state if name.endswith(key))
    state[found] = torch.full_like(state[found], value)
    with pytest.raises(InputError, match=rf"\.pt: {said}.*{key}"):
        convert(tmp_path, published.ddp(state))


# The command.


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *(str(argument) for argument in arguments)])


@pytest.fixture
def checkpoint(tmp_path: Path, published: ModuleType) -> Path:
    """Uni3D's smallest in full."""
    state = point_state(published, "uni3d-ti", layout_of("uni3d-ti"))
    torch.save(published.deepspeed(state), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_the_command_prints_a_table(checkpoint: Path, tmp_path: Path) -> None:
    result = invoke(checkpoint, "--to", tmp_path / "base.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "Uni3D (tiny)" in result.stdout
    assert "  184  point_encoder" in result.stdout
    assert "    4  what the trunk needed for images" in result.stdout
    assert "point-only" in result.stdout or "points alone" in result.stdout
    notes = json.loads(load_weights(tmp_path / "base.safetensors").metadata["converted_from"])
    assert notes["file"] == "model.pt"
    assert len(notes["sha256"]) == 64


def test_the_command_prints_json(checkpoint: Path, tmp_path: Path) -> None:
    result = invoke(checkpoint, "--to", tmp_path / "base.safetensors", "--json", "--as", "uni3d-ti")
    found = json.loads(result.stdout)
    assert found["card"] == "uni3d-ti"
    assert found["text"] == "EVA02-E-14-plus/laion2b_s9b_b144k"
    assert found["image"] is None
    assert found["used"]["point_projection"] == [
        "point_encoder.trans2embed.weight",
        "point_encoder.trans2embed.bias",
    ]
    assert "point_encoder.visual.pos_embed" in found["left_out"]
    assert "global_steps" in found["left_out"]
    assert "point_encoder.lm_head.weight" in found["new"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--as", "uni3d-b"), "found those of Uni3D (tiny) (uni3d-ti): leave out --as"),
        (("--as", "no-such-card"), "no point encoder 'no-such-card'"),
        (("--network", "teacher"), "--network teacher"),
        (("--classes", "mug,bowl"), "expected trained class vectors"),
    ],
)
def test_what_does_not_fit_is_one_line(
    checkpoint: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    result = invoke(checkpoint, "--to", tmp_path / "base.safetensors", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not (tmp_path / "base.safetensors").exists()


def test_full_size_checkpoints_with_both_towers_of_clip(published: ModuleType) -> None:
    """All keys in their published shapes; no values."""
    text, text_g = published.text_tower(512, 512, 49408), published.text_tower(1280, 1280, 49408)
    clip = published.clip_visual(224, 16, 768, 12) | published.masked_visual(16, 768)
    slip = published.slip_visual(224, 16, 768, 12)
    images = {"image_projection": (768, 512)}
    expected = (
        ("ulip-pointbert", published.point_bert, {**slip, **images, **text}, "visual.norm.bias"),
        ("crossmost-pointbert", published.cross_most, {**clip, **images, **text}, "visual.decoder.0.bias"),
        (
            "crossmost-pointbert",
            published.cross_most,
            {**clip, **images, "classifier": (512, 40)},
            "image_projection",
        ),
        (
            "ulip2-pointbert",
            published.point_bert,
            published.prefixed(text_g, "open_clip_model."),
            "logit_scale",
        ),
    )
    for name, make, more, used in expected:
        layout = layout_of(name)
        shapes = {**make(layout.card, layout.dim), **more}
        counter = torch.zeros((), dtype=torch.int64)
        tensors = {
            key: counter if key.endswith("tracked") else torch.zeros(()).expand(shape)
            for key, shape in shapes.items()
        }
        (found,) = recognize(tensors, LAYOUTS, Path("a.pt"))
        assert found.card.name == name
        keys = {key for source in found.sources.values() for key in source.keys}
        assert used in keys
        assert keys | found.left_out.keys() == shapes.keys()
