"""Entropy minimisation on the base's networks, and what every baseline that trains them shares."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from baseline_embeddings import Posterior, stream_order
from baseline_features import BRANCHES, VIEWS
from torch import Tensor, nn

from crossmost.adaptation.diagnosis import diagnose, image_logits, point_logits
from crossmost.data.dataset import CloudDataset
from crossmost.data.samples import PlainBatch, PlainSamples, plain_batches
from crossmost.evaluation.metrics import softmax
from crossmost.models.student import Student

CPU = torch.device("cpu")
BATCH = 64
NORMS = (nn.LayerNorm, nn.BatchNorm1d)
TENT_RATE = 1e-3
"""Adam's, as published for small networks."""


@dataclass(frozen=True)
class Target:
    """A base with class names, and a target to classify.

    Attributes:
        student: in evaluation mode; left as it is.
        train: the split that label-free methods may see without its labels.
        test: the split that is classified.
        names: of the classes.
    """

    student: Student
    train: CloudDataset
    test: CloudDataset
    names: tuple[str, ...]


def plain_samples(student: Student, clouds: CloudDataset) -> PlainSamples:
    """Clouds and views as they are."""
    return PlainSamples(clouds, image_size=student.image_size, views=VIEWS)


def classify(student: Student, clouds: CloudDataset) -> dict[str, Posterior]:
    """Each branch's posteriors, in the clouds' own order."""
    found = diagnose(student.eval(), plain_batches(plain_samples(student, clouds), BATCH, 0), CPU)
    assert found.image is not None
    return {"point": softmax(found.point.numpy()), "image": softmax(found.image.numpy())}


def prepare_norms(student: Student) -> list[nn.Parameter]:
    """Leave nothing to train but the scales and shifts of the norm layers; BatchNorm takes the batch's statistics."""
    student.requires_grad_(False)
    norms = [module for module in student.modules() if isinstance(module, NORMS)]
    for norm in norms:
        norm.train(isinstance(norm, nn.BatchNorm1d))
    parameters = [parameter for norm in norms for parameter in norm.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions (B, C), in nats."""
    return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()


def tent_pass(student: Student, clouds: CloudDataset, seed: int) -> dict[str, Posterior]:
    """TENT (Wang et al., ICLR 2021) over a stream, once: a step of Adam on the entropy of each batch.

    Not episodic: what a batch taught stays. Each batch is answered by the forward pass that its step is taken from,
    as published. The branches have no norm layer in common, so the sum of their entropies trains each on its own.

    Args:
        student: trained in place.
        clouds: unlabelled.
        seed: of the stream's order.

    Returns:
        Each branch's posteriors, in the clouds' own order.
    """
    optimizer = torch.optim.Adam(prepare_norms(student), lr=TENT_RATE)
    order = stream_order(len(clouds), seed)
    found = {branch: np.empty((len(clouds), student.classifier.shape[1])) for branch in BRANCHES}
    for batch in plain_batches(plain_samples(student, clouds.subset(order).unlabelled()), BATCH, 0):
        assert isinstance(batch, PlainBatch)
        assert batch.views is not None
        said = {"point": point_logits(student, batch.points), "image": image_logits(student, batch.views)}
        optimizer.zero_grad()
        (entropy(said["point"]) + entropy(said["image"])).backward()
        optimizer.step()
        for branch, logits in said.items():
            found[branch][order[batch.indices.numpy()]] = softmax(logits.detach().numpy())
    return found


def tent_stream(target: Target, seed: int) -> dict[str, Posterior]:
    """TENT online: the test stream is all it sees, and it is answered on the way."""
    return tent_pass(copy.deepcopy(target.student), target.test, seed)


def tent_train(target: Target, seed: int) -> dict[str, Posterior]:
    """TENT offline: one pass over the unlabelled training split; the test split is classified afterwards.

    BatchNorm's running statistics follow the passing batches, and the test split is classified with them.
    """
    student = copy.deepcopy(target.student)
    tent_pass(student, target.train, seed)
    return classify(student, target.test)
