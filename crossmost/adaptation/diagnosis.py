"""What can be known without labels: the teacher's predictions on a fixed part of the data, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crossmost.adaptation.devices import autocast
from crossmost.data.samples import PlainBatch
from crossmost.errors import WorkFailed
from crossmost.models.grouping import cut
from crossmost.models.student import Student

SEARCH_STEPS = 40
TEMPERATURES = (0.25, 16.0)
"""Range searched for a branch's temperature, relative to the one it was trained with."""
ENOUGH = 64
"""Fewer clouds do not tell how often the branches agree."""
NONE_READ = "none of the clouds to look at could be read"


class Diagnosis(NamedTuple):
    """Logits of the branches on the same n clouds."""

    indices: Tensor  # (n,) int64, into the dataset
    point: Tensor  # (n, C) float32
    image: Tensor | None  # (n, C) float32, mean over the views; None: no image branch


class Agreement(NamedTuple):
    """How often both branches name the same class."""

    share: float  # of the clouds
    beyond_chance: float  # Cohen's kappa: 0 for branches that only name the same classes as often


class Projected(NamedTuple):
    """A batch of clouds in the joint space, before centers are subtracted and lengths are taken."""

    indices: Tensor  # (B,) int64, into the dataset
    point: Tensor  # (B, D) float32
    image: Tensor | None  # (T, D) float32, the views of one object after the other; None: no image branch
    counts: tuple[int, ...]  # views of each object


@torch.no_grad()
def project(
    model: Student,
    batches: Iterable[PlainBatch | None],
    device: torch.device,
    precision: str = "float32",
) -> Iterator[Projected]:
    """Project clouds and all their views, if any, as they are, unmasked and unaugmented.

    Args:
        model: in evaluation mode.
        batches: of the clouds to look at; None for a batch without a usable cloud.
        device: the model's.
        precision: of what the networks compute; what they project is float32.

    Raises:
        WorkFailed: no cloud could be read.
    """
    none = True
    for batch in batches:
        if batch is None:
            continue
        none, seen = False, batch.to(device)
        groups = cut(seen.points.points, model.point_encoder.card, seen.points.sizes)
        image: Tensor | None = None
        counts: tuple[int, ...] = ()
        with autocast(device, precision):
            point = model.project_point(model.point_features(groups)).float()
            if seen.views is not None:
                image = model.project_image(model.image_features(seen.views.pixels)).float()
                counts = seen.views.counts
        yield Projected(batch.indices, point, image, counts)
    if none:
        raise WorkFailed(NONE_READ)


@torch.no_grad()
def classified(model: Student, projected: Iterable[Projected]) -> Diagnosis:
    """Classify what was projected, about the model's centers; logits on the CPU."""
    return _joined(
        [
            Diagnosis(
                batch.indices.cpu(),
                model.classify(model.place_point(batch.point)).cpu(),
                None if batch.image is None else _mean_logits(model, batch.image, batch.counts).cpu(),
            )
            for batch in projected
        ]
    )


