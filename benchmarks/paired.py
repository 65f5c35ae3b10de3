"""Two classifiers on the same clouds: the exact McNemar test, and which clouds were right in little room."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Paired(NamedTuple):
    """Of n clouds, those that only one of the two names rightly, and how unlikely a split so uneven is by chance."""

    n: int
    only_first: int
    only_second: int
    p: float  # two-sided


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """The exact McNemar test: where the two differ, each is as likely to be the right one under the null hypothesis.

    Args:
        first: (n,) whether the first is right.
        second: (n,) whether the second is right, of the same clouds.
    """
    if first.shape != second.shape:
        raise ValueError(f"expected answers to the same clouds, found {len(first)} and {len(second)}")
    won, lost = int((first & ~second).sum()), int((second & ~first).sum())
    differing = won + lost
    tail = sum(comb(differing, k) for k in range(min(won, lost) + 1))
    return Paired(len(first), won, lost, float(min(Fraction(1), Fraction(2 * tail, 2**differing))))


def pack(right: NDArray[np.bool_]) -> str:
    """(n,) bool as hexadecimal digits, eight clouds to a pair of digits."""
    return np.packbits(right).tobytes().hex()


def unpack(packed: str, n: int) -> NDArray[np.bool_]:
    """What `pack` was given."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed), dtype=np.uint8), count=n)
    return bits.astype(np.bool_)
