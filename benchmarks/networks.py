"""The point encoders of a pair's bases and runs, and what each of them says about the same clouds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from crossmost.checkpoints.run import is_run, load_run
from crossmost.data.samples import pad
from crossmost.export.source import trained_bank
from crossmost.models.grouping import cut
from crossmost.models.student import Student
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.preprocess import prepare

ZERO_SHOT = "zero-shot"
ADAPTED = ("joint", "point-only")
NAMES = (ZERO_SHOT, *ADAPTED)
BATCH = 64


@dataclass(frozen=True, eq=False)
class Network:
    """A point encoder with its classes as the runtime would use them.

    Attributes:
        name: of `NAMES`.
        seed: of its base and its run.
        student: in evaluation mode.
        bank: its classes, at the temperature that was fitted without labels.
    """

    name: str
    seed: int
    student: Student
    bank: ClassBank


def load_networks(folder: Path, seeds: Sequence[int], modes: Sequence[str] = ADAPTED) -> list[Network]:
    """Read the runs of a pair, made by `adaptation.py`; the first mode's run brings the zero-shot network.

    Args:
        folder: of the pair, with a run `MODE-SEED` for each mode and seed.
        seeds: of the runs.
        modes: how they were adapted.
    """
    found = []
    for seed in seeds:
        for mode in modes:
            path = folder / f"{mode}-{seed}"
            if not is_run(path):
                raise SystemExit(f"{path}: expected a finished run: run benchmarks/adaptation.py first")
            run = load_run(path)
            moments = {mode: (run.adapted, "adapted")}
            if mode == modes[0]:
                moments = {ZERO_SHOT: (run.zero_shot, "zero_shot"), **moments}
            for name, (student, moment) in moments.items():
                bank = trained_bank(student, run.vocabulary, run.temperatures[moment][0])
                found.append(Network(name, seed, student, bank))
    return found


@torch.inference_mode()
def embed(networks: Sequence[Network], clouds: Iterable[NDArray[np.floating]]) -> list[NDArray[np.float32]]:
    """Embed clouds with every network, as the runtime would: normalised, thinned, cut into patches once for all.

    Args:
        networks: of one card.
        clouds: (n, 3) each, z up.

    Returns:
        For each network (clouds, D) float32 unit rows.
    """
    card = networks[0].student.point_encoder.card
    prepared = [prepare(c, most=card.points, least=card.least, scattered=card.scattered) for c in clouds]
    found: list[list[NDArray[np.float32]]] = [[] for _ in networks]
    for start in range(0, len(prepared), BATCH):
        batch = pad(prepared[start : start + BATCH])
        groups = cut(batch.points, card, batch.sizes)
        for network, rows in zip(networks, found, strict=True):
            student = network.student
            rows.append(student.embed_point(student.point_features(groups)).numpy())
    return [np.concatenate(rows) for rows in found]
