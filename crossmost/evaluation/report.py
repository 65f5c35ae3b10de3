"""The report of a run: one html file that opens offline and says what adaptation changed, losses included.

It shows what it is given: nothing here chooses, tunes or drops a result.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from crossmost.errors import InputError
from crossmost.evaluation.metrics import (
    BranchMetrics,
    Change,
    agreement,
    both_branches,
    branch_metrics,
    compare,
)

BRANCHES = {"point": "Points", "image": "Images", "both": "Both (mean of the two)"}
MOST_MATRIX = 30
"""Above this many classes the confusion matrices give way to the most confused pairs."""
MOST_PAIRS = 20
MOST_MOVED = 6
MOST_EXAMPLES = 24
EXAMPLE_PIXELS = 224


@dataclass(frozen=True)
class Example:
    """One cloud of a contact sheet."""

    image: NDArray[np.uint8]  # (h, w) depth view, or (h, w, 3)
    before: str  # class the zero-shot model names
    after: str  # class the adapted model names
    truth: str | None
    file: str


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows; `from_posteriors` fills in what can be computed.

    `before` is zero-shot, `after` adapted; both map a branch ('point', 'image', 'both') to its metrics and
    are None where there are no labels. `changes` has the same branches and needs no labels. `agreement` is
    the share of clouds on which the two branches agree, before and after. `training` holds the records of
    metrics.jsonl. `won` and `lost` are labelled examples, `changed` is for a report without labels; `totals` says how
    many such clouds there are of each, where not all are shown. `first` is the branch of the headline and of the
    examples. `chosen_by_score` says whether the label-free score chose the checkpoint, or was but watched.
    """

    title: str
    class_names: tuple[str, ...]
    changes: Mapping[str, Change]
    before: Mapping[str, BranchMetrics] | None = None
    after: Mapping[str, BranchMetrics] | None = None
    agreement: tuple[float, float] | None = None
    provenance: Sequence[tuple[str, str]] = ()
    training: Sequence[Mapping[str, Any]] = ()
    won: Sequence[Example] = ()
    lost: Sequence[Example] = ()
    changed: Sequence[Example] = ()
    totals: Mapping[str, int] = field(default_factory=dict)
    first: str = "point"
    warnings: Sequence[str] = ()
    chosen_by_score: bool = True

    def __post_init__(self) -> None:
        if not self.changes or not set(self.changes) <= set(BRANCHES):
            raise InputError(f"expected branches among {list(BRANCHES)}, found {list(self.changes)}")
        for metrics in (self.before, self.after):
            if (metrics is None) != (self.before is None):
                raise InputError("expected metrics both before and after, or neither, found one of the two")
            if metrics is not None and set(metrics) != set(self.changes):
                raise InputError(f"expected metrics of {list(self.changes)}, found {list(metrics)}")
        counts = [change.histogram_after for change in self.changes.values()]
        counts += [record["histogram"] for record in self.training if record.get("histogram") is not None]
        wrong = {len(count) for count in counts} - {len(self.class_names)}
        if wrong:
            raise InputError(f"expected {len(self.class_names)} counts, one a class, found {sorted(wrong)}")

    @classmethod
    def from_posteriors(
        cls,
        title: str,
        class_names: Sequence[str],
        before: Mapping[str, ArrayLike],
        after: Mapping[str, ArrayLike],
        labels: ArrayLike | None = None,
        **shown: Any,
    ) -> ReportData:
        """Compute metrics and changes; 'both' is added where 'point' and 'image' are given.

        Args:
            title: heading of the page.
            class_names: the C names.
            before: branch to zero-shot posteriors (n, C).
            after: branch to adapted posteriors (n, C), of the same branches and clouds.
            labels: (n,) integers in 0..C-1, or None.
            shown: further fields as they are: provenance, training, won, lost, changed, totals, first, warnings,
                chosen_by_score.

        Raises:
            InputError: branches, shapes or labels that do not belong together.
        """
        old, new = dict(before), dict(after)
        if set(old) != set(new):
            raise InputError(
                f"expected the same branches before and after, found {list(old)} and {list(new)}"
            )
        agreed = None
        if {"point", "image"} <= set(old):
            agreed = (agreement(old["point"], old["image"]), agreement(new["point"], new["image"]))
            old["both"], new["both"] = (both_branches(p["point"], p["image"]) for p in (old, new))

        def measure(posteriors: Mapping[str, ArrayLike]) -> dict[str, BranchMetrics] | None:
            if labels is None:
                return None
            return {branch: branch_metrics(p, labels, class_names) for branch, p in posteriors.items()}

        return cls(
            title=title,
            class_names=tuple(class_names),
            changes={branch: compare(old[branch], new[branch], labels) for branch in old},
            before=measure(old),
            after=measure(new),
            agreement=agreed,
            **shown,
        )


