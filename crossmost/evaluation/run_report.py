"""The report of a run: its evaluation, its curves and the clouds it won and lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.adaptation.up_axis import axis_warning
from crossmost.checkpoints.base import Architecture
from crossmost.checkpoints.run import REPORT, Run, read_records, shortcomings
from crossmost.checkpoints.run_files import read_provenance
from crossmost.data.dataset import CloudDataset
from crossmost.data.views import render_views
from crossmost.evaluation.evaluate import Evaluation, pseudo_label_accuracy
from crossmost.evaluation.report import MOST_EXAMPLES, Example, ReportData, write_report

EXAMPLE_SIZE = 112
CHECKPOINT = "Checkpoint"
"""The row that says which epoch's network was kept."""
HOW = {"label-free": "chosen without labels", "last": "the last"}
"""How the epoch was chosen, by the option `selection`."""
CENTERS = {
    "none": "none is subtracted",
    "mean": "the mean of the clouds",
    "balanced": "balanced, as if every class were as frequent",
}


def write_run_report(
    run: Run,
    evaluation: Evaluation,
    clouds: CloudDataset,
    trained_on: CloudDataset | None,
    name: str = REPORT,
) -> Path:
    """Write a report into the run's folder.

    Args:
        run: loaded from disk.
        evaluation: of that run.
        clouds: the dataset that was evaluated.
        trained_on: the training data, whose labels, if any, say how right the pseudo-labels were; or None.
        name: of the file.

    Returns:
        The file.
    """
    records = read_records(run.folder)
    if trained_on is not None:
        accuracy = pseudo_label_accuracy(run.folder, trained_on, run.vocabulary.names)
        for record in records:
            record["kept_accuracy"] = accuracy.get(record["epoch"])
    for record in records:  # under the report's names; epoch 0 is before training, the first epoch is 1
        record["kept"], record["agreement"] = record["watched/kept"], record["watched/agreement"]
        record["epoch"] += 1
        record["chosen_epoch"] += 1
    data = ReportData.from_posteriors(
        title(run, clouds),
        evaluation.names,
        evaluation.before,
        evaluation.after,
        evaluation.labels,
        provenance=provenance_rows(run, evaluation, clouds),
        training=records,
        warnings=warnings(run, clouds),
        chosen_by_score=run.config.selection == "label-free",
        first=headline_branch(run),
        **examples(evaluation, clouds, headline_branch(run)),
    )
    return write_report(run.folder / name, data)


def title(run: Run, clouds: CloudDataset) -> str:
    """What the run was adapted to, and what it is measured on where that is another dataset."""
    adapted_to = read_provenance(run.folder)["data"]
    measured = "" if clouds.name == adapted_to else f", measured on {clouds.name}"
    return f"Adapted to {adapted_to}{measured}"


def headline_branch(run: Run) -> str:
    """The branch that the report is about: the points, which are exported, unless the images alone were trained."""
    return "image" if run.config.mode == "image-only" else "point"


def provenance_rows(run: Run, evaluation: Evaluation, clouds: CloudDataset) -> list[tuple[str, str]]:
    """Where the figures come from."""
    measured = f"{clouds.name}, split {evaluation.split}, {len(evaluation.index)} clouds"
    return [("Evaluated on", measured), *run_rows(run)]


def run_rows(run: Run) -> list[tuple[str, str]]:
    """Where a run comes from."""
    made, last = read_provenance(run.folder), (read_records(run.folder) or [{}])[-1]
    chosen = last["chosen_epoch"] + 1 if last else "?"
    rows = [
        ("Trained on", f"{made['data']}, split {made['split']}, {made['clouds']} clouds, without labels"),
        ("Base", f"{made['base']} (sha256 {made['base_sha256'][:12]})"),
        ("Text embeddings", run.vocabulary.tag or "no tag"),
        ("Encoder", encoder_row(run.architecture)),
        ("Recipe, mode, seed", f"{run.config.recipe}, {run.config.mode}, {run.config.seed}"),
        (
            CHECKPOINT,
            f"{run.config.exported} of epoch {chosen} of {run.config.epochs}, {HOW[run.config.selection]}",
        ),
    ]
    if center := last.get("center"):  # runs of older versions did not note it
        by = "chosen without labels: " if run.config.center == "target" else ""
        rows.append(("Center", f"{by}{CENTERS[center]}"))
    if kept := kept_row(run, last):
        rows.append(("Pseudo-labels", kept))
    return [*rows, ("crossmost", made["crossmost"])]


def kept_row(run: Run, record: dict[str, Any]) -> str:
    """How many of the pseudo-labels were learnt, where it was a share of each class's."""
    share = record.get("kept_share")  # runs of older versions did not note it
    if share is None:
        return ""
    by = "chosen without labels: " if run.config.kept_share is None and run.config.mode == "joint" else ""
    return f"{by}{'all of them' if share == 1 else f'the surest {share:.0%} of each class'}"


def encoder_row(architecture: Architecture) -> str:
    """The point encoder, and that there is nothing else where there is not."""
    point = f"{architecture.point.name}, {architecture.point.points} points"
    return point if architecture.image else f"{point}; the base has no image branch"


def warnings(run: Run, clouds: CloudDataset) -> list[str]:
    """What the reader should know before the figures."""
    found = []
    made = read_provenance(run.folder)
    if lying := axis_warning(made.get("up_axis_scores", {}), made.get("reading", {}).get("up_axis", "z")):
        found.append(f"{lying[0].upper()}{lying[1:]}.")
    found += shortcomings(run)
    if clouds.bad:
        names = ", ".join(list(clouds.bad)[:3])
        found.append(
            f"{len(clouds.bad)} files could not be read and were skipped, the first of them {names}."
        )
    return found


def examples(evaluation: Evaluation, clouds: CloudDataset, branch: str) -> dict[str, Any]:
    """Clouds that a branch names otherwise: won and lost where there are labels, changed where there are none."""
    before = evaluation.before[branch].argmax(axis=1)
    after = evaluation.after[branch].argmax(axis=1)
    labels = evaluation.labels
    if labels is None:
        groups = {"changed": before != after}
    else:
        groups = {
            "won": (before != labels) & (after == labels),
            "lost": (before == labels) & (after != labels),
        }

    def example(row: int) -> Example:
        index = int(evaluation.index[row])
        cloud = clouds.load(index)[:, :3]
        return Example(
            render_views(cloud, count=1, size=EXAMPLE_SIZE)[0],
            evaluation.names[before[row]],
            evaluation.names[after[row]],
            None if labels is None else evaluation.names[labels[row]],
            clouds.ids[index],
        )

    shown = {name: [example(row) for row in spread(np.flatnonzero(mask))] for name, mask in groups.items()}
    return {**shown, "totals": {name: int(mask.sum()) for name, mask in groups.items()}}


def spread(rows: NDArray[np.intp]) -> list[int]:
    """At most as many rows as a contact sheet shows, evenly over all of them."""
    count = min(MOST_EXAMPLES, len(rows))
    return [int(rows[index * len(rows) // count]) for index in range(count)]
