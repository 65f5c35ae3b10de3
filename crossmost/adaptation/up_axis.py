"""Noticing, without labels, that clouds lie on their side.

A base knows its classes upright. Where it knows some of them in the target too, it is surer of clouds that stand as
they should, and its branches agree on more of them: the score that chooses a checkpoint, by axis taken as up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from crossmost.adaptation.diagnosis import calibrate, diagnose
from crossmost.adaptation.selection import score
from crossmost.config import TrainConfig
from crossmost.data.dataset import CloudDataset
from crossmost.data.samples import PlainSamples, plain_batches
from crossmost.data.upright import CANDIDATES
from crossmost.models.student import Student

LOOKED_AT = 256
ENOUGH = 64
"""Fewer clouds say nothing."""
MARGIN = 0.1
"""By how much another axis must look better: in benchmarks/diagnosis.py the right one is never so far behind."""


def scores_by_up_axis(
    student: Student, clouds: CloudDataset, config: TrainConfig, device: torch.device
) -> dict[str, float]:
    """How good a zero-shot classifier looks on clouds with each axis of their files taken as up.

    Args:
        student: in evaluation mode, on the device.
        clouds: as they are read now; some of them are looked at, and pictures the user gave stay as they are.
        config: of the run.
        device: the student's.

    Returns:
        `selection.score` by axis; empty for too few clouds to tell.
    """
    if len(clouds) < ENOUGH:
        return {}
    some, found = clouds.subset(clouds.spread(LOOKED_AT)), {}
    prior = None if config.class_prior is None else torch.tensor(config.class_prior)
    for axis in CANDIDATES:
        turned = replace(some, preparation=replace(some.preparation, up_axis=axis))
        samples = PlainSamples(turned, image_size=student.image_size, views=config.views)
        batches = plain_batches(samples, config.batch_size, config.workers, device)
        seen = diagnose(student, batches, device, config.precision)
        of_point, of_image = calibrate(seen)
        image = None if seen.image is None else (seen.image / of_image).softmax(dim=1)
        found[axis] = score(seen, (seen.point / of_point).softmax(dim=1), image, config.mode, prior)
    return found


def likelier_axis(scores: Mapping[str, float], given: str) -> str | None:
    """The axis that looks clearly better than the given one, if any does."""
    best = max(scores, key=scores.__getitem__, default=given)
    return best if best != given and scores[best] - scores[given] > MARGIN else None


def axis_warning(scores: Mapping[str, float], given: str) -> str | None:
    """What to tell the user about the up axis, if anything."""
    axis = likelier_axis(scores, given)
    if axis is None:
        return None
    return (
        f"the base makes more of these clouds with {axis} up than with {given} up (label-free score "
        f"{scores[axis]:.2f} against {scores[given]:.2f}): if the files do have {axis} up, start again with "
        f"--up-axis {axis}"
    )
