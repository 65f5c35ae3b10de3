"""The exponential moving average of the student (METHOD 1.5), held to the base where the run asks for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from crossmost.models.student import Student

AT_ONCE = 64
"""Tensors moved by one call: a GPU would wait for hundreds of calls, and blends of all would be a further network."""


def make_teacher(student: Student) -> Student:
    """Copy the student; the copy stays in evaluation mode and takes no gradient."""
    teacher = copy.deepcopy(student).eval()
    return teacher.requires_grad_(False)


@torch.no_grad()
def update_teacher(
    teacher: Student,
    student: Student,
    decay: float,
    base: Mapping[str, Tensor] | None = None,
    share: float = 1.0,
) -> None:
    """Theta' <- d theta' + (1 - d) theta over the whole state, BatchNorm statistics included.

    With a base theta_0, theta is replaced by theta_0 + a (theta - theta_0): the teacher is then the same blend of
    the base and the student's average. Blends of a pre-trained network with what it was fine-tuned to keep more of
    what it knew (WiSE-FT, Wortsman et al., CVPR 2022); here the labels come from the blend too.

    Args:
        teacher: changed in place.
        student: as it is after the optimiser's step.
        decay: d.
        base: theta_0, a state like the student's; None: as published.
        share: a, how much of the student's way from the base counts.
    """
    current, averages = student.state_dict(), teacher.state_dict()
    moving = [name for name, average in averages.items() if average.is_floating_point()]
    for first in range(0, len(moving), AT_ONCE):
        names = moving[first : first + AT_ONCE]
        values = [current[name].to(averages[name].dtype) for name in names]
        if base is not None:
            start = [base[name].to(value) for name, value in zip(names, values, strict=True)]
            values = list(torch._foreach_lerp(start, values, share))
        torch._foreach_lerp_([averages[name] for name in names], values, 1 - decay)
    for name in averages.keys() - set(moving):
        averages[name].copy_(current[name])
