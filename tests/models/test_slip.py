"""SLIP's text tower out of SLIP's and ULIP's files, against an independent one written from its description."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crossmost.errors import InputError
from crossmost.models.clip_text import load_text
from crossmost.models.slip import CONFIG, load_slip
from crossmost.models.text_tower import embed_classes, model_tag, text_tokenizer

WIDTH, HEADS, LAYERS = 512, 8, 12
VOCABULARY = 49408
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """The published names and shapes of the text tower; the layers at the scale that training starts from."""
    torch.manual_seed(0)
    made = {
        "token_embedding.weight": 0.02 * torch.randn(VOCABULARY, WIDTH),
        "positional_embedding": 0.01 * torch.randn(77, WIDTH),
        "ln_final.weight": 1 + 0.1 * torch.randn(WIDTH),
        "ln_final.bias": 0.1 * torch.randn(WIDTH),
        "text_projection": WIDTH**-0.5 * torch.randn(WIDTH, 512),
        "logit_scale": torch.tensor(4.0),
    }
    for layer in range(LAYERS):
        shapes = {
            "attn.in_proj_weight": (3 * WIDTH, WIDTH), "attn.in_proj_bias": (3 * WIDTH,),
            "attn.out_proj.weight": (WIDTH, WIDTH), "attn.out_proj.bias": (WIDTH,),
            "mlp.c_fc.weight": (4 * WIDTH, WIDTH), "mlp.c_fc.bias": (4 * WIDTH,),
            "mlp.c_proj.weight": (WIDTH, 4 * WIDTH), "mlp.c_proj.bias": (WIDTH,),
            "ln_1.weight": (WIDTH,), "ln_1.bias": (WIDTH,), "ln_2.weight": (WIDTH,), "ln_2.bias": (WIDTH,),
        }  # fmt: skip
        for name, shape in shapes.items():
            start = 1.0 if name in ("ln_1.weight", "ln_2.weight") else 0.0
            made[f"transformer.resblocks.{layer}.{name}"] = start + 0.5 * WIDTH**-0.5 * torch.randn(shape)
    return made


def beside(*, ulip: bool) -> State:
    made = {
        "visual.cls_token": torch.zeros(1, 1, 768),
        "visual.blocks.0.attn.qkv.weight": torch.zeros(3 * 768, 768),
        "image_projection": torch.zeros(768, 512),
    }
    if ulip:
        return {
            **made,
            "pc_projection": torch.zeros(768, 512),
            "point_encoder.cls_token": torch.zeros(1, 1, 384),
        }
    return {
        **made,
        "image_mlp.layer1.weight": torch.zeros(8, 768),
        "image_mlp.bn1.running_mean": torch.zeros(8),
    }


def save(path: Path, tensors: State) -> Path:
    """As SLIP's and ULIP's main.py save: DDP's prefix, and options and scores that are no tensors."""
    content = {
        "epoch": 100,
        "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()},
        "optimizer": {
            "state": {0: {"exp_avg": torch.zeros(3)}},
            "param_groups": [{"lr": 1e-3, "params": [0]}],
        },
        "scaler": {"scale": 65536.0},
        "best_acc1": np.float64(60.3),
        "args": argparse.Namespace(model="ULIP_PointBERT", npoints=8192, output_dir=Path("output")),
    }
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def slip_file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("slip") / "slip_base_100ep.pt", {**state, **beside(ulip=False)})


@pytest.fixture(scope="module")
def ulip_file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("ulip") / "checkpoint_best.pt", {**state, **beside(ulip=True)})


