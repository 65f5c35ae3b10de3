"""How clouds are read for a model: as those that it was adapted to, unless told otherwise. Works without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from crossmost.checkpoints.run_files import PROVENANCE, is_run, read_provenance
from crossmost.data.reading import Reading
from crossmost.errors import InputError
from crossmost.runtime.manifest import MANIFEST, load_manifest

NAMES = ("up_axis", "columns", "color")


def reading_of(model: Path, given: Mapping[str, str | None], *, labels: bool = True) -> Reading:
    """How clouds are read for a model: as its run read its own, but for what is given.

    Says where a run is told something else, and what a bundle remembers of its run where that is not the usual:
    whoever has the bundle may never have seen the run.

    Args:
        model: folder of a run or of a bundle; nothing is known of any other model's clouds.
        given: "up_axis", "columns" and "color"; None for what was not said.
        labels: whether folders and labels are classes.

    Raises:
        InputError: the model's note of it is damaged.
    """
    own = own_reading(model)
    said = {name: value for name, value in given.items() if value is not None}
    usual, found = Reading(labels=labels), Reading(**{**own, **said}, labels=labels)
    if is_run(model):
        for name, value in said.items():
            if name in own and own[name] != value:
                typer.echo(
                    f"warning: {option(name)} {value}, but the run's own clouds were read with {own[name]}",
                    err=True,
                )
    elif told := [
        f"{option(name)} {own[name]}"
        for name in own.keys() - said.keys()
        if getattr(found, name) != getattr(usual, name)
    ]:
        typer.echo(
            f"files are read as the run's own were, unless told otherwise: {', '.join(sorted(told))}",
            err=True,
        )
    return found


def own_reading(model: Path) -> dict[str, Any]:
    """What a run or a bundle says of how its run's clouds were read; empty where it says nothing.

    Raises:
        InputError: what it says is no reading.
    """
    if is_run(model):
        place, notes = model / PROVENANCE, read_provenance(model)
    elif (model / MANIFEST).is_file():
        place, notes = model / MANIFEST, load_manifest(model).provenance.get("training", {})
    else:
        return {}
    found = notes.get("reading", {}) if isinstance(notes, dict) else None
    if not isinstance(found, dict) or not all(
        name in NAMES and isinstance(value, str | None) for name, value in found.items()
    ):
        raise InputError(
            f"{place}: expected reading to name {', '.join(NAMES)}, found {str(found)[:60]!r}: copy it again"
        )
    return found


def option(name: str) -> str:
    """The command line's name of a part of the reading."""
    return f"--{name.replace('_', '-')}"
