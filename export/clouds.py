"""The clouds an export is verified on: the user's own, those the run kept, or simulated scans."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossmost.checkpoints.sample import Sample, take_sample
from crossmost.data.class_names import positions_known
from crossmost.data.dataset import CloudDataset
from crossmost.data.scanner import scan
from crossmost.data.shapes import SHAPES, make_shape
from crossmost.errors import InputError
from crossmost.export.verification_clouds import VerificationClouds
from crossmost.models.point_cards import PointCard
from crossmost.runtime.preprocess import prepare

ENOUGH = 16
"""So many clouds span the ranges of most."""


def dataset_clouds(dataset: CloudDataset, names: tuple[str, ...], most: int) -> VerificationClouds:
    """Clouds of the user, evenly spaced, with their labels where there are some.

    Args:
        dataset: opened for the encoder.
        names: the vocabulary; a cloud of another class gets the label -1.
        most: clouds taken.

    Raises:
        InputError: no cloud can be read.
    """
    sample = take_sample(dataset, most)
    if not sample.ids:
        raise InputError(
            f"{dataset.name}: none of the clouds can be read: {next(iter(dataset.bad.values()))}"
        )
    labels = None
    if dataset.labels is not None and dataset.class_names is not None:
        positions = positions_known(names, dataset.class_names)
        by_id = dict(zip(dataset.ids, positions[dataset.labels].tolist(), strict=True))
        labels = np.array([by_id[name] for name in sample.ids], dtype=np.int64)
    return VerificationClouds(sample.name, sample.ids, sample.points, labels)


def sample_clouds(sample: Sample) -> VerificationClouds:
    """Clouds that the run kept of its training data."""
    return VerificationClouds(f"{sample.name}, kept by the run", sample.ids, sample.points, None)


def spread(clouds: VerificationClouds, most: int) -> VerificationClouds:
    """At most `most` of the clouds, evenly spaced."""
    return _chosen(clouds, np.unique(np.linspace(0, len(clouds.ids) - 1, most).round().astype(int)))


def others(clouds: VerificationClouds, than: VerificationClouds) -> VerificationClouds:
    """The clouds that are not among others, or all of them where too few are left to stand for the rest."""
    taken = set(than.ids) if clouds.name == than.name else set()
    left = np.flatnonzero([name not in taken for name in clouds.ids])
    return _chosen(clouds, left) if len(left) >= min(ENOUGH, len(clouds.ids) // 2) > 0 else clouds


def simulated_clouds(card: PointCard, count: int) -> VerificationClouds:
    """Scans of everyday shapes, where no cloud of the user's is at hand."""
    rng = np.random.default_rng(0)
    names = [SHAPES[index % len(SHAPES)] for index in range(count)]
    return VerificationClouds(
        "simulated scans of everyday shapes",
        tuple(f"{name}-{index}" for index, name in enumerate(names)),
        tuple(_scanned(name, card, rng) for name in names),
        None,
    )


def _chosen(clouds: VerificationClouds, indices: NDArray[np.int64]) -> VerificationClouds:
    return VerificationClouds(
        clouds.name,
        tuple(clouds.ids[index] for index in indices),
        tuple(clouds.points[index] for index in indices),
        None if clouds.labels is None else clouds.labels[indices],
    )


def _scanned(name: str, card: PointCard, rng: np.random.Generator) -> NDArray[np.float32]:
    cloud = scan(make_shape(name, rng, card.points), severity="low", rng=rng)
    if card.channels == 6:
        cloud = np.concatenate([cloud, np.full_like(cloud, card.color_filler)], axis=1)
    return prepare(cloud, most=card.points, least=card.least, scattered=card.scattered)
