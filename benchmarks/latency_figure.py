"""The figure of benchmarks/latency.py, from its result files: totals of all ways, and the runtime's stages."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from latency_fits import AXES, Row, along, exponent, medians, memory_seconds, read_rows, written
from latency_table import NAMES, STAGES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

STAGED = {"plain": "as published", "fp32": "runtime, float32"}
COLORS = {stage: f"C{index}" for index, stage in enumerate(STAGES)}


def draw(results: Path, path: Path) -> None:
    """Write the figure, log-log; nothing where there is nothing to draw."""
    rows = read_rows(results)
    axes_drawn = [axis for axis in AXES if len(along(rows, axis)) > 1]
    if not axes_drawn:
        return
    figure = Figure(figsize=(5.2 * len(axes_drawn), 10), layout="constrained")
    parts = figure.subplots(2, len(axes_drawn), squeeze=False)
    for column, axis in enumerate(axes_drawn):
        chosen = along(rows, axis)
        draw_totals(parts[0, column], chosen, axis)
        draw_stages(parts[1, column], chosen, axis)
        for part in parts[:, column]:
            finish(part, [row[axis] for row in chosen], axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def labelled(name: str, found: float | None) -> str:
    """A name with the exponent that was fitted."""
    return name if found is None else f"{name} ({written(found)})"


def draw_totals(part: Axes, rows: list[Row], axis: str) -> None:
    """All ways, and the limits of the encoder."""
    sizes = [row[axis] for row in rows]
    for index, (way, name) in enumerate(NAMES.items()):
        found = [1e3 * value for value in medians(rows, way, "total")]
        label = labelled(name, exponent(rows, axis, way, "total"))
        part.plot(sizes, found, marker="o", markersize=4, color=f"C{index}", label=label)
    limits = {
        "limit: float32 products alone": ([row["products"][1] for row in rows], "--"),
        "limit: 8-bit products alone": (medians(rows, "integer", "encode"), "-."),
        "limit: float32 weights moved once": ([memory_seconds(row, "fp32") for row in rows], ":"),
    }
    for name, (seconds, style) in limits.items():
        part.plot(sizes, [1e3 * value for value in seconds], style, color="black", linewidth=1, label=name)
    part.set_title(f"from cloud to embedding, over {AXES[axis]}")


def draw_stages(part: Axes, rows: list[Row], axis: str) -> None:
    """Stages of the published form and of the runtime."""
    sizes = [row[axis] for row in rows]
    for (way, name), style in zip(STAGED.items(), ("--", "-"), strict=True):
        for stage, color in COLORS.items():
            label = labelled(f"{stage}, {name}", exponent(rows, axis, way, stage))
            found = [1e3 * value for value in medians(rows, way, stage)]
            part.plot(sizes, found, style, marker="o", markersize=4, color=color, label=label)
    part.set_title(f"by stage, over {AXES[axis]}")


def finish(part: Axes, sizes: list[int], axis: str) -> None:
    """Scales, ticks where something was measured, room for the legend."""
    part.set_xscale("log", base=2)
    part.set_yscale("log")
    part.set_xticks(sizes, [str(size) for size in sizes])
    part.xaxis.set_minor_formatter(NullFormatter())
    part.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for place in (part.yaxis.set_major_formatter, part.yaxis.set_minor_formatter):
        place(StrMethodFormatter("{x:g}"))
    part.set_xlabel(AXES[axis])
    part.set_ylabel("milliseconds, median")
    part.grid(alpha=0.3)
    part.legend(
        fontsize=7, title="fitted exponent in brackets", title_fontsize=7, loc="upper center",
        bbox_to_anchor=(0.5, -0.12), ncols=2,
    )  # fmt: skip
