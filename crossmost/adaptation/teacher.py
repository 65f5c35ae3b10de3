"""The exponential moving average of the student (METHOD 1.5)."""

from __future__ import annotations

import copy

import torch

from crossmost.models.student import Student


def make_teacher(student: Student) -> Student:
    """Copy the student; the copy stays in evaluation mode and takes no gradient."""
    teacher = copy.deepcopy(student).eval()
    return teacher.requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: Student, student: Student, decay: float) -> None:
    """Theta' <- d theta' + (1 - d) theta over the whole state, BatchNorm statistics included.

    Args:
        teacher: changed in place.
        student: as it is after the optimiser's step.
        decay: d.
    """
    current = student.state_dict()
    for name, average in teacher.state_dict().items():
        if average.is_floating_point():
            average.lerp_(current[name].to(average.dtype), 1 - decay)
        else:
            average.copy_(current[name])
