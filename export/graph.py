"""The point encoder as it is exported: patches and centres in, a unit embedding out."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from crossmost.export.architectures import exported
from crossmost.export.precision import DTYPES, Precision
from crossmost.models.point_encoder import PointEncoder
from crossmost.models.student import Projection


class EncoderGraph(nn.Module):
    """Encoder and projection in one precision, float32 where coordinates are absolute or lengths are taken.

    Patches are cast after they were centred, when their numbers are small; centres are absolute and pass through
    the position code in float32; the projection and the scaling to unit length are float32 again.
    """

    def __init__(self, encoder: PointEncoder, head: Projection, precision: Precision):
        """Copy and cast an encoder.

        Args:
            encoder: in evaluation mode; left as it is.
            head: turns its features into embeddings; left as it is.
            precision: of everything that is no float32 island.
        """
        super().__init__()
        self.dtype = DTYPES[precision]
        narrow = copy.deepcopy(encoder).eval().requires_grad_(False)
        del narrow.lm_head, narrow.patch_head  # masked modelling is over
        exported(narrow, self.dtype)
        self.encoder = narrow
        self.projection = copy.deepcopy(head)
        self.eval()

    def forward(self, patches: Tensor, centers: Tensor) -> Tensor:
        """(B, G, K, C) and (B, G, 3) float32 to (B, D) float32 unit rows."""
        features = self.encoder(patches.to(self.dtype), centers)
        return self.projection(features.feature)
