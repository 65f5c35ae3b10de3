"""The Point-BERT encoder (METHOD 1.3): patches and centres in, a point feature out.

An architecture is a card of numbers (`cards/*.json`); this file is the only code behind them. Parameter names
follow the published ULIP checkpoints, whose 1x1 convolutions are linear layers here.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from crossmost.errors import InputError


class PointCard(BaseModel):
    """The numbers of a point encoder and the conventions it was trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    points: int  # N: a larger cloud is thinned to this many
    groups: int  # G
    neighbors: int  # K
    channels: int  # 3 for xyz, 6 for xyz and rgb
    token_widths: tuple[int, int, int, int]  # widths of the mini-PointNet's four layers
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    drop_path: float = 0.1  # of the last block; rises linearly from 0
    learning_rate: float  # per 256 clouds: what suits a network of this size
    up_axis: str = "z"
    color_filler: float = 0.4  # rgb of a cloud without colour, where channels is 6

    @model_validator(mode="after")
    def _divisible(self) -> PointCard:
        if self.width % self.heads:
            raise ValueError(f"expected a width that is a multiple of {self.heads} heads, found {self.width}")
        return self

    @property
    def least(self) -> int:
        """Points a cloud is filled up to: the larger of G and K."""
        return max(self.groups, self.neighbors)


def list_point_cards() -> list[str]:
    """Names of the point encoders that ship with the package."""
    cards = files("crossmost.models").joinpath("cards").iterdir()
    return sorted(path.name.removesuffix(".json") for path in cards if path.name.startswith("point-"))


def load_point_card(name: str) -> PointCard:
    """Read the card of a point encoder by name.

    Raises:
        InputError: no such card.
    """
    if name not in list_point_cards():
        raise InputError(f"no point encoder '{name}': choose from {', '.join(list_point_cards())}")
    text = files("crossmost.models").joinpath("cards", f"{name}.json").read_text()
    return PointCard(**json.loads(text))


class PatchEncoder(nn.Module):
    """mini-PointNet: one token a patch, whatever the order of its points.

    The published code concatenates the patch's maximum to each point before the second stage. A linear layer
    of a concatenation is the sum of two products, and the maximum's product is needed once a patch, not once
    a point: the same numbers for fewer multiplications.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int, int]):
        super().__init__()
        first, local, mixed, out = widths
        self.first_conv = nn.Sequential(
            nn.Linear(channels, first), nn.BatchNorm1d(first), nn.ReLU(inplace=True), nn.Linear(first, local)
        )
        self.second_conv = nn.Sequential(
            nn.Linear(2 * local, mixed), nn.BatchNorm1d(mixed), nn.ReLU(inplace=True), nn.Linear(mixed, out)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(B, G, K, channels) to (B, G, out)."""
        batch, groups, neighbors, channels = patches.shape
        local = self.first_conv(patches.reshape(-1, channels))  # (B*G*K, local)
        local = local.reshape(batch * groups, neighbors, -1)
        highest = local.amax(dim=1, keepdim=True)  # (B*G, 1, local)
        mix: nn.Linear = self.second_conv[0]  # type: ignore[assignment]
        of_patch, of_point = mix.weight.split(local.shape[-1], dim=1)  # [global; local], METHOD 1.3.3
        mixed = nn.functional.linear(local, of_point, mix.bias) + nn.functional.linear(highest, of_patch)
        tokens = self.second_conv[1:](mixed.flatten(0, 1))
        return tokens.reshape(batch, groups, neighbors, -1).amax(dim=2)


class DropPath(nn.Module):
    """Stochastic depth: drops the residual branch of whole samples while training."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        if not self.training or self.rate == 0.0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.rate
        return branch * kept / (1.0 - self.rate)


class Attention(nn.Module):
    """Multi-head self-attention, qkv without bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, width / heads)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, card: PointCard, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(card.width)
        self.attn = Attention(card.width, card.heads)
        self.norm2 = nn.LayerNorm(card.width)
        self.mlp = Mlp(card.width, int(card.width * card.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Blocks(nn.Module):
    """The stack of blocks; the position code is added again before each (METHOD 1.3.5)."""

    def __init__(self, card: PointCard):
        super().__init__()
        rates = torch.linspace(0, card.drop_path, card.depth).tolist()
        self.blocks = nn.ModuleList(Block(card, rate) for rate in rates)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """(B, T, width) twice to (B, T, width)."""
        for block in self.blocks:
            x = block(x + position)
        return x


class PointFeatures(NamedTuple):
    """What the encoder says about a batch of clouds."""

    feature: Tensor  # (B, 2 * width): [class token; maximum over the patch tokens]
    cls: Tensor  # (B, width)
    patches: Tensor  # (B, G, width), after the transformer
    tokens: Tensor  # (B, G, width), before masking and before the transformer


class PointBert(nn.Module):
    """Point-BERT with the extra heads of masked modelling (METHOD 1.3)."""

    def __init__(self, card: PointCard):
        super().__init__()
        self.card = card
        width = card.width
        self.encoder = PatchEncoder(card.channels, card.token_widths)
        self.reduce_dim = nn.Linear(card.token_widths[-1], width)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = Blocks(card)
        self.norm = nn.LayerNorm(width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.lm_head = nn.Linear(width, width)  # predicts the token of a masked patch
        self.patch_head = nn.Linear(width, card.neighbors * 3)  # predicts the points of a masked patch
        for parameter in (self.cls_token, self.cls_pos, self.mask_token):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, patches: Tensor, centers: Tensor, mask: Tensor | None = None) -> PointFeatures:
        """Encode patches; masked ones keep their position and lose their content.

        Args:
            patches: (B, G, K, channels) float32, xyz relative to the centre.
            centers: (B, G, 3) float32.
            mask: (B, G) bool, True where the patch is hidden.
        """
        tokens = self.reduce_dim(self.encoder(patches))  # (B, G, width)
        visible = tokens
        if mask is not None:
            visible = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        batch = tokens.shape[0]  # not len(): tracing for export would take it as a constant
        x = torch.cat([self.cls_token.expand(batch, -1, -1), visible], dim=1)
        position = torch.cat([self.cls_pos.expand(batch, -1, -1), self.pos_embed(centers)], dim=1)
        x = self.norm(self.blocks(x, position))  # (B, 1 + G, width)
        cls, encoded = x[:, 0], x[:, 1:]
        return PointFeatures(torch.cat([cls, encoded.amax(dim=1)], dim=-1), cls, encoded, tokens)
