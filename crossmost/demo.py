"""`crossmost demo`: the main job on procedural shapes, from nothing to a report, offline and in about a minute.

A starter base learns clean shapes by name; the target is what a simulated depth camera sees of other shapes. No
text tower can be downloaded here, so each class name stands for a fixed random direction: the demo shows
adaptation, not CLIP's knowledge of words.
"""

from __future__ import annotations

import time
import zlib
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray

from crossmost.adaptation.pretrain import PretrainConfig
from crossmost.checkpoints.atomic import write_json_atomic
from crossmost.config import make_config
from crossmost.data.reading import Reading
from crossmost.data.scanner import scan_dataset
from crossmost.data.shapes import SHAPES, make_shape
from crossmost.data.views import contact_sheet, render_views
from crossmost.errors import InputError
from crossmost.pretraining import make_base
from crossmost.runtime.preprocess import normalize
from crossmost.runtime.vocabulary import Vocabulary
from crossmost.words import Words
from crossmost.workflows import start_training

CLASSES = SHAPES[:10]
POINTS = 1024
CLEAN, SCANNED, HELD_OUT = 60, 60, 30
"""Shapes of each class: for the starter base, for adaptation, for the test."""
SEVERITY = "moderate"
WIDTH = 128


def run_demo(out: Path, seed: int) -> None:
    """Make data and base, adapt, evaluate, and write summary.json.

    Args:
        out: folder; must not hold a demo of another time.
        seed: of shapes, scans and training.

    Raises:
        InputError: `out` already holds a run.
    """
    started = time.monotonic()
    if (out / "run").exists():
        raise InputError(f"{out} already holds a demo: remove it or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_data(out, seed)
    demo_vocabulary().save(out / "classes.npz")
    words = Words(vocabulary=out / "classes.npz")
    typer.echo(f"starter base: {len(CLASSES)} classes of clean shapes", err=True)
    make_base(
        out / "clean.npz", out / "base.safetensors", words, Reading(),
        PretrainConfig(epochs=8, batch_size=32, seed=seed), card="point-tiny", image="tiny", captions=None, split=None,
        overwrite=True,  # what a demo that was interrupted left
    )  # fmt: skip
    typer.echo("adaptation to unlabelled scans", err=True)
    config = make_config(
        {"epochs": 6, "batch_size": 32, "learning_rate": 2e-3, "seed": seed, "views": 2, "watched": 256}
    )
    evaluation = start_training(
        out / "scans.npz", out / "base.safetensors", words, config, out / "run", Reading(), split="train"
    )
    found = evaluation.to_dict()
    summary = {
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "n_test": found["n"],
        "zero_shot": found["zero_shot"],
        "adapted": found["adapted"],
        "run": str(out / "run"),
    }
    write_json_atomic(out / "summary.json", summary)
    typer.echo(f"{out / 'summary.json'} after {summary['seconds']} s", err=True)


def demo_vocabulary() -> Vocabulary:
    """The classes with fixed random directions for text embeddings, (10, 128)."""
    rows = [np.random.default_rng(zlib.crc32(name.encode())).standard_normal(WIDTH) for name in CLASSES]
    return Vocabulary.create(CLASSES, np.stack(rows), logit_scale=100.0, tag="random directions")


def write_data(out: Path, seed: int) -> None:
    """Write clean.npz, scans.npz and a contact sheet of both."""
    rng = np.random.default_rng(seed)
    counts = {"clean": CLEAN, "train": SCANNED, "test": HELD_OUT}
    labels = {part: np.repeat(np.arange(len(CLASSES)), count) for part, count in counts.items()}
    shapes = {
        part: np.stack([make_shape(CLASSES[label], rng, POINTS) for label in values])
        for part, values in labels.items()
    }
    _write(out / "clean.npz", shapes["clean"], labels["clean"], np.full(len(labels["clean"]), "train"))
    target = np.concatenate([shapes["train"], shapes["test"]])
    target_labels = np.concatenate([labels["train"], labels["test"]])
    split = np.repeat(["train", "test"], [len(labels["train"]), len(labels["test"])])
    scans = scan_dataset(target, [f"shape{index}" for index in range(len(target))], SEVERITY, seed)
    scanned = np.full((len(scans), POINTS, 3), np.nan, dtype=np.float32)  # NaN points are dropped on reading
    for row, scan in zip(scanned, scans, strict=True):
        row[: len(scan)] = normalize(scan)[:POINTS]
    _write(out / "scans.npz", scanned, target_labels, split)
    _write_sheet(out / "scans.png", target, scans, target_labels)


def _write(
    path: Path, points: NDArray[np.float32], labels: NDArray[np.int64], split: NDArray[np.str_]
) -> None:
    ids = np.array([f"shape{index}" for index in range(len(points))])
    np.savez(path, points=points, labels=labels, class_names=np.array(CLASSES), split=split, ids=ids)


def _write_sheet(
    path: Path, shapes: NDArray[np.float32], scans: list[NDArray[np.float32]], labels: NDArray[np.int64]
) -> None:
    """One shape a class: clean above, as scanned below."""
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in range(len(CLASSES))]
    clean = [render_views(shapes[index], count=1, size=128)[0] for index in firsts]
    seen = [render_views(normalize(scans[index]), count=1, size=128)[0] for index in firsts]
    captions = [*CLASSES, *(f"{name}, scanned" for name in CLASSES)]
    contact_sheet(np.stack(clean + seen), captions, columns=len(CLASSES)).save(path)
