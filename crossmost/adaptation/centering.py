"""Where the clouds of a target lie in the joint space (the `center` switch).

A change of sensor or data set moves all clouds the same way, and the class embeddings do not move along: some classes
gain logits from every cloud. Each branch therefore subtracts the mean of what it projects, c = mean(z W), before it
takes lengths: distribution normalisation (Zhou et al., NeurIPS 2023) with the whole mean. It needs no label, but clouds
of most of the classes: where one class is all there is, its own direction is in the mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from crossmost.data.samples import PlainBatch
from crossmost.errors import WorkFailed
from crossmost.models.grouping import cut
from crossmost.models.student import Student

SMALLEST = 1e-12


class Center(NamedTuple):
    """The center of a branch."""

    mean: Tensor  # (D,), of the projected features of the clouds, or of all their views
    left: float  # mean length of an embedding about the center, as a share of its length about zero


@torch.no_grad()
def find_centers(
    model: Student, batches: Iterable[PlainBatch | None], device: torch.device, branches: Collection[str]
) -> dict[str, Center]:
    """The centers of clouds and views as they are; labels are not involved.

    Args:
        model: in evaluation mode; the centers it has are not looked at.
        batches: of the clouds to look at; None for a batch without a usable cloud.
        device: the model's.
        branches: to look at, "point" or "image" or both.

    Raises:
        WorkFailed: no cloud could be read.
    """
    found: dict[str, list[Tensor]] = {branch: [] for branch in branches}
    for batch in batches:
        if batch is None:
            continue
        seen = batch.to(device)
        if "point" in branches:
            groups = cut(seen.points.points, model.point_encoder.card, seen.points.sizes)
            found["point"].append(model.project_point(model.point_features(groups)))
        if "image" in branches:
            assert seen.views is not None
            found["image"].append(model.project_image(model.image_features(seen.views.flatten(0, 1))))
    if not all(found.values()):
        raise WorkFailed("none of the clouds to look at could be read")
    return {branch: center_of(torch.cat(rows).float()) for branch, rows in found.items()}


def center_of(rows: Tensor) -> Center:
    """The center of projected features (n, D)."""
    mean = rows.mean(dim=0)
    left = (rows - mean).norm(dim=1) / rows.norm(dim=1).clamp(min=SMALLEST)
    return Center(mean, float(left.mean()))
