"""AdamW with the published groups of parameters (METHOD 2.1)."""

from __future__ import annotations

import torch
from torch import nn

from crossmost.config import TrainConfig
from crossmost.models.image_tower import layer_id
from crossmost.models.student import Student

BETAS = (0.9, 0.999)


def freeze(student: Student, config: TrainConfig) -> None:
    """Switch off the gradients of what the run leaves as it is."""
    student.requires_grad_(True)
    # Published: the patch encoder is frozen, but single-modality training on points lets it go.
    free_again = config.recipe == "reference" and config.mode == "point-only"
    student.point_encoder.encoder.requires_grad_(not config.freeze_patch_encoder or free_again)
    if config.mode == "image-only":
        student.point_encoder.requires_grad_(False)
        student.point_projection.requires_grad_(False)
        student.point_local_projection.requires_grad_(False)
    if config.mode == "point-only" and student.image_tower is not None:
        student.image_tower.requires_grad_(False)


def training_mode(student: Student, config: TrainConfig) -> None:
    """Put the student into training mode, its patch encoder's BatchNorm statistics frozen if asked for."""
    student.train()
    if config.batch_norm == "frozen":
        student.point_encoder.encoder.eval()


def decays(name: str, parameter: nn.Parameter, config: TrainConfig) -> bool:
    """Whether weight decay applies: as published to all but vectors, the scalar temperature included."""
    if name == "logit_scale":
        return config.classifier == "decayed"
    return parameter.ndim != 1


def make_optimizer(student: Student, config: TrainConfig) -> torch.optim.AdamW:
    """Group parameters by layer and decay; `group["multiplier"]` scales the learning rate."""
    depth = 0 if student.image_tower is None else student.image_tower.depth
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            key = (layer_id(name, depth), decays(name, parameter, config))
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decay else 0.0,
                "multiplier": config.layer_decay ** (depth + 1 - layer),
            }
            for (layer, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=0.0,
        betas=BETAS,
    )
