"""The rows of the adaptation table: which options each one trains with, and what it answers with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from crossmost.config import SWITCHES, TrainConfig, make_config, recipe_values

BRANCHES = ("point", "image", "both")
READ_OUTS = ("selection", "exported", "collapse")
"""Switches that decide which network of a training is kept, and change nothing in the training itself."""
REFERENCE = "joint-reference"


@dataclass(frozen=True)
class Row:
    """One way to adapt.

    Attributes:
        name: in result files and tables.
        training: name of the row whose training it reads its result from: its own, or another's.
        options: besides those that all rows share.
        taught: whether the true labels are in the place of the pseudo-labels: not label-free.
    """

    name: str
    training: str
    options: dict[str, Any] = field(default_factory=dict)
    taught: bool = False

    def config(self, shared: dict[str, Any]) -> TrainConfig:
        """The options of the run."""
        return make_config({**shared, **self.options})


def published_augmentation() -> tuple[str, ...]:
    """What the reference recipe sets besides the switches: the strong augmentation of the points."""
    return tuple(name for name in recipe_values("reference") if name not in SWITCHES and name != "recipe")


def repairs() -> dict[str, tuple[str, ...]]:
    """Name of each repair, and the options of the reference recipe that it sets to the crossmost value."""
    return {switch: (switch,) for switch in SWITCHES} | {"strong_augmentation": published_augmentation()}


def published(options: tuple[str, ...]) -> dict[str, Any]:
    """Those options as the reference recipe sets them."""
    reference = recipe_values("reference")
    return {option: reference[option] for option in options}


def repair_row(repair: str, options: tuple[str, ...]) -> Row:
    """The reference recipe with one repair."""
    repaired = {option: TrainConfig.model_fields[option].default for option in options}
    training = REFERENCE if repair in READ_OUTS else f"repair-{repair}"
    return Row(f"repair-{repair}", training, {"recipe": "reference", **repaired})


MAIN = (
    Row("centered", "centered", {"epochs": 0}),
    *(Row(mode, mode, {"mode": mode}) for mode in ("image-only", "point-only", "separate", "agreement")),
    Row(REFERENCE, REFERENCE, {"recipe": "reference"}),
    Row("joint", "joint"),
)
WITHOUT = tuple(
    Row(f"joint-without-{repair}", f"joint-without-{repair}", published(options))
    for repair, options in repairs().items()
    if repair not in READ_OUTS
)
"""The crossmost recipe less one of its repairs: no rivals of it."""
BALANCED = Row("joint-center-balanced", "joint-center-balanced", {"center": "balanced"})
"""The crossmost recipe about the balanced center, whatever the branches speak for: no rival of it."""
TRUE_LABELS = Row("joint-true-labels", "joint-true-labels", taught=True)
"""The crossmost recipe with the labels that it lacks: no rival of it, see true_labels.py."""
LONG = Row("joint-long", "joint-long", {"epochs": TrainConfig.model_fields["epochs"].default})
"""The crossmost recipe for as long as it trains unless told otherwise: no rival of rows that train for less."""
REPAIRS = tuple(repair_row(repair, options) for repair, options in repairs().items())
READ_FROM_TEACHER = tuple(
    Row(f"{row.name}+exported", row.training, row.options | {"exported": "teacher"})
    for row in REPAIRS
    if row.name in ("repair-center", "repair-anchor")
)
"""Repairs that act on the teacher, which the reference recipe does not export."""
ROWS = {row.name: row for row in (*MAIN, *WITHOUT, BALANCED, LONG, TRUE_LABELS, *REPAIRS, *READ_FROM_TEACHER)}
ZERO_SHOT = "zero-shot"
TITLES = {ZERO_SHOT: ZERO_SHOT} | {row.name: row.name for row in MAIN}
TITLES |= {"centered": "zero-shot about the center, untrained"}
TITLES |= {"joint": "joint (crossmost recipe)", REFERENCE: "joint (reference recipe)"}
TITLES |= {BALANCED.name: "joint about the balanced center"}
TITLES |= {LONG.name: f"joint, {LONG.options['epochs']} epochs"}
TITLES |= {TRUE_LABELS.name: "*not label-free*: joint, taught the true labels"}
TITLES |= {row.name: row.name.replace("-", " ") for row in WITHOUT}


def answering(row: str) -> tuple[str, ...]:
    """The branches that a row trains, and so may be asked."""
    return {"point-only": ("point",), "image-only": ("image",)}.get(row, BRANCHES)
