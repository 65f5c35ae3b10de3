"""Which split of the user's clouds serves what, and what to say about clouds that are left out. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import typer

from crossmost.data.dataset import CloudDataset
from crossmost.data.inspection import lost_labels
from crossmost.data.reading import Form, Reading


def training_clouds(reading: Reading, data: Path, form: Form, split: str | None) -> CloudDataset:
    """Open the data to train on: where it has a train and a test split and none is asked for, the train split."""
    return _open_part(reading, data, form, split, "train")


def measured_clouds(reading: Reading, data: Path, form: Form, split: str | None) -> CloudDataset:
    """Open the data to measure on: where it has a train and a test split and none is asked for, the test split."""
    return _open_part(reading, data, form, split, "test")


def _open_part(reading: Reading, data: Path, form: Form, split: str | None, part: str) -> CloudDataset:
    clouds = reading.open(data, form, split)
    for line in clouds.left_out:
        typer.echo(line, err=True)
    if reading.labels and (lost := lost_labels(clouds)):
        typer.echo(lost, err=True)
    if split is None and {"train", "test"} <= set(clouds.splits):
        return reading.open(data, form, part)
    return clouds
