"""The one list of point encoders that can be exported: how a copy of each is brought into its exported form."""

from __future__ import annotations

import torch

from crossmost.export.exported_layers import export_point_bert
from crossmost.export.exported_openshape import export_openshape
from crossmost.export.exported_uni3d import export_uni3d
from crossmost.models.openshape import OpenShapeEncoder
from crossmost.models.point_bert import PointBert
from crossmost.models.point_encoder import PointEncoder
from crossmost.models.uni3d import Uni3D


def exported(encoder: PointEncoder, dtype: torch.dtype) -> None:
    """Rewrite and cast an encoder, in place: batch norms folded, layers as runtimes fuse them, float32 islands.

    Args:
        encoder: a copy in evaluation mode, without the heads of masked modelling.
        dtype: of everything that is no float32 island.

    Raises:
        TypeError: an encoder of no architecture.
    """
    match encoder:
        case PointBert():
            export_point_bert(encoder, dtype)
        case OpenShapeEncoder():
            export_openshape(encoder, dtype)
        case Uni3D():
            export_uni3d(encoder, dtype)
        case _:
            raise TypeError(f"expected a point encoder of an architecture, found {type(encoder).__name__}")
