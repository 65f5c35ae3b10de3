"""The facts of a public encoder in a few words, the same in a terminal and in the README."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossmost.models.point_cards import PointCard
    from crossmost.zoo_models import Model


def parameters(model: Model) -> str:
    """In millions."""
    return f"{model.parameters / 1e6:.1f} M"


def licenses(model: Model) -> str:
    """Of the code, and of the weights where it is stated."""
    code = f"code {model.code_license}" if model.code_license else "none for the code"
    return f"{code}, weights {model.weights_license or 'not stated'}"


def accuracy(model: Model) -> str:
    """Top-1 by data set and split, with the sources; empty where nothing is reported."""
    figures = [f"{found.top1} {found.dataset} ({found.split})" for found in model.accuracy]
    sources = dict.fromkeys(found.source for found in model.accuracy)
    return f"{'; '.join(figures)}: {', '.join(sources)}" if figures else ""


def channels(card: PointCard) -> str:
    """What a point is."""
    return "xyz + rgb" if card.channels == 6 else "xyz"


def filler(card: PointCard) -> str:
    """What stands in for a missing color; empty where none is read."""
    return f"{card.color_filler:g}" if card.channels == 6 else ""


def patches(card: PointCard) -> str:
    """How many, of how many points, found how."""
    how = "nearest" if card.radius is None else f"within {card.radius:g}"
    return f"{card.groups} x {card.neighbors} {how}"
