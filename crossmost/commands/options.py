"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from crossmost.errors import InputError

Data = Annotated[Path, typer.Argument(help="Folder of clouds or meshes, official .h5 files, or one .npz.")]
Split = Annotated[str | None, typer.Option(help="Use only this split: train, test, or all of them: all.")]
UpAxis = Annotated[str, typer.Option(help="What points up in your files: x, y, z, -x, -y, -z.")]
Columns = Annotated[
    str | None, typer.Option(help="Meaning of array columns: xyz, xyzrgb, xyz_rgb ('_' skips).")
]
Color = Annotated[
    str, typer.Option("--color", "--colour", help="auto: use it where there is some; none: ignore it.")
]
OwnUpAxis = Annotated[
    str | None,
    typer.Option(
        "--up-axis", help="What points up in them; default: as the run's own clouds were read, else z."
    ),
]
OwnColumns = Annotated[
    str | None,
    typer.Option("--columns", help="Meaning of array columns; default: as for the run's own clouds."),
]
OwnColor = Annotated[
    str | None,
    typer.Option("--color", "--colour", help="auto or none; default: as for the run's own clouds."),
]
IgnoreLabels = Annotated[
    bool, typer.Option("--ignore-labels", help="Folders and labels are no classes: a report without them.")
]
Classes = Annotated[
    str | None,
    typer.Option(help="Class names: a file, one a line, or 'mug,bowl'. Needs the CLIP text tower."),
]
VocabularyFile = Annotated[
    Path | None,
    typer.Option(
        "--vocabulary", help="Names with their text embeddings: a classes.npz of `crossmost vocabulary`."
    ),
]
Clip = Annotated[
    str | None,
    typer.Option(help="open_clip model whose text tower embeds the class names; default: the base's."),
]
ClipWeights = Annotated[str | None, typer.Option(help="Its weights: an open_clip tag or a file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, help="Processes that read and augment; default: none on a CPU, up to 8 beside a GPU."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def find_base(path: Path) -> Path:
    """What a path or the name of a public encoder means; see `crossmost.zoo.resolve`."""
    from crossmost.zoo import resolve

    return resolve(path, lambda line: typer.echo(line, err=True))


def refuse_stated(options: Mapping[str, object], model: str) -> None:
    """Refuse options that a model of this kind has no use for.

    Raises:
        InputError: one of them was stated.
    """
    stated = next((name for name, value in options.items() if value is not None), None)
    if stated is not None:
        raise InputError(f"expected no {stated} for {model}")
