"""Stored colors of any type and range, and what is none."""

import numpy as np
import pytest

from crossmost.runtime.colors import MISSING_COLOR, NotColors, unit_colors


@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 0.5, 1]),
        (np.array([[0.0, 51.0, 255.0]], np.float32), [0, 0.2, 1]),
        (np.array([[0.0, 0.5, 1.02]]), [0, 0.5, 1]),  # resampled
        (np.array([[0.0, 0.0, 2.55]]), [0, 0, 0.01]),
        (np.array([[0, 1, 255]], np.uint8), [0, 1 / 255, 1]),
        (np.array([[0, 1, 1]], np.uint8), [0, 1 / 255, 1 / 255]),
        (np.array([[0, 13107, 65535]], np.uint16), [0, 0.2, 1]),
        (np.array([[np.nan, np.inf, 1.0]]), [0.4, 0.4, 1]),
    ],
)
def test_colors_of_every_range(colors, expected):
    unit, stored = unit_colors(colors, 0.4)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit[0], expected, rtol=1e-6)
    usable = colors[np.isfinite(colors)]
    assert stored == (usable.min(), usable.max(), colors.dtype.kind == "f")


@pytest.mark.parametrize("shape", [(0, 3), (3, 2, 5)])
def test_any_shape_and_nothing_usable(shape):
    unit, stored = unit_colors(np.full(shape, np.nan))
    assert unit.shape == shape
    assert (unit == np.float32(MISSING_COLOR)).all()
    assert stored == (MISSING_COLOR, MISSING_COLOR, True)


@pytest.mark.parametrize(("colors", "words"), [([-1.0, 0.5], "-1..0.5"), ([0, 65536], "0..65536")])
def test_other_numbers_are_refused(colors, words):
    with pytest.raises(NotColors, match=rf"expected colors in 0\.\.1, .* found {words}$"):
        unit_colors(np.array(colors))
