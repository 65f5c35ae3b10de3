"""OpenShape's Point-BERT as it is exported: places are absolute and stay float32, all else is cast."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossmost.export.exported_layers import (
    ExportedAttention,
    ExportedMlp,
    Float32Island,
    fold_batch_norms,
    linear,
)
from crossmost.models.openshape import (
    Block,
    FeedForward,
    Lift,
    OpenShapeEncoder,
    SelfAttention,
    SetAbstraction,
)


def export_openshape(encoder: OpenShapeEncoder, dtype: torch.dtype) -> None:
    """Bring OpenShape's Point-BERT into its exported form, in place."""
    # Made before the cast would round their weights.
    abstraction, lift = ExportedSetAbstraction(encoder.sa, dtype), ExportedLift(encoder.lift, dtype)
    for block in encoder.transformer.layers:
        assert isinstance(block, Block)
        attention, mlp = block
        attention.fn, mlp.fn = exported_attention(attention.fn), exported_mlp(mlp.fn)  # type: ignore[arg-type]
    encoder.to(dtype)
    encoder.sa, encoder.lift = abstraction, lift  # type: ignore[assignment]


def exported_attention(layers: SelfAttention) -> ExportedAttention:
    """The same numbers from the same weights."""
    return ExportedAttention(layers.to_qkv, layers.to_out[0], layers.heads)  # type: ignore[arg-type]


def exported_mlp(layers: FeedForward) -> ExportedMlp:
    """The same numbers from the same weights."""
    return ExportedMlp(layers.net[0], layers.net[-1])  # type: ignore[arg-type]


class ExportedSetAbstraction(nn.Module):
    """See `SetAbstraction`: batch norms folded, centres read once a ball, the last ReLU behind the maximum.

    A point's place is its offset plus its ball's centre. So the first layer is the sum of a product with the offset,
    which is small and may be rounded, and one with the centre, which may not.
    """

    def __init__(self, layers: SetAbstraction, dtype: torch.dtype):
        super().__init__()
        stage = nn.Sequential()
        for each, norm in zip(layers.mlp_convs, layers.mlp_bns, strict=True):
            stage.extend([each, norm, nn.ReLU()])
        fold_batch_norms(stage)
        first: nn.Linear = stage[0]  # type: ignore[assignment]
        offset, place, color = first.weight.split(3, dim=1)
        self.of_point = linear(torch.cat([offset + place, color], dim=1), None).to(dtype)
        self.of_patch = Float32Island(linear(place, first.bias), dtype)
        self.rest = stage[2:-1].to(dtype)

    def forward(self, patches: Tensor, centers: Tensor) -> Tensor:
        """(B, G, K, 6) and (B, G, 3) float32 to (B, G, out)."""
        _, groups, neighbors, channels = patches.shape
        of_point, of_patch = self.of_point(patches.reshape(-1, channels)), self.of_patch(centers)
        width = of_point.shape[-1]
        first = of_point.reshape(-1, neighbors, width) + of_patch.reshape(-1, 1, width)
        x = self.rest(first.reshape(-1, width))
        return torch.relu(x.reshape(-1, groups, neighbors, x.shape[-1]).amax(dim=2))


class ExportedLift(nn.Module):
    """See `Lift`: its two products are layers of their own."""

    def __init__(self, layers: Lift, dtype: torch.dtype):
        super().__init__()
        place, content = layers.linear.weight.split([3, layers.linear.in_features - 3], dim=1)
        self.content = linear(content, None).to(dtype)
        self.place = Float32Island(linear(place, layers.linear.bias), dtype)
        self.norm = layers["2"].to(dtype)
