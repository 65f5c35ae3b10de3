"""Figures of `robustness.py`, one a group of changes, from its result files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from changes import FEW, MANY, TURNS, WHOLE, WRONG_AXES
from corruptions import CORRUPTIONS, SEVERITIES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from networks import NAMES
from summaries import COLORS, draw_seeds, save, tidy

WHOLE_IS_CLEAN = ("points", "even-points")
Place = tuple[str, str]
"""A change and a level of it."""


def grid(results: dict[str, list[dict[str, Any]]], places: Sequence[Place], name: str, measure: str) -> Any:
    """What every seed measured at each place, (seeds, places) in percent; None where any is missing."""
    columns = []
    for change, level in places:
        columns.append([
            100 * entry["networks"][name][measure]
            for row in results.get(change, []) for entry in row["levels"] if entry["level"] == level
        ])  # fmt: skip
    if not columns or not all(columns) or len({len(column) for column in columns}) > 1:
        return None
    return np.array(columns).T


def panel(
    axes: Axes, results: dict[str, list[dict[str, Any]]], title: str, places: Sequence[Place], *,
    x: Sequence[float] | None = None, names: Sequence[str] = NAMES, measure: str = "top1",
) -> None:  # fmt: skip
    """One line a network over the places."""
    for name in names:
        found = grid(results, places, name, measure)
        if found is not None:
            draw_seeds(axes, range(len(places)) if x is None else x, found, name)
    tidy(axes, title)


def bars(axes: Axes, results: dict[str, list[dict[str, Any]]], title: str, places: Sequence[Place]) -> None:
    """One bar a network and place, with the range of the seeds."""
    width = 0.8 / len(NAMES)
    for offset, name in enumerate(NAMES):
        found = grid(results, places, name, "top1")
        if found is None:
            continue
        mean = found.mean(axis=0)
        reach = np.abs(np.stack([found.min(axis=0), found.max(axis=0)]) - mean)
        x = np.arange(len(places)) + (offset - 1) * width
        axes.bar(x, mean, width, color=COLORS[name], label=name, yerr=reach, error_kw={"linewidth": 0.8})
    tidy(axes, title)


def legend(figure: Figure, axes: Axes) -> None:
    """One for the whole figure, below it."""
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )


def corruptions(results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Accuracy by severity, 0 being the clean clouds; the last panel is the mean of all."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    x = [0, *SEVERITIES]
    for axes, change in zip(panels.flat, CORRUPTIONS, strict=False):
        places = [("clean", "0"), *((change, str(severity)) for severity in SEVERITIES)]
        panel(axes, results, change, places, x=x)
    for name in NAMES:
        found = [
            grid(results, [("clean", "0"), *((change, str(s)) for s in SEVERITIES)], name, "top1")
            for change in CORRUPTIONS
        ]
        if all(each is not None for each in found):
            draw_seeds(panels.flat[7], x, np.mean(found, axis=0), name)
    tidy(panels.flat[7], "mean of the seven")
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy, %", fontsize=8)
    for axes in panels[1]:
        axes.set_xlabel("severity", fontsize=8)
    legend(figure, panels.flat[0])
    return figure


def scans(results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Accuracy and calibration error by severity of the scan."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    levels = ("none", "low", "moderate", "high")
    places = [("clean", "0"), *(("scan", level) for level in levels[1:])]
    for axes, measure, title in zip(
        figure.subplots(1, 2), ("top1", "ece"), ("accuracy, %", "calibration error (ECE), %"), strict=True
    ):
        panel(axes, results, title, places, measure=measure)
        axes.set_xticks(range(len(levels)), levels)
        axes.set_ylim(bottom=0)
    legend(figure, axes)
    return figure


def orientation(results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Accuracy by angle about the up axis and by up axis, of clean clouds above and scans below."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True)
    rows = (("clean", "", ("clean", "0")), ("scanned", "scanned-", ("scan", "moderate")))
    for (left, right), (title, prefix, upright) in zip(panels, rows, strict=True):
        bars(left, results, f"{title}, turned about the up axis",
             [upright, *((f"{prefix}yaw", level) for level in TURNS)])  # fmt: skip
        left.set_xticks(range(len(TURNS) + 1), ["0°", *(f"{t}°" if t != "any" else t for t in TURNS)])
        bars(right, results, f"{title}, this axis up and read as z up",
             [upright, *((f"{prefix}up-axis", axis) for axis in WRONG_AXES)])  # fmt: skip
        right.set_xticks(range(len(WRONG_AXES) + 1), ["z (right)", *WRONG_AXES])
        left.set_ylabel("accuracy, %", fontsize=8)
    legend(figure, panels[0, 0])
    return figure


def points(results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Accuracy by number of points, and for meshes whether the class stays the same."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    groups = (
        ("ModelNet10, random subset", "points", (*FEW, WHOLE), "top1"),
        ("ModelNet10, even subset", "even-points", (*FEW, WHOLE), "top1"),
        ("bathtubs, surface samples", "bathtub-points", MANY[:6], "top1"),
        ("meshes: same class as at 1,024", "mesh-points", MANY, "same"),
    )
    for axes, (title, change, levels, measure) in zip(panels, groups, strict=True):
        x = [float(level) for level in levels]
        places = [
            ("clean", "0") if level == WHOLE and change in WHOLE_IS_CLEAN else (change, level)
            for level in levels
        ]
        panel(axes, results, title, places, x=x, measure=measure)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("points", fontsize=8)
        axes.set_xticks(x[::2], [f"{int(value):,}" for value in x[::2]])
    panels[0].set_ylabel("%", fontsize=8)
    panels[0].set_ylim(0, 100)
    legend(figure, panels[0])
    return figure


def draw(results: dict[str, list[dict[str, Any]]], folder: Path) -> list[Path]:
    """Draw every figure and write it into a folder."""
    drawn = {"corruptions": corruptions, "scans": scans, "orientation": orientation, "points": points}
    paths = []
    for name, make in drawn.items():
        paths.append(folder / f"robustness_{name}.png")
        save(make(results), paths[-1])
    return paths
