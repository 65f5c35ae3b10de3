"""Zero-shot beside adapted, on a dataset: the only place where a run meets labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.adaptation.devices import choose_device
from crossmost.adaptation.diagnosis import Diagnosis, diagnose_all
from crossmost.checkpoints.run import PSEUDO_LABELS, Run
from crossmost.data.dataset import CloudDataset
from crossmost.data.samples import PlainSamples, plain_batches
from crossmost.errors import InputError
from crossmost.evaluation.facts import facts
from crossmost.evaluation.metrics import BranchMetrics, both_branches, branch_metrics, softmax

BRANCHES = ("point", "image", "both")
MOST_TOGETHER = 64
"""Clouds in a batch; fewer where the run trained with fewer, because the memory allows no more."""
Posteriors = dict[str, NDArray[np.float64]]  # branch -> (n, C), of the branches there are


@dataclass(frozen=True)
class Evaluation:
    """Posteriors of both networks on the same clouds, and what labels say about them.

    Attributes:
        names: the C class names.
        split: of the dataset.
        index: (n,) the clouds that could be read, as positions in the dataset.
        before: zero-shot, branch to (n, C).
        after: adapted, branch to (n, C).
        labels: (n,) positions in `names`, or None.
        data: what the figures are of: the data set and how it was read.
    """

    names: tuple[str, ...]
    split: str
    index: NDArray[np.int64]
    before: Posteriors
    after: Posteriors
    labels: NDArray[np.int64] | None
    data: Mapping[str, Any] = field(default_factory=dict)

    def metrics(self, posteriors: Posteriors) -> dict[str, BranchMetrics]:
        """Metrics of each branch; needs labels."""
        if self.labels is None:
            raise InputError("expected labels to compare with, found none")
        return {branch: branch_metrics(p, self.labels, self.names) for branch, p in posteriors.items()}

    def to_dict(self) -> dict[str, Any]:
        """What `crossmost eval --json` prints; None for the branches that do not exist, and for what needs labels."""
        absent = dict.fromkeys(BRANCHES)
        changed = {
            branch: float((p.argmax(axis=1) != self.after[branch].argmax(axis=1)).mean())
            for branch, p in self.before.items()
        }
        found: dict[str, Any] = {"n": len(self.index), "split": self.split, "changed": absent | changed}
        found |= {"data": dict(self.data), "zero_shot": None, "adapted": None}
        if self.labels is not None:
            moments = {"zero_shot": self.metrics(self.before), "adapted": self.metrics(self.after)}
            for moment, metrics in moments.items():
                found[moment] = absent | {branch: each.top1 for branch, each in metrics.items()}
            found["details"] = {
                moment: absent | {branch: each.to_dict() for branch, each in metrics.items()}
                for moment, metrics in moments.items()
            }
        return found


def posteriors(diagnosis: Diagnosis, temperatures: tuple[float, float]) -> Posteriors:
    """What a network says of n clouds.

    Args:
        diagnosis: its logits.
        temperatures: of the point and the image branch.

    Returns:
        Branch to (n, C): "point", and with an image branch "image" and "both".
    """
    point = softmax(diagnosis.point.numpy() / temperatures[0])
    if diagnosis.image is None:
        return {"point": point}
    image = softmax(diagnosis.image.numpy() / temperatures[1])
    return {"point": point, "image": image, "both": both_branches(point, image)}


def evaluate_run(
    run: Run, clouds: CloudDataset, *, device: str = "auto", workers: int | None = None
) -> Evaluation:
    """Compare a run's zero-shot and adapted networks.

    Args:
        run: loaded from disk.
        clouds: with or without labels.
        device: name.
        workers: processes that read.

    Raises:
        InputError: labels outside the vocabulary, or too many clouds that cannot be read.
    """
    labels = None if clouds.labels is None else clouds.label_indices(run.vocabulary.names)
    clouds.probe()
    place = choose_device(device)
    samples = PlainSamples(clouds, image_size=run.zero_shot.image_size, views=run.config.views)
    batches = plain_batches(samples, min(MOST_TOGETHER, run.config.batch_size), workers, place)
    zero_shot, adapted = diagnose_all([run.zero_shot.to(place), run.adapted.to(place)], batches, place)
    before = posteriors(zero_shot, run.temperatures["zero_shot"])
    after = posteriors(adapted, run.temperatures["adapted"])
    index = zero_shot.indices.numpy()
    return Evaluation(
        run.vocabulary.names,
        clouds.split,
        index,
        before,
        after,
        None if labels is None else labels[index],
        facts(clouds, run.vocabulary.tag)
        | {
            "views": run.config.views if run.zero_shot.image_size else None,
            "prompts": list(run.vocabulary.prompts),
        },
    )


def pseudo_label_accuracy(folder: Path, clouds: CloudDataset, names: tuple[str, ...]) -> Mapping[int, float]:
    """Accuracy of the kept pseudo-labels after each epoch, where the training data has labels after all.

    Args:
        folder: of the run.
        clouds: the training data.
        names: the vocabulary.

    Returns:
        Epoch to accuracy; empty without labels.
    """
    path = folder / PSEUDO_LABELS
    if clouds.labels is None or not path.is_file():
        return {}
    truth = dict(zip(clouds.ids, clouds.label_indices(names).tolist(), strict=True))
    with np.load(path, allow_pickle=False) as stored:
        ids, epochs, labels = stored["ids"], stored["epoch"], stored["labels"]
    if not set(ids.tolist()) <= truth.keys():
        return {}
    wanted = np.array([truth[name] for name in ids.tolist()])
    found = {}
    for epoch, row in zip(epochs.tolist(), labels, strict=True):
        kept = row >= 0
        if kept.any():
            found[epoch] = float((row == wanted)[kept].mean())
    return found
