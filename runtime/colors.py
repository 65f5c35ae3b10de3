"""Colors of any type and range, to 0..1."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.errors import InvalidInput

MISSING_COLOR = 0.4
"""The grey that stands for "no color": the filler the published xyz+rgb encoders were trained with."""


OVERSHOT = 1.5
"""Floats of 0..255 of which none is above this would be all but black; floats of 0..1 get there by interpolation."""


class NotColors(InvalidInput):
    """Numbers that are no colors, such as normals; the message says what was expected and what was found."""


class StoredColors(NamedTuple):
    """Colors as a file has them: the smallest, the largest, and whether they are floats."""

    low: float
    high: float
    floating: bool

    @property
    def unit(self) -> bool:
        """Whether they are floats of 0..1, a little more where an interpolation overshot."""
        return self.floating and self.high <= OVERSHOT


def unit_colors(
    stored: NDArray[Any], filler: float = MISSING_COLOR
) -> tuple[NDArray[np.float32], StoredColors]:
    """Bring stored colors to 0..1.

    Integers and floats above 1.5 are divided by 255, and by 65535 where a value above 255 shows that they count in
    16 bits (LAS writers put 8-bit colors into the 16-bit fields as they are). Other floats are cut at 1.

    Args:
        stored: of any shape and real dtype.
        filler: stands for what is NaN or infinite.

    Returns:
        float32 in [0, 1] of the same shape, and the range they were stored in.

    Raises:
        NotColors: negative numbers or numbers above 65535.
    """
    with np.errstate(invalid="ignore"):  # widening a signalling NaN raises the processor's invalid flag
        values = stored.astype(np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (filler, filler)
    if low < 0 or high > 65535:
        raise NotColors(f"expected colors in 0..1, 0..255 or 0..65535, found {low:g}..{high:g}")
    found = StoredColors(float(low), float(high), bool(np.issubdtype(stored.dtype, np.floating)))
    scale = 1.0 if found.unit else 255.0 if high <= 255 else 65535.0
    unit = np.where(finite, np.minimum(values / scale, 1.0), filler).astype(np.float32)
    return unit, found
