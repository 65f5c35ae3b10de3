"""The report's figures: small matplotlib drawings as inline SVG that takes the page's colours and fonts.

Figures are drawn for a phone (about 340 px wide) and stand side by side on a larger screen. No pyplot:
nothing global is left behind. Colours are placeholders that become CSS variables, so light and dark are the
page's business.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from crossmost.evaluation.metrics import BranchMetrics

Records = Sequence[Mapping[str, Any]]

INK, MUTED, LINE, BEFORE, AFTER, THIRD, FOURTH = (f"#01020{digit}" for digit in range(1, 8))
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
    THIRD: "var(--third)",
    FOURTH: "var(--fourth)",
}
HEAT = (47, 129, 247)
"""The hue of heat maps; the value is the opacity, which reads on a light and on a dark page."""
WIDTH = 4.2
MOST_TERMS = 24
MOST_ROWS = 30
MOST_COLUMNS = 200
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "text.parse_math": False,
}


def curve(records: Records, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read one finite number an epoch from the records of metrics.jsonl.

    Records without the key or without an epoch are passed over; of two records of one epoch (a resumed run
    repeats the epoch it was stopped in) the later one counts.

    Returns:
        Epochs (E,) and values (E,), ascending.
    """
    found = {}
    for record in records:
        epoch, value = record.get("epoch"), record.get(key)
        if isinstance(epoch, int | float) and isinstance(value, int | float) and math.isfinite(value):
            found[float(epoch)] = float(value)
    epochs = sorted(found)
    return np.array(epochs, dtype=np.float64), np.array([found[epoch] for epoch in epochs], dtype=np.float64)


def chosen_epoch(records: Records) -> float | None:
    """Return the epoch whose checkpoint the run chose, if a record names it."""
    named = [record.get("chosen_epoch") for record in records]
    known = [epoch for epoch in named if isinstance(epoch, int | float)]
    return float(known[-1]) if known else None


def shares(records: Records) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read the share of each class among the pseudo-labels: epochs (E,), shares (E, C), rows sum to one."""
    found = {}
    for record in records:
        epoch, counts = record.get("epoch"), record.get("histogram")
        if isinstance(epoch, int | float) and counts is not None and sum(counts) > 0:
            found[float(epoch)] = np.asarray(counts, dtype=np.float64) / sum(counts)
    epochs = sorted(found)
    rows = [found[epoch] for epoch in epochs]
    return np.array(epochs, dtype=np.float64), np.array(rows, dtype=np.float64)


def effective_classes(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return exp(entropy) of each row of shares (E, C): C when even, 1 when a single class has taken all."""
    return np.exp(-(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=-1))


def pseudo_label_quality(records: Records) -> Markup | None:
    """Draw kept share, agreement and churn by epoch, and the accuracy of the kept labels where logged."""
    lines = [
        ("kept", "kept share", AFTER, "-"),
        ("kept_accuracy", "kept labels right (labels: this report only)", THIRD, "--"),
        ("agreement", "agreement of the branches", BEFORE, "-."),
        ("churn", "churn (labels that moved)", FOURTH, ":"),
    ]
    drawn = [(curve(records, key), label, color, dash) for key, label, color, dash in lines]
    drawn = [line for line in drawn if len(line[0][0])]
    if not drawn:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(3.3)
        for (epochs, values), label, color, dash in drawn:
            _line(axes, epochs, values, color, dash, label)
        _epochs(axes, records)
        axes.set(ylim=(-0.02, 1.02), ylabel="share")
        figure.legend(loc="outside lower left")
        last = "; ".join(f"{label} {values[0]:.2f} to {values[-1]:.2f}" for (_, values), label, *_ in drawn)
        return _svg(figure, f"Pseudo-labels by epoch, first to last: {last}")


def selection(records: Records) -> Markup | None:
    """Draw the label-free score by which a checkpoint is chosen, unless the last is taken."""
    epochs, values = curve(records, "selection_score")
    if not len(epochs):
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(2.6)
        _line(axes, epochs, values, AFTER)
        _epochs(axes, records)
        axes.set_ylabel("selection score")
        best = chosen_epoch(records)
        chosen = "" if best is None else f", chosen epoch {best:g}"
        return _svg(
            figure, f"Label-free selection score by epoch, {values[0]:.3g} to {values[-1]:.3g}{chosen}"
        )


