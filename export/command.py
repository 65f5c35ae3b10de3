"""What `crossmost export` does with its arguments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from crossmost.checkpoints.atomic import json_line
from crossmost.data.reading import Reading
from crossmost.export.source import load_exportable
from crossmost.export.text_files import TextOptions
from crossmost.export.workflow import ExportOptions, export
from crossmost.skipped import say_skipped
from crossmost.words import Words


def export_bundle(
    path: Path,
    out: Path,
    words: Words,
    reading: Reading,
    options: ExportOptions,
    *,
    verify: Path | None,
    split: str | None,
    unknown_labels: Path | None,
    text_encoder: bool,
    as_json: bool,
) -> None:
    """Export a run or a base, and print where the bundle is.

    Args:
        path: of the run or base.
        out: of the bundle.
        words: the class names of a base.
        reading: how the user's clouds are read.
        options: of the export, without its text tower.
        verify: the user's clouds.
        split: of all these clouds.
        unknown_labels: labelled clouds for the threshold.
        text_encoder: whether the text tower is exported too.
        as_json: print the manifest instead.

    Raises:
        InputError: something of it cannot be used.
        WorkFailed: verification failed, or the bundle cannot be written.
    """
    if not text_encoder:
        words.refuse_unused_tower()
    named = words.classes or words.vocabulary
    source = load_exportable(path, words.bank if named else None)
    for line in source.shortcomings:
        typer.echo(f"warning: {line}", err=True)
    if text_encoder:
        options = replace(options, text=TextOptions(*words.tower(source.architecture.text)))
    card = source.architecture.point
    own = reading.open(verify, card, split) if verify else None
    labelled = reading.open(unknown_labels, card, split) if unknown_labels else None
    manifest = export(
        source, out, options, own=own, labelled=labelled, say=lambda line: typer.echo(line, err=True)
    )
    for clouds in (own, labelled):
        say_skipped({} if clouds is None else clouds.bad)
    typer.echo(json_line(manifest.to_dict()) if as_json else str(out))
