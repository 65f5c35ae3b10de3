"""`vocabulary`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossmost.commands.app import command
from crossmost.commands.options import ClipWeights, Device, Json


@command(
    epilog="Example: `crossmost vocabulary --clip ViT-bigG-14/laion2b_s39b_b160k --names classes.txt "
    "--out classes.npz`\n\nFor ULIP: `--clip slip-vit-b-16 --clip-weights slip_base_100ep.pt`. "
    "Which text model an encoder is aligned with: `crossmost zoo`."
)
def vocabulary(
    clip: Annotated[
        str,
        typer.Option(
            help="Text tower: an open_clip name or slip-vit-b-16, alone or as NAME/TAG of its weights."
        ),
    ],
    names: Annotated[str, typer.Option(help="Class names: a file, one a line, or 'mug,bowl'.")],
    out: Annotated[Path, typer.Option(help="The vocabulary to write, .npz.")],
    clip_weights: ClipWeights = None,
    templates: Annotated[
        Path | None,
        typer.Option(help="Prompts, one a line with {} for the name; default: the 64 of the method."),
    ] = None,
    underscores: Annotated[
        bool, typer.Option("--underscores", help="Keep night_stand as it is in the prompts.")
    ] = False,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file where it is.")] = False,
    as_json: Json = False,
) -> None:
    """Embed class names with a CLIP text tower, for `--vocabulary` of the other commands and for bundles."""
    from crossmost.checkpoints.atomic import shown_json
    from crossmost.vocabularies import make_vocabulary

    made = make_vocabulary(
        names,
        out,
        clip=clip,
        clip_weights=clip_weights,
        templates=templates,
        spaces=not underscores,
        device=device,
        overwrite=overwrite,
    )
    typer.echo(shown_json(made) if as_json else made["path"])
