"""One student step: every term of the loss for one batch (METHOD 1.7 to 1.11)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from crossmost.adaptation import losses
from crossmost.adaptation.masking import image_mask, point_mask
from crossmost.adaptation.pseudo_labels import PseudoLabels, Targets
from crossmost.config import TrainConfig
from crossmost.data.samples import PointBatch, TrainingBatch
from crossmost.models.grouping import Groups, cut
from crossmost.models.point_encoder import PointFeatures
from crossmost.models.student import Student, unit


class Branch(NamedTuple):
    """What a branch of the student says about a batch."""

    embedding: Tensor  # f, (B, D) unit rows
    logits: Tensor  # (B, C)
    reconstruction: Tensor  # L_mim, scalar
    global_local: Tensor  # L_gl, scalar


class Fairness:
    """The mean prediction of each branch, over the batch or over the recent past."""

    def __init__(self, config: TrainConfig, classes: int):
        self.momentum = config.prior_momentum if config.fairness == "moving-average" else 0.0
        shares = config.class_prior or (1 / classes,) * classes
        self.prior = torch.tensor(shares)
        self.average: dict[str, Tensor] = {}

    def term(self, name: str, logits: Tensor) -> Tensor:
        """L_fair of one branch; its gradient is that of the batch's mean whatever the momentum."""
        batch = logits.float().softmax(dim=1).mean(dim=0)  # (C,)
        past = self.average.get(name, batch.detach()).to(batch.device)
        mean = self.momentum * past + (1 - self.momentum) * batch.detach()
        self.average[name] = mean.cpu()
        return losses.fairness(mean + batch - batch.detach(), self.prior.to(batch.device))


def point_branch(
    student: Student, cloud: PointBatch, config: TrainConfig, generator: torch.Generator
) -> Branch:
    """Encode masked strong clouds and reconstruct what was hidden."""
    card = student.point_encoder.card
    groups = cut(cloud.points, card, cloud.sizes)
    mask = point_mask(groups.centers, generator)
    features = student.point_features(groups, mask)
    embedding = student.embed_point(features)
    local = unit(features.patches @ student.point_local_projection)
    whole = unit(features.cls @ student.point_local_projection)
    return Branch(
        embedding,
        student.classify(embedding),
        point_reconstruction(student, groups, features, mask, config),
        losses.global_local(local, whole, mask),
    )


def point_reconstruction(
    student: Student, groups: Groups, features: PointFeatures, mask: Tensor, config: TrainConfig
) -> Tensor:
    """L_mim of the point branch, towards the target the run has chosen."""
    encoder = student.point_encoder
    if config.point_target == "patch":
        return losses.patch_reconstruction(encoder.patch_head(features.patches), groups.patches, mask)
    predicted = encoder.lm_head(features.patches)
    if config.point_target == "token":
        return losses.token_regression(predicted, features.tokens, mask)
    return losses.mask_token_regression(predicted, encoder.mask_token, mask)


def image_branch(student: Student, view: Tensor, config: TrainConfig, generator: torch.Generator) -> Branch:
    """Encode masked strong views (B, 3, H, W) and reconstruct what was hidden."""
    tower = student.images()
    mask = image_mask(len(view), tower.grid, generator).to(view.device)
    features = student.image_features(view, mask)
    embedding = student.embed_image(features)
    local = unit(tower.project(tower.ln_patch(features.patches)))
    divisor = 3 if config.image_divisor == "channels" else 1 + tower.grid**2
    whole = unit(student.project_image(features))
    return Branch(
        embedding,
        student.classify(embedding),
        losses.image_reconstruction(tower.reconstruct(features.patches), view, mask, divisor),
        losses.global_local(local, whole, mask.flatten(1)),
    )


def branch_terms(name: str, branch: Branch, targets: Targets, fairness: Fairness) -> dict[str, Tensor]:
    """The four terms that each branch has."""
    return {
        f"self_training/{name}": losses.self_training(branch.logits, *targets),
        f"fairness/{name}": fairness.term(name, branch.logits),
        f"reconstruction/{name}": branch.reconstruction,
        f"global_local/{name}": branch.global_local,
    }


def alignment(point: Branch, image: Branch, labels: PseudoLabels, config: TrainConfig) -> Tensor:
    """L_x, with or without regard for what the batch's pseudo-labels say."""
    if config.alignment == "instance":
        return losses.cross_modal(point.embedding, image.embedding)
    label, kept = labels.point
    same_class = (label[:, None] == label[None, :]) & kept[:, None] & kept[None, :]
    return losses.cross_modal(point.embedding, image.embedding, config.alignment_temperature, same_class)


def loss_terms(
    student: Student,
    batch: TrainingBatch,
    labels: PseudoLabels,
    fairness: Fairness,
    config: TrainConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Every term of the loss, unweighted.

    Args:
        student: in training mode.
        batch: on the student's device.
        labels: of this batch.
        fairness: keeps the mean predictions.
        config: the run's options.
        generator: draws the masks; on the CPU.
    """
    terms: dict[str, Tensor] = {}
    if config.mode != "image-only":
        point = point_branch(student, batch.strong_points, config, generator)
        terms |= branch_terms("point", point, labels.point, fairness)
    if config.mode != "point-only":
        assert batch.strong_view is not None  # point-only is the one mode of a base without an image branch
        image = image_branch(student, batch.strong_view, config, generator)
        terms |= branch_terms("image", image, labels.image, fairness)
    if config.mode == "joint":
        terms["alignment"] = alignment(point, image, labels, config)
    return terms


def weight(term: str, config: TrainConfig) -> float:
    """What a term counts in the total (METHOD 1.11)."""
    kind, _, branch = term.partition("/")
    weights = {
        "self_training": 1.0,
        "fairness": config.fairness_weight,
        "reconstruction": config.mask_weight,
        "global_local": config.global_local_weight,
        "alignment": config.alignment_weight,
    }
    return weights[kind] * (config.point_weight if branch == "point" else 1.0)


def total(terms: dict[str, Tensor], config: TrainConfig) -> Tensor:
    """L: the weighted sum of the terms."""
    return torch.stack([weight(name, config) * value for name, value in terms.items()]).sum()
