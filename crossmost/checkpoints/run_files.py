"""Telling a run by its files, without torch: a robot's commands have none."""

from __future__ import annotations

from pathlib import Path

CLASSES, CONFIG = "classes.npz", "config.yaml"


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run that can be loaded or resumed."""
    return (folder / CONFIG).is_file() and (folder / CLASSES).is_file()
