"""Cards of point encoders: the numbers of an architecture and the conventions its weights were trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from crossmost.errors import InputError
from crossmost.runtime.orientation import FRAMES
from crossmost.runtime.sampling import RADII

CARDS = "crossmost.models"


class PointCard(BaseModel):
    """What every point encoder says about itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    points: int = Field(ge=1)  # N: a larger cloud is thinned to this many
    groups: int = Field(ge=1)  # G
    neighbors: int = Field(ge=1)  # K
    # A patch is the first K points so near its centre; None: the K nearest.
    radius: float | None = Field(default=None, ge=RADII[0], le=RADII[1])
    channels: Literal[3, 6]  # xyz, or xyz and rgb
    width: int = Field(ge=1)  # of a token
    depth: int = Field(ge=1)
    heads: int = Field(ge=1)
    drop_path: float = Field(0.1, ge=0, lt=1)  # of the last block; rises linearly from 0
    learning_rate: float = Field(2e-5, gt=0)  # per 256 clouds: what suits a network of this size
    up_axis: str = "z"  # of `crossmost.runtime.orientation.FRAMES`
    color_filler: float = Field(0.4, ge=0, le=1)  # rgb of a cloud without colour, where channels is 6

    @model_validator(mode="after")
    def _consistent(self) -> PointCard:
        if self.width % self.heads:
            raise ValueError(f"expected a width that is a multiple of {self.heads} heads, found {self.width}")
        if self.up_axis not in FRAMES:
            raise ValueError(f"expected an up_axis of {', '.join(FRAMES)}, found {self.up_axis!r}")
        return self

    @property
    def least(self) -> int:
        """Points a cloud is filled up to: the larger of G and K."""
        return max(self.groups, self.neighbors)

    @property
    def scattered(self) -> bool:
        """Whether its clouds are ordered by `scatter`: the first K points of a ball must stand for all of them."""
        return self.radius is not None

    @property
    def feature_width(self) -> int:
        """F: rows of the projection behind the encoder."""
        raise NotImplementedError

    @property
    def widest(self) -> int:
        """The most numbers that the patch encoder keeps of each point of a patch."""
        raise NotImplementedError


class PointBertCard(PointCard):
    """Point-BERT as ULIP, ULIP-2 and Cross-MoST use it."""

    architecture: Literal["point-bert"] = "point-bert"
    token_widths: tuple[int, int, int, int]  # widths of the mini-PointNet's four layers
    mlp_ratio: float = 4.0

    @property
    def feature_width(self) -> int:
        """[class token; maximum over the patch tokens]."""
        return 2 * self.width

    @property
    def widest(self) -> int:
        """Of the mini-PointNet."""
        return max(self.token_widths)


class OpenShapeCard(PointCard):
    """The Point-BERT of OpenShape: set abstraction over balls, then a transformer.

    Its first layer reads offset, place and color of each point of a ball.
    """

    architecture: Literal["openshape"] = "openshape"
    channels: Literal[6]  # no published file reads xyz alone
    token_widths: tuple[int, int, int]  # of the set abstraction's three layers
    mlp_width: int  # hidden, of a block

    @property
    def feature_width(self) -> int:
        """[class token; 1]: the projection has a bias, which is its last row."""
        return self.width + 1

    @property
    def widest(self) -> int:
        """Of the set abstraction."""
        return max(self.token_widths)


class Uni3DCard(PointCard):
    """Uni3D: a mini-PointNet before one of timm's EVA transformers."""

    architecture: Literal["uni3d"] = "uni3d"
    token_widths: tuple[int, int, int, int]  # widths of the mini-PointNet's four layers
    mlp_width: int  # hidden, of a block
    mlp: Literal[
        "gelu", "swiglu", "packed-swiglu"
    ]  # swiglu: two layers, then a norm; packed: one layer, no norm
    fused_qkv: bool  # one linear layer for queries, keys and values; keys have no bias either way

    @property
    def feature_width(self) -> int:
        """[class token; 1]: the projection has a bias, which is its last row."""
        return self.width + 1

    @property
    def widest(self) -> int:
        """Of the mini-PointNet."""
        return max(self.token_widths)


ARCHITECTURES: dict[str, type[PointCard]] = {
    "point-bert": PointBertCard,
    "openshape": OpenShapeCard,
    "uni3d": Uni3DCard,
}


def read_point_card(numbers: Mapping[str, Any]) -> PointCard:
    """The card of plain numbers, of the kind that `architecture` names.

    Raises:
        ValueError: another architecture, or numbers that are missing, unknown or make no sense.
    """
    name = numbers.get("architecture", "point-bert")
    if name not in ARCHITECTURES:
        raise ValueError(f"expected an architecture of {', '.join(ARCHITECTURES)}, found {name!r}")
    try:
        return ARCHITECTURES[name](**numbers)
    except ValidationError as error:  # its own text is of many lines
        first = error.errors()[0]
        raise ValueError(" ".join([*map(str, first["loc"]), first["msg"]])) from error


def list_point_cards() -> list[str]:
    """Names of the point encoders that ship with the package."""
    folder = files(CARDS).joinpath("cards", "points")
    return sorted(path.name.removesuffix(".json") for path in folder.iterdir())


def load_point_card(name: str) -> PointCard:
    """Read the card of a point encoder by name.

    Raises:
        InputError: no such card.
    """
    if name not in list_point_cards():
        raise InputError(f"no point encoder '{name}': choose from {', '.join(list_point_cards())}")
    text = files(CARDS).joinpath("cards", "points", f"{name}.json").read_text("utf-8")
    return read_point_card(json.loads(text))
