"""`crossmost eval` of a bundle: what is deployed, as it answers, on labelled clouds. Works without torch.

Clouds of other classes than the bundle's count as well: they are what it should call `unknown`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from crossmost.answers import DATASET_UP, form_of, none_readable, parts
from crossmost.checkpoints.atomic import shown_json
from crossmost.data.catalog import UNKNOWN
from crossmost.data.class_names import positions_known
from crossmost.data.dataset import CloudDataset
from crossmost.data.reading import Reading
from crossmost.errors import InputError
from crossmost.evaluation.detection import auroc, false_positive_rate
from crossmost.evaluation.facts import facts
from crossmost.evaluation.metrics import BranchMetrics, branch_metrics
from crossmost.runtime.classifier import Classifier
from crossmost.runtime.manifest import INT8
from crossmost.skipped import one_line, say_skipped
from crossmost.split_choice import measured_clouds

BRANCHES = {"image": None, "both": None}
"""What a bundle has not: it is the point encoder."""


@dataclass(frozen=True)
class BundleEvaluation:
    """The answers of a bundle to n labelled clouds, and what the labels say about them.

    Attributes:
        names: its C classes.
        split: of the dataset.
        posteriors: (n, C) calibrated.
        similarity: (n,) to the most similar class.
        unknown: (n,) whether it said so.
        threshold: of the similarity, below which it does; None where it never does.
        labels: (n,) positions in `names`, `UNKNOWN` for clouds of other classes.
        others: how many clouds there are of each other class, by the name that the data set has for it.
        ran: bundle, precision and backend.
        data: what the figures are of: the data set and how it was read.
    """

    names: tuple[str, ...]
    split: str
    posteriors: NDArray[np.float64]
    similarity: NDArray[np.float64]
    unknown: NDArray[np.bool_]
    threshold: float | None
    labels: NDArray[np.int64]
    others: Mapping[str, int]
    ran: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n,) which clouds are of its classes."""
        return self.labels != UNKNOWN

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,) whether the most probable class is the true one, called unknown or not."""
        return self.posteriors.argmax(axis=1) == self.labels

    def metrics(self) -> BranchMetrics:
        """Of the clouds of its classes, called unknown or not."""
        return branch_metrics(self.posteriors[self.known], self.labels[self.known], self.names)

    def refusal(self) -> dict[str, Any]:
        """What it calls unknown, as shares of the known clouds, right and wrong, and of the others; None of none."""
        groups = {
            "known": self.known,
            "known_right": self.known & self.right,
            "known_wrong": self.known & ~self.right,
            "others": ~self.known,
        }
        found: dict[str, Any] = {"threshold": self.threshold, "other_classes": dict(self.others)}
        found |= {
            name: float(self.unknown[group].mean()) if group.any() else None for name, group in groups.items()
        }
        scores = (self.similarity[self.known], self.similarity[~self.known])
        measured = {"auroc": auroc, "fpr95": false_positive_rate}
        return found | {name: of(*scores) if self.others else None for name, of in measured.items()}

    def to_dict(self) -> dict[str, Any]:
        """What `crossmost eval --json` prints; top-1 is that of the clouds of the bundle's classes."""
        metrics = self.metrics()
        return {
            "n": len(self.labels),
            "split": self.split,
            **self.ran,
            "data": dict(self.data),
            "deployed": {"point": metrics.top1, **BRANCHES},
            "unknown": self.refusal(),
            "details": {"deployed": {"point": metrics.to_dict(), **BRANCHES}},
        }

    def lines(self) -> list[str]:
        """The same for the screen: the figures, then a line a class."""
        metrics = self.metrics()
        return [
            f"{len(self.labels)} clouds ({self.split}), {self.ran['backend']}, {self.ran['precision']}",
            f"top-1 of the {metrics.n} of its classes  {metrics.top1:.1%}, mean of the classes "
            f"{metrics.mean_per_class:.1%}, ECE {metrics.ece:.1%}",
            *self._refusal_lines(),
            *_class_lines(metrics),
        ]

    def _refusal_lines(self) -> list[str]:
        found = self.refusal()
        lines = ["it calls nothing unknown: no threshold"]
        if self.threshold is not None:
            parts_of = {"right": found["known_right"], "wrong": found["known_wrong"]}
            of_answers = ", ".join(
                f"{share:.1%} of the {kind} answers" for kind, share in parts_of.items() if share is not None
            )
            lines = [f"called unknown  {found['known']:.1%} of them: {of_answers}"]
        if self.others:
            classes = ", ".join(f"{one_line(name)} {count}" for name, count in self.others.items())
            called = "" if self.threshold is None else f"{found['others']:.1%} called unknown, "
            lines.append(f"{sum(self.others.values())} of other classes ({classes})")
            lines.append(
                f"  {called}AUROC of the similarity {found['auroc']:.3f}, FPR95 {found['fpr95']:.1%}"
            )
        return lines


