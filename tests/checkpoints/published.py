"""Checkpoints with the key names and shapes of the published ones, in any size, wrapped as their scripts wrap them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossmost.models.point_cards import OpenShapeCard, PointBertCard, Uni3DCard

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, width: int, out: int, *ones: int) -> Shapes:
    return {f"{name}.weight": (out, width, *ones), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> Shapes:
    running = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return {**norm(name, width), **running, f"{name}.num_batches_tracked": ()}


def merge(parts: Iterable[Shapes]) -> Shapes:
    return {key: shape for part in parts for key, shape in part.items()}


def patch_encoder(channels: int, widths: tuple[int, int, int, int]) -> Shapes:
    first, local, mixed, out = widths
    start = "point_encoder.encoder"
    return {
        **linear(f"{start}.first_conv.0", channels, first, 1),
        **batch_norm(f"{start}.first_conv.1", first),
        **linear(f"{start}.first_conv.3", first, local, 1),
        **linear(f"{start}.second_conv.0", 2 * local, mixed, 1),
        **batch_norm(f"{start}.second_conv.1", mixed),
        **linear(f"{start}.second_conv.3", mixed, out, 1),
    }


def point_bert(card: PointBertCard, dim: int) -> Shapes:
    """ULIP's and ULIP-2's point branch."""
    width, hidden = card.width, int(card.width * card.mlp_ratio)
    blocks = (
        {
            **norm(f"{block}.norm1", width),
            f"{block}.attn.qkv.weight": (3 * width, width),
            **linear(f"{block}.attn.proj", width, width),
            **norm(f"{block}.norm2", width),
            **linear(f"{block}.mlp.fc1", width, hidden),
            **linear(f"{block}.mlp.fc2", hidden, width),
        }
        for block in (f"point_encoder.blocks.blocks.{index}" for index in range(card.depth))
    )
    return {
        "logit_scale": (),
        "pc_projection": (2 * width, dim),
        "point_encoder.cls_token": (1, 1, width),
        "point_encoder.cls_pos": (1, 1, width),
        **patch_encoder(card.channels, card.token_widths),
        **linear("point_encoder.reduce_dim", card.token_widths[-1], width),
        **linear("point_encoder.pos_embed.0", 3, 128),
        **linear("point_encoder.pos_embed.2", 128, width),
        **merge(blocks),
        **norm("point_encoder.norm", width),
    }


def cross_most(card: PointBertCard, dim: int) -> Shapes:
    """Cross-MoST's point branch."""
    width = card.width
    heads = {"point_encoder.mask_token": (1, 1, width), "point_encoder.proj": (width, dim)}
    return {**point_bert(card, dim), **heads, **linear("point_encoder.lm_head", width, width)}


def openshape(card: OpenShapeCard, dim: int | None, prefix: str = "ppat.") -> Shapes:
    """OpenShape's; no projection where `dim` is None."""
    width, inner = card.width, card.width
    ins = (9, *card.token_widths[:-1])
    layers = (
        {
            **norm(f"{layer}.0.norm", width),
            f"{layer}.0.fn.to_qkv.weight": (3 * inner, width),
            **linear(f"{layer}.0.fn.to_out.0", inner, width),
            **norm(f"{layer}.1.norm", width),
            **linear(f"{layer}.1.fn.net.0", width, card.mlp_width),
            **linear(f"{layer}.1.fn.net.3", card.mlp_width, width),
        }
        for layer in (f"{prefix}transformer.layers.{index}" for index in range(card.depth))
    )
    convolutions = (
        {
            **linear(f"{prefix}sa.mlp_convs.{index}", each, out, 1, 1),
            **batch_norm(f"{prefix}sa.mlp_bns.{index}", out),
        }
        for index, (each, out) in enumerate(zip(ins, card.token_widths, strict=True))
    )
    return {
        f"{prefix}cls_token": (width,),
        **merge(convolutions),
        **linear(f"{prefix}lift.0", 3 + card.token_widths[-1], width, 1),
        **norm(f"{prefix}lift.2", width),
        **merge(layers),
        **({} if dim is None else linear("proj", width, dim)),
    }


