"""The Point-BERT of OpenShape: balls of coloured points and their centres in, the class token out."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from crossmost.models.point_bert import DropPath, attend
from crossmost.models.point_cards import OpenShapeCard
from crossmost.models.point_encoder import PointEncoder, PointFeatures, with_one

POINT_INPUTS = 9
"""What the first layer reads of a point: its offset from the centre, its place, its colour."""


class SetAbstraction(nn.Module):
    """Three layers over each point of a ball, then the maximum: the order of the points does not matter."""

    def __init__(self, widths: tuple[int, int, int]):
        super().__init__()
        layers = pairwise((POINT_INPUTS, *widths))
        self.mlp_convs = nn.ModuleList(nn.Linear(each, following) for each, following in layers)
        self.mlp_bns = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)

    def forward(self, patches: Tensor, centers: Tensor) -> Tensor:
        """(B, G, K, 6) and (B, G, 3) to (B, G, out)."""
        batch, groups, neighbors, _ = patches.shape
        offset, color = patches.split(3, dim=-1)
        place = offset + centers[:, :, None]
        x = torch.cat([offset, place, color], dim=-1).flatten(0, 2)  # (B*G*K, 9)
        for linear, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            x = torch.relu(norm(linear(x)))
        return x.reshape(batch, groups, neighbors, -1).amax(dim=2)


class Lift(nn.ModuleDict):
    """A ball's feature and centre to its token: one linear layer of [centre, feature], then a layer norm.

    A linear layer of a concatenation is the sum of two products: what the ball holds, and where it is.
    """

    def __init__(self, features: int, width: int):
        super().__init__({"0": nn.Linear(3 + features, width), "2": nn.LayerNorm(width)})

    @property
    def linear(self) -> nn.Linear:
        """Of [centre, feature]."""
        return self["0"]  # type: ignore[return-value]

    def content(self, features: Tensor) -> Tensor:
        """(B, G, features) to (B, G, width)."""
        return nn.functional.linear(features, self.linear.weight[:, 3:])

    def place(self, centers: Tensor) -> Tensor:
        """(B, G, 3) to (B, G, width)."""
        return nn.functional.linear(centers, self.linear.weight[:, :3], self.linear.bias)

    def norm(self, x: Tensor) -> Tensor:
        """(B, G, width) to the same."""
        return self["2"](x)


class SelfAttention(nn.Module):
    """Multi-head self-attention, queries, keys and values without bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        return self.to_out(attend(self.to_qkv(x), self.heads))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        # The published dropout, in the third place, drops nothing.
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        return self.net(x)


class Residual(nn.Module):
    """Half a pre-norm block: what a layer makes of the normalised input, added to the input."""

    def __init__(self, width: int, layer: nn.Module, drop_path: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = layer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        return x + self.drop_path(self.fn(self.norm(x)))


class Block(nn.ModuleList):
    """Pre-norm transformer block: attention, then two linear layers."""

    def __init__(self, card: OpenShapeCard, drop_path: float):
        layers = SelfAttention(card.width, card.heads), FeedForward(card.width, card.mlp_width)
        super().__init__(Residual(card.width, layer, drop_path) for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        attention, mlp = self
        return mlp(attention(x))


class Transformer(nn.Module):
    """The stack of blocks, with no norm behind the last; it never sees a position."""

    def __init__(self, card: OpenShapeCard):
        super().__init__()
        rates = torch.linspace(0, card.drop_path, card.depth, device="cpu").tolist()
        self.layers = nn.ModuleList(Block(card, rate) for rate in rates)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        for block in self.layers:
            x = block(x)
        return x


class OpenShapeEncoder(PointEncoder):
    """OpenShape's Point-BERT with the extra heads of masked modelling."""

    def __init__(self, card: OpenShapeCard):
        super().__init__(card)
        self.sa = SetAbstraction(card.token_widths)
        self.lift = Lift(card.token_widths[-1], card.width)
        self.cls_token = nn.Parameter(torch.zeros(card.width))
        self.transformer = Transformer(card)
        self.add_heads(self.cls_token)

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        """The set abstraction, under the name that all encoders give their first part."""
        return self.sa

    def forward(self, patches: Tensor, centers: Tensor, mask: Tensor | None = None) -> PointFeatures:
        """Encode patches, see `PointEncoder`; the feature is [class token; 1]."""
        content, place = self.lift.content(self.sa(patches, centers)), self.lift.place(centers)
        tokens = self.lift.norm(content + place)  # (B, G, width)
        # No position code but `place`: the mask token stands for the content alone, before the two are added. Where
        # it is zero, the patch looks as if its feature were zero.
        seen = tokens if mask is None else self.lift.norm(self.hide(content, mask) + place)
        batch = tokens.shape[0]  # not len(): tracing for export would take it as a constant
        x = torch.cat([self.cls_token.expand(batch, 1, -1), seen], dim=1)
        x = self.transformer(x)  # (B, 1 + G, width)
        cls, encoded = x[:, 0], x[:, 1:]
        return PointFeatures(with_one(cls), cls, encoded, tokens)