def _class_lines(metrics: BranchMetrics) -> list[str]:
    """Clouds, recall and the most frequent mistake of each class that is there."""
    width = max(5, *map(len, metrics.names))
    lines = [f"{'class':<{width}}  clouds  recall  most often taken for"]
    for row, name in enumerate(metrics.names):
        taken = metrics.confusion[row].copy()
        if not (clouds := int(taken.sum())):
            continue
        taken[row] = 0
        mistake = f"{metrics.names[int(taken.argmax())]} ({taken.max()})" if taken.any() else ""
        lines.append(f"{name:<{width}}  {clouds:6}  {metrics.per_class[row]:6.1%}  {mistake}".rstrip())
    return lines


def evaluate(
    bundle: Path,
    data: Path,
    reading: Reading,
    *,
    split: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    classes: Sequence[str] | Path | None = None,
    as_json: bool = False,
) -> None:
    """Answer every cloud of a labelled data set with a bundle, and print what the labels say of the answers.

    Args:
        bundle: folder.
        data: labelled clouds, some of other classes maybe.
        reading: how they are read.
        split: of the data set; None for its test split where it has one beside a train split.
        backend: of the runtime.
        threads: of a pass on the CPU; None for one a core.
        classes: instead of the bundle's own; see `Classifier.set_classes`.
        as_json: one line of JSON instead of lines for people.

    Raises:
        InputError: no bundle, no labels, none of the bundle's classes, or no cloud that can be read.
    """
    clouds = measured_clouds(reading, data, form_of(bundle), split)
    with Classifier.load(
        bundle, backend=backend, threads=threads, up_axis=DATASET_UP, color=reading.color
    ) as classifier:
        if classes is not None:
            classifier.set_classes(classes)
            if note := classifier.info()["classes"]["note"]:
                typer.echo(note, err=True)
        labels, others = labels_of(clouds, classifier.classes)
        evaluation = answer(classifier, clouds, labels, others)
    if not evaluation.known.any():
        raise none_readable([data], clouds.bad)
    say_skipped(clouds.bad)
    typer.echo(shown_json(evaluation.to_dict()) if as_json else "\n".join(evaluation.lines()))


def labels_of(clouds: CloudDataset, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Labels of clouds as positions in class names, and their own names.

    Returns:
        (n,) positions, `UNKNOWN` for another class; (n,) the data set's names.

    Raises:
        InputError: no labels, or only those of other classes.
    """
    if clouds.labels is None or clouds.class_names is None:
        raise InputError(f"{clouds.name}: expected class folders or labels to compare with, found none")
    own = np.array(clouds.class_names)[clouds.labels]
    positions = positions_known(names, clouds.class_names)[clouds.labels]
    if (positions == UNKNOWN).all():
        clouds.label_indices(names)  # says which, and what is nearest
    return positions, own


def answer(
    classifier: Classifier, clouds: CloudDataset, labels: NDArray[np.int64], own: NDArray[np.str_]
) -> BundleEvaluation:
    """Classify all clouds that can be read.

    Args:
        classifier: of the bundle.
        clouds: n of them; those that cannot be read are recorded in `bad`.
        labels: (n,) positions in its classes.
        own: (n,) names of the clouds' classes.
    """
    names = classifier.classes
    column = {name: index for index, name in enumerate(names)}
    index, rows, similarity, unknown = [], [], [], []
    for part in parts(clouds.whole()):
        predictions = classifier([cloud.points for cloud in part], top_k=len(names))
        for cloud, prediction in zip(part, predictions, strict=True):
            row = np.zeros(len(names))
            for name, score in prediction.top_k:
                row[column[name]] = score
            index.append(cloud.row)
            rows.append(row)
            similarity.append(prediction.similarity)
            unknown.append(prediction.unknown)
    info = classifier.info()
    return BundleEvaluation(
        names,
        clouds.split,
        np.reshape(rows, (-1, len(names))),
        np.array(similarity, float),
        np.array(unknown, bool),
        info["classes"]["unknown_similarity"],
        labels[index],
        dict(Counter(own[index][labels[index] == UNKNOWN].tolist()).most_common()),
        {
            "bundle": Path(info["bundle"]["path"]).name,
            "precision": precision_of(info),
            "backend": info["backend"],
        },
        facts(clouds, info["classes"]["text_model"]),
    )


def precision_of(info: Mapping[str, Any]) -> str:
    """The precision that answers: a bundle of float32 may hold an encoder in 8-bit integers, for the CPU."""
    integers = info["device"].get("graph") == INT8
    return "int8" if integers else str(info["bundle"]["precision"])
