"""Cross-MoST: label-free self-training of both branches (METHOD 6.1).

for each epoch:
    for each batch of unlabelled clouds and views:
        teacher:  weak cloud, weak views         ->  posteriors P_P, P_I, each branch about its center
        labels:   P_P, P_I                       ->  joint pseudo-labels and which to keep
        student:  strong, masked cloud and view  ->  L = L_st + L_fair + L_mim + w_gl L_gl (each branch) + l_x L_x
        student  <- AdamW(L);  teacher <- EMA(student), held to the base
    move the centers to the watched clouds' own, diagnose the teacher on them, set temperatures and thresholds,
    remember the best teacher

Without an image branch the point branch is trained alone: no views, P_P alone is the label, and the teacher is
chosen and its thresholds are set by what it says of the clouds, as in any point-only run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crossmost.adaptation.centering import Way, find_centers
from crossmost.adaptation.devices import autocast, choose_device, keep_freed_memory
from crossmost.adaptation.diagnosis import (
    NOT_READ,
    Projected,
    agreement_of,
    churn,
    classified,
    image_logits,
    point_logits,
    project,
)
from crossmost.adaptation.optimizer import freeze, make_optimizer, training_mode
from crossmost.adaptation.pseudo_labels import Labeler, PseudoLabels, keeps_a_share
from crossmost.adaptation.sampling import WatchedClouds, sample_settings
from crossmost.adaptation.schedules import ema_decay, learning_rate
from crossmost.adaptation.selection import collapsed, histogram, score
from crossmost.adaptation.step import Fairness, loss_terms, total
from crossmost.adaptation.teacher import make_teacher, update_teacher
from crossmost.config import TrainConfig
from crossmost.data.samples import (
    Clouds,
    EpochOrder,
    PlainBatch,
    PlainSamples,
    TrainingBatch,
    TrainingSamples,
    plain_batches,
    training_batches,
)
from crossmost.errors import InputError, WorkFailed
from crossmost.models.student import Student

Record = dict[str, Any]

MOVED = ("point_center", "image_center", "logit_scale")
"""What the target moves in the networks outside an optimiser step, and in the base that the teacher is held to."""
LOWER_RATE = "lower learning_rate; the last epoch is saved"
TRAINED = {"point-only": ("point",), "image-only": ("image",)}
"""The branches that a mode trains, where it is not both."""


@dataclass
class Progress:
    """How far a run is: everything besides the networks that a resumed run needs to know."""

    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    step: int = 0  # optimiser steps done
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch's loss terms and ratios
    records: list[Record] = field(default_factory=list)  # one an epoch, epoch -1 is before training
    # (n,) labels after each record; -1 less the label: not kept; NOT_READ: of a file that could not be read
    watched: list[Tensor] = field(default_factory=list)
    indices: Tensor | None = None  # (n,) the watched clouds, into the dataset
    best_score: float = float("-inf")
    best_epoch: int = -1
    stopped: str | None = None  # why the run ended before its last epoch
    zero_shot_temperatures: tuple[float, float] | None = None  # where the first record's are not those
    center: Way = "mean"  # how the first review places the centers, and all after it


class Trainer:
    """The state of a run and the loop over it; knows clouds and class embeddings, no labels."""

    def __init__(self, student: Student, clouds: Clouds, config: TrainConfig):
        """Set up a run from its beginning.

        Args:
            student: the zero-shot classifier; trained in place.
            clouds: unlabelled.
            config: the run's options.
        """
        torch.manual_seed(config.seed)
        self.config = config
        self.clouds = clouds
        self.device = choose_device(config.device)
        autocast(self.device, config.precision)  # refuses a precision before any work is done
        keep_freed_memory()
        self.student = student.to(self.device)
        self.teacher = make_teacher(self.student)
        self.base: dict[str, Tensor] | None = None
        if config.anchor == "base":
            self.base = {name: value.detach().clone() for name, value in self.student.state_dict().items()}
        freeze(self.student, config)
        self.optimizer = make_optimizer(self.student, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        classes = student.classifier.shape[1]
        if classes < 2:
            raise InputError("expected at least two classes, found one: there is nothing to tell apart")
        if config.class_prior is not None and len(config.class_prior) != classes:
            raise InputError(f"expected a class_prior of {classes} shares, found {len(config.class_prior)}")
        self.labeler = Labeler(config, classes)
        self.fairness = Fairness(config, classes)
        self.prior = None if config.class_prior is None else self.fairness.prior
        self.progress = Progress()
        self.chosen = {"student": self._weights(self.student), "teacher": self._weights(self.teacher)}
        self.samples = TrainingSamples(clouds, sample_settings(student, config))
        self.watched = WatchedClouds(clouds, config.watched)
        batches = max(1, len(clouds) // config.batch_size)
        if batches < config.accumulate:
            raise InputError(
                f"expected at least accumulate={config.accumulate} batches an epoch, found {batches} of "
                f"{len(clouds)} clouds: lower accumulate or batch_size"
            )
        self.steps_per_epoch = batches // config.accumulate

    def fit(self, on_batch: Callable[[Record], None], on_epoch: Callable[[Trainer], None]) -> None:
        """Train to the last epoch, or until the run stops itself.

        Args:
            on_batch: called with the figures of each batch.
            on_epoch: called after each epoch with the trainer, to save it.

        Raises:
            WorkFailed: the loss, or what the teacher says of the watched clouds, is no longer a number.
        """
        if not self.progress.records:
            self._review(epoch=-1)
            on_epoch(self)
        while self.progress.epoch < self.config.epochs and self.progress.stopped is None:
            self._train_epoch(on_batch)
            self._review(self.progress.epoch)
            self.progress.epoch += 1
            self.progress.batch = 0
            self.progress.sums = {}
            on_epoch(self)

    def _train_epoch(self, on_batch: Callable[[Record], None]) -> None:
        config, progress = self.config, self.progress
        order = EpochOrder(
            len(self.clouds), config.batch_size, seed=config.seed, epoch=progress.epoch, start=progress.batch
        )
        gathered = 0  # batches since the last optimiser step
        for batch in training_batches(self.samples, order, config.workers, self.device):
            figures = None if batch is None else self._train_batch(batch.to(self.device))
            progress.batch += 1
            gathered += figures is not None
            if gathered and progress.batch % config.accumulate == 0:
                self._optimizer_step()
                gathered = 0
            if figures is not None:
                on_batch(figures)
        # Batches that did not fill an optimiser step are not carried into the next epoch: a run that is
        # resumed there would not have them.
        self.optimizer.zero_grad(set_to_none=True)

    def _train_batch(self, batch: TrainingBatch) -> Record:
        """One pass of the algorithm box up to the gradients."""
        config, progress = self.config, self.progress
        seed = ((config.seed * 1_000_003 + progress.epoch) * 1_000_003 + progress.batch) % 2**64
        torch.manual_seed(seed)  # stochastic depth
        generator = torch.Generator().manual_seed(seed)  # masks
        training_mode(self.student, config)

        labels, agreement = self._label(batch)
        with autocast(self.device, config.precision):
            terms = loss_terms(self.student, batch, labels, self.fairness, config, generator)
        loss = total(terms, config)
        if not torch.isfinite(loss):
            raise WorkFailed(f"the loss is {loss.item()} in epoch {progress.epoch + 1}: {LOWER_RATE}")
        self.scaler.scale(loss / config.accumulate).backward()
        return self._note(loss, terms, labels, agreement)

    @torch.no_grad()
    def _label(self, batch: TrainingBatch) -> tuple[PseudoLabels, Record]:
        """The teacher's view of a batch, weak and unmasked; and how often its branches, if both, agree."""
        with autocast(self.device, self.config.precision):
            point = point_logits(self.teacher, batch.weak_points)
            image = None if batch.weak_views is None else image_logits(self.teacher, batch.weak_views)
        if image is None:
            return self.labeler(point.float(), None), {}
        agreement = (point.argmax(dim=1) == image.argmax(dim=1)).float().mean().item()
        return self.labeler(point.float(), image.float()), {"agreement": agreement}

    def _optimizer_step(self) -> None:
        config, progress = self.config, self.progress
        rate = learning_rate(
            progress.step, self.steps_per_epoch, config, self.student.point_encoder.card.learning_rate
        )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate * parameters["multiplier"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        decay = ema_decay(progress.step, self.steps_per_epoch, config)
        update_teacher(self.teacher, self.student, decay, self.base, config.anchor_share)
        progress.step += 1

    def _note(
        self, loss: Tensor, terms: dict[str, Tensor], labels: PseudoLabels, agreement: Record
    ) -> Record:
        """Add a batch to the epoch's means and return the batch's own figures."""
        kept = labels.image.kept if self.config.mode == "image-only" else labels.point.kept
        figures = {"loss": loss.item(), "kept": kept.float().mean().item(), **agreement}
        figures |= {f"loss/{name}": value.item() for name, value in terms.items()}
        for name, value in figures.items():
            self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
        self.progress.sums["batches"] = self.progress.sums.get("batches", 0.0) + 1
        return figures

    def _review(self, epoch: int) -> None:
        """Look at the teacher without labels: set the dials, write the record, choose, notice collapse."""
        progress, config = self.progress, self.config
        projected = list(project(self.teacher, self._plain_batches(), self.device, config.precision))
        if config.center != "none":
            if not progress.records:  # the base as it is, for comparisons with what becomes of it
                self.labeler.refit(classified(self.teacher, projected))
                progress.zero_shot_temperatures = self.labeler.temperatures
            self._move_centers(projected)
        diagnosis = classified(self.teacher, projected)
        if not all(logits.isfinite().all() for logits in diagnosis[1:] if logits is not None):
            raise WorkFailed(f"the teacher's logits are no numbers after epoch {epoch + 1}: {LOWER_RATE}")
        if not progress.records:
            self.labeler.settle_kept_share(diagnosis)
        self.labeler.refit(diagnosis)
        labels = self.labeler(diagnosis.point, diagnosis.image)
        targets = labels.image if config.mode == "image-only" else labels.point
        counts = histogram(targets.label, self.labeler.classes)
        seen = torch.full((len(self.watched),), NOT_READ)
        seen[diagnosis.indices] = targets.label.where(targets.kept, -1 - targets.label)
        posteriors = self.labeler.posteriors(diagnosis.point, diagnosis.image)
        agreement = agreement_of(diagnosis)
        record: Record = {
            "epoch": epoch,
            "step": progress.step,
            "kept_share": self.labeler.kept_share if keeps_a_share(config) else None,
            "watched/kept": targets.kept.double().mean().item(),
            "watched/agreement": agreement and agreement.share,
            "watched/kappa": agreement and agreement.beyond_chance,
            "selection_score": score(diagnosis, *posteriors, config.mode, self.prior),
            "center": progress.center if config.center != "none" else "none",
            "temperature/point": self.labeler.temperatures[0],
            "temperature/image": self.labeler.temperatures[1],
            "histogram": counts.tolist(),
        }
        if progress.watched:
            record["churn"] = churn(progress.watched[-1], seen)
        batches = progress.sums.pop("batches", 0.0)
        record |= {name: value / batches for name, value in progress.sums.items()}
        at_zero_shot = progress.records[0]["histogram"] if progress.records else counts.tolist()
        if config.collapse == "stop" and collapsed(counts, torch.tensor(at_zero_shot), self.prior):
            progress.stopped = (
                "the pseudo-labels have collapsed to few of the classes that were used at first"
            )
            record["stopped"] = progress.stopped
        else:
            self._choose(epoch, record["selection_score"])
        record["chosen_epoch"] = progress.best_epoch
        progress.records.append(record)
        progress.watched.append(seen)
        progress.indices = torch.tensor(self.watched.indices)

    def _choose(self, epoch: int, found: float) -> None:
        """Remember the weights if they are the ones to keep so far."""
        progress = self.progress
        if self.config.selection == "last" or found >= progress.best_score:
            progress.best_score, progress.best_epoch = found, epoch
            self.chosen = {"student": self._weights(self.student), "teacher": self._weights(self.teacher)}

    @torch.no_grad()
    def _move_centers(self, projected: Sequence[Projected]) -> None:
        """Let both networks see the watched clouds about their center, at first with as sharp logits as without."""
        progress, trained = self.progress, TRAINED.get(self.config.mode, ("point", "image"))
        way = progress.center if progress.records else self.config.center
        progress.center, centers = find_centers(self.teacher, projected, trained, way)
        if not centers:
            return
        moved = {f"{branch}_center": center.place for branch, center in centers.items()}
        if not progress.records:
            left = sum(center.left for center in centers.values()) / len(centers)
            moved["logit_scale"] = self.student.logit_scale + math.log(left)
            # A branch that is not trained has the temperature for what the common scale has lost.
            self.labeler.temperatures = (
                1.0 if "point" in trained else left,
                1.0 if "image" in trained else left,
            )
        networks = [self.student.state_dict(), self.teacher.state_dict()]
        for weights in networks if self.base is None else [*networks, self.base]:
            for name, value in moved.items():
                weights[name].copy_(value)

    def _plain_batches(self) -> Iterator[PlainBatch | None]:
        """The watched clouds as they are."""
        config = self.config
        size = self.student.image_size if self.samples.settings.looked_at else None
        plain = PlainSamples(self.watched, image_size=size, views=config.views)
        return plain_batches(plain, config.batch_size, config.workers, self.device)

    @staticmethod
    def _weights(model: Student) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain values and tensors."""
        return {
            "progress": copy.deepcopy(vars(self.progress)),
            "student": self._weights(self.student),
            "teacher": self._weights(self.teacher),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "labeler": self.labeler.state(),
            "base": {name: self.base[name].cpu() for name in MOVED} if self.base else {},
            "fairness": dict(self.fairness.average),
        }

    def load_state(self, state: dict[str, Any], chosen: dict[str, dict[str, Tensor]]) -> None:
        """Continue where `state` was taken.

        Args:
            state: what `state` returned.
            chosen: weights of the checkpoint chosen so far, "student" and "teacher".
        """
        self.progress = Progress(**state["progress"])
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.labeler.load_state(state["labeler"])
        if self.base is not None:
            for name, value in state["base"].items():
                self.base[name].copy_(value)
        self.fairness.average = dict(state["fairness"])
        self.chosen = chosen
