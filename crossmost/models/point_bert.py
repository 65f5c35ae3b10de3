"""The Point-BERT encoder of ULIP, ULIP-2 and Cross-MoST (METHOD 1.3): patches and centres in, a point feature out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossmost.models.point_cards import PointBertCard
from crossmost.models.point_encoder import PointEncoder, PointFeatures


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
        return self.proj(attend(self.qkv(x), self.heads))


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Mix values by the likeness of queries and keys: (B, T, 3 width), side by side, to (B, T, width)."""
    batch, tokens, numbers = qkv.shape
    width = numbers // 3
    q, k, v = qkv.reshape(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    mixed = nn.functional.scaled_dot_product_attention(q, k, v)  # (B, heads, T, width / heads)
    return mixed.transpose(1, 2).reshape(batch, tokens, width)


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

    def __init__(self, card: PointBertCard, drop_path: float):
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

    def __init__(self, card: PointBertCard):
        super().__init__()
        rates = torch.linspace(0, card.drop_path, card.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(card, rate) for rate in rates)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """(B, T, width) twice to (B, T, width)."""
        for block in self.blocks:
            x = block(x + position)
        return x


class PointBert(PointEncoder):
    """Point-BERT with the extra heads of masked modelling (METHOD 1.3)."""

    def __init__(self, card: PointBertCard):
        super().__init__(card)
        width = card.width
        self.encoder = PatchEncoder(card.channels, card.token_widths)
        self.reduce_dim = nn.Linear(card.token_widths[-1], width)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = Blocks(card)
        self.norm = nn.LayerNorm(width)
        self.add_heads(self.cls_token, self.cls_pos)

    def forward(self, patches: Tensor, centers: Tensor, mask: Tensor | None = None) -> PointFeatures:
        """Encode patches, see `PointEncoder`; the feature is [class token; maximum over the patch tokens]."""
        tokens = self.reduce_dim(self.encoder(patches))  # (B, G, width)
        batch = tokens.shape[0]  # not len(): tracing for export would take it as a constant
        x = torch.cat([self.cls_token.expand(batch, -1, -1), self.hide(tokens, mask)], dim=1)
        position = torch.cat([self.cls_pos.expand(batch, -1, -1), self.pos_embed(centers)], dim=1)
        x = self.norm(self.blocks(x, position))  # (B, 1 + G, width)
        cls, encoded = x[:, 0], x[:, 1:]
        return PointFeatures(torch.cat([cls, encoded.amax(dim=1)], dim=-1), cls, encoded, tokens)
