"""Two classifiers on the same clouds: an exact paired test, and which clouds were right in little room."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Paired(NamedTuple):
    """Of n answers, those that only one of the two gives rightly, and how unlikely a split so uneven is by chance."""

    n: int
    only_first: int
    only_second: int
    p: float  # two-sided


def paired_test(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """The exact sign-flip test by cloud: by the null hypothesis each could as well have it the other way round.

    A cloud's answers of all seeds are flipped together, because they are of one cloud. With one seed it is McNemar's
    exact test.

    Args:
        first: (S, n) whether the first is right, by seed and cloud.
        second: (S, n) whether the second is right.
    """
    if first.shape != second.shape:
        raise ValueError(f"expected answers to the same clouds, found {first.shape} and {second.shape}")
    won, lost = int((first & ~second).sum()), int((second & ~first).sum())
    leads = first.sum(axis=0).astype(int) - second.sum(axis=0).astype(int)
    ways: NDArray[Any] = np.array([1], dtype=object)  # to reach each sum of leads, the lowest first
    for lead, count in zip(*np.unique(np.abs(leads[leads != 0]), return_counts=True), strict=True):
        of_lead = np.zeros(2 * lead * count + 1, dtype=object)
        of_lead[:: 2 * lead] = [comb(int(count), k) for k in range(count + 1)]
        ways = np.convolve(ways, of_lead)
    sums = np.arange(len(ways)) - len(ways) // 2
    extreme = sum(ways[np.abs(sums) >= abs(leads.sum())].tolist())
    return Paired(first.size, won, lost, float(Fraction(extreme, 2 ** int((leads != 0).sum()))))


def pack(right: NDArray[np.bool_]) -> str:
    """(n,) bool as hexadecimal digits, eight clouds to a pair of digits."""
    return np.packbits(right).tobytes().hex()


def unpack(packed: str, n: int) -> NDArray[np.bool_]:
    """What `pack` was given."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed), dtype=np.uint8), count=n)
    return bits.astype(np.bool_)
