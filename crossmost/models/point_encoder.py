"""What all point encoders share: patches and centres in, features out, and the heads of masked modelling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from crossmost.models.point_cards import PointCard


class PointFeatures(NamedTuple):
    """What an encoder says about a batch of clouds."""

    feature: Tensor  # (B, F), what the projection takes: card.feature_width
    cls: Tensor  # (B, width)
    patches: Tensor  # (B, G, width), after the transformer
    tokens: Tensor  # (B, G, width), before masking and before the transformer


class PointEncoder(nn.Module):
    """A transformer over the patches of a cloud; its `encoder` turns each patch into a token.

    An architecture is a card and a subclass, which names its parameters as the published checkpoints do, with linear
    layers in the place of 1x1 convolutions.
    """

    encoder: nn.Module
    """Patches to tokens: what training may freeze, batch norms included."""

    def __init__(self, card: PointCard):
        super().__init__()
        self.card = card

    def add_heads(self, *tokens: nn.Parameter) -> None:
        """Add what masked modelling needs, and draw it and the encoder's own learned tokens; ends `__init__`."""
        card = self.card
        self.lm_head = nn.Linear(card.width, card.width)  # predicts the token of a masked patch
        self.patch_head = nn.Linear(card.width, card.neighbors * 3)  # predicts the points of a masked patch
        self.mask_token = nn.Parameter(torch.zeros(1, 1, card.width))
        for token in (*tokens, self.mask_token):
            nn.init.trunc_normal_(token, std=0.02)

    def forward(self, patches: Tensor, centers: Tensor, mask: Tensor | None = None) -> PointFeatures:
        """Encode patches; masked ones keep their position and lose their content.

        Args:
            patches: (B, G, K, channels) float32, xyz relative to the centre.
            centers: (B, G, 3) float32.
            mask: (B, G) bool, True where the patch is hidden.
        """
        raise NotImplementedError

    def hide(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Put the mask token in the place of hidden tokens: (B, G, width) to the same."""
        if mask is None:
            return tokens
        return torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)


def with_one(cls: Tensor) -> Tensor:
    """[class token; 1]: (B, width) to (B, width + 1), for a projection whose last row is its bias."""
    return torch.cat([cls, torch.ones_like(cls[:, :1])], dim=1)
