"""The published training step, plainly: samples, teacher, joint label, student, AdamW, moving average (METHOD 6.1).

Written from the description of the method and sharing no code with crossmost's trainer, which throughput.py compares
it with. The loss is that of METHOD 1.6 to 1.11, with ScanObjectNN's numbers.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from plain_networks import PlainNetwork, cut
from plain_samples import PlainSamples
from runtime_worker import Clock
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

THRESHOLD = 0.82
GLOBAL_LOCAL = 0.2
LAYER_DECAY = 0.65
EMBEDDING = re.compile(r"^visual\.(class_embedding|positional_embedding|conv1|ln_pre)")


class WaitingClock(Clock):
    """Seconds by stage, of a device that has to be waited for."""

    def __init__(self, wait: Callable[[], None]) -> None:
        super().__init__()
        self.wait = wait

    def stage(self, name: str) -> None:
        """What was done since the last call was `name`, and is done."""
        self.wait()
        super().stage(name)


class Inputs(NamedTuple):
    """What teacher and student see of a batch."""

    weak_groups: tuple[Tensor, Tensor]  # patches (B, G, K, 3), centers (B, G, 3)
    weak_views: Tensor  # (B, 3, H, W)
    strong_groups: tuple[Tensor, Tensor]
    strong_views: Tensor
    image_mask: Tensor  # (B, grid, grid) float, 1 where hidden


def block_mask(centers: Tensor) -> Tensor:
    """Hide a random centre and its nearest, sample by sample: (B, G, 1)."""
    masks = []
    for own in centers:
        count = int(len(own) * (0.3 + 0.1 * torch.rand(()).item()))
        order = (own - own[torch.randint(len(own), ())]).norm(dim=1).argsort()
        mask = torch.zeros(len(own), 1, device=own.device)
        mask[order[:count]] = 1
        masks.append(mask)
    return torch.stack(masks)


@torch.no_grad()
def joint_labels(teacher: PlainNetwork, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """What the surer branch says, and 1 where it is sure enough: (B,) twice."""
    feature, _, _ = teacher.point_encoder(*inputs.weak_groups)
    cls, _ = teacher.visual(inputs.weak_views)
    of_points = teacher.logits(normalize(feature @ teacher.pc_projection, dim=-1)).softmax(-1).max(-1)
    of_images = teacher.logits(normalize(cls @ teacher.image_projection, dim=-1)).softmax(-1).max(-1)
    surer = of_points.values >= of_images.values
    label = torch.where(surer, of_points.indices, of_images.indices)
    return label, (torch.maximum(of_points.values, of_images.values) > THRESHOLD).float()


def branch_losses(logits: Tensor, label: Tensor, keep: Tensor) -> Tensor:
    """Self-training and fairness of one branch."""
    trained = (cross_entropy(logits, label, reduction="none") * keep).sum() / keep.sum().clamp(min=1)
    return trained - logits.softmax(-1).mean(0).log().mean()


def student_loss(
    student: PlainNetwork, inputs: Inputs, hidden: Tensor, label: Tensor, keep: Tensor
) -> Tensor:
    """The whole loss; `hidden` (B, G, 1) is 1 at masked patches, `label` and `keep` (B,) are the teacher's."""
    feature, cls, patches = student.point_encoder(*inputs.strong_groups, hidden)
    of_points = normalize(feature @ student.pc_projection, dim=-1)
    error = (student.point_encoder.lm_head(patches) - student.point_encoder.mask_token).abs() * hidden
    point_error = error.sum() / hidden.sum() / len(hidden)
    local, whole = normalize(patches @ student.proj, dim=-1), normalize(cls @ student.proj, dim=-1)
    point_local = (((local - whole[:, None]) ** 2).sum(-1, keepdim=True) * hidden).sum() / hidden.sum()

    tower, views, mask = student.visual, inputs.strong_views, inputs.image_mask
    cls, patches = tower(views, mask)
    of_images = normalize(cls @ student.image_projection, dim=-1)
    patch = views.shape[-1] // mask.shape[-1]
    pixels = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]
    error = (tower.reconstruct(patches) - views).abs() * pixels
    image_error = error.sum() / pixels.sum() / (1 + patches.shape[1])
    local = normalize(tower.ln_patch(patches) @ student.image_projection, dim=-1)
    hidden = mask.flatten(1)
    image_local = (((local - of_images[:, None]) ** 2).sum(-1) * hidden).sum() / hidden.sum()

    alike, own = of_points @ of_images.T, torch.arange(len(label), device=label.device)
    return (
        branch_losses(student.logits(of_points), label, keep) + point_error + GLOBAL_LOCAL * point_local
        + branch_losses(student.logits(of_images), label, keep) + image_error + GLOBAL_LOCAL * image_local
        + cross_entropy(alike, own) + cross_entropy(alike.T, own)
    )  # fmt: skip


