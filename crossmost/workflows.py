"""What each command does, from its arguments to the files it leaves; `crossmost.cli` only parses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageOps

from crossmost.adaptation import run as runs
from crossmost.adaptation.devices import cpu_threads
from crossmost.adaptation.pretrain import PretrainConfig
from crossmost.adaptation.pretrain import pretrain as align
from crossmost.checkpoints.atomic import json_line, write_json_atomic
from crossmost.checkpoints.base import (
    Architecture,
    check_text_model,
    load_architecture,
    load_base,
    save_base,
)
from crossmost.checkpoints.destination import check_destination
from crossmost.checkpoints.run import (
    BASE,
    CLASSES,
    EVALUATION,
    EVALUATION_REPORT,
    Run,
    check_folder,
    is_run,
    load_run,
    read_provenance,
    shortcomings,
)
from crossmost.config import TrainConfig, fit_to_base
from crossmost.data.dataset import CloudDataset, open_dataset
from crossmost.data.folder import FolderSource, is_split
from crossmost.data.inspection import lost_labels
from crossmost.data.reading import Reading
from crossmost.data.samples import spread, views_of
from crossmost.data.views import contact_sheet
from crossmost.errors import InputError
from crossmost.evaluation.evaluate import Evaluation, evaluate_run
from crossmost.evaluation.report import check_report_extra
from crossmost.evaluation.run_report import headline_branch, write_run_report
from crossmost.models.clip import has_scheme
from crossmost.models.image_origin import image_origin
from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import PointCard, list_point_cards, load_point_card
from crossmost.models.student import DualEncoder, embed_points
from crossmost.progress import RunProgress
from crossmost.runtime.class_bank import ClassBank, load_class_bank
from crossmost.runtime.class_names import read_class_names
from crossmost.runtime.vocabulary import Vocabulary, load_vocabulary

REPORTED = "report"
"""The entry of a run's provenance that says what its report is of; a resumed run ends with the same."""


@dataclass(frozen=True)
class Words:
    """Where the class names and their text embeddings come from."""

    classes: str | None = None
    vocabulary: Path | None = None
    clip: str | None = None
    clip_weights: str | None = None
    spaces: bool = True  # in prompts, where a class name has underscores

    def load(self, text_tag: str | None, captions: tuple[str, ...] | None = None) -> Vocabulary:
        """Read a ready-made vocabulary, or embed the class names with a CLIP text tower.

        Args:
            text_tag: the text model the base was aligned with, used where no --clip is given.
            captions: names to embed where neither --classes nor --vocabulary is given.

        Raises:
            InvalidVocabulary: names that cannot be used.
            InputError: no names, no text tower, or both ways at once.
        """
        if self.ready_made:
            return load_vocabulary(self.ready_made)
        from crossmost.models.text_tower import PROMPTS, embed_classes

        if self.classes is None and captions is None:
            raise InputError("expected the class names: give --classes or --vocabulary")
        names = read_class_names(self.classes) if self.classes else captions or ()
        clip, clip_weights = self.tower(text_tag)
        try:
            return embed_classes(
                names, clip=clip, weights=clip_weights, templates=PROMPTS, spaces=self.spaces
            )
        except InputError as error:
            made = "`crossmost vocabulary` makes on another machine"
            raise InputError(f"{error}; or give --vocabulary with a classes.npz, which {made}") from error

    def bank(self, text_tag: str | None) -> ClassBank:
        """The same with the lengths and the temperature that a ready-made file may hold beside its names.

        Raises:
            InputError: see `load`.
        """
        return load_class_bank(self.ready_made) if self.ready_made else ClassBank.plain(self.load(text_tag))

    @property
    def ready_made(self) -> Path | None:
        """The classes.npz that was given, as the one option or the other.

        Raises:
            InputError: both were given.
        """
        if self.classes and self.vocabulary:
            raise InputError("expected --classes or --vocabulary, found both")
        named = self.classes is not None and self.classes.endswith(".npz")
        return Path(str(self.classes)) if named else self.vocabulary

    def refuse_unused_tower(self, *, weights_used: bool = False) -> None:
        """Say so where a text tower is named and nothing would be embedded with it.

        Args:
            weights_used: whether --clip-weights are those of an image tower too.

        Raises:
            InputError: --clip or --clip-weights beside a ready-made vocabulary.
        """
        if self.ready_made and (self.clip or (self.clip_weights and not weights_used)):
            raise InputError("--clip names a text tower, and the vocabulary needs none: leave it out")

    def tower(self, text_tag: str | None) -> tuple[str, str | None]:
        """The text tower's name and weights: what was given, or the tag of what the base was aligned with.

        Raises:
            InputError: neither.
        """
        clip = self.clip or text_tag
        if not clip:
            raise InputError("expected a text tower for the class names: give --clip and --clip-weights")
        if text_tag and clip == text_tag.partition("/")[0] and self.clip_weights is None:
            return text_tag, None
        return clip, self.clip_weights


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
    report = {
        "test": test and str(test.resolve()),
        "ignore_labels": ignore_labels,
        "tensorboard": tensorboard,
    }
    with run_progress(clouds, config, out, 0, tensorboard) as progress:
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
    test = test or (Path(began["test"]) if began.get("test") else None)
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


