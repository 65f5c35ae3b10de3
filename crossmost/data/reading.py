"""How the user's files are to be read, told once and used for every dataset of a command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from crossmost.data.dataset import CloudDataset, open_dataset


class Form(Protocol):
    """What an encoder asks of its clouds; a `PointCard` is one."""

    @property
    def points(self) -> int | None:
        """N, what a larger cloud is thinned to; None for no limit."""

    @property
    def least(self) -> int:
        """What a smaller cloud is filled up to."""

    @property
    def channels(self) -> int:
        """3 for xyz, 6 for xyz and rgb."""

    @property
    def scattered(self) -> bool:
        """Whether the order of the points matters and is to be like random."""


@dataclass(frozen=True)
class EncoderForm:
    """A `Form` of numbers that are known, such as those in a bundle's manifest."""

    points: int | None
    least: int
    channels: int
    scattered: bool


@dataclass(frozen=True)
class Reading:
    """How the files of a dataset are read; without `labels`, no folder or label is taken for a class."""

    up_axis: str = "z"
    columns: str | None = None
    color: str = "auto"
    labels: bool = True

    def open(self, path: Path, form: Form, split: str | None = None) -> CloudDataset:
        """Open a dataset for an encoder."""
        return open_dataset(
            path,
            split=split,
            points=form.points,
            least=form.least,
            up_axis=self.up_axis,
            columns=self.columns,
            color=self.color,
            channels=form.channels,
            scattered=form.scattered,
            labelled=self.labels,
        )
