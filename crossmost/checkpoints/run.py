"""A training run on disk: what `crossmost train` writes and every later command reads."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmost import __version__
from crossmost.checkpoints.atomic import replacing, sync, write_json_atomic
from crossmost.checkpoints.base import (
    Architecture,
    check_text_model,
    describe,
    fill_weights,
    load_base,
    read_architecture,
)
from crossmost.checkpoints.run_files import CLASSES, CONFIG, PROVENANCE, is_run, json_object, read_note
from crossmost.checkpoints.sample import SAMPLE
from crossmost.checkpoints.store import (
    STATE_FILE,
    Generation,
    Weights,
    has_generation,
    load_generation,
    save_generation,
)
from crossmost.config import TrainConfig, make_config, read_options
from crossmost.errors import InputError
from crossmost.models.student import DualEncoder, Student
from crossmost.runtime.vocabulary import Vocabulary, load_vocabulary

FORMAT = "crossmost-run/2"
BASE, METRICS = "base.safetensors", "metrics.jsonl"
PSEUDO_LABELS = "pseudo_labels.npz"
BEGUN = "crossmost"
"""The entry of the provenance that says with which version a run began; nobody else's provenance has it."""
EVALUATION, REPORT, EVALUATION_REPORT = "evaluation.json", "report.html", "evaluation.html"
NAMES = ("student", "teacher")
FILES = (
    BASE, CLASSES, CONFIG, METRICS, PSEUDO_LABELS, PROVENANCE, EVALUATION, REPORT,
    EVALUATION_REPORT, SAMPLE, STATE_FILE,
    *(f"{name}.safetensors" for name in NAMES),
)  # fmt: skip
"""All that a run writes."""


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


def check_folder(folder: Path) -> None:
    """Refuse to put a run where somebody's files would be lost; what a run itself has left there may be.

    Raises:
        InputError: names the files.
    """
    there = [name for name in FILES if (folder / name).exists()]
    if there and not (is_run(folder) or _is_begun(folder)):
        raise InputError(
            f"expected a folder without the files that a run writes, found {', '.join(there)} in {folder}: "
            "choose another --out"
        )


def start_run(folder: Path, base: Path, vocabulary: Vocabulary) -> None:
    """Put what the run starts from into its folder.

    Raises:
        InputError: see `check_folder`.
        WorkFailed: the files cannot be written.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / PROVENANCE, {BEGUN: __version__})  # first: it makes the folder a run's own
    with replacing(folder / BASE) as partial, open(base, "rb") as source, open(partial, "wb") as copied:
        shutil.copyfileobj(source, copied)
        sync(copied)
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


def _is_begun(folder: Path) -> bool:
    """Whether a run began in a folder and ended before it could be resumed."""
    try:
        return BEGUN in read_note(folder / PROVENANCE)
    except InputError:
        return False


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, that before training first; none where the file is not there.

    Raises:
        InputError: it is damaged.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    try:
        return [json_object(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected a JSON object a line, found a damaged file ({error}): copy it again, or move it away"
        ) from error


def shortcomings(run: Run) -> list[str]:
    """What whoever measures or exports a run should know first, a sentence each."""
    found, last = [], (read_records(run.folder) or [{}])[-1]
    done = last.get("epoch", run.config.epochs) + 1
    if done < run.config.epochs and not last.get("stopped"):
        found.append(
            f"The run was interrupted after {done} of {run.config.epochs} epochs: --resume goes on with it."
        )
    if last.get("stopped"):
        found.append(f"The run stopped itself: {last['stopped']}.")
    if run.config.mode == "image-only":
        found.append(
            "The images alone were trained: the point encoder, which export takes, is that of the base."
        )
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
    if not has_generation(folder):
        raise InputError(
            f"{folder}: the run ended before anything was saved: go on with "
            f"`crossmost train DATA --resume --out {folder}`"
        )
    generation = load_generation(folder, NAMES)
    architecture = read_architecture(
        generation.weights["student"].metadata, folder / "student.safetensors", FORMAT
    )
    zero_shot = build_student(load_base(folder / BASE)[0], architecture, vocabulary, config)
    students = {}
    for name in NAMES:
        students[name] = copy.deepcopy(zero_shot)
        weights = generation.weights.pop(name)  # what was copied from them need not stay in memory
        fill_weights(students[name], weights.tensors, folder / f"{name}.safetensors")
    return Run(
        folder,
        config,
        vocabulary,
        architecture,
        zero_shot,
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
