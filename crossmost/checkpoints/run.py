"""A training run on disk: what `crossmost train` writes and every later command reads."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmost.checkpoints.base import (
    Architecture,
    check_text_model,
    describe,
    fill_weights,
    load_base,
    read_architecture,
)
from crossmost.checkpoints.store import Generation, Weights, load_generation, save_generation
from crossmost.config import TrainConfig, make_config, read_options
from crossmost.errors import InputError
from crossmost.models.student import DualEncoder, Student
from crossmost.runtime.vocabulary import Vocabulary, load_vocabulary

FORMAT = "crossmost-run/2"
BASE, CLASSES, CONFIG, METRICS = "base.safetensors", "classes.npz", "config.yaml", "metrics.jsonl"
PSEUDO_LABELS, PROVENANCE = "pseudo_labels.npz", "provenance.json"
EVALUATION, REPORT = "evaluation.json", "report.html"
NAMES = ("student", "teacher")


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run, its networks on the CPU in evaluation mode."""

    folder: Path
    config: TrainConfig
    vocabulary: Vocabulary
    architecture: Architecture
    zero_shot: Student
    student: Student
    teacher: Student
    temperatures: dict[str, tuple[float, float]]  # of point and image branch, "zero_shot" and "adapted"

    @property
    def adapted(self) -> Student:
        """The network that is evaluated and exported."""
        return self.teacher if self.config.exported == "teacher" else self.student


def build_student(
    base: DualEncoder, architecture: Architecture, vocabulary: Vocabulary, config: TrainConfig
) -> Student:
    """The zero-shot classifier: a base with class names.

    Raises:
        InputError: the vocabulary is of another text model than the base.
    """
    check_text_model(vocabulary, architecture)
    generator_state = torch.get_rng_state()
    torch.manual_seed(config.seed)  # Q of METHOD 1.9 is drawn here
    student = Student(
        architecture.point,
        architecture.image,
        torch.from_numpy(vocabulary.embeddings),
        renormalize_classifier=config.classifier == "renormalized",
    )
    torch.set_rng_state(generator_state)
    student.load_state_dict({**student.state_dict(), **base.state_dict()})
    return student.eval()


def start_run(folder: Path, base: Path, vocabulary: Vocabulary) -> None:
    """Put what the run starts from into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(base, folder / BASE)
    vocabulary.save(folder / CLASSES)


def save_run(
    folder: Path,
    architecture: Architecture,
    chosen: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
    step: int,
) -> None:
    """Save weights and state of one moment, all or nothing.

    Args:
        folder: of the run.
        architecture: of the networks.
        chosen: weights of the chosen student and teacher.
        state: of the trainer.
        step: number of this save; rises.

    Raises:
        WorkFailed: the files cannot be written; those of the last save are untouched.
    """
    metadata = {"format": FORMAT, **describe(architecture)}
    weights = {name: Weights(chosen[name], metadata) for name in NAMES}
    save_generation(folder, Generation(step, weights, state))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run that can be loaded or resumed."""
    return (folder / CONFIG).is_file() and (folder / CLASSES).is_file()


def read_provenance(folder: Path) -> dict[str, Any]:
    """Where a run came from.

    Raises:
        InputError: the note is missing or damaged.
    """
    try:
        found: dict[str, Any] = json.loads((folder / PROVENANCE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / PROVENANCE}: expected the run's {PROVENANCE}: {error}") from error
    return found


def load_run(folder: Path) -> Run:
    """Read a run for evaluation or export.

    Raises:
        InputError: not a run, or files that are damaged or do not belong together.
    """
    if not is_run(folder):
        raise InputError(
            f"{folder}: expected a run made by `crossmost train`, found no {CONFIG} and {CLASSES}"
        )
    config = make_config(read_options(folder / CONFIG))
    vocabulary = load_vocabulary(folder / CLASSES)
    base, _ = load_base(folder / BASE)
    generation = load_generation(folder, NAMES)
    architecture = read_architecture(
        generation.weights["student"].metadata, folder / "student.safetensors", FORMAT
    )
    students = {}
    for name in NAMES:
        students[name] = build_student(base, architecture, vocabulary, config)
        fill_weights(students[name], generation.weights[name].tensors, folder / f"{name}.safetensors")
    return Run(
        folder,
        config,
        vocabulary,
        architecture,
        build_student(base, architecture, vocabulary, config),
        students["student"],
        students["teacher"],
        _temperatures(generation.state["progress"]),
    )


def _temperatures(progress: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Calibration before training and at the chosen epoch."""
    by_epoch = {
        record["epoch"]: (record["temperature/point"], record["temperature/image"])
        for record in progress["records"]
    }
    zero_shot = progress["zero_shot_temperatures"] or by_epoch[-1]
    return {"zero_shot": zero_shot, "adapted": by_epoch[progress["best_epoch"]]}
