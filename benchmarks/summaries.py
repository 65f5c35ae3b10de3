"""Means and spreads over seeds, in tables and in figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

COLORS = {"zero-shot": "#444444", "point-only": "#009E73", "joint": "#0072B2"}
STYLES = {"zero-shot": "--", "point-only": "-", "joint": "-"}
MARKERS = {"zero-shot": "s", "point-only": "^", "joint": "o"}
PIXELS = 130
"""An inch."""


def cell(values: Sequence[float], *, percent: bool = True, signed: bool = False) -> str:
    """Mean ± standard deviation over the seeds; empty without values."""
    if not values:
        return ""
    factor, digits = (100, 1) if percent else (1, 3)
    scaled = [factor * value for value in values]
    spread = statistics.stdev(scaled) if len(scaled) > 1 else 0.0
    sign = "+" if signed else ""
    return f"{statistics.mean(scaled):{sign}.{digits}f} ± {spread:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def draw_seeds(axes: Axes, x: ArrayLike, values: ArrayLike, name: str) -> None:
    """A network's mean over the seeds, with the smallest and largest as a band: x (L,), values (seeds, L)."""
    rows = np.asarray(values, dtype=np.float64)
    axes.fill_between(x, rows.min(axis=0), rows.max(axis=0), color=COLORS[name], alpha=0.15, linewidth=0)
    style = {"color": COLORS[name], "linestyle": STYLES[name], "marker": MARKERS[name]}
    axes.plot(x, rows.mean(axis=0), markersize=3.5, linewidth=1.4, label=name, **style)


def tidy(axes: Axes, title: str) -> None:
    """A title, a light grid and no box."""
    axes.set_title(title, fontsize=9)
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=PIXELS)
