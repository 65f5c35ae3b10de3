"""A base on disk: one safetensors file that says which architecture it holds and what it was aligned with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from crossmost.checkpoints.store import load_metadata, load_weights, save_weights
from crossmost.errors import InputError
from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import PointCard, read_point_card
from crossmost.models.student import DualEncoder
from crossmost.runtime.text_tags import explain_other_model, remedy
from crossmost.runtime.vocabulary import Vocabulary

FORMAT = "crossmost-base/1"
CONVERT = "`crossmost convert` makes a base of published weights"


class Architecture(NamedTuple):
    """What must be known to build the networks around a set of weights."""

    point: PointCard
    image: ImageCard | None  # None: the point branch is all there is
    dim: int  # D
    text: str  # tag of the text model the base is aligned with


def describe(architecture: Architecture) -> dict[str, str]:
    """The architecture as metadata of a safetensors file."""
    return {
        "point_card": architecture.point.model_dump_json(),
        "image_card": json.dumps(None if architecture.image is None else asdict(architecture.image)),
        "dim": str(architecture.dim),
        "text": architecture.text,
    }


def read_architecture(metadata: Mapping[str, str], source: Path, expected: str) -> Architecture:
    """The architecture from a file's metadata.

    Args:
        metadata: of the file.
        source: the file, for the message.
        expected: the format the file should have.

    Raises:
        InputError: another format, or a description that cannot be read.
    """
    found = metadata.get("format", "no format note")
    if found != expected:
        advice = "make it anew" if found.startswith("crossmost-") else CONVERT
        raise InputError(f"{source}: expected a file of format {expected}, found {found}: {advice}")
    try:
        image, dim = json.loads(metadata["image_card"]), int(metadata["dim"])
        if dim < 1:
            raise ValueError(f"expected a dim of at least 1, found {dim}")
        return Architecture(
            read_point_card(json.loads(metadata["point_card"])),
            None if image is None else ImageCard(**image),
            dim,
            metadata["text"],
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{source}: its description of the architecture cannot be read: {error}") from error


def check_text_model(vocabulary: Vocabulary, architecture: Architecture) -> None:
    """Refuse text embeddings of another model than the one that a base was aligned with, as far as tags tell.

    Raises:
        InputError: another width, or another model of the same width; says which one it should be.
    """
    expected, found = architecture.text, vocabulary.tag
    if vocabulary.dim != architecture.dim:
        raise InputError(
            f"expected text embeddings of {architecture.dim} numbers for this base ({expected}), "
            f"found {vocabulary.dim} ({found or 'no tag'}): {remedy(expected)}"
        )
    problem = explain_other_model("this base", expected, found, architecture.dim)
    if problem:
        raise InputError(problem)


def fill_weights(model: DualEncoder, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a model, every one of them and nothing else.

    Raises:
        InputError: a name or a shape differs; the message names the first.
    """
    expected = model.state_dict()
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    for names, problem in ((missing, "lacks"), (surplus, "has the unknown")):
        if names:
            raise InputError(
                f"{source} {problem} weight '{names[0]}' ({len(names)} such): another architecture"
            )
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            raise InputError(
                f"{source}: expected '{name}' of shape {tuple(value.shape)}, found {tuple(tensors[name].shape)}"
            )
    model.load_state_dict(dict(tensors))


def save_base(path: Path, model: DualEncoder, architecture: Architecture, notes: Mapping[str, str]) -> None:
    """Write a base; `notes` (how it was made) are kept as metadata.

    Raises:
        WorkFailed: the file cannot be written; an older one is untouched.
    """
    save_weights(path, model.state_dict(), {"format": FORMAT, **describe(architecture), **notes})


def load_architecture(path: Path) -> Architecture:
    """Read what a base is, without its weights.

    Raises:
        InputError: no such file, damaged, or not a base.
    """
    return read_architecture(load_metadata(path), path, FORMAT)


def load_base(path: Path) -> tuple[DualEncoder, Architecture]:
    """Read a base, on the CPU, in evaluation mode.

    Raises:
        InputError: no such file, damaged, not a base, or weights that do not fit their description or are no numbers.
    """
    weights = load_weights(path)
    architecture = read_architecture(weights.metadata, path, FORMAT)
    model = DualEncoder(architecture.point, architecture.image, architecture.dim, load_image_weights=False)
    fill_weights(model, weights.tensors, path)
    strange = [name for name, value in weights.tensors.items() if not value.isfinite().all()]
    if strange:
        raise InputError(
            f"{path}: expected numbers for weights, found NaN or infinity in '{strange[0]}' ({len(strange)} such): "
            "make or download it anew"
        )
    return model.eval(), architecture
