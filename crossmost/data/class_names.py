"""Class names as people write them, found again in a vocabulary."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crossmost.errors import InputError


def fold(name: str) -> str:
    """A class name without what people write differently: case, '_', '-' and spaces."""
    return re.sub(r"[\s_\-]+", "", name).casefold()


def positions_in(vocabulary: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Find class names in a vocabulary; case, '_', '-' and spaces make no difference.

    Args:
        vocabulary: class names, C of them.
        names: of a data set's classes.

    Returns:
        (len(names),) int64 in 0..C-1.

    Raises:
        InputError: a name that the vocabulary lacks, or two of the vocabulary's that read alike.
    """
    positions = {fold(name): index for index, name in enumerate(vocabulary)}
    if len(positions) < len(vocabulary):
        raise InputError("expected vocabulary names that differ in more than case, '_', '-' and spaces")
    for name in names:
        if fold(name) not in positions:
            close = difflib.get_close_matches(fold(name), list(positions), n=1, cutoff=0.0)
            nearest = f"; the nearest is {vocabulary[positions[close[0]]]!r}" if close else ""
            raise InputError(f"expected classes out of the vocabulary, found {name!r}{nearest}")
    return np.array([positions[fold(name)] for name in names], dtype=np.int64)
