"""What a frozen base sees in a target: embeddings of both branches, computed once for a base and a target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossmost.checkpoints.atomic import save_arrays
from crossmost.checkpoints.base import load_base
from crossmost.checkpoints.run import build_student
from crossmost.config import TrainConfig
from crossmost.data.dataset import CloudDataset
from crossmost.data.reading import Reading
from crossmost.data.samples import PlainSamples, plain_batches
from crossmost.models.grouping import cut
from crossmost.models.student import Student
from crossmost.runtime.vocabulary import Vocabulary, load_vocabulary

VIEWS = 2
"""Rendered around each cloud, as in adaptation.py."""
BRANCHES = ("point", "image")


@dataclass(frozen=True)
class Split:
    """Embeddings of one split's n clouds.

    Attributes:
        point: (n, D) float32, unit rows.
        image: (n, D) float32, the mean over the views' unit rows, not scaled again: its logits are then the mean
            of the views' logits.
        labels: (n,) int64, positions in the vocabulary; for reports and for what is marked supervised.
    """

    point: NDArray[np.float32]
    image: NDArray[np.float32]
    labels: NDArray[np.int64]

    def unit(self, branch: str) -> NDArray[np.float32]:
        """The embeddings (n, D) of a branch at unit length."""
        rows = getattr(self, branch)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@dataclass(frozen=True)
class Frozen:
    """A base with class names, and its embeddings of a target.

    Attributes:
        vocabulary: with the base's own logit scale.
        train: the split that label-free methods may see without its labels.
        test: the split that is classified.
    """

    vocabulary: Vocabulary
    train: Split
    test: Split

    @property
    def classes(self) -> int:
        """C."""
        return len(self.vocabulary)

    def logits(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Zero-shot logits (n, C) of embeddings (n, D)."""
        cosines = rows.astype(np.float64) @ self.vocabulary.embeddings.T
        return np.asarray(self.vocabulary.logit_scale * cosines, np.float64)


def load_student(base: Path, vocabulary: Path) -> Student:
    """The zero-shot classifier of a base and class names, in evaluation mode."""
    encoders, architecture = load_base(base)
    return build_student(encoders, architecture, load_vocabulary(vocabulary), TrainConfig())


def open_target(student: Student, archive: Path, split: str, most: int | None = None) -> CloudDataset:
    """A split of the target as the base wants its clouds; at most `most` of them, evenly spaced."""
    clouds = Reading().open(archive, student.point_encoder.card, split)
    return clouds if most is None else clouds.subset(clouds.spread(most))


@torch.inference_mode()
def embed(student: Student, clouds: CloudDataset, names: tuple[str, ...]) -> Split:
    """Embed every cloud and its views as they are."""
    samples = PlainSamples(clouds, image_size=student.image_size, views=VIEWS)
    point, image, indices = [], [], []
    for batch in plain_batches(samples, 64, 0):
        if batch is None or batch.views is None:
            raise SystemExit("expected clouds that can be read and a base with an image branch")
        groups = cut(batch.points.points, student.point_encoder.card, batch.points.sizes)
        point.append(student.embed_point(student.point_features(groups)))
        seen = student.embed_image(student.image_features(batch.views.pixels))
        image.append(torch.stack([own.mean(dim=0) for own in seen.split(batch.views.counts)]))
        indices.append(batch.indices)
    labels = clouds.label_indices(names)[torch.cat(indices).numpy()]
    return Split(torch.cat(point).numpy(), torch.cat(image).numpy(), labels)


def frozen_features(base: Path, folder: Path, cache: Path, most: int | None = None) -> Frozen:
    """The embeddings of a target, read from `cache` where they have been computed before.

    Args:
        base: file of the base.
        folder: holds target.npz and target-classes.npz.
        cache: file of the embeddings.
        most: clouds of each split; None for all.
    """
    student = load_student(base, folder / "target-classes.npz")
    words = load_vocabulary(folder / "target-classes.npz")
    vocabulary = Vocabulary.create(
        words.names,
        words.embeddings,
        logit_scale=float(student.logit_scale.detach().exp()),
        prompts=words.prompts,
        tag=words.tag,
    )
    if not cache.is_file():
        arrays: dict[str, NDArray[Any]] = {}
        for split in ("train", "test"):
            clouds = open_target(student, folder / "target.npz", split, most)
            found = embed(student, clouds, vocabulary.names)
            arrays |= {f"{split}_{name}": value for name, value in vars(found).items()}
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(cache, arrays)
    with np.load(cache) as stored:
        splits = [
            Split(*(stored[f"{split}_{name}"] for name in ("point", "image", "labels")))
            for split in ("train", "test")
        ]
    return Frozen(vocabulary, *splits)
