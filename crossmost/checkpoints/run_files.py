"""Telling a run by its files and reading its notes, without torch: a robot's commands have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crossmost.errors import InputError

CLASSES, CONFIG, PROVENANCE = "classes.npz", "config.yaml", "provenance.json"
ORIGIN = ("crossmost", "data", "split", "clouds", "clouds_sha256", "base", "base_sha256")
"""What the provenance of every run says; later versions say more."""


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run that can be loaded or resumed."""
    return (folder / CONFIG).is_file() and (folder / CLASSES).is_file()


def read_provenance(folder: Path) -> dict[str, Any]:
    """Where a run came from.

    Raises:
        InputError: the note is missing or damaged.
    """
    found = read_note(folder / PROVENANCE)
    if missing := [name for name in ORIGIN if name not in found]:
        raise InputError(
            f"{folder / PROVENANCE}: expected {', '.join(missing)} in it, found none: copy the run again"
        )
    return found


def read_note(path: Path) -> dict[str, Any]:
    """One of the JSON files of a run.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return json_object(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the run's {path.name}: {error}") from error


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: no JSON, or another value.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {text[:20]}")
    return found
