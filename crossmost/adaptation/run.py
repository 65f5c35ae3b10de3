"""`crossmost train`: from a dataset, a base and class names to a run folder that can be resumed."""

from __future__ import annotations

import errno
import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np

from crossmost import __version__
from crossmost.adaptation.devices import idle_gpu
from crossmost.adaptation.trainer import Record, Trainer
from crossmost.adaptation.up_axis import ENOUGH, axis_warning, scores_by_up_axis
from crossmost.checkpoints.atomic import json_line, save_arrays, write_json_atomic, write_text_atomic
from crossmost.checkpoints.base import Architecture, load_base, read_architecture
from crossmost.checkpoints.destination import check_utf8
from crossmost.checkpoints.run import (
    BASE,
    CLASSES,
    CONFIG,
    FORMAT,
    METRICS,
    NAMES,
    PROVENANCE,
    PSEUDO_LABELS,
    build_student,
    is_run,
    save_run,
    start_run,
)
from crossmost.checkpoints.run_files import read_provenance
from crossmost.checkpoints.sample import SAMPLE, save_sample, take_sample
from crossmost.checkpoints.store import has_generation, load_generation
from crossmost.config import TrainConfig, fit_to_base, make_config, read_options, to_yaml
from crossmost.data.dataset import CloudDataset
from crossmost.errors import InputError
from crossmost.runtime.file_locks import locked
from crossmost.runtime.manifest import hash_file
from crossmost.runtime.vocabulary import Vocabulary, load_vocabulary

OnBatch = Callable[[Record], None]
OnEpoch = Callable[[Record], None]
OnWarning = Callable[[str], None]


LOCK = ".crossmost.lock"
"""In the folder of a run while it is trained: held by the process that does, which removes it."""
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system that has no locks says."""


class Outcome(NamedTuple):
    """How a run ended."""

    trainer: Trainer
    folder: Path


def train(
    clouds: CloudDataset,
    base: Path,
    vocabulary: Vocabulary,
    config: TrainConfig,
    folder: Path,
    *,
    on_batch: OnBatch = lambda _: None,
    on_epoch: OnEpoch = lambda _: None,
    on_warning: OnWarning = lambda _: None,
    notes: Mapping[str, Any] | None = None,
) -> Outcome:
    """Adapt a base to unlabelled clouds.

    Args:
        clouds: labels, if any, are dropped before training sees them.
        base: file of the base.
        vocabulary: the class names and their text embeddings.
        config: the run's options; without a mode, a base without an image branch is trained point-only.
        folder: where the run is written; must not hold one yet.
        on_batch: called with the figures of each batch.
        on_epoch: called with the record of each epoch, that before training first.
        on_warning: called before training with what seems wrong with the machine or the clouds.
        notes: more for the run's provenance.

    Raises:
        InputError: base, vocabulary, clouds or folder cannot be used.
        WorkFailed: training or saving failed; what was saved before survives.
    """
    check_utf8(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose a folder for --out")
    _refuse_run(folder)
    encoders, architecture = load_base(base)
    config = fit_to_base(config, images=architecture.image is not None)
    student = build_student(encoders, architecture, vocabulary, config)
    unlabelled = checked(clouds)
    trainer = Trainer(student, unlabelled, config)
    if warning := idle_gpu(config.device):
        on_warning(warning)
    if warning := few_clouds(len(unlabelled), config):
        on_warning(warning)
    scores = scores_by_up_axis(trainer.teacher, unlabelled, config, trainer.device)
    if warning := axis_warning(scores, clouds.preparation.up_axis):
        on_warning(warning)
    with _alone(folder):
        _refuse_run(folder)  # another process may have begun one meanwhile
        start_run(folder, base, vocabulary)
        write_json_atomic(
            folder / PROVENANCE, {**provenance(clouds, base), "up_axis_scores": scores, **(notes or {})}
        )
        save_sample(folder / SAMPLE, take_sample(clouds))
        # The last: with it the folder is a run that resumes.
        write_text_atomic(folder / CONFIG, to_yaml(config))
        return _fit(trainer, architecture, folder, on_batch, on_epoch)


def resume(
    clouds: CloudDataset,
    folder: Path,
    config: TrainConfig,
    *,
    on_batch: OnBatch = lambda _: None,
    on_epoch: OnEpoch = lambda _: None,
) -> Outcome:
    """Continue a run where it was saved last, to the weights it would have had without the interruption.

    Args:
        clouds: the same as before.
        folder: of the run.
        config: what `check_resumable` returned.
        on_batch: called with the figures of each batch.
        on_epoch: called with the record of each further epoch.

    Raises:
        InputError: other clouds or pictures of them than before, or the same ones read in another way.
    """
    vocabulary = load_vocabulary(folder / CLASSES)
    encoders, architecture = load_base(folder / BASE)
    config = fit_to_base(config, images=architecture.image is not None)
    trainer = Trainer(build_student(encoders, architecture, vocabulary, config), checked(clouds), config)
    made = read_provenance(folder)
    known = made.get("contents_sha256", "")  # runs did not always note it
    if made["clouds_sha256"] != fingerprint(clouds) or (known and known != clouds.contents()):
        raise InputError(
            f"{folder} was trained on other clouds than {clouds.name}: resume with the same data"
        )
    before = made.get("reading", reading(clouds))  # runs did not always note it
    if before != reading(clouds):
        given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in before.items() if value)
        raise InputError(f"{folder} was trained on clouds read with {given}: resume with the same")
    pictures = made.get("views_sha256")  # runs did not always note it
    if config.mode != "point-only" and pictures not in (None, clouds.views_contents()):
        raise InputError(f"{folder} was trained with other pictures in views/: resume with the same")
    with _alone(folder):
        if has_generation(folder):
            generation = load_generation(folder, NAMES)
            read_architecture(
                generation.weights[NAMES[0]].metadata, folder / f"{NAMES[0]}.safetensors", FORMAT
            )
            chosen = {name: generation.weights[name].tensors for name in NAMES}
            trainer.load_state(generation.state, chosen)
            _write_records(trainer, folder)  # a process that was killed between the two left them behind
        return _fit(trainer, architecture, folder, on_batch, on_epoch)


def check_resumable(folder: Path, machine: Mapping[str, Any] | None = None) -> TrainConfig:
    """The options of the run in a folder.

    Args:
        folder: of the run.
        machine: options that may differ from before: device and workers.

    Raises:
        InputError: no run in it.
    """
    if not is_run(folder):
        raise InputError(f"{folder} holds no run to resume: leave out --resume to start one")
    return make_config({**read_options(folder / CONFIG), **(machine or {})})


def batches_done(folder: Path, clouds: CloudDataset, config: TrainConfig) -> int:
    """Batches a saved run has behind it; 0 where nothing was saved yet."""
    if not has_generation(folder):
        return 0
    progress = load_generation(folder, NAMES[:1], check=False).state["progress"]
    return int(progress["epoch"] * max(1, len(clouds) // config.batch_size) + progress["batch"])


def checked(clouds: CloudDataset) -> CloudDataset:
    """The clouds without labels, after a look at whether they can be read.

    Raises:
        InputError: more than a tenth of them cannot.
    """
    clouds.probe()
    return clouds.unlabelled()


def few_clouds(count: int, config: TrainConfig) -> str | None:
    """What to tell the user of so few clouds that what a run finds out without labels is not to be had from them."""
    if count >= ENOUGH:
        return None
    steps = max(1, count // config.batch_size // config.accumulate) * config.epochs
    return (
        f"{count} clouds are few: below {ENOUGH} the up axis is not checked, nor center and kept_share chosen; "
        f"optimiser steps of this run: {steps} (batch_size={config.batch_size}, epochs={config.epochs})"
    )


def fingerprint(clouds: CloudDataset) -> str:
    """A digest of the clouds' ids, in order."""
    return hashlib.sha256("\n".join(clouds.ids).encode("utf-8", "surrogateescape")).hexdigest()