def uni3d(card: Uni3DCard, dim: int, *, patches: int = 4, head: int = 0) -> Shapes:
    """Uni3D's, with the parts of the image model that its trunk still has."""
    width = card.width
    visual = "point_encoder.visual"
    return {
        "logit_scale": (),
        "point_encoder.cls_token": (1, 1, width),
        "point_encoder.cls_pos": (1, 1, width),
        **patch_encoder(card.channels, card.token_widths),
        **linear("point_encoder.encoder2trans", card.token_widths[-1], width),
        **linear("point_encoder.trans2embed", width, dim),
        **linear("point_encoder.pos_embed.0", 3, 128),
        **linear("point_encoder.pos_embed.2", 128, width),
        f"{visual}.cls_token": (1, 1, width),
        f"{visual}.pos_embed": (1, 1 + patches, width),
        **linear(f"{visual}.patch_embed.proj", 3, width, 14, 14),
        **merge(eva_block(card, f"{visual}.blocks.{index}") for index in range(card.depth)),
        **norm(f"{visual}.fc_norm", width),
        **(linear(f"{visual}.head", width, head) if head else {}),
    }


def eva_block(card: Uni3DCard, block: str) -> Shapes:
    width, hidden = card.width, card.mlp_width
    if card.fused_qkv:
        attention = {f"{block}.attn.{each}_bias": (width,) for each in "qv"}
        attention[f"{block}.attn.qkv.weight"] = (3 * width, width)
    else:
        attention = {
            **linear(f"{block}.attn.q_proj", width, width),
            f"{block}.attn.k_proj.weight": (width, width),
            **linear(f"{block}.attn.v_proj", width, width),
        }
    first = {
        "gelu": linear(f"{block}.mlp.fc1", width, hidden),
        "packed-swiglu": linear(f"{block}.mlp.fc1", width, 2 * hidden),
        "swiglu": {
            **linear(f"{block}.mlp.fc1_g", width, hidden),
            **linear(f"{block}.mlp.fc1_x", width, hidden),
        },
    }[card.mlp]
    between = norm(f"{block}.mlp.norm", hidden) if card.mlp == "swiglu" else {}
    return {
        **norm(f"{block}.norm1", width),
        **attention,
        **linear(f"{block}.attn.proj", width, width),
        **norm(f"{block}.norm2", width),
        **first,
        **between,
        **linear(f"{block}.mlp.fc2", hidden, width),
    }


def transformer(prefix: str, width: int, layers: int) -> Shapes:
    """The blocks of CLIP, of either tower."""
    return merge(
        {
            **norm(f"{block}.ln_1", width),
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            **linear(f"{block}.attn.out_proj", width, width),
            **norm(f"{block}.ln_2", width),
            **linear(f"{block}.mlp.c_fc", width, 4 * width),
            **linear(f"{block}.mlp.c_proj", 4 * width, width),
        }
        for block in (f"{prefix}transformer.resblocks.{index}" for index in range(layers))
    )


def text_tower(dim: int = 8, width: int = 8, words: int = 16) -> Shapes:
    return {
        **transformer("", width, 2),
        "token_embedding.weight": (words, width),
        "positional_embedding": (77, width),
        **norm("ln_final", width),
        "text_projection": (width, dim),
    }


