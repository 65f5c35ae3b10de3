"""What `train`, `eval` and `embed` do, from their arguments to the files they leave; the commands only parse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from crossmost.adaptation import run as runs
from crossmost.adaptation.devices import cpu_threads
from crossmost.checkpoints.atomic import shown_json, write_json_atomic
from crossmost.checkpoints.base import (
    Architecture,
    check_text_model,
    load_architecture,
    load_base,
)
from crossmost.checkpoints.run import (
    BASE,
    CLASSES,
    EVALUATION,
    EVALUATION_REPORT,
    Run,
    check_folder,
    is_run,
    load_run,
    shortcomings,
)
from crossmost.checkpoints.run_files import read_provenance
from crossmost.config import TrainConfig, fit_to_base
from crossmost.data.dataset import CloudDataset
from crossmost.data.inspection import pictures_note
from crossmost.data.reading import Reading
from crossmost.errors import InputError, WorkFailed
from crossmost.evaluation.evaluate import Evaluation, evaluate_run
from crossmost.evaluation.run_report import CHECKPOINT, headline_branch, run_rows, write_run_report
from crossmost.models.student import DualEncoder, embed_points
from crossmost.own_clouds import check_before_training, shown_clouds
from crossmost.own_reading import reading_of
from crossmost.progress import RunProgress
from crossmost.runtime.vocabulary import load_vocabulary
from crossmost.skipped import say_skipped
from crossmost.split_choice import measured_clouds, training_clouds
from crossmost.words import Words

REPORTED = "report"
"""The entry of a run's provenance that says what its report is of; a resumed run ends with the same."""


def start_training(
    data: Path,
    base: Path,
    words: Words,
    config: TrainConfig,
    out: Path,
    reading: Reading,
    *,
    split: str | None = None,
    test: Path | None = None,
    ignore_labels: bool = False,
    tensorboard: bool = False,
) -> Evaluation:
    """Adapt, evaluate, report."""
    if out.resolve() == data.resolve():
        raise InputError(
            f"expected --out elsewhere than the clouds, found {out} for both: choose another folder"
        )
    check_folder(out)
    words.refuse_unused_tower()
    if ignore_labels:
        reading = replace(reading, labels=False)
    architecture = load_architecture(base)
    config = config_for(architecture, config)
    clouds = training_clouds(reading, data, architecture.point, split)
    vocabulary = words.load(architecture.text)
    check_text_model(vocabulary, architecture)
    shown = shown_clouds(reading, data, test, clouds, architecture.point)
    check_before_training(clouds, shown, vocabulary)
    if config.mode != "point-only" and (count := clouds.pictured()) is not None:
        typer.echo(pictures_note(clouds, count), err=True)
    report = {
        "test": test and str(test.resolve()),
        "ignore_labels": ignore_labels,
        "tensorboard": tensorboard,
    }
    with run_progress(clouds, config, out, 0, tensorboard) as progress:
        if not vocabulary.tag:
            progress.warn(
                f"the class names' embeddings say of no text model that they are of it: this base needs those of "
                f"{architecture.text or 'the one it was aligned with'}"
            )
        runs.train(
            clouds, base, vocabulary, config, out,
            on_batch=progress.batch, on_epoch=progress.epoch, on_warning=progress.warn, notes={REPORTED: report},
        )  # fmt: skip
    return _finish(load_run(out), config, clouds, shown)


