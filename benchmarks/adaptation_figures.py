"""The curves of the adaptation benchmark, from its result files: pseudo-labels and accuracy, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from adaptation_rows import REFERENCE, TITLES, answering
from pairs import PAIRS

mpl.use("Agg")
import matplotlib.pyplot as plt  # after the backend is chosen
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Result = dict[str, Any]
KEPT_SHARE = "share of the clouds that is kept"
COLORS = {
    "joint": "#0072B2", REFERENCE: "#D55E00", "point-only": "#009E73", "separate": "#CC79A7", "agreement": "#7F7F7F",
}  # fmt: skip
"""Told apart by colour-blind eyes too (Okabe and Ito); image-only has labels of another branch."""


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the figures; one column a pair."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [pair for pair in PAIRS if any(each["pair"] == pair for each in results)]
    labels = {
        "kept pseudo-labels that are right": lambda result, epoch: epoch["kept_right"],
        KEPT_SHARE: lambda result, epoch: epoch["kept"],
    }
    answers = {"test clouds named rightly": accuracy}
    return [
        save(curves(results, pairs, labels), folder / "adaptation_pseudo_labels.png"),
        save(curves(results, pairs, answers, marks=True), folder / "adaptation_epochs.png"),
    ]


def accuracy(result: Result, epoch: Result) -> float | None:
    """What the row answers with, of the network it keeps."""
    found = epoch[result["network"]]
    return None if found is None else found[answering(result["row"])[-1]]


def curves(
    results: Sequence[Result],
    pairs: Sequence[str],
    measures: Mapping[str, Callable[[Result, Result], float | None]],
    *,
    marks: bool = False,
) -> Figure:
    """A column a pair, a line of plots a measure; a curve a row, the band from the lowest to the highest seed."""
    size = (1 + 2.6 * len(pairs), 0.9 + 2.4 * len(measures))
    figure, axes = plt.subplots(
        len(measures), len(pairs), figsize=size, squeeze=False, sharex="col", sharey="row"
    )
    for column, pair in enumerate(pairs):
        for row, (title, measure) in enumerate(measures.items()):
            plot = axes[row, column]
            for name in COLORS:
                found = [each for each in results if each["pair"] == pair and each["row"] == name]
                curve(plot, name, found, measure, marks)
            plot.grid(alpha=0.3)
            plot.xaxis.set_major_locator(MaxNLocator(integer=True))
            plot.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
            if title == KEPT_SHARE:  # where it is set, not found, any other scale would show noise
                plot.set_ylim(0, 1)
            if column == 0:
                plot.set_ylabel("\n".join(split_in_two(title)))
        axes[0, column].set_title(pair)
        axes[-1, column].set_xlabel("epoch (0: before training)")
    handles = {
        label: handle
        for plot in axes.flat
        for handle, label in zip(*plot.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    figure.tight_layout(rect=(0, 0.3 / size[1], 1, 1))
    return figure


def curve(
    plot: Axes,
    name: str,
    results: Sequence[Result],
    measure: Callable[[Result, Result], float | None],
    marks: bool,
) -> None:
    """Mean and range over the seeds; a dot where a run chose its network, without labels."""
    whole: list[list[float]] = []
    for result in results:
        found = [measure(result, epoch) for epoch in result["by_epoch"]]
        values = [value for value in found if value is not None]
        if len(values) == len(found):
            whole.append(values)
            if marks:
                chosen = result["chosen_epoch"]
                plot.plot(chosen, values[chosen], "o", color=COLORS[name], markersize=4)
    if not whole:
        return
    shortest = min(map(len, whole))  # a run may have stopped itself
    stacked = np.array([values[:shortest] for values in whole])
    epochs = np.arange(shortest)
    plot.plot(epochs, stacked.mean(axis=0), color=COLORS[name], label=TITLES[name])
    plot.fill_between(
        epochs, stacked.min(axis=0), stacked.max(axis=0), color=COLORS[name], alpha=0.15, linewidth=0
    )


def split_in_two(title: str) -> tuple[str, str]:
    """A title on two lines of about the same length."""
    words = title.split()
    middle = (len(words) + 1) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def save(figure: Figure, path: Path) -> Path:
    """Write a figure without the moment at which it was made."""
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path
