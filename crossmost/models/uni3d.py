"""Uni3D: a mini-PointNet, one of timm's EVA transformers without its rotary embedding, and the class token out."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from crossmost.models.point_bert import PatchEncoder
from crossmost.models.point_cards import Uni3DCard
from crossmost.models.point_encoder import PointEncoder, PointFeatures, with_one
from crossmost.models.torchvision_cpu import repair_torchvision

EPSILON = 1e-6
"""Of all layer norms, as EVA has it; torch's own default is ten times that."""


class Trunk(nn.Module):
    """What Uni3D uses of an EVA image tower: its blocks and the norm that follows the pooling there."""

    def __init__(self, card: Uni3DCard):
        super().__init__()
        step = card.drop_path / max(1, card.depth - 1)
        self.blocks = nn.ModuleList(build_block(card, step * index) for index in range(card.depth))
        self.fc_norm = nn.LayerNorm(card.width, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x)


def build_block(card: Uni3DCard, drop_path: float) -> nn.Module:
    """One of timm's EVA blocks, which names its parameters as the published files do."""
    repair_torchvision()
    from timm.models.eva import EvaBlock  # here, because it takes half a second

    return EvaBlock(
        card.width,
        card.heads,
        qkv_fused=card.fused_qkv,
        mlp_ratio=(card.mlp_width + 0.5) / card.width,  # the product is rounded down
        swiglu_mlp=card.mlp != "gelu",
        scale_mlp=card.mlp == "swiglu",
        drop_path=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=EPSILON),
    )


class Uni3D(PointEncoder):
    """Uni3D with the extra heads of masked modelling."""

    def __init__(self, card: Uni3DCard):
        super().__init__(card)
        width = card.width
        self.encoder = PatchEncoder(card.channels, card.token_widths)
        self.encoder2trans = nn.Linear(card.token_widths[-1], width)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, width))
        self.visual = Trunk(card)
        self.add_heads(self.cls_token, self.cls_pos)

    def forward(self, patches: Tensor, centers: Tensor, mask: Tensor | None = None) -> PointFeatures:
        """Encode patches, see `PointEncoder`; the feature is [class token; 1]."""
        tokens = self.encoder2trans(self.encoder(patches))  # (B, G, width)
        # The position code is added here and never again.
        first = (self.cls_token + self.cls_pos).expand(tokens.shape[0], -1, -1)
        placed = self.hide(tokens, mask) + self.pos_embed(centers)
        x = self.visual(torch.cat([first, placed], dim=1))  # (B, 1 + G, width)
        cls, encoded = x[:, 0], x[:, 1:]
        return PointFeatures(with_one(cls), cls, encoded, tokens)