def resume_training(
    data: Path,
    out: Path,
    given: Mapping[str, str | None],
    *,
    split: str | None = None,
    test: Path | None = None,
    ignore_labels: bool = False,
    tensorboard: bool = False,
    machine: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Continue, evaluate, report as the run began, on clouds read as they were but for what is given.

    `machine` are the options that may differ from before.
    """
    config = runs.check_resumable(out, machine)
    made = read_provenance(out)
    began = made.get(REPORTED, {})
    if test is None and began.get("test"):
        test = Path(began["test"])
        if not test.exists():
            raise InputError(
                f"{test}: the run was begun with it for --test, and it is not there: give --test"
            )
    ignore_labels = ignore_labels or began.get("ignore_labels", False)
    tensorboard = tensorboard or began.get("tensorboard", False)
    reading = reading_of(out, given, labels=not ignore_labels)
    architecture = load_architecture(out / BASE)
    clouds = training_clouds(reading, data, architecture.point, split or made.get("split"))
    shown = shown_clouds(reading, data, test, clouds, architecture.point)
    check_before_training(clouds, shown, load_vocabulary(out / CLASSES))
    with run_progress(clouds, config, out, runs.batches_done(out, clouds, config), tensorboard) as progress:
        runs.resume(clouds, out, config, on_batch=progress.batch, on_epoch=progress.epoch)
    return _finish(load_run(out), config, clouds, shown)


def config_for(architecture: Architecture, config: TrainConfig) -> TrainConfig:
    """The options as the base can be trained; says where that is not what they would have meant.

    Raises:
        InputError: they ask for an image branch, which the base lacks.
    """
    fitting = fit_to_base(config, images=architecture.image is not None)
    if fitting.mode != config.mode:
        typer.echo("this base has no image branch: training mode=point-only", err=True)
    return fitting


def run_progress(
    clouds: CloudDataset, config: TrainConfig, out: Path, done: int, tensorboard: bool
) -> RunProgress:
    """The display of a run."""
    batches = max(1, len(clouds) // config.batch_size) * config.epochs
    return RunProgress(batches, done, out / "tensorboard" if tensorboard else None)


def _finish(run: Run, config: TrainConfig, clouds: CloudDataset, shown: CloudDataset) -> Evaluation:
    """Evaluate a finished run on the clouds of its report, and write it."""
    typer.echo(f"comparing zero-shot and adapted on {len(shown)} clouds", err=True)
    evaluation = evaluate_run(run, shown, device=config.device, workers=config.workers)
    write_json_atomic(run.folder / EVALUATION, evaluation.to_dict())
    report = write_run_report(run, evaluation, shown, clouds)
    typer.echo("\n".join(summary_lines(evaluation, headline_branch(run))), err=True)
    typer.echo(f"kept: the {dict(run_rows(run))[CHECKPOINT]}", err=True)
    say_skipped({**clouds.bad, **shown.bad})
    typer.echo(str(report))
    return evaluation


def summary_lines(evaluation: Evaluation, branch: str) -> list[str]:
    """The headline table for the screen; without labels, what `branch` says otherwise."""
    n, found = len(evaluation.index), evaluation.to_dict()
    if evaluation.labels is None:
        changed = found["changed"][branch]
        return [
            f"{n} clouds without labels: the {branch} branch changed its mind about {changed:.1%} of them"
        ]
    lines = [f"top-1 on {n} clouds ({evaluation.split})    zero-shot   adapted"]
    for branch, before in found["zero_shot"].items():
        after = found["adapted"][branch]
        if before is None:  # no image branch
            continue
        lines.append(f"  {branch:<27} {before:9.1%} {after:9.1%}   {100 * (after - before):+.1f} points")
    return lines


def evaluate(
    folder: Path,
    data: Path,
    reading: Reading,
    *,
    split: str | None,
    device: str,
    workers: int | None,
    as_json: bool,
) -> None:
    """Compare zero-shot and adapted on a dataset; every figure goes into the run's folder too."""
    run = load_run(folder)
    for line in shortcomings(run):
        typer.echo(f"warning: {line}", err=True)
    clouds = measured_clouds(reading, data, run.architecture.point, split)
    evaluation = evaluate_run(run, clouds, device=device, workers=workers)
    found = evaluation.to_dict()
    write_json_atomic(folder / EVALUATION, found)
    report = write_run_report(run, evaluation, clouds, None, EVALUATION_REPORT)
    say_skipped(clouds.bad)
    if as_json:
        typer.echo(shown_json(found))
    else:
        typer.echo("\n".join([*summary_lines(evaluation, headline_branch(run)), str(report)]))


NEARLY = 1e-3
"""How far the length of a unit vector in float32 may be from 1."""


class Embedded(NamedTuple):
    """Embedded clouds.

    Attributes:
        datasets: without the clouds that could not be read.
        rows: (N, D) float32 unit rows, of their clouds in order.
        bad: reason by id of each cloud that could not be read.
    """

    datasets: list[CloudDataset]
    rows: NDArray[np.float32]
    bad: dict[str, str]


def embed_clouds(
    model: Path,
    paths: Sequence[Path],
    reading: Reading,
    *,
    split: str | None = None,
    threads: int | None = None,
) -> Embedded:
    """Embed clouds with a run's exported network, or with a base, in torch.

    Args:
        model: the run or the base.
        paths: of the clouds.
        reading: how they are read.
        split: of each of the paths; None for all of it.
        threads: of torch on the CPU; None for its own choice.

    Raises:
        InputError: neither run nor base.
        WorkFailed: an embedding is no unit vector.
    """
    if is_run(model):
        network: DualEncoder = load_run(model).adapted
    elif model.is_file():
        network, _ = load_base(model)
    else:
        raise InputError(f"{model}: expected a bundle, a run or a base .safetensors, found none of them")
    card = network.point_encoder.card
    datasets = [reading.open(path, card, split) for path in paths]
    read: list[list[int]] = [[] for _ in datasets]
    bad: dict[str, str] = {}

    def clouds() -> Iterator[NDArray[np.float32]]:
        for dataset, own in zip(datasets, read, strict=True):
            for index in range(len(dataset)):
                cloud = dataset.try_load(index)
                if cloud is not None:
                    own.append(index)
                    yield cloud
            bad.update(dataset.bad)

    stream = clouds()
    first = next(stream, None)
    if first is None:
        return Embedded([dataset.subset([]) for dataset in datasets], np.empty((0, 0), np.float32), bad)
    with cpu_threads(threads):
        rows = embed_points(network.point_encoder, network.point_head(), chain([first], stream))
    strange = ~(np.abs(np.linalg.norm(rows, axis=1) - 1) < NEARLY)
    if strange.any():
        raise WorkFailed(
            f"{model} embedded {strange.sum()} of {len(rows)} clouds as NaN, infinity or nothing: its weights are "
            "damaged, or of another encoder"
        )
    return Embedded([dataset.subset(own) for dataset, own in zip(datasets, read, strict=True)], rows, bad)