def _mean_logits(model: Student, rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The mean of the logits of each object's views: projected rows (T, D) to (B, C)."""
    logits = model.classify(model.place_image(rows))
    return torch.stack([own.mean(dim=0) for own in logits.split(list(counts))])


def diagnose(
    model: Student,
    batches: Iterable[PlainBatch | None],
    device: torch.device,
    precision: str = "float32",
) -> Diagnosis:
    """Classify clouds and all their views, if any, as they are: `project`, then `classified`, batch by batch.

    Args:
        model: in evaluation mode.
        batches: of the clouds to look at; None for a batch without a usable cloud.
        device: the model's.
        precision: see `project`.

    Returns:
        Logits on the CPU.

    Raises:
        WorkFailed: no cloud could be read.
    """
    return classified(model, project(model, batches, device, precision))


def diagnose_all(
    models: Sequence[Student], batches: Iterable[PlainBatch | None], device: torch.device
) -> list[Diagnosis]:
    """The same for several models, each cloud read and rendered once; the models see the same size of views."""
    parts: list[list[Diagnosis]] = [[] for _ in models]
    for batch in batches:
        if batch is not None:
            for model, own in zip(models, parts, strict=True):
                own.append(classified(model, project(model, [batch], device)))
    if not all(parts):
        raise WorkFailed(NONE_READ)
    return [_joined(own) for own in parts]


def _joined(parts: Sequence[Diagnosis]) -> Diagnosis:
    indices, point, images = zip(*parts, strict=True)
    return Diagnosis(torch.cat(indices), torch.cat(point), None if images[0] is None else torch.cat(images))


def point_logits(model: Student, points: tuple[Tensor, Tensor]) -> Tensor:
    """Classify clouds (B, N, C) with their sizes (B,): (B, classes) float32."""
    card = model.point_encoder.card
    groups = cut(points[0], card, points[1])
    return model.classify(model.embed_point(model.point_features(groups)))


def image_logits(model: Student, views: tuple[Tensor, Sequence[int]]) -> Tensor:
    """Classify views (T, 3, H, W) with their counts of B objects: (B, classes), the mean over each one's views."""
    pixels, counts = views
    return _mean_logits(model, model.project_image(model.image_features(pixels)), counts)


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature at which softmax(logits / T) predicts `target` best (least cross-entropy).

    Args:
        logits: (n, C).
        target: (n, C) probabilities.
    """
    low, high = (math.log(t) for t in TEMPERATURES)
    candidates = torch.linspace(low, high, SEARCH_STEPS, dtype=torch.float64).exp()
    exact, wanted = logits.double(), target.double()
    costs = [-(wanted * (exact / t).log_softmax(dim=1)).sum(dim=1).mean() for t in candidates]
    return float(candidates[torch.stack(costs).argmin()])


def calibrate(diagnosis: Diagnosis) -> tuple[float, float]:
    """One temperature a branch, without labels: each is fitted to predict what the other branch says.

    A branch that is sure and wrong contradicts the other one often and is softened for it. Where both are
    right they agree, and both stay sharp.

    A single branch stays at the temperature it was trained with (1): two looks of one branch at a cloud are wrong
    together, and agreement with itself would leave it as sure of its mistakes as it is.

    Returns:
        Temperatures of the point and of the image branch.
    """
    if diagnosis.image is None:
        return 1.0, 1.0
    classes = diagnosis.point.shape[1]
    said_point = torch.nn.functional.one_hot(diagnosis.point.argmax(dim=1), classes)
    said_image = torch.nn.functional.one_hot(diagnosis.image.argmax(dim=1), classes)
    return fit_temperature(diagnosis.point, said_image), fit_temperature(diagnosis.image, said_point)


def agreement(point: Tensor, image: Tensor) -> Agreement:
    """How often two branches name the same class, by logits or similarities (n, C) each."""
    said_point, said_image = point.argmax(dim=1), image.argmax(dim=1)
    share = float((said_point == said_image).double().mean())
    of_point, of_image = (
        torch.bincount(said, minlength=point.shape[1]).double() / len(said)
        for said in (said_point, said_image)
    )
    by_chance = float(of_point @ of_image)
    return Agreement(share, (share - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0)


def agreement_of(diagnosis: Diagnosis) -> Agreement | None:
    """How often the branches name the same class; None without an image branch."""
    return None if diagnosis.image is None else agreement(diagnosis.point, diagnosis.image)


NOT_READ = torch.iinfo(torch.int64).min
"""In place of the label of a cloud whose file could not be read this time."""


def churn(before: Tensor, after: Tensor) -> float:
    """Share of labels that changed, of the clouds that were read both times.

    Args:
        before: (n,) int64: a label that is kept, -1 less a label that is not, or `NOT_READ`.
        after: the same clouds, later.
    """
    both = (before != NOT_READ) & (after != NOT_READ)
    named = [labels[both].where(labels[both] >= 0, -1 - labels[both]) for labels in (before, after)]
    return float((named[0] != named[1]).double().mean()) if both.any() else 0.0


def mutual_information(probabilities: Tensor, prior: Tensor | None = None) -> float:
    """Information a prediction gives about the input, as a share of ln C: sure of each, even over all.

    Args:
        probabilities: (n, C).
        prior: (C,) shares that the classes are expected to have, where they are not even: the entropy of the mean
            prediction is then ln C less its divergence from them, which is the same for even ones.
    """
    exact = probabilities.double().clamp(min=1e-12)
    marginal = exact.mean(dim=0)
    expected = None if prior is None else prior.double() * exact.shape[1]
    entropy_of_mean = -(marginal * (marginal if expected is None else marginal / expected).log()).sum()
    mean_entropy = -(exact * exact.log()).sum(dim=1).mean()
    return float((entropy_of_mean - mean_entropy) / math.log(exact.shape[1]))