def loss_terms(records: Records) -> list[tuple[str, Markup]]:
    """Draw the loss and each of its terms, one small figure each: (term, figure)."""
    keys = dict.fromkeys(
        key for record in records for key in record if key == "loss" or key.startswith("loss/")
    )
    drawn = []
    for key in list(keys)[:MOST_TERMS]:
        epochs, values = curve(records, key)
        if not len(epochs):
            continue
        with matplotlib.rc_context(STYLE | {"font.size": 8}):
            figure, axes = _canvas(1.5, width=2.2)
            _line(axes, epochs, values, AFTER)
            _epochs(axes, records, label=False)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            name = key.removeprefix("loss/") if key != "loss" else "total"
            drawn.append((name, _svg(figure, f"{name} by epoch, {values[0]:.4g} to {values[-1]:.4g}")))
    return drawn


def class_spread(records: Records, names: Sequence[str]) -> Markup | None:
    """Draw which classes the pseudo-labels go to: a row a class, or above 30 classes how many are in use."""
    epochs, share = shares(records)
    if not len(epochs):
        return None
    used = effective_classes(share)
    alt = f"Effective classes of the pseudo-labels by epoch, {used[0]:.1f} to {used[-1]:.1f} of {len(names)}"
    with matplotlib.rc_context(STYLE):
        if len(names) > MOST_ROWS:
            figure, axes = _canvas(2.6)
            _line(axes, epochs, used, AFTER)
            _epochs(axes, records)
            axes.set_ylim(bottom=0)
            axes.set_ylabel("effective classes")
            return _svg(figure, alt)
        figure, axes = _canvas(1.0 + 0.17 * len(names))
        picked = np.unique(np.linspace(0, len(epochs) - 1, MOST_COLUMNS).round().astype(int))
        opacity = (255 * share[picked].T / share.max()).astype(np.uint8)
        pixels = np.dstack([*(np.full_like(opacity, value) for value in HEAT), opacity])
        edges = (epochs[0] - 0.5, epochs[-1] + 0.5, len(names) - 0.5, -0.5)
        axes.imshow(pixels, aspect="auto", interpolation="nearest", extent=edges)
        axes.grid(visible=False)
        axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8)
        axes.tick_params(axis="y", length=0)
        _epochs(axes, records)
        return _svg(figure, f"Share of each class among the pseudo-labels. {alt}")


def reliability_diagram(before: BranchMetrics, after: BranchMetrics, branch: str) -> Markup:
    """Draw accuracy against confidence, zero-shot and adapted; a dot's area is its share of the clouds."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(3.6)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
        for metrics, color, dash, name in (
            (before, BEFORE, "--", "zero-shot"),
            (after, AFTER, "-", "adapted"),
        ):
            table = metrics.reliability
            full = table.count > 0
            x, y = table.confidence[full], table.accuracy[full]
            axes.plot(
                x, y, color=color, linestyle=dash, linewidth=1.2, label=f"{name}, ECE {metrics.ece:.3f}"
            )
            axes.scatter(
                x, y, s=8 + 160 * table.count[full] / metrics.n, color=color, alpha=0.75, linewidths=0
            )
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="accuracy")
        figure.legend(loc="outside lower left", ncols=2)
        alt = f"Reliability of {branch}: ECE {before.ece:.3f} zero-shot, {after.ece:.3f} adapted"
        return _svg(figure, alt)


def _canvas(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _line(
    axes: Axes,
    epochs: NDArray[np.float64],
    values: NDArray[np.float64],
    color: str,
    dash: str = "-",
    label: str | None = None,
) -> None:
    # A short run's points would vanish between two strokes.
    marker = "o" if len(epochs) <= 15 else None
    axes.plot(
        epochs, values, color=color, linestyle=dash, label=label, marker=marker, markersize=3, linewidth=1.5
    )


def _epochs(axes: Axes, records: Records, *, label: bool = True) -> None:
    chosen = chosen_epoch(records)
    if chosen is not None:
        axes.axvline(chosen, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        if label:
            top = ("data", "axes fraction")
            axes.annotate("chosen", (chosen, 1), xycoords=top, ha="center", va="bottom", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if label:
        axes.set_xlabel("epoch")


def _short(name: str, most: int = 18) -> str:
    visible = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return visible if len(visible) <= most else visible[: most - 1] + "…"


def _svg(figure: Figure, alt: str) -> Markup:
    """Turn a figure into an SVG element for a page: no outside names, no ids but those it refers to."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": alt}), warnings.catch_warnings():
        # The browser has the glyphs of other scripts; matplotlib only measures with its own font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font-family: [^;]*; ", "", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib always writes a viewBox"
    opening = f'<svg {box.group()} role="img" aria-label="{html.escape(alt)}"'
    text = re.sub(r"^<svg[^>]*", lambda _: opening, text)
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, variable)
    return Markup(text)
