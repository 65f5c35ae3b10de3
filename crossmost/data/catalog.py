"""What a data set says about itself before any cloud of it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossmost.data.columns import Cloud
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


@dataclass(frozen=True)
class Catalog:
    """All the clouds of a data set, by row.

    Attributes:
        name: of the data set, for reports.
        source: reads the cloud of a row.
        ids: one per row, unique; `views/<id>/*.png` below `folder` are its 2D views.
        splits: one per row, "" where there is none.
        labels: (rows,) int64 into `class_names`, or `UNKNOWN`.
        class_names: empty where there are no classes.
        folder: where `views/` is looked for.
    """

    name: str
    source: Source
    ids: Sequence[str]
    splits: Sequence[str]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    folder: Path

    def rows_of(self, split: str | None) -> NDArray[np.int64]:
        """Rows of one split, or of all where `split` is None or "all".

        Raises:
            InputError: no cloud is in that split.
        """
        if split in (None, "all"):
            return np.arange(len(self.ids), dtype=np.int64)
        rows = np.flatnonzero(np.asarray(self.splits) == split).astype(np.int64)
        if len(rows) == 0:
            known = sorted(set(self.splits) - {""})
            found = f"found {', '.join(known)}" if known else "found a data set without splits: leave it out"
            raise InputError(f"{self.name}: expected a split named {split!r}, {found}")
        return rows


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sort key that puts `file10` after `file9`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text) if part]