def check_report_extra() -> None:
    """See that what draws the report is installed.

    Raises:
        InputError: it is not; the message has the pip line.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as missing:
        raise InputError(
            f"the report needs {missing.name}, which is not installed: pip install 'crossmost[report]'"
        ) from missing


def write_report(out: Path, data: ReportData) -> Path:
    """Write the report and return its path.

    Args:
        out: the html file, or an existing folder that gets a report.html; written whole or not at all.
        data: what to show.

    Raises:
        InputError: the report extra is not installed, or an example's image is not one.
    """
    check_report_extra()
    import jinja2

    from crossmost.evaluation import figures

    diagrams = {}
    if data.before is not None and data.after is not None:
        for branch, before in data.before.items():
            diagrams[branch] = figures.reliability_diagram(
                before, data.after[branch], BRANCHES[branch].lower()
            )
    page = _template(jinja2).render(
        data=data,
        views=[
            branch_view(data, branch)
            for branch in sorted(BRANCHES, key=lambda branch: branch != data.first)
            if branch in data.changes
        ],
        diagrams=diagrams,
        quality=figures.pseudo_label_quality(data.training),
        selection=figures.selection(data.training),
        spread=figures.class_spread(data.training, data.class_names),
        terms=figures.loss_terms(data.training),
    )
    path = out / "report.html" if out.is_dir() else out
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    # A file name that is not UTF-8 holds surrogates, which no encoder takes.
    part.write_bytes(page.encode("utf-8", "backslashreplace"))
    os.replace(part, path)
    return path


def _template(jinja2: Any) -> Any:
    template = resources.files("crossmost.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["png"] = png_uri
    return environment.from_string(template)


def branch_view(data: ReportData, branch: str) -> dict[str, Any]:
    """Gather what the page shows of one branch."""
    view: dict[str, Any] = {
        "branch": branch,
        "title": BRANCHES[branch],
        "change": data.changes[branch],
        "classes": class_rows(data, branch),
        "before": None,
        "after": None,
    }
    # Clouds, not recall: a class of two clouds that gains one is no headline.
    measure = "prediction_change" if data.before is None else "right_change"
    moved = sorted((row for row in view["classes"] if row[measure]), key=lambda row: -row[measure])
    view["gained"] = [row for row in moved if row[measure] > 0][:MOST_MOVED]
    view["lost"] = [row for row in moved[::-1] if row[measure] < 0][:MOST_MOVED]
    if data.before is not None and data.after is not None:
        before, after = data.before[branch], data.after[branch]
        view |= {"before": before, "after": after, "matrices": None}
        view["pairs"] = confused_pairs(before.confusion, after.confusion, data.class_names)
        if len(data.class_names) <= MOST_MATRIX:
            view["matrices"] = [("Zero-shot", matrix(before.confusion)), ("Adapted", matrix(after.confusion))]
    return view


def class_rows(data: ReportData, branch: str) -> list[dict[str, Any]]:
    """Return a row a class: predictions and, with labels, support, clouds right and recall (NaN: none)."""
    change = data.changes[branch]
    rows = []
    for index, name in enumerate(data.class_names):
        old, new = int(change.histogram_before[index]), int(change.histogram_after[index])
        row: dict[str, Any] = {
            "name": name,
            "predicted_before": old,
            "predicted_after": new,
            "prediction_change": new - old,
        }
        if data.before is not None and data.after is not None:
            support = int(data.before[branch].confusion[index].sum())
            right = [int(metrics[branch].confusion[index, index]) for metrics in (data.before, data.after)]
            row |= {"support": support, "right_before": right[0], "right_after": right[1]}
            row |= {"right_change": right[1] - right[0]}
            row["recall_before"], row["recall_after"] = (
                float(metrics[branch].per_class[index]) for metrics in (data.before, data.after)
            )
        rows.append(row)
    return rows


def confused_pairs(
    before: NDArray[np.int64], after: NDArray[np.int64], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the pairs (truth, predicted) that are confused most, before or after, worst first.

    Args:
        before: (C, C), rows are the truth.
        after: (C, C), of the same clouds.
        names: the C class names.
    """
    worst = np.maximum(before, after)
    np.fill_diagonal(worst, 0)
    order = np.argsort(-worst, axis=None, kind="stable")[:MOST_PAIRS]
    cells = [divmod(int(cell), len(names)) for cell in order]
    return [
        {"truth": names[i], "predicted": names[j], "before": int(before[i, j]), "after": int(after[i, j])}
        for i, j in cells
        if worst[i, j] > 0
    ]


def matrix(confusion: NDArray[np.int64]) -> list[list[tuple[int, float]]]:
    """Return (count, share of its row) of each cell of a confusion matrix (C, C)."""
    total = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    shares = confusion / total
    return [list(zip(*row, strict=True)) for row in zip(confusion.tolist(), shares.tolist(), strict=True)]


def png_uri(image: NDArray[np.uint8]) -> str:
    """Encode an image (h, w) or (h, w, 3) uint8 as a PNG data URI, at most 224 pixels a side.

    Raises:
        InputError: another shape or dtype.
    """
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise InputError(f"expected an image (h, w) or (h, w, 3) uint8, found {pixels.shape} {pixels.dtype}")
    picture = Image.fromarray(pixels)
    picture.thumbnail((EXAMPLE_PIXELS, EXAMPLE_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
