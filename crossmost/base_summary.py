"""What `crossmost inspect` says of a base: its encoder, and the text model that class names have to be of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossmost.checkpoints.base import FORMAT, load_architecture
from crossmost.checkpoints.store import load_metadata
from crossmost.models.image_tower import ImageCard
from crossmost.runtime.bundle_summary import one_line

ARCHITECTURE = ("format", "point_card", "image_card", "dim", "text")
"""The entries of a base's metadata that its architecture is read from; the others are notes on how it was made."""


def describe_base(path: Path) -> dict[str, Any]:
    """The facts of a base, in JSON types; its weights are not read.

    Raises:
        InputError: no base, or a damaged one.
    """
    architecture, metadata = load_architecture(path), load_metadata(path)
    return {
        "base": str(path),
        "encoder": architecture.point.model_dump(mode="json"),
        "image_tower": image_row(architecture.image),
        "dim": architecture.dim,
        "text_model": architecture.text,
        "notes": {name: text for name, text in metadata.items() if name not in ARCHITECTURE},
    }


def summarize_base(path: Path) -> list[str]:
    """The same as lines for people."""
    facts = describe_base(path)
    card = facts["encoder"]
    colors = "xyz and rgb" if card["channels"] == 6 else "xyz"
    lines = [
        f"base         {path} ({FORMAT})",
        f"encoder      {card['name']}: N {card['points']}, G {card['groups']}, K {card['neighbors']}, {colors}, "
        f"D {facts['dim']}, up axis {card['up_axis']}",
        f"image tower  {facts['image_tower']}",
        f"text model   {facts['text_model'] or 'unknown'}: class names need its embeddings",
        *(f"{name:<12} {text}" for name, text in sorted(facts["notes"].items())),
    ]
    return [one_line(line) for line in lines]


def image_row(card: ImageCard | None) -> str:
    """The image tower in words."""
    if card is None:
        return "none: it trains point-only"
    return card.clip or f"tiny: {card.image_size} pixels, {card.layers} layers of {card.width}"