def reading(clouds: CloudDataset) -> dict[str, str | None]:
    """How the clouds' files are read, by the command's options."""
    preparation = clouds.preparation
    return {"up_axis": preparation.up_axis, "columns": preparation.columns, "color": preparation.color}


def provenance(clouds: CloudDataset, base: Path) -> dict[str, Any]:
    """Where a run came from."""
    return {
        "crossmost": __version__,
        "data": clouds.name,
        "split": clouds.split,
        "clouds": len(clouds),
        "clouds_sha256": fingerprint(clouds),
        "contents_sha256": clouds.contents(),
        "views_sha256": clouds.views_contents(),
        "reading": reading(clouds),
        "base": base.name,
        "base_sha256": hash_file(base).sha256,
    }


def _fit(
    trainer: Trainer, architecture: Architecture, folder: Path, on_batch: OnBatch, on_epoch: OnEpoch
) -> Outcome:
    clouds = trainer.clouds
    assert isinstance(clouds, CloudDataset)

    def save(_: Trainer) -> None:
        progress = trainer.progress
        number = (progress.epoch * 1_000_000) + progress.batch + len(progress.records)
        save_run(folder, architecture, trainer.chosen, trainer.state(), number)
        _write_records(trainer, folder)

    def end_of_epoch(_: Trainer) -> None:
        save(trainer)
        on_epoch(trainer.progress.records[-1])

    with interruptible() as interrupted:

        def after_batch(record: Record) -> None:
            on_batch(record)
            if interrupted.is_set() and trainer.progress.batch % trainer.config.accumulate == 0:
                save(trainer)
                raise KeyboardInterrupt

        trainer.fit(after_batch, end_of_epoch)
    _save_pseudo_labels(trainer, clouds, folder)
    return Outcome(trainer, folder)


def _write_records(trainer: Trainer, folder: Path) -> None:
    lines = [json_line(record) for record in trainer.progress.records]
    write_text_atomic(folder / METRICS, "\n".join(lines) + "\n")


def _refuse_run(folder: Path) -> None:
    if is_run(folder):
        raise InputError(f"{folder} already holds a run: continue it with --resume, or choose another --out")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder, which is made; the lock goes with this one at the latest.

    Raises:
        InputError: one is training there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / LOCK, 0))
        except TimeoutError:
            raise InputError(
                f"{folder}: another process trains this run: wait for it, or choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def _save_pseudo_labels(trainer: Trainer, clouds: CloudDataset, folder: Path) -> None:
    """Keep what the watched clouds were taken for in each epoch, so that a report may compare it with labels.

    A label that was not kept is stored as -1 less the label, one of a cloud that could not be read as `NOT_READ`.
    """
    indices = trainer.progress.indices
    assert indices is not None  # a finished run has been reviewed
    arrays = {
        "ids": np.array([clouds.ids[index] for index in indices.tolist()]),
        "epoch": np.array([record["epoch"] for record in trainer.progress.records]),
        "labels": np.stack([labels.numpy() for labels in trainer.progress.watched]),
    }
    save_arrays(folder / PSEUDO_LABELS, arrays)


@contextmanager
def interruptible() -> Iterator[Event]:
    """Let Ctrl-C ask for an end after the batch in hand; a second one ends at once.

    A batch that is cut short leaves networks that no uninterrupted run would have had.
    """
    asked = Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
