"""Source and target of each pair to measure on, made from a folder of real clouds.

Every pair becomes a source archive with labels (the starter base is made from it), an unlabelled-in-training target
archive, and the CLIP text embeddings of both. The text vectors are mean-centred: those of one CLIP lie within a
narrow cone, and a small base learns faster without their common part.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossmost.data.scanner import scan_dataset
from crossmost.runtime.preprocess import normalize
from crossmost.runtime.vocabulary import Vocabulary

MODELNET10, INFOMR, LOW_POLY, LIDAR = (
    "modelnet10_vox30_1024",
    "infomr69_1024",
    "cc0_lowpoly_1024",
    "lidarnet4_real_512",
)
PAIRS = ("p1-low", "p1-moderate", "p1-high", "p2", "p3")
SCAN_SEED = 0
POINTS = 1024


@dataclass(frozen=True)
class Clouds:
    """Labelled clouds of one or several sets: points (M, 1024, 3) float32, names of their classes."""

    points: NDArray[np.float32]
    names: NDArray[np.str_]  # (M,)
    split: NDArray[np.str_]
    ids: NDArray[np.str_]
    rows: dict[str, int]  # class name -> row of the text embeddings


def repeat_nothing(clouds: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    """Stack clouds of different sizes: NaN behind the shorter ones, which every reader drops."""
    stacked = np.full((len(clouds), POINTS, 3), np.nan, dtype=np.float32)
    for row, cloud in zip(stacked, clouds, strict=True):
        row[: len(cloud)] = cloud[:POINTS]
    return stacked


def load(data: Path, name: str) -> Clouds:
    """Read a set; classes without a text embedding are left out."""
    rows = {
        label: entry["row"]
        for label, entry in json.loads((data / "class_to_clip.json").read_text())[name].items()
        if entry and entry["row"] is not None
    }
    with np.load(data / f"{name}.npz") as archive:
        names = archive["class_names"][archive["labels"]]
        known = np.isin(names, list(rows))
        points = repeat_nothing(archive["points"][known].astype(np.float32))
        return Clouds(points, names[known], archive["split"][known], archive["ids"][known], rows)


def select(clouds: Clouds, chosen: NDArray[np.bool_]) -> Clouds:
    """The clouds where `chosen` (M,) is true."""
    return Clouds(
        clouds.points[chosen], clouds.names[chosen], clouds.split[chosen], clouds.ids[chosen], clouds.rows
    )


def join(sets: Sequence[Clouds]) -> Clouds:
    """Several sets as one, under the rows of their text embeddings: 'Bed' of one and 'bed' of another are one."""
    entries = [(np.array([each.rows[name] for name in each.names]), each) for each in sets]
    rows = {
        f"row {row}": int(row) for row in sorted(set(np.concatenate([row for row, _ in entries]).tolist()))
    }
    return Clouds(
        np.concatenate([each.points for each in sets]),
        np.array([f"row {row}" for row in np.concatenate([row for row, _ in entries])]),
        np.concatenate([each.split for each in sets]),
        np.concatenate([each.ids for each in sets]),
        rows,
    )


def scanned(clouds: Clouds, severity: str) -> Clouds:
    """What a depth camera would have seen."""
    scans = scan_dataset(clouds.points, list(clouds.ids), severity, SCAN_SEED)
    return Clouds(
        repeat_nothing([normalize(scan) for scan in scans]),
        clouds.names,
        clouds.split,
        clouds.ids,
        clouds.rows,
    )


def source_and_target(data: Path, pair: str) -> tuple[Clouds, Clouds]:
    """The two sides of a pair."""
    if pair.startswith("p1-"):
        modelnet = load(data, MODELNET10)
        first_half = np.array([zlib.crc32(str(name).encode()) % 2 == 0 for name in modelnet.ids])
        train = modelnet.split == "train"
        target = select(modelnet, ~(train & first_half))
        return join([select(modelnet, train & first_half), load(data, INFOMR)]), scanned(
            target, pair.removeprefix("p1-")
        )
    source = join([load(data, INFOMR), load(data, LOW_POLY)])
    return source, load(data, MODELNET10 if pair == "p2" else LIDAR)


def centered_text(data: Path) -> NDArray[np.float32]:
    """CLIP text embeddings less their mean over all 2,148 names, unit rows."""
    with np.load(data / "clip_text_vitb32.npz") as archive:
        text = archive["emb"].astype(np.float64)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    text -= text.mean(axis=0)
    return (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32)


def vocabulary(data: Path, clouds: Clouds) -> Vocabulary:
    """The classes of a set with their text embeddings; different classes may share one."""
    names = sorted(set(clouds.names.tolist()))
    return Vocabulary.create(
        names,
        centered_text(data)[[clouds.rows[name] for name in names]],
        logit_scale=100.0,
        prompts=("a {}",),
        tag="ViT-B-32/openai, mean-centred",
    )


def write(path: Path, clouds: Clouds) -> None:
    """Write a set as a dataset archive."""
    names, labels = np.unique(clouds.names, return_inverse=True)
    np.savez(
        path,
        points=clouds.points.astype(np.float16),
        labels=labels,
        class_names=names,
        split=clouds.split,
        ids=clouds.ids,
    )


def prepare(data: Path, pair: str, work: Path) -> None:
    """Write source.npz, target.npz and their vocabularies into `work`, once."""
    if (work / "target-classes.npz").is_file():
        return
    work.mkdir(parents=True, exist_ok=True)
    for side, clouds in zip(("source", "target"), source_and_target(data, pair), strict=True):
        write(work / f"{side}.npz", clouds)
        vocabulary(data, clouds).save(work / f"{side}-classes.npz")
