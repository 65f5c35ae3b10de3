"""Figures of `open_set.py`, from its result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from detection import SCORES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from networks import NAMES
from summaries import COLORS, save, tidy

Row = dict[str, Any]
MOMENTS = {"trained": ":", "label-free": "-"}


def risk(axes: Axes, rows: list[Row], pair: str) -> None:
    """Share of wrong answers by share of answered clouds, before and after the label-free temperature."""
    for name in NAMES:
        for moment, style in MOMENTS.items():
            measured = [row["networks"][name]["calibration"][moment] for row in rows]
            curve = 100 * np.mean([each["risk"] for each in measured], axis=0)
            coverage = 100 * np.array(measured[0]["coverage"])
            label = f"{name}, T {moment}"
            axes.plot(coverage, curve, color=COLORS[name], linestyle=style, linewidth=1.4, label=label)
    tidy(axes, f"{pair}: risk by coverage")
    axes.set_xlabel("answered, surest first, %", fontsize=8)
    axes.set_ylabel("wrong among them, %", fontsize=8)


def reliability(axes: Axes, rows: list[Row], pair: str) -> None:
    """Accuracy by confidence, bins of all seeds together."""
    axes.plot([0, 100], [0, 100], color="#bbbbbb", linewidth=0.8)
    for name in NAMES:
        for moment, style in MOMENTS.items():
            tables = [row["networks"][name]["calibration"][moment]["reliability"] for row in rows]
            count = np.array([each["count"] for each in tables])
            total = count.sum(axis=0)
            full = total >= 30
            confidence, accuracy = (
                100 * (np.nan_to_num(np.array([each[key] for each in tables], dtype=float)) * count).sum(axis=0)
                / np.maximum(total, 1)
                for key in ("confidence", "accuracy")
            )  # fmt: skip
            axes.plot(
                confidence[full], accuracy[full], color=COLORS[name], linestyle=style, linewidth=1.4,
                label=f"{name}, T {moment}",
            )  # fmt: skip
    tidy(axes, f"{pair}: accuracy by confidence")
    axes.set_xlabel("confidence, %", fontsize=8)
    axes.set_ylabel("right, %", fontsize=8)


def detection(axes: Axes, rows: list[Row], pair: str) -> None:
    """AUROC of every score and network, with the range of the seeds."""
    width = 0.8 / len(NAMES)
    for offset, name in enumerate(NAMES):
        found = 100 * np.array([
            [np.mean([split["scores"][score]["auroc"] for split in row["networks"][name]["splits"]])
             for score in SCORES] for row in rows
        ])  # fmt: skip
        mean = found.mean(axis=0)
        reach = np.abs(np.stack([found.min(axis=0), found.max(axis=0)]) - mean)
        x = np.arange(len(SCORES)) + (offset - 1) * width
        axes.bar(x, mean, width, color=COLORS[name], label=name, yerr=reach, error_kw={"linewidth": 0.8})
    axes.set_ylim(50, 100)  # 50 is chance
    axes.set_xticks(range(len(SCORES)), [score.replace(", ", ",\n") for score in SCORES])
    tidy(axes, f"{pair}: AUROC of held-out classes, %")


def draw(results: dict[str, list[Row]], folder: Path) -> list[Path]:
    """Draw every figure and write it into a folder."""
    pairs = {pair: rows for pair, rows in results.items() if not pair.startswith("strict")}
    curves = Figure(figsize=(9, 3.6 * len(pairs)), layout="constrained")
    panels = curves.subplots(len(pairs), 2, squeeze=False)
    bars = Figure(figsize=(5.4 * len(pairs), 3.4), layout="constrained")
    columns = bars.subplots(1, len(pairs), squeeze=False)[0]
    for (left, right), below, (pair, rows) in zip(panels, columns, pairs.items(), strict=True):
        risk(left, rows, pair)
        reliability(right, rows, pair)
        detection(below, rows, pair)
    for figure, axes in ((curves, panels[0, 0]), (bars, columns[0])):
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
        )
    paths = [folder / "open_set_risk.png", folder / "open_set_detection.png"]
    for figure, path in zip((curves, bars), paths, strict=True):
        save(figure, path)
    return paths