def reading_of(model: Path, given: Mapping[str, str | None], *, labels: bool = True) -> Reading:
    """How clouds are read for a model: as a run read its own, but for what is given; says where the two differ.

    Args:
        model: folder of a run; nothing is known of any other model's clouds.
        given: "up_axis", "columns" and "color"; None for what was not said.
        labels: whether folders and labels are classes.
    """
    own = read_provenance(model).get("reading", {}) if is_run(model) else {}
    said = {name: value for name, value in given.items() if value is not None}
    for name, value in said.items():
        if name in own and own[name] != value:
            typer.echo(
                f"warning: --{name.replace('_', '-')} {value}, but the run's own clouds were read with {own[name]}",
                err=True,
            )
    return Reading(**{**own, **said}, labels=labels)


def training_clouds(reading: Reading, data: Path, card: PointCard, split: str | None) -> CloudDataset:
    """Open the data to train on: where it has a train and a test split and none is asked for, the train split."""
    return _open_part(reading, data, card, split, "train")


def measured_clouds(reading: Reading, data: Path, card: PointCard, split: str | None) -> CloudDataset:
    """Open the data to measure on: where it has a train and a test split and none is asked for, the test split."""
    return _open_part(reading, data, card, split, "test")


def _open_part(reading: Reading, data: Path, card: PointCard, split: str | None, part: str) -> CloudDataset:
    clouds = reading.open(data, card, split)
    for line in clouds.left_out:
        typer.echo(line, err=True)
    if reading.labels and (lost := lost_labels(clouds)):
        typer.echo(lost, err=True)
    if split is None and {"train", "test"} <= set(clouds.splits):
        return reading.open(data, card, part)
    return clouds


def shown_clouds(
    reading: Reading, data: Path, test: Path | None, clouds: CloudDataset, card: PointCard
) -> CloudDataset:
    """The clouds of the report: --test, or the test split beside a train split, or the training clouds."""
    if test is not None:
        return measured_clouds(reading, test, card, None)
    if clouds.split == "train" and "test" in clouds.splits:
        return reading.open(data, card, "test")
    return clouds


def check_before_training(clouds: CloudDataset, shown: CloudDataset, vocabulary: Vocabulary) -> None:
    """Find out what would fail after the training: class folders that are no classes, a missing extra.

    Raises:
        InputError: names the folder and the nearest class, or the extra.
    """
    for dataset in (clouds, shown):
        if dataset.labels is not None:
            try:
                dataset.label_indices(vocabulary.names)
            except InputError as error:
                raise InputError(f"{error}; {advice(dataset)}") from error
    check_report_extra()


def advice(dataset: CloudDataset) -> str:
    """What to do about a class that no vocabulary has."""
    names = dataset.class_names if isinstance(dataset.source, FolderSource) else None
    if split := next(filter(is_split, names or ()), None):  # without labels all splits would be trained on
        return f"{split}/ is taken for a class because of the folders beside it: give {split}/ itself"
    return "--ignore-labels takes no folder or label for a class"


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
    say_skipped({**clouds.bad, **shown.bad})
    typer.echo(str(report))
    return evaluation


def say_skipped(bad: Mapping[str, str]) -> None:
    """Name and count the files that could not be read."""
    if bad:
        typer.echo(f"skipped {len(bad)} files that could not be read: {', '.join(bad)}", err=True)


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
        typer.echo(json_line(found))
    else:
        typer.echo("\n".join([*summary_lines(evaluation, headline_branch(run)), str(report)]))


