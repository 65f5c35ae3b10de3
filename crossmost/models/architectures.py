"""The one list of point encoders that can be built: a card of each kind, and the class behind it."""

from __future__ import annotations

from crossmost.models.openshape import OpenShapeEncoder
from crossmost.models.point_bert import PointBert
from crossmost.models.point_cards import OpenShapeCard, PointBertCard, PointCard, Uni3DCard
from crossmost.models.point_encoder import PointEncoder
from crossmost.models.uni3d import Uni3D


def build_point_encoder(card: PointCard) -> PointEncoder:
    """A point encoder with random weights, in training mode.

    Raises:
        TypeError: a card of no architecture.
    """
    match card:
        case PointBertCard():
            return PointBert(card)
        case OpenShapeCard():
            return OpenShapeEncoder(card)
        case Uni3DCard():
            return Uni3D(card)
    raise TypeError(f"expected the card of an architecture, found {type(card).__name__}")
