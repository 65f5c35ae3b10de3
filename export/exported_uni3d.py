"""Uni3D in its exported form, see `exported_layers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crossmost.export.exported_layers import (
    ExportedAttention,
    ExportedMlp,
    ExportedPatchEncoder,
    cast_around_position,
    linear,
)
from crossmost.models.point_bert import PatchEncoder
from crossmost.models.point_cards import Uni3DCard
from crossmost.models.uni3d import Uni3D


def export_uni3d(encoder: Uni3D, dtype: torch.dtype) -> None:
    """Bring a Uni3D into its exported form, in place."""
    assert isinstance(encoder.card, Uni3DCard)
    kind = encoder.card.mlp
    assert isinstance(encoder.encoder, PatchEncoder)
    encoder.encoder = ExportedPatchEncoder(encoder.encoder)
    encoder.visual.blocks = nn.ModuleList(ExportedBlock(block, kind) for block in encoder.visual.blocks)
    cast_around_position(encoder, dtype)


class ExportedBlock(nn.Module):
    """Pre-norm transformer block, of timm's EVA."""

    def __init__(self, layers: Any, kind: str):
        super().__init__()
        self.norm1, self.norm2 = layers.norm1, layers.norm2
        self.attn = ExportedAttention(fused_qkv(layers.attn), layers.attn.proj, layers.attn.num_heads)
        self.mlp = exported_mlp(layers.mlp, kind)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def fused_qkv(layers: Any) -> nn.Linear:
    """One linear layer for queries, keys and values, whichever way an EVA attention keeps them."""
    if layers.qkv is not None:
        weight, query, value = layers.qkv.weight, layers.q_bias, layers.v_bias
    else:
        weight = torch.cat([layers.q_proj.weight, layers.k_proj.weight, layers.v_proj.weight])
        query, value = layers.q_proj.bias, layers.v_proj.bias
    return linear(weight, torch.cat([query, torch.zeros_like(query), value]))


def exported_mlp(layers: Any, kind: str) -> nn.Module:
    """The exported form of an EVA block's second half, of a kind that a card names."""
    if kind == "gelu":
        return ExportedMlp(layers.fc1, layers.fc2)
    if kind == "swiglu":
        return ExportedSwiGlu(layers.fc1_g, layers.fc1_x, layers.norm, layers.fc2)
    # Two layers make the halves where they are needed; one would have to be cut apart, which copies both.
    weights, biases = layers.fc1.weight.chunk(2), layers.fc1.bias.chunk(2)
    gate, value = (linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return ExportedSwiGlu(gate, value, layers.norm, layers.fc2)


class ExportedSwiGlu(nn.Module):
    """A linear layer times the SiLU of another, a norm if there is one, and a linear layer."""

    def __init__(self, gate: nn.Linear, value: nn.Linear, norm: nn.Module, fc2: nn.Linear):
        super().__init__()
        self.fc1_g, self.fc1_x, self.norm, self.fc2 = gate, value, norm, fc2

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        _, tokens, width = x.shape
        x = x.reshape(-1, width)
        hidden = nn.functional.silu(self.fc1_g(x)) * self.fc1_x(x)
        return self.fc2(self.norm(hidden)).reshape(-1, tokens, width)
