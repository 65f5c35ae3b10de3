"""What a data set says about itself before any cloud of it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossmost.data.columns import Cloud
from crossmost.data.splits import asked_split
from crossmost.errors import InputError

UNKNOWN = -1
"""The label of a cloud whose class nobody gave."""


class Source(Protocol):
    """Where clouds are read from; it can be pickled and read from several processes at once."""

    def read(self, row: int) -> Cloud:
        """Read one cloud as it is stored.

        Raises:
            InputError: that cloud cannot be read.
        """

    def evidence(self, rows: Sequence[int]) -> Iterator[bytes]:
        """What tells the stored clouds of these rows from others, a copy's being the same; see `evidence`."""


@dataclass(frozen=True)
class Catalog:
    """All the clouds of a data set, by row.

    Attributes:
        name: of the data set, for reports.
        source: reads the cloud of a row.
        ids: one per row, unique and printable; `views/<id>/` below `folder` holds its 2D views.
        splits: one per row, "" where there is none.
        labels: (rows,) int64 into `class_names`, or `UNKNOWN`.
        class_names: empty where there are no classes.
        folder: where `views/` is looked for.
        left_out: what lies there and is no part of it, a line each.
    """

    name: str
    source: Source
    ids: Sequence[str]
    splits: Sequence[str]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    folder: Path
    left_out: tuple[str, ...] = ()

    def rows_of(self, split: str | None) -> NDArray[np.int64]:
        """Rows of one split, by its name or as the data spell it, or of all where `split` is None or "all".

        Raises:
            InputError: no cloud is in that split.
        """
        if split in (None, "all"):
            return np.arange(len(self.ids), dtype=np.int64)
        name = asked_split(split, set(self.splits))
        rows = np.flatnonzero(np.asarray(self.splits) == name).astype(np.int64)
        if len(rows) == 0:
            known = sorted(set(self.splits) - {""})
            found = f"found {', '.join(known)}" if known else "found a data set without splits: leave it out"
            raise InputError(f"{self.name}: expected a split named {split!r}, {found}")
        return rows


def printable(name: str) -> str:
    """A file's name as text that can be printed and written: a byte that is no UTF-8 becomes U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", name)  # Python holds such bytes as lone surrogates


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sort key that puts `file10` after `file9`."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text) if part]
