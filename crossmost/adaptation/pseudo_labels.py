"""From the teacher's logits to the labels the student learns (METHOD 1.6, and its repairs of METHOD 7)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossmost.adaptation.diagnosis import ENOUGH, Diagnosis, agreement_of, calibrate
from crossmost.config import TrainConfig

AGREEMENT_LEAST_CONFIDENCE = 0.2
SUREST = 0.8
"""Share of each class's answers that is kept where many of them are wrong."""
TRUSTED_KAPPA = 0.7
"""Agreement of the branches, less what chance would bring, from which on every answer is kept."""


class Labels(NamedTuple):
    """Hard labels and how sure they are."""

    label: Tensor  # (B,) int64
    confidence: Tensor  # (B,) float32


class Targets(NamedTuple):
    """What one branch learns from a batch."""

    label: Tensor  # (B,) int64
    kept: Tensor  # (B,) bool


class PseudoLabels(NamedTuple):
    """What both branches learn from a batch; the same where labels are joint or there is no image branch."""

    point: Targets
    image: Targets


def most_likely(probabilities: Tensor) -> Labels:
    """The class of the highest probability, and that probability: (B, C) to Labels."""
    confidence, label = probabilities.max(dim=1)
    return Labels(label, confidence)


def winner(point: Tensor, image: Tensor, point_confidence: float = 1.0) -> Labels:
    """The label of the more confident branch; the point branch speaks on a tie.

    Args:
        point: P_P, (B, C).
        image: P_I, (B, C).
        point_confidence: beta, scales the point branch's confidence.
    """
    of_point, of_image = most_likely(point), most_likely(image)
    scaled = point_confidence * of_point.confidence
    label = torch.where(scaled >= of_image.confidence, of_point.label, of_image.label)
    return Labels(label, torch.maximum(scaled, of_image.confidence))


def average(point: Tensor, image: Tensor) -> Labels:
    """The label of the mean of two posteriors, (B, C) each."""
    return most_likely((point + image) / 2)


def agreed(point: Tensor, image: Tensor, point_confidence: float = 1.0) -> PseudoLabels:
    """Keep where both branches name the same class, neither with less than a little confidence; as for `winner`."""
    of_point, of_image = most_likely(point), most_likely(image)
    least = torch.minimum(point_confidence * of_point.confidence, of_image.confidence)
    kept = (of_point.label == of_image.label) & (least > AGREEMENT_LEAST_CONFIDENCE)
    return PseudoLabels(Targets(of_point.label, kept), Targets(of_image.label, kept))


def class_thresholds(labels: Labels, classes: int, share: float) -> Tensor:
    """Per class, the confidence that the surest `share` of its predictions exceeds.

    One number for all classes would keep the easy ones and starve the others; the confidence of a class is
    compared with that class's own.

    Args:
        labels: of n clouds.
        classes: C.
        share: 0 to 1.

    Returns:
        (C,) float32; that of all predictions together for a class that nothing was predicted to be.
    """
    levels = torch.full((classes,), _level(labels.confidence, share))
    for index in labels.label.unique().tolist():
        levels[index] = _level(labels.confidence[labels.label == index], share)
    return levels


def _level(confidence: Tensor, share: float) -> float:
    """What the highest `share` of confidences (n,) exceeds: strictly below the lowest of them."""
    ranked = confidence.sort(descending=True).values
    last = max(1, round(share * len(ranked))) - 1
    return float(torch.nextafter(ranked[last], torch.tensor(0.0)))


def keeps_a_share(config: TrainConfig) -> bool:
    """Whether a run learns a share of each class's labels, and not those above a confidence or that are agreed on."""
    return config.threshold == "adaptive" and config.mode != "agreement"


class Labeler:
    """Turns the teacher's logits into pseudo-labels, and sets its own dials from unlabelled predictions."""

    def __init__(self, config: TrainConfig, classes: int):
        self.config = config
        self.classes = classes
        self.temperatures = (1.0, 1.0)  # of the point and the image branch
        self.kept_share = SUREST if config.kept_share is None else config.kept_share
        fixed = {
            "joint": config.threshold_joint,
            "point": config.threshold_point,
            "image": config.threshold_image,
        }
        self.thresholds = {name: torch.full((classes,), level) for name, level in fixed.items()}

    def posteriors(self, point: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """P_P and, with an image branch, P_I from logits (B, C), each at its branch's temperature."""
        of_point, of_image = self.temperatures
        p_image = None if image is None else (image.float() / of_image).softmax(dim=1)
        return (point.float() / of_point).softmax(dim=1), p_image

    def __call__(self, point: Tensor, image: Tensor | None) -> PseudoLabels:
        """Label a batch.

        Args:
            point: the teacher's logits of the weak clouds, (B, C).
            image: the teacher's logits of the weak views, (B, C); None without an image branch.
        """
        p_point, p_image = self.posteriors(point, image)
        if p_image is None:
            targets = self._keep(most_likely(p_point), "point")
            return PseudoLabels(targets, targets)
        if self.config.mode == "agreement":
            return agreed(p_point, p_image, self.config.point_confidence)
        if self.config.mode == "joint":
            targets = self._keep(self._joint(p_point, p_image), "joint")
            return PseudoLabels(targets, targets)
        return PseudoLabels(
            self._keep(most_likely(p_point), "point"), self._keep(most_likely(p_image), "image")
        )

    def settle_kept_share(self, diagnosis: Diagnosis) -> None:
        """Where it is left open, decide how many joint labels are kept: all of them, or the surest of each class.

        Branches that often agree are seldom wrong, and then the labels that neither is sure of teach more than their
        mistakes spoil. Training makes branches agree, on mistakes too: this is for the predictions before it.
        """
        if self.config.kept_share is None and self.config.mode == "joint":
            found = agreement_of(diagnosis)
            trusted = found is not None and found.beyond_chance >= TRUSTED_KAPPA
            trusted = trusted and len(diagnosis.point) >= ENOUGH
            self.kept_share = 1.0 if trusted else SUREST

    def refit(self, diagnosis: Diagnosis) -> None:
        """Set temperatures and thresholds from predictions; labels are not involved."""
        if self.config.mode == "joint" and self.config.joint_label == "average":
            self.temperatures = calibrate(diagnosis)
        if self.config.threshold == "adaptive":
            p_point, p_image = self.posteriors(diagnosis.point, diagnosis.image)
            predicted = {"point": most_likely(p_point)}
            if p_image is not None:
                predicted |= {"joint": self._joint(p_point, p_image), "image": most_likely(p_image)}
            for name, labels in predicted.items():
                self.thresholds[name] = class_thresholds(labels, self.classes, self.kept_share)

    def state(self) -> dict[str, Any]:
        """The dials, as plain values."""
        return {
            "temperatures": self.temperatures,
            "kept_share": self.kept_share,
            "thresholds": self.thresholds,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue with dials that `state` returned."""
        self.temperatures, self.thresholds = tuple(state["temperatures"]), state["thresholds"]
        self.kept_share = state.get("kept_share", self.kept_share)  # older runs always named theirs

    def _joint(self, p_point: Tensor, p_image: Tensor) -> Labels:
        if self.config.joint_label == "average":
            return average(p_point, p_image)
        return winner(p_point, p_image, self.config.point_confidence)

    def _keep(self, labels: Labels, name: str) -> Targets:
        """Keep what is strictly above the threshold of its class."""
        levels = self.thresholds[name].to(labels.label.device)
        return Targets(labels.label, labels.confidence > levels[labels.label])