class Embedded(NamedTuple):
    """Data sets and the embeddings of their clouds, one after the other: (N, D) float32 unit rows."""

    datasets: list[CloudDataset]
    rows: NDArray[np.float32]


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
        InputError: neither run nor base, or a cloud that cannot be read.
    """
    if is_run(model):
        network: DualEncoder = load_run(model).adapted
    elif model.is_file():
        network, _ = load_base(model)
    else:
        raise InputError(f"{model}: expected a bundle, a run or a base .safetensors, found none of them")
    card = network.point_encoder.card
    datasets = [reading.open(path, card, split) for path in paths]
    clouds = (dataset.load(index) for dataset in datasets for index in range(len(dataset)))
    with cpu_threads(threads):
        return Embedded(datasets, embed_points(network.point_encoder, network.point_head(), clouds))


def list_cards() -> None:
    """Print the point encoders that ship with the package."""
    typer.echo("\n".join(list_point_cards()))


def make_base(
    data: Path,
    out: Path,
    words: Words,
    reading: Reading,
    config: PretrainConfig,
    *,
    card: str,
    image: str,
    captions: Path | None,
    split: str | None,
    overwrite: bool = False,
) -> None:
    """Pre-train a base and write it.

    Raises:
        InputError: a place where it cannot be written, before anything is read; clouds, captions or options of no use.
        WorkFailed: the base cannot be written.
    """
    words.refuse_unused_tower(weights_used=image != "tiny")
    given: list[Path | str | None] = [
        data, captions, words.vocabulary, words.classes, words.clip_weights,
    ]  # fmt: skip
    check_destination(out, ".safetensors", [Path(each) for each in given if each], overwrite=overwrite)
    point_card = load_point_card(card)
    clouds = training_clouds(reading, data, point_card, split)
    clouds.probe()
    texts_of = caption_of_each(clouds, captions)
    vocabulary = words.load(None, tuple(dict.fromkeys(texts_of)))
    rows = caption_rows(texts_of, vocabulary)
    image_card = image_tower(image, words.clip_weights, vocabulary.dim)
    notes = {"data": clouds.name, "clouds": str(len(clouds)), "pretraining": config.model_dump_json()}
    if image_card.clip:
        name, _, tag = vocabulary.tag.partition("/")
        remedy = f"give --image {name} --clip-weights {tag}, or --image tiny"
        notes["image_tower"] = image_origin(image_card.clip, image_card.weights, vocabulary.tag, remedy)

    def report(record: dict[str, Any]) -> None:
        terms = "  ".join(f"{name} {value:.3f}" for name, value in record.items() if isinstance(value, float))
        typer.echo(f"epoch {record['epoch'] + 1}/{record['epochs']}  {terms}", err=True)

    model = align(clouds.unlabelled(), rows, vocabulary.embeddings, point_card, image_card, config, report)
    kept = replace(image_card, weights=None) if image_card.clip else image_card
    say_skipped(clouds.bad)
    save_base(out, model, Architecture(point_card, kept, vocabulary.dim, vocabulary.tag), notes)
    typer.echo(str(out))


def image_tower(name: str, weights: str | None, dim: int) -> ImageCard:
    """The image tower of a base: a tiny one to train, or that of an open_clip model with its weights.

    Raises:
        InputError: no weights.
    """
    if name == "tiny":
        return tiny_image_tower(dim)
    if weights is None and not has_scheme(name):
        raise InputError(f"expected the weights of image tower {name}: give --clip-weights, or --image tiny")
    return ImageCard(clip=name, weights=weights)


def tiny_image_tower(dim: int) -> ImageCard:
    """The image tower of a base that is made where no pre-trained one is at hand, for D-wide embeddings."""
    return ImageCard(image_size=56, patch_size=8, width=96, layers=4, heads=4, output_dim=dim)


def caption_of_each(clouds: CloudDataset, captions: Path | None) -> list[str]:
    """The caption of each cloud: from the file, or its class.

    Raises:
        InputError: neither, or a cloud without a caption.
    """
    if captions is None:
        if clouds.labels is None or clouds.class_names is None:
            raise InputError(
                f"{clouds.name}: expected class folders or labels as captions, found none: give --captions"
            )
        return [clouds.class_names[label] for label in clouds.labels]
    try:
        by_id = json.loads(captions.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{captions}: expected a JSON object of cloud id to caption: {error}") from error
    if not isinstance(by_id, dict):
        raise InputError(
            f"{captions}: expected a JSON object of cloud id to caption, found {type(by_id).__name__}"
        )
    missing = [name for name in clouds.ids if not isinstance(by_id.get(name), str)]
    if missing:
        raise InputError(f"{captions}: no caption for {missing[0]} ({len(missing)} such)")
    return [by_id[name] for name in clouds.ids]


def caption_rows(texts: list[str], vocabulary: Vocabulary) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The row of each caption in the vocabulary.

    Raises:
        InputError: the vocabulary lacks one.
    """
    rows = {name: row for row, name in enumerate(vocabulary.names)}
    unknown = sorted(set(texts) - rows.keys())
    if unknown:
        raise InputError(f"the vocabulary has no embedding of '{unknown[0]}' ({len(unknown)} such captions)")
    return np.array([rows[text] for text in texts], dtype=np.int64)


def thumbnail(picture: Any, size: int) -> NDArray[np.uint8]:
    """A rendered view or a picture of the user's as (size, size, 3) uint8, its middle."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size)))


def render(
    path: Path,
    out: Path,
    reading: Reading,
    *,
    views: int,
    clouds: int,
    size: int,
    points: int,
    split: str | None,
) -> None:
    """Draw views of some clouds, thinned to so many points, as a contact sheet."""
    if out.suffix.lower() != ".png":
        raise InputError(f"expected a .png to write, found {out}")
    dataset = open_dataset(
        path, split=split, points=points, least=1, up_axis=reading.up_axis, columns=reading.columns
    )
    pictures, captions = [], []
    for index in dataset.spread(clouds):
        cloud = dataset.try_load(index)
        if cloud is None:
            continue
        seen = views_of(dataset, index, cloud, partial(spread, most=views), count=views, size=size)
        shown = [thumbnail(view, size) for view in seen]
        pictures += shown + [np.full_like(shown[0], 255)] * (views - len(shown))
        captions += [dataset.ids[index]] + [""] * (views - 1)
    if not pictures:
        raise InputError(f"{path}: none of the clouds can be read: {next(iter(dataset.bad.values()))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(np.stack(pictures), captions, columns=views * max(1, 8 // views)).save(out)
    say_skipped(dataset.bad)
    typer.echo(str(out))
