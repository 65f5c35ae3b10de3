"""What better pseudo-labels could gain at most: the recipe, taught by the true labels in their place.

No way to adapt, and nothing that the package can do: a trainer of this benchmark alone. All else is as in the row it is
compared with, the number of steps above all, so that what is left to the fine-tuned ceiling is how the recipe learns
and not what from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from crossmost.adaptation import run as runs
from crossmost.adaptation.pseudo_labels import PseudoLabels, Targets
from crossmost.adaptation.trainer import Record, Trainer
from crossmost.data.dataset import CloudDataset
from crossmost.data.samples import TrainingBatch


class TaughtTrainer(Trainer):
    """A trainer whose student learns given labels, all of them kept; the teacher is reviewed as ever."""

    def __init__(self, *arguments: Any, truth: torch.Tensor):
        super().__init__(*arguments)
        self.truth = truth.to(self.device)

    def _label(self, batch: TrainingBatch) -> tuple[PseudoLabels, Record]:
        _, agreement = super()._label(batch)
        label = self.truth[batch.indices]
        targets = Targets(label, torch.ones_like(label, dtype=torch.bool))
        return PseudoLabels(targets, targets), agreement


@contextmanager
def taught(clouds: CloudDataset, names: Sequence[str]) -> Iterator[None]:
    """Runs that are trained within learn the labels of these clouds, as positions in the class names."""
    truth = torch.from_numpy(clouds.label_indices(names))
    with mock.patch.object(runs, "Trainer", partial(TaughtTrainer, truth=truth)):
        yield
