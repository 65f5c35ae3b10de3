"""What `crossmost pretrain` does: from captioned clouds to a base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

from crossmost.adaptation.pretrain import PretrainConfig
from crossmost.adaptation.pretrain import pretrain as align
from crossmost.checkpoints.base import Architecture, save_base
from crossmost.checkpoints.destination import check_destination
from crossmost.data.class_names import fold
from crossmost.data.dataset import CloudDataset
from crossmost.data.folder import VIEWS
from crossmost.data.reading import Reading
from crossmost.errors import InputError
from crossmost.models.clip import has_scheme
from crossmost.models.image_origin import image_origin
from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import list_point_cards, load_point_card
from crossmost.runtime.vocabulary import Vocabulary
from crossmost.skipped import say_skipped
from crossmost.split_choice import training_clouds
from crossmost.words import Words


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
    if clouds.pictured():
        typer.echo(f"pretrain renders its views: the pictures in {VIEWS}/ are not used", err=True)
    texts_of = caption_of_each(clouds, captions)
    vocabulary = words.load(None, spelled_once(texts_of))
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


def spelled_once(texts: list[str]) -> tuple[str, ...]:
    """The captions in the spelling that comes first: `caption_rows` finds the others, which CLIP may not tell apart."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(fold(text), text)
    return tuple(first.values())


def caption_rows(texts: list[str], vocabulary: Vocabulary) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The row of each caption in the vocabulary; case, '_', '-' and spaces decide only where names differ in no more.

    Raises:
        InputError: the vocabulary lacks one.
    """
    rows = {name: row for row, name in enumerate(vocabulary.names)}
    folded: dict[str, list[int]] = {}
    for name, row in rows.items():
        folded.setdefault(fold(name), []).append(row)
    unknown = []
    for text in sorted(set(texts) - rows.keys()):
        alike = folded.get(fold(text), [])
        if len(alike) == 1:
            rows[text] = alike[0]
        else:
            unknown.append(text)
    if unknown:
        raise InputError(f"the vocabulary has no embedding of '{unknown[0]}' ({len(unknown)} such captions)")
    return np.array([rows[text] for text in texts], dtype=np.int64)
