"""`inspect` and `render`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from crossmost.checkpoints.run_files import is_run
from crossmost.commands.app import command
from crossmost.commands.options import Columns, Json, Split, UpAxis, refuse_stated
from crossmost.errors import InputError


@command(epilog="Example: `crossmost inspect scans/ --up-axis y`")
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="A cloud, a mesh, a dataset, a run, a bundle, a base (or its name) or a classes.npz."
        ),
    ],
    split: Split = None,
    up_axis: Annotated[
        str | None, typer.Option(help="What points up in your files: x, y, z, -x, -y, -z; default: z.")
    ] = None,
    columns: Columns = None,
    points: Annotated[
        int | None,
        typer.Option(help="Points the encoder wants; sparser clouds are warned about; default: 1024."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a bundle, run, base or vocabulary is, or what in a cloud or dataset would make accuracy bad."""
    if not path.exists():
        from crossmost.zoo import kept

        path = kept(path)
    facts: tuple[Callable[[Path], Mapping[str, Any]], Callable[[Path], Sequence[str]]] | None = None
    if (path / "manifest.json").is_file():
        from crossmost.runtime import bundle_summary

        facts = bundle_summary.describe, bundle_summary.summarize
    elif is_run(path):
        from crossmost import run_summary

        facts = run_summary.describe_run, run_summary.summarize_run
    elif path.suffix == ".safetensors" and path.is_file():
        from crossmost import base_summary

        facts = base_summary.describe_base, base_summary.summarize_base
    elif path.suffix == ".npz":
        from crossmost.runtime import vocabulary_summary

        if vocabulary_summary.is_vocabulary(path):
            facts = vocabulary_summary.describe_vocabulary, vocabulary_summary.summarize_vocabulary
    if facts:
        of_clouds = {"--split": split, "--up-axis": up_axis, "--columns": columns, "--points": points}
        refuse_stated(of_clouds, f"{path}, which holds no clouds")
        describe, summarize = facts
        typer.echo(json.dumps(describe(path)) if as_json else "\n".join(summarize(path)))
        return
    from crossmost.data.inspection import inspect_path

    found = inspect_path(
        path, split=split, points=1024 if points is None else points, up_axis=up_axis or "z", columns=columns
    )
    if as_json:
        from crossmost.checkpoints.atomic import shown_json

        typer.echo(shown_json(found.to_dict()))
    else:
        typer.echo("\n".join(found.lines()))


@command(epilog="Example: `crossmost render scans/ --out sheet.png --views 4 --clouds 12`")
def render(
    path: Annotated[Path, typer.Argument(help="A cloud, a mesh or a dataset.")],
    out: Annotated[Path, typer.Option(help="The picture to write, .png.")] = Path("views.png"),
    views: Annotated[int, typer.Option(min=1, help="Views of each cloud.")] = 4,
    clouds: Annotated[int, typer.Option(min=1, help="Clouds, evenly spaced over a dataset.")] = 12,
    size: Annotated[int, typer.Option(min=16, help="Pixels a side of a view.")] = 160,
    points: Annotated[
        int,
        typer.Option(min=1, help="Points kept of a larger cloud; training keeps as many as its base wants."),
    ] = 4096,
    split: Split = None,
    up_axis: UpAxis = "z",
    columns: Columns = None,
) -> None:
    """Draw views as training does, as one contact sheet; --points of the base's N gives the very same clouds."""
    if is_run(path):
        raise InputError(
            f"{path}: expected clouds to draw, found a run: its report.html shows some of its own"
        )
    from crossmost.data.reading import Reading
    from crossmost.rendering import render as draw

    draw(
        path,
        out,
        Reading(up_axis=up_axis, columns=columns),
        views=views,
        clouds=clouds,
        size=size,
        points=points,
        split=split,
    )