def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def encode(state: State, tokens: list[int]) -> Tensor:
    """One text, without its padding, head by head: (512,)."""
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"][: len(tokens)]
    for layer in range(LAYERS):
        own = {name.split(".", 3)[3]: value for name, value in state.items() if f"blocks.{layer}." in name}
        qkv = (
            normed(x, own["ln_1.weight"], own["ln_1.bias"]) @ own["attn.in_proj_weight"].T
            + own["attn.in_proj_bias"]
        )
        heads = []
        for query, key, value in zip(
            *(part.split(WIDTH // HEADS, -1) for part in qkv.split(WIDTH, -1)), strict=True
        ):
            scores = query @ key.T / (WIDTH // HEADS) ** 0.5
            seen = torch.ones_like(scores, dtype=torch.bool).tril()
            heads.append(scores.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ value)
        x = x + torch.cat(heads, -1) @ own["attn.out_proj.weight"].T + own["attn.out_proj.bias"]
        hidden = (
            normed(x, own["ln_2.weight"], own["ln_2.bias"]) @ own["mlp.c_fc.weight"].T + own["mlp.c_fc.bias"]
        )
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        x = x + hidden @ own["mlp.c_proj.weight"].T + own["mlp.c_proj.bias"]
    return normed(x, state["ln_final.weight"], state["ln_final.bias"])[-1] @ state["text_projection"]


def test_the_tower_is_slips(slip_file: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = text_tokenizer("slip-vit-b-16")(["a point cloud model of night stand.", "mug", "long " * 100])
    model = load_slip(str(slip_file))
    with torch.no_grad():
        ours = model.encode_text(tokens)
    theirs = torch.stack([encode(state, row[: int(row.argmax()) + 1].tolist()) for row in tokens])
    assert (ours - theirs).abs().max() <= 5e-5 * theirs.square().mean().sqrt()
    assert model.logit_scale.item() == 4.0
    assert {name for name, _ in model.named_parameters()} == set(state)
    monkeypatch.setitem(CONFIG, "quick_gelu", False)  # a slip that a cosine would not show
    with torch.no_grad():
        other = load_slip(str(slip_file)).encode_text(tokens)
    assert (other - theirs).abs().max() > 5e-4 * theirs.square().mean().sqrt()


def test_a_ulip_checkpoint_holds_the_same_tower(slip_file: Path, ulip_file: Path) -> None:
    made = [
        embed_classes(("mug", "bowl"), clip="slip-vit-b-16", weights=str(file), templates=("a {}.",))
        for file in (slip_file, ulip_file)
    ]
    np.testing.assert_array_equal(made[0].embeddings, made[1].embeddings)
    assert made[0].tag == made[1].tag == "slip-vit-b-16/slip_base_100ep"
    assert made[0].dim == 512


def test_other_files_of_the_family_keep_their_name(state: State, tmp_path: Path) -> None:
    file = save(tmp_path / "slip_base_25ep.pt", beside(ulip=False))
    assert model_tag("slip-vit-b-16", str(file)) == "slip-vit-b-16/slip_base_25ep.pt"
    assert (
        model_tag("slip-vit-b-16/slip_base_100ep", str(file)) == "slip-vit-b-16/slip_base_100ep"
    )  # if they say so


@pytest.mark.parametrize("clip", ["slip-vit-b-16", "slip-vit-b-16/slip_base_100ep"])
def test_without_its_file_the_place_is_named(clip: str) -> None:
    with pytest.raises(
        InputError, match=r"found no file: give --clip-weights slip_base_100ep.pt from https://dl\.fb"
    ):
        embed_classes(("mug",), clip=clip, weights=None)
    with pytest.raises(InputError, match=r"found 'nowhere\.pt': give --clip-weights"):
        embed_classes(("mug",), clip=clip, weights="nowhere.pt")


def test_other_models_of_the_same_shape_are_refused(state: State, ulip_file: Path, tmp_path: Path) -> None:
    """Cross-MoST's checkpoints have ULIP's names and CLIP's text tower."""
    clips = save(tmp_path / "clip.pt", {**beside(ulip=True), "visual.class_embedding": torch.zeros(768)})
    text = save(tmp_path / "text.pt", {"positional_embedding": state["positional_embedding"]})
    narrow = save(tmp_path / "narrow.pt", {**beside(ulip=False), "text_projection": torch.zeros(512, 512)})
    for file, message in (
        (clips, "expected a file of SLIP or ULIP, found CLIP's own towers"),
        (text, "expected a file of SLIP or ULIP, found no image_projection"),
        (narrow, "another architecture: expected 'ln_final.bias' .* found none"),
    ):
        with pytest.raises(InputError, match=message):
            load_slip(str(file))
    with pytest.raises(InputError, match="a file of SLIP or ULIP: give --clip slip-vit-b-16"):
        load_text("ViT-B-16-quickgelu", str(ulip_file))


class Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    torch.save({"state_dict": beside(ulip=False), "args": Touch(tmp_path / "owned")}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="could run code and was not loaded"):
        load_slip(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "owned").exists()
