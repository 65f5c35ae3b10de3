"""The point encoder as it is exported: patches and centres in, a unit embedding out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from crossmost.export.exported_layers import exported_layers
from crossmost.export.precision import DTYPES, Precision
from crossmost.models.point_bert import PatchEncoder, PointBert
from crossmost.models.student import unit


class Float32Island(nn.Module):
    """A module that computes in float32 within a network of another precision."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.module = module.float()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, float32 in, the network's precision out."""
        return self.module(x).to(self.dtype)


class EncoderGraph(nn.Module):
    """Encoder and projection in one precision, float32 where coordinates are absolute or lengths are taken.

    Patches are cast after they were centred, when their numbers are small; centres are absolute and pass through
    the position code in float32; the projection and the scaling to unit length are float32 again (DESIGN 6).
    """

    def __init__(self, encoder: PointBert, projection: Tensor, precision: Precision):
        """Copy and cast an encoder.

        Args:
            encoder: in evaluation mode; left as it is.
            projection: (2 * width, D) float32.
            precision: of everything that is no float32 island.
        """
        super().__init__()
        self.dtype = DTYPES[precision]
        narrow = copy.deepcopy(encoder).eval().requires_grad_(False)
        fold_batch_norms(narrow.encoder)
        exported_layers(narrow)
        del narrow.lm_head, narrow.patch_head  # masked modelling is over
        narrow.to(self.dtype)
        narrow.pos_embed = Float32Island(narrow_position(encoder), self.dtype)  # type: ignore[assignment]
        self.encoder = narrow
        self.projection = nn.Parameter(projection.detach().float().clone(), requires_grad=False)
        self.eval()

    def forward(self, patches: Tensor, centers: Tensor) -> Tensor:
        """(B, G, K, C) and (B, G, 3) float32 to (B, D) float32 unit rows."""
        features = self.encoder(patches.to(self.dtype), centers)
        return unit(features.feature.float() @ self.projection)


def narrow_position(encoder: PointBert) -> nn.Module:
    """A copy of the position code, whose weights were not rounded by a cast and back."""
    return copy.deepcopy(encoder.pos_embed).requires_grad_(False)


def fold_batch_norms(encoder: PatchEncoder) -> None:
    """Multiply the running statistics of the mini-PointNet into its linear layers, in place."""
    for stage in (encoder.first_conv, encoder.second_conv):
        linear, norm = stage[0], stage[1]
        assert isinstance(linear, nn.Linear)
        assert isinstance(norm, nn.BatchNorm1d)
        stage[0] = fuse_linear_bn_eval(linear, norm)
        stage[1] = nn.Identity()
