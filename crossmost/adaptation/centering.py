"""Where the clouds of a target lie in the joint space (the `center` switch).

A change of sensor or data set moves all clouds the same way, and the class embeddings do not move along: some classes
gain logits from every cloud. Each branch therefore subtracts a center of what it projects before it takes lengths:

    mean      c = mean(z): distribution normalisation (Zhou et al., NeurIPS 2023), with the whole mean, and of the
              projected rows as they are where that takes unit rows. It is right where every class is as frequent.
    balanced  the mean as it would be if every class were as frequent. With the share pi_k of the clouds that are
              labelled k, the mean's similarity to class k is out_k + pi_k gap_k, where gap_k is how much more similar
              clouds of k are to it than the others. The center has out_k + gap_k / C instead. The labels are those
              of both branches together about their centers, found in turns.
    target    whichever the branches speak for: see `choose`.

No label is involved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from crossmost.adaptation.diagnosis import ENOUGH, Projected, agreement
from crossmost.models.student import Student

Way = Literal["none", "mean", "balanced"]

SMALLEST_LENGTH = 1e-12
SMALLEST_LEFT = 1e-3
"""Clouds that are all but equal have no center worth subtracting: rounding would be left of them."""
TURNS = 50
"""At most so many turns between labels and balanced centers: they may go round in a circle."""
RIDGE = 0.01
"""Keeps class names that mean almost the same from asking for a center far away."""
ALIKE_WITHOUT = 0.85
"""Share of the clouds on which branches that agree so often already fit the target as they are."""
ALIKE_MORE = 0.15
"""So much more often do the branches agree about the balanced center where classes are missing."""


class Center(NamedTuple):
    """The center of a branch."""

    place: Tensor  # (D,), among the projected features of the clouds, or of all their views
    left: float  # mean length of an embedding about the center, as a share of its length about zero


class Seen(NamedTuple):
    """What a branch sees of n clouds."""

    rows: Tensor  # (n, D) float32, or (T, D) of all their views: projected, of any length
    similarities: Tensor  # (n, C) float64, rows times Theta, the mean over the views
    sharpness: float  # what they are multiplied by to be as sharp as the branch's logits


@torch.no_grad()
def find_centers(
    model: Student, projected: Sequence[Projected], branches: Collection[str], way: Way | Literal["target"]
) -> tuple[Way, dict[str, Center]]:
    """The centers of clouds and views; labels are not involved.

    Args:
        model: whose projections they are; its own centers tell how sharp its logits are.
        projected: at least one batch.
        branches: to look at, "point" or "image" or both.
        way: see above.

    Returns:
        The way, chosen if it was "target", and the centers by branch; without those whose clouds are all but equal.
    """
    return place_centers({branch: _seen(model, projected, branch) for branch in branches}, _theta(model), way)


def place_centers(
    seen: Mapping[str, Seen], theta: Tensor, way: Way | Literal["target"]
) -> tuple[Way, dict[str, Center]]:
    """The centers of what branches see; see `find_centers`.

    Args:
        seen: by branch.
        theta: (D, C) float64, the classes.
        way: see above.
    """
    places = means = {branch: of.rows.mean(dim=0) for branch, of in seen.items()}
    if way in ("balanced", "target"):
        places = _balanced_places(seen, means, theta)
    if way == "target":
        way = choose(seen, {"mean": means, "balanced": places}, theta)
    if way == "none":
        return way, {}
    if way == "mean":
        places = means
    found = {branch: center_at(seen[branch].rows, place) for branch, place in places.items()}
    return way, {branch: center for branch, center in found.items() if center.left >= SMALLEST_LEFT}


def center_at(rows: Tensor, place: Tensor) -> Center:
    """The center at (D,) of projected features (n, D)."""
    left = (rows - place).norm(dim=1) / rows.norm(dim=1).clamp(min=SMALLEST_LENGTH)
    return Center(place, float(left.mean()))


def choose(
    seen: Mapping[str, Seen],
    places: Mapping[Literal["mean", "balanced"], Mapping[str, Tensor]],
    theta: Tensor,
) -> Way:
    """The way that the branches speak for, by how often both name the same class; "mean" where they cannot.

    Labels are none of it: where the center is right, what is left in both branches is the object. A branch alone
    cannot speak, and a few clouds are too few. Where both see only few classes they agree by chance too: that alone
    speaks for nothing.
    """
    if len(seen) < 2 or len(next(iter(seen.values())).similarities) < ENOUGH:
        return "mean"
    without = agreement(*(of.similarities for of in seen.values()))
    mean, balanced = (
        agreement(
            *(seen[branch].similarities - _similarity(place, theta) for branch, place in places[way].items())
        )
        for way in ("mean", "balanced")
    )
    if without.share >= max(ALIKE_WITHOUT, mean.share, balanced.share):
        return "none"
    more = balanced.share > mean.share + ALIKE_MORE and balanced.beyond_chance > mean.beyond_chance
    return "balanced" if more else "mean"


def balanced_similarities(similarities: Sequence[Tensor], sharpness: Sequence[float]) -> list[Tensor]:
    """For each branch, the similarities (C,) of its balanced center to the classes.

    Args:
        similarities: of n clouds to the classes, (n, C) for each branch.
        sharpness: what they are multiplied by to be logits, for each branch.
    """
    found = [of.mean(dim=0) for of in similarities]
    labels: Tensor | None = None
    for _ in range(TURNS):
        about = zip(similarities, found, sharpness, strict=True)
        said = torch.stack([(scale * (of - center)).softmax(dim=1) for of, center, scale in about])
        before, labels = labels, said.sum(dim=0).argmax(dim=1)
        if before is not None and torch.equal(before, labels):
            break
        found = [_with_equal_shares(of, labels) for of in similarities]
    return found


def _with_equal_shares(similarities: Tensor, labels: Tensor) -> Tensor:
    """The mean of similarities (n, C) as it would be if each class had the same share of the labels (n,)."""
    count, classes = similarities.shape
    member = torch.nn.functional.one_hot(labels, classes).to(similarities.dtype)
    counts = member.sum(dim=0)
    inside = (member * similarities).sum(dim=0) / counts
    outside = ((1 - member) * similarities).sum(dim=0) / (count - counts)
    gaps = inside - outside
    known = gaps.isfinite()
    if not known.any():  # one class is all there is
        return similarities.mean(dim=0)
    gaps = gaps.where(known, gaps[known].mean())
    return similarities.mean(dim=0) - (counts / count - 1 / classes) * gaps


def _balanced_places(
    seen: Mapping[str, Seen], means: Mapping[str, Tensor], theta: Tensor
) -> dict[str, Tensor]:
    """The means, moved among the classes until they are as similar to each as balanced centers are."""
    wanted = balanced_similarities(
        [of.similarities for of in seen.values()], [of.sharpness for of in seen.values()]
    )
    alike = theta.T @ theta + RIDGE * torch.eye(theta.shape[1], dtype=theta.dtype)
    places = {}
    for (branch, of), similarity in zip(seen.items(), wanted, strict=True):
        excess = of.similarities.mean(dim=0) - similarity
        moved = theta @ torch.linalg.solve(alike, excess)
        places[branch] = means[branch] - moved.to(means[branch])
    return places


def _seen(model: Student, projected: Sequence[Projected], branch: str) -> Seen:
    """What a branch sees, about zero."""
    rows = torch.cat([getattr(batch, branch) for batch in projected])
    similarities = rows.double().cpu() @ _theta(model)
    if branch == "image":
        counts = [count for batch in projected for count in batch.counts]
        similarities = torch.stack([own.mean(dim=0) for own in similarities.split(counts)])
    length = (rows - getattr(model, f"{branch}_center")).norm(dim=1).mean().clamp(min=SMALLEST_LENGTH)
    return Seen(rows, similarities, float(model.logit_scale.exp() / length))


def _theta(model: Student) -> Tensor:
    """The classes, (D, C) float64 on the CPU."""
    return model.class_weights().double().cpu()


def _similarity(place: Tensor, theta: Tensor) -> Tensor:
    """Of a center (D,) to the classes, (C,)."""
    return place.double().cpu() @ theta
