"""The supervised ceiling: the same base, fine-tuned on the labels that the label-free methods do not see."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from baseline_embeddings import Posterior
from baseline_networks import BATCH, CPU, Target, classify
from torch import Tensor
from torch.nn import functional

from crossmost.adaptation.devices import autocast
from crossmost.adaptation.pretrain import CaptionedBatch, CaptionedSamples, collate
from crossmost.data.samples import EpochOrder, load
from crossmost.models.grouping import cut
from crossmost.models.student import Student
from crossmost.runtime.whole_files import replacing

RATE, WEIGHT_DECAY, BETAS = 1e-3, 0.05, (0.9, 0.98)
"""Those that the base was pre-trained with."""
STEPS = 400
SAVED_EVERY = 25


@dataclass(frozen=True)
class Place:
    """Where and how precisely fine-tuning computes, and how many processes load for it."""

    device: torch.device = CPU
    precision: str = "float32"
    workers: int | None = 0


HERE = Place()
"""The CPU, as all baselines."""


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear over the first twentieth, then a cosine to zero."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(student: Student, rate: float = RATE) -> torch.optim.AdamW:
    """AdamW over everything; vectors and scalars do not decay."""
    groups = [
        {
            "params": [p for p in student.parameters() if (p.ndim > 1) is decayed],
            "weight_decay": WEIGHT_DECAY if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS)


def fine_tuned(
    target: Target, seed: int, steps: int = STEPS, saved: Path | None = None
) -> dict[str, Posterior]:
    """Supervised, a ceiling: the base fine-tuned by cross-entropy on the labelled training split, both branches.

    Everything is trained, with the augmentation, optimiser and rate of pre-training; the last network is taken.

    Args:
        target: its training labels are used.
        seed: of augmentation and order.
        steps: of the optimiser, 64 clouds each.
        saved: file to go on from, where there is one, and to save to.

    Returns:
        Each branch's posteriors on the test split, in the clouds' own order.
    """
    return classify(fine_tune(target, seed, steps, saved), target.test)


def fine_tune(
    target: Target,
    seed: int,
    steps: int = STEPS,
    saved: Path | None = None,
    *,
    rate: float = RATE,
    place: Place = HERE,
) -> Student:
    """The network that `fine_tuned` classifies with, on its device; `rate` is that of the base's pre-training."""
    student = copy.deepcopy(target.student).requires_grad_(True).train().to(place.device)
    optimizer = make_optimizer(student, rate)
    samples = CaptionedSamples(
        target.train.unlabelled(), target.train.label_indices(target.names), seed=seed,
        image_size=student.images().size, least=student.point_encoder.card.least,
    )  # fmt: skip
    done = restore(student, optimizer, saved)
    batches = batches_from(samples, seed, done, place)
    for step, batch in zip(range(done, steps), batches, strict=False):
        torch.manual_seed(seed * 1_000_003 + step)  # stochastic depth
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_at(step, steps)
        with autocast(place.device, place.precision):
            loss = supervised_loss(student, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if saved is not None and (step + 1) % SAVED_EVERY == 0:
            save(student, optimizer, step + 1, saved)
            print(f"{saved.stem}: step {step + 1} of {steps}, loss {loss.item():.3f}", flush=True)
    return student


def save(student: Student, optimizer: torch.optim.Optimizer, done: int, path: Path) -> None:
    """Keep what fine-tuning goes on from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        state = {"student": student.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
        torch.save(state, partial)


def restore(student: Student, optimizer: torch.optim.Optimizer, path: Path | None) -> int:
    """Go on from what was kept; the number of steps done."""
    if path is None or not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["done"])


def batches_from(
    samples: CaptionedSamples, seed: int, done: int, place: Place = HERE
) -> Iterator[CaptionedBatch]:
    """Batches of augmented clouds, views and labels, epoch after epoch, without the first `done`."""
    size = min(BATCH, len(samples))
    first_epoch, start = divmod(done, len(samples) // size)
    for epoch in itertools.count(first_epoch):
        order = EpochOrder(len(samples), size, seed=seed, epoch=epoch, start=start)
        for batch in load(samples, collate, place.workers, place.device, batch_sampler=order):
            yield batch.to(place.device)
        start = 0


def supervised_loss(student: Student, batch: CaptionedBatch) -> Tensor:
    """Cross-entropy of both branches against the labels of a batch."""
    groups = cut(batch.points.points, student.point_encoder.card, batch.points.sizes)
    point = student.classify(student.embed_point(student.point_features(groups)))
    image = student.classify(student.embed_image(student.image_features(batch.images)))
    return functional.cross_entropy(point, batch.caption) + functional.cross_entropy(image, batch.caption)
