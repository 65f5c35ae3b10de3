"""Layers of the point encoders, written so that a runtime computes them in few passes: same weights, same numbers.

Linear layers take two-dimensional input, which makes each one node with its bias; GELU is spelled as runtimes know
it; the queries of attention are scaled before the product, where nothing has to be copied for it.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from crossmost.models.point_bert import Block, PatchEncoder, PointBert

POINTS_AT_ONCE = 2048
"""Points of the patches that `in_parts` takes at a time: their features stay in the cache of a CPU core."""


class Float32Island(nn.Module):
    """A module that computes in float32 within a network of another precision."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.module = module.float()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, float32 in, the network's precision out."""
        return self.module(x).to(self.dtype)


def export_point_bert(encoder: PointBert, dtype: torch.dtype) -> None:
    """Bring a Point-BERT into its exported form, in place."""
    assert isinstance(encoder.encoder, PatchEncoder)
    encoder.encoder = ExportedPatchEncoder(encoder.encoder)
    for block in encoder.blocks.blocks:
        assert isinstance(block, Block)
        block.attn = ExportedAttention(block.attn.qkv, block.attn.proj, block.attn.heads)  # type: ignore[assignment]
        block.mlp = ExportedMlp(block.mlp.fc1, block.mlp.fc2)  # type: ignore[assignment]
    cast_around_position(encoder, dtype)


def cast_around_position(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Cast an encoder, in place, all but its `pos_embed`, which stays float32: centres are absolute."""
    position = copy.deepcopy(encoder.pos_embed)  # before the cast rounds its weights
    assert isinstance(position, nn.Module)
    encoder.to(dtype)
    encoder.pos_embed = Float32Island(position, dtype)


def fold_batch_norms(stage: nn.Sequential) -> None:
    """Multiply the running statistics of batch norms into the linear layers before them, in place."""
    for index, (linear, norm) in enumerate(pairwise(list(stage))):
        if isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            stage[index], stage[index + 1] = fuse_linear_bn_eval(linear, norm), nn.Identity()


def in_parts(layers: nn.Module, neighbors: int) -> None:
    """Let an exported patch encoder take a few patches at a time, in place: the same numbers, sooner on a CPU.

    On a GPU it would be a waste: its kernels want all patches at once. Layers of another kind stay as they are.
    """
    if isinstance(layers, ExportedPatchEncoder):
        layers.at_once = max(1, POINTS_AT_ONCE // neighbors)


class ExportedPatchEncoder(nn.Module):
    """mini-PointNet, see `PatchEncoder`: batch norms folded, the bias added once a patch, not once a point.

    It takes the layers over and changes them.
    """

    at_once: int | None = None
    """Patches a pass; None for all of them."""

    def __init__(self, layers: PatchEncoder):
        super().__init__()
        self.first_conv, self.second_conv = layers.first_conv, layers.second_conv
        fold_batch_norms(self.first_conv)
        fold_batch_norms(self.second_conv)
        mix: nn.Linear = layers.second_conv[0]  # type: ignore[assignment]
        width = mix.in_features // 2
        self.of_patch = linear(mix.weight[:, :width], mix.bias)
        self.of_point = linear(mix.weight[:, width:], None)
        self.second_conv[0] = nn.Identity()

    def forward(self, patches: Tensor) -> Tensor:
        """(B, G, K, channels) to (B, G, out)."""
        parts = patches.split(self.at_once or patches.shape[1], dim=1)
        tokens = [self.tokens(part) for part in parts]
        return torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0]

    def tokens(self, patches: Tensor) -> Tensor:
        """The same, all patches at once."""
        _, groups, neighbors, channels = patches.shape
        local = self.first_conv(patches.reshape(-1, channels))  # (B*G*K, local)
        highest = local.reshape(-1, neighbors, local.shape[-1]).amax(dim=1)  # (B*G, local)
        of_point, of_patch = self.of_point(local), self.of_patch(highest)
        width = of_patch.shape[-1]
        mixed = of_point.reshape(-1, neighbors, width) + of_patch[:, None]
        tokens = self.second_conv(mixed.reshape(-1, width))
        return tokens.reshape(-1, groups, neighbors, tokens.shape[-1]).amax(dim=2)


class ExportedAttention(nn.Module):
    """Multi-head self-attention: one linear layer gives queries, keys and values, in this order."""

    def __init__(self, qkv: nn.Linear, proj: nn.Linear, heads: int):
        super().__init__()
        self.qkv, self.proj, self.heads = qkv, proj, heads

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        _, tokens, width = x.shape
        head = width // self.heads
        parts = self.qkv(x.reshape(-1, width)).split(width, dim=1)
        q, k, v = (part.reshape(-1, tokens, self.heads, head).transpose(1, 2) for part in parts)
        weights = torch.softmax((q * head**-0.5) @ k.transpose(2, 3), dim=-1)  # (B, heads, T, T)
        mixed = (weights @ v).transpose(1, 2).reshape(-1, width)
        return self.proj(mixed).reshape(-1, tokens, width)


class ExportedMlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, fc1: nn.Linear, fc2: nn.Linear):
        super().__init__()
        self.fc1, self.fc2 = fc1, fc2

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        _, tokens, width = x.shape
        return self.fc2(gelu(self.fc1(x.reshape(-1, width)))).reshape(-1, tokens, width)


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, in the order of operations that ONNX Runtime and TensorRT make one kernel of."""
    return x * (torch.erf(x / math.sqrt(2.0)) + 1.0) * 0.5


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of a weight (out, in) and a bias (out,) or none."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
