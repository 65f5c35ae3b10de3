"""Class names as people write them, found again in a vocabulary."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crossmost.data.catalog import UNKNOWN
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
    found = positions_known(vocabulary, names)
    for name in (name for name, position in zip(names, found, strict=True) if position == UNKNOWN):
        folded = {fold(each): each for each in vocabulary}
        close = difflib.get_close_matches(fold(name), list(folded), n=1, cutoff=0.0)
        nearest = f"; the nearest is {folded[close[0]]!r}" if close else ""
        raise InputError(f"expected classes out of the vocabulary, found {name!r}{nearest}")
    return found


def positions_known(vocabulary: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Find those class names that a vocabulary has.

    Args:
        vocabulary: class names, C of them.
        names: of a data set's classes.

    Returns:
        (len(names),) int64 in 0..C-1, `UNKNOWN` for a name that the vocabulary lacks.

    Raises:
        InputError: two of the vocabulary's names read alike.
    """
    positions = {fold(name): index for index, name in enumerate(vocabulary)}
    if len(positions) < len(vocabulary):
        raise InputError("expected vocabulary names that differ in more than case, '_', '-' and spaces")
    return np.array([positions.get(fold(name), UNKNOWN) for name in names], dtype=np.int64)
