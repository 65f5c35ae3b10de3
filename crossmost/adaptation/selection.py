"""Choosing a checkpoint and noticing collapse, both without labels (METHOD 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from crossmost.adaptation.diagnosis import Diagnosis, agreement_of, mutual_information
from crossmost.config import Mode

COLLAPSE_SHARE = 0.5
"""A run has collapsed when it effectively uses less than this share of the classes that were used before training."""


def score(
    diagnosis: Diagnosis, point: Tensor, image: Tensor | None, mode: Mode, prior: Tensor | None = None
) -> float:
    """How good a teacher looks without labels: sure of each cloud but even over all, and its branches agree.

    A branch that is not trained says nothing about one that is, and one that is not there says nothing at all.

    Args:
        diagnosis: the teacher's logits on the watched clouds.
        point: P_P, (n, C), at its branch's temperature.
        image: P_I, (n, C); None without an image branch.
        mode: of the run.
        prior: (C,) shares that the classes are expected to have; None for even ones.
    """
    if mode == "point-only" or image is None:
        return mutual_information(point, prior)
    if mode == "image-only":
        return mutual_information(image, prior)
    agreement = agreement_of(diagnosis)
    assert agreement is not None  # where P_I is, its logits are
    return agreement.share + mutual_information((point + image) / 2, prior)


def histogram(labels: Tensor, classes: int) -> Tensor:
    """How often each class was predicted: (n,) int64 to (C,) int64."""
    return torch.bincount(labels, minlength=classes)


def effective_classes(counts: Tensor) -> float:
    """Number of classes that, used evenly, would have the same entropy as this histogram (C,)."""
    exact = counts.double()
    shares = exact / exact.sum().clamp(min=1e-9)
    return float(torch.special.entr(shares).sum().exp())


def collapsed(counts: Tensor, at_zero_shot: Tensor, prior: Tensor | None = None) -> bool:
    """Whether predictions have shrunk to few classes, compared with those before training and with what is expected.

    Args:
        counts: how often each class is predicted, (C,).
        at_zero_shot: the same before training.
        prior: (C,) shares that the classes are expected to have; None for even ones.
    """
    expected = [at_zero_shot] if prior is None else [at_zero_shot, prior]
    return effective_classes(counts) < COLLAPSE_SHARE * min(map(effective_classes, expected))
