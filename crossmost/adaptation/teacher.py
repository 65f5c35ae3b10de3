"""The exponential moving average of the student (METHOD 1.5), held to the base where the run asks for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from crossmost.models.student import Student


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
    current = student.state_dict()
    for name, average in teacher.state_dict().items():
        if average.is_floating_point():
            value = current[name].to(average.dtype)
            if base is not None:
                value = torch.lerp(base[name].to(value), value, share)
            average.lerp_(value, 1 - decay)
        else:
            average.copy_(current[name])
