"""The public point encoders as data: where each is, under which terms, and what its authors report of it.

The entries are in `zoo.json`; what the input of an encoder has to be is on the card of the same name.
"""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from crossmost.errors import InputError

if TYPE_CHECKING:
    from crossmost.models.point_cards import PointCard


@dataclass(frozen=True)
class HubFile:
    """A file on Hugging Face."""

    repo: str
    path: str
    kind: Literal["model", "dataset"]
    revision: str

    @property
    def name(self) -> str:
        """Of the file, without its folders."""
        return self.path.rpartition("/")[2]

    @property
    def url(self) -> str:
        """Of the file itself."""
        kind = "datasets/" if self.kind == "dataset" else ""
        return f"https://huggingface.co/{kind}{self.repo}/resolve/{self.revision}/{self.path}"


@dataclass(frozen=True)
class PageFile:
    """A file that a person has to download from a page."""

    url: str
    name: str


@dataclass(frozen=True)
class Accuracy:
    """Zero-shot top-1 and top-5 in percent, as `source` reports them; nothing of it was measured here."""

    dataset: str
    split: str
    top1: float
    top5: float | None
    source: str


@dataclass(frozen=True)
class Model:
    """A public point encoder.

    Attributes:
        name: also of its card.
        file: the checkpoint.
        sha256: of the file, where it is publicly known.
        bytes: of the file, where they are publicly known.
        dim: D, width of the embedding.
        text: the text model it is aligned with, as a vocabulary's tag names it.
        image: the image tower that comes with it, or None.
        parameters: of the point encoder with its projection.
        paper: its page.
        code: its repository.
        code_license: of the repository, or None where it has none.
        weights_license: the one that is stated for the weights, or None.
        accuracy: what is reported of this very file.
        note: what else one should know.
    """

    name: str
    file: HubFile | PageFile
    sha256: str | None
    bytes: int | None
    dim: int
    text: str
    image: str | None
    parameters: int
    paper: str
    code: str
    code_license: str | None
    weights_license: str | None
    accuracy: tuple[Accuracy, ...]
    note: str

    @property
    def card(self) -> PointCard:
        """Its numbers and the conventions of its input."""
        from crossmost.models.point_cards import load_point_card

        return load_point_card(self.name)


@functools.cache
def list_models() -> tuple[Model, ...]:
    """All public point encoders, families together."""
    entries = json.loads(files("crossmost").joinpath("zoo.json").read_text("utf-8"))
    return tuple(_read(entry) for entry in entries)


def _read(entry: dict[str, Any]) -> Model:
    file = HubFile(**entry["file"]) if "repo" in entry["file"] else PageFile(**entry["file"])
    accuracy = tuple(Accuracy(**figure) for figure in entry["accuracy"])
    return Model(**{**entry, "file": file, "accuracy": accuracy})


def find(name: str) -> Model:
    """The public point encoder of this name.

    Raises:
        InputError: there is none; gives the nearest name.
    """
    models = {model.name: model for model in list_models()}
    if name not in models:
        near = difflib.get_close_matches(name, models, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "`crossmost zoo` lists them"
        raise InputError(f"no public encoder is called '{name}': {hint}")
    return models[name]
