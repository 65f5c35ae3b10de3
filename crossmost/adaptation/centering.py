"""Where the clouds of a target lie in the joint space (the `center` switch).

A change of sensor or data set moves all clouds the same way, and the class embeddings do not move along: some classes
gain logits from every cloud. Each branch therefore subtracts the mean of what it projects, c = mean(z W), before it
takes lengths: distribution normalisation (Zhou et al., NeurIPS 2023), with the whole mean, and of the projected rows as
they are where that takes unit rows. It needs no label, but clouds of most of the classes: where one class is all there
is, its own direction is in the mean.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crossmost.adaptation.diagnosis import Projected

SMALLEST_LENGTH = 1e-12
SMALLEST_LEFT = 1e-3
"""Clouds that are all but equal have no center worth subtracting: rounding would be left of them."""


class Center(NamedTuple):
    """The center of a branch."""

    mean: Tensor  # (D,), of the projected features of the clouds, or of all their views
    left: float  # mean length of an embedding about the center, as a share of its length about zero


def find_centers(projected: Sequence[Projected], branches: Collection[str]) -> dict[str, Center]:
    """The centers of clouds and views; labels are not involved.

    Args:
        projected: at least one batch.
        branches: to look at, "point" or "image" or both.

    Returns:
        By branch; without those whose clouds are all but equal.
    """
    rows = {
        "point": [batch.point for batch in projected],
        "image": [batch.image for batch in projected if batch.image is not None],
    }
    found = {branch: center_of(torch.cat(rows[branch])) for branch in branches}
    return {branch: center for branch, center in found.items() if center.left >= SMALLEST_LEFT}


def center_of(rows: Tensor) -> Center:
    """The center of projected features (n, D)."""
    mean = rows.mean(dim=0)
    left = (rows - mean).norm(dim=1) / rows.norm(dim=1).clamp(min=SMALLEST_LENGTH)
    return Center(mean, float(left.mean()))