def make_optimizer(student: PlainNetwork, rate: float) -> torch.optim.AdamW:
    """AdamW with the layer decay of the image tower; vectors are not decayed, patch tokens' weights are frozen."""
    student.point_encoder.tokens.requires_grad_(False)
    depth = len(student.visual.blocks)
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            block = re.match(r"visual\.blocks\.(\d+)\.", name)
            layer = int(block[1]) + 1 if block else 0 if EMBEDDING.match(name) else depth + 1
            groups.setdefault((layer, parameter.ndim == 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rate * LAYER_DECAY ** (depth + 1 - layer),
                "weight_decay": 0.0 if vectors else 0.05,
            }
            for (layer, vectors), parameters in groups.items()
        ],
        lr=rate,
    )


@torch.no_grad()
def move_teacher(teacher: PlainNetwork, student: PlainNetwork, step: int) -> None:
    """Exponential moving average of everything there is."""
    decay = 0.99 + (0.9998 - 0.99) * min(1.0, step / 400)
    now = student.state_dict()
    for name, average in teacher.state_dict().items():
        if average.is_floating_point():
            average.copy_(average * decay + now[name] * (1 - decay))
        else:
            average.copy_(now[name])


def read_batch(samples: PlainSamples, student: PlainNetwork, rows: list[int], clock: Clock) -> Inputs:
    """Read, augment and cut a batch, on the student's device; a row that is there several times is read once."""
    made = {}
    for row in dict.fromkeys(rows):
        cloud, picture = samples.read(row)
        clock.stage("read")
        made[row] = samples.augment(cloud, picture)
        clock.stage("augment")
    parts = [torch.stack(part) for part in zip(*(made[row] for row in rows), strict=True)]
    clock.stage("augment")
    device = student.classifier.device
    weak, strong, weak_views, strong_views, masks = (part.to(device) for part in parts)
    clock.stage("copy")
    encoder = student.point_encoder
    weak_groups = cut(weak, encoder.groups, encoder.neighbors)
    strong_groups = cut(strong, encoder.groups, encoder.neighbors)
    clock.stage("group")
    return Inputs(weak_groups, weak_views, strong_groups, strong_views, masks)


def train(
    student: PlainNetwork,
    samples: PlainSamples,
    batch: int,
    peak_rate: float,
    *,
    wait: Callable[[], None],
    first_rows: int,
) -> Iterator[dict[str, Any]]:
    """Train for ever; each item is a step that was made: seconds by stage, and the loss.

    Args:
        student: on its device.
        samples: to read.
        batch: rows of a step.
        peak_rate: the learning rate per 256 rows.
        wait: until the device has done what it was told.
        first_rows: so many rows, several times each, are all of the first step.
    """
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = make_optimizer(student, peak_rate * batch / 256)
    student.train()
    order: list[int] = []
    step = 0
    while True:
        if len(order) < batch:
            order = torch.randperm(len(samples.clouds)).tolist()
        rows, order = order[:batch], order[batch:]
        if step == 0:
            rows = (rows[:first_rows] * batch)[:batch]
        clock = WaitingClock(wait)
        inputs = read_batch(samples, student, rows, clock)
        label, keep = joint_labels(teacher, inputs)
        clock.stage("teacher")
        loss = student_loss(student, inputs, block_mask(inputs.strong_groups[1]), label, keep)
        if not math.isfinite(loss.item()):
            raise SystemExit("Loss is nan")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        move_teacher(teacher, student, step)
        clock.stage("student")
        step += 1
        yield {"seconds": clock.seconds, "loss": loss.item()}
