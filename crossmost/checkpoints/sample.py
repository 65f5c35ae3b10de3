"""A few of the training clouds, kept in the run: what export verifies itself on and finds its threshold with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossmost.checkpoints.atomic import save_arrays
from crossmost.data.dataset import CloudDataset
from crossmost.errors import InputError

SAMPLE = "sample.npz"
SAMPLE_SIZE = 128


class Sample(NamedTuple):
    """Clouds as the encoder sees them, without labels."""

    name: str  # of the dataset
    ids: tuple[str, ...]
    points: tuple[NDArray[np.float32], ...]  # each (n, C), normalised


def take_sample(clouds: CloudDataset, most: int = SAMPLE_SIZE) -> Sample:
    """Read at most `most` clouds, evenly spaced over a dataset; those that cannot be read are left out."""
    found = ((clouds.ids[index], clouds.try_load(index)) for index in clouds.spread(most))
    readable = [(name, cloud) for name, cloud in found if cloud is not None]
    return Sample(clouds.name, tuple(name for name, _ in readable), tuple(cloud for _, cloud in readable))


def save_sample(path: Path, sample: Sample) -> None:
    """Write a sample, whole or not at all.

    Raises:
        WorkFailed: the file cannot be written.
    """
    arrays = {
        "name": np.array(sample.name),
        "ids": np.array(sample.ids),
        "points": np.concatenate(sample.points),
        "sizes": np.array([len(cloud) for cloud in sample.points], dtype=np.int64),
    }
    save_arrays(path, arrays)


def load_sample(path: Path) -> Sample:
    """Read a sample.

    Raises:
        InputError: no such file, or a damaged one.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            name, ids, points, sizes = (stored[key] for key in ("name", "ids", "points", "sizes"))
        if sizes.sum() != len(points) or len(sizes) != len(ids):
            raise ValueError(
                f"{len(ids)} clouds of {sizes.sum()} points, found {len(sizes)} of {len(points)}"
            )
    except Exception as error:  # zipfile, zlib and NumPy raise what they like on damaged bytes
        raise InputError(f"{path}: expected clouds kept by `crossmost train`: {error}") from error
    clouds = np.split(points, np.cumsum(sizes)[:-1])
    return Sample(str(name), tuple(ids.tolist()), tuple(clouds))