def clip_visual(size: int, patch: int, width: int, layers: int, prefix: str = "visual.") -> Shapes:
    """OpenAI's vision transformer without its projection."""
    return {
        f"{prefix}class_embedding": (width,),
        f"{prefix}positional_embedding": (1 + (size // patch) ** 2, width),
        f"{prefix}conv1.weight": (width, 3, patch, patch),
        **norm(f"{prefix}ln_pre", width),
        **transformer(prefix, width, layers),
        **norm(f"{prefix}ln_post", width),
    }


def masked_visual(patch: int, width: int) -> Shapes:
    """What Cross-MoST adds to it."""
    return {
        "visual.mask_token_embedding": (1, 1, width),
        **norm("visual.ln_patch", width),
        **linear("visual.decoder.0", width, 3 * patch * patch, 1, 1),
    }


def slip_visual(size: int, patch: int, width: int, layers: int) -> Shapes:
    """timm's vision transformer."""
    blocks = (
        {
            **norm(f"{block}.norm1", width),
            **linear(f"{block}.attn.qkv", width, 3 * width),
            **linear(f"{block}.attn.proj", width, width),
            **norm(f"{block}.norm2", width),
            **linear(f"{block}.mlp.fc1", width, 4 * width),
            **linear(f"{block}.mlp.fc2", 4 * width, width),
        }
        for block in (f"visual.blocks.{index}" for index in range(layers))
    )
    return {
        "visual.cls_token": (1, 1, width),
        "visual.pos_embed": (1, 1 + (size // patch) ** 2, width),
        **linear("visual.patch_embed.proj", 3, width, patch, patch),
        **merge(blocks),
        **norm("visual.norm", width),
    }


def fill(
    shapes: Mapping[str, Iterable[int]], dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Draw every tensor; variances are positive and counters count."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1234 + len(state))
            continue
        drawn = torch.randn(tuple(shape), generator=generator) * 0.1
        state[key] = (drawn.abs() + 0.5 if key.endswith("running_var") else drawn).to(dtype)
    return state


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def options() -> argparse.Namespace:
    return argparse.Namespace(model="ULIP_PointBERT", npoints=8192, lr=0.003, gpu=None, betas=(0.9, 0.98))


def adam() -> dict[str, Any]:
    """An optimizer's state, with a learning rate as a schedule in NumPy leaves it."""
    moments = {"step": torch.tensor(7.0), "exp_avg": torch.zeros(4), "exp_avg_sq": torch.ones(4)}
    return {"state": {0: moments}, "param_groups": [{"lr": np.float64(1e-5), "params": [0]}]}


def ddp(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """As ULIP's main.py saves."""
    return {
        "epoch": 250,
        "state_dict": prefixed(state, "module."),
        "optimizer": adam(),
        "scaler": {"scale": 65536.0, "_growth_tracker": 0},
        "best_acc1": np.float64(60.3),
        "args": options(),
    }


def self_training(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> dict[str, Any]:
    """As Cross-MoST's save_model does."""
    return {
        "model": dict(student),
        "optimizer": adam(),
        "epoch": "best",
        "args": options(),
        "model_ema": dict(teacher),
    }


def openshape_train(state: Mapping[str, Tensor], logit_scale: Tensor) -> dict[str, Any]:
    """As OpenShape's train.py saves: the scale is beside the network."""
    return {
        "state_dict": prefixed(state, "module."),
        "logit_scale": {"module.logit_scale": logit_scale},
        "text_proj": None,
        "image_proj": None,
        "optimizer": adam(),
        "epoch": 100,
        "best_lvis_acc": torch.tensor(0.468),
    }


def deepspeed(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """As DeepSpeed saves, with the counters that it adds."""
    return {
        "module": prefixed(state, prefix),
        "global_steps": 1000,
        "dp_world_size": 8,
        "buffer_names": ["a"],
    }


def from_layout(layout: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """A checkpoint made straight from a description of a published one."""
    how = layout["layouts"][name or layout["default_layout"]]
    shapes = {key: shape for key, shape, _ in layout["keys"]}
    half = any(dtype == "float16" for _, _, dtype in layout["keys"])
    state = prefixed(fill(shapes, torch.float16 if half else torch.float32), how["prefix"])
    return {key: _entry(value, state) for key, value in how["top_level"].items()}


def _entry(value: Any, state: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    match value["kind"]:
        case "tensors":
            return state
        case "optimizer":
            return adam()
        case "namespace":
            return argparse.Namespace(**value["values"])
        case "state_dict":
            return {key: torch.tensor(number) for key, number in value["values"].items()}
        case "tensor":
            return torch.tensor(value["value"])
    return value["values"]
