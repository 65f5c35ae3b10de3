"""`convert`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from crossmost.commands.app import command
from crossmost.commands.options import Json


class Network(str, Enum):
    """Which network of a self-training."""

    student = "student"
    teacher = "teacher"


@command(
    epilog="Example: `crossmost convert checkpoint_pointbert.pt --to ulip.safetensors`\n\n"
    "Keys and shapes tell what it is: the Point-BERT encoders of ULIP, ULIP-2, Cross-MoST and OpenShape, and Uni3D in "
    "all sizes, are known. Nothing in the file is executed."
)
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="A published checkpoint: .pt, .pth, .bin or .safetensors.")
    ],
    to: Annotated[Path, typer.Option(help="The base to write, .safetensors.")],
    name: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="Name of its encoder, where the weights fit several: ulip-pointbert, crossmost-pointbert.",
        ),
    ] = None,
    network: Annotated[
        Network, typer.Option(help="Which of the two that a self-training saves.")
    ] = Network.student,
    image: Annotated[
        str | None,
        typer.Option(
            help="Image tower: keep (the file's), none, or weights (a tag or a file) of the CLIP that the encoder is "
            "aligned with; default: the file's, unless it is huge."
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names of the trained class vectors in it, in their order: keep them, as .classes.npz."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --to.")] = False,
    as_json: Json = False,
) -> None:
    """Make a base of a checkpoint of ULIP, ULIP-2, Cross-MoST, OpenShape or Uni3D."""
    from crossmost.checkpoints.atomic import shown_json
    from crossmost.checkpoints.convert import convert_checkpoint
    from crossmost.runtime.class_names import read_class_names

    made = convert_checkpoint(
        checkpoint,
        to,
        name=name,
        network=network.value,
        image=image,
        classes=read_class_names(classes) if classes else None,
        overwrite=overwrite,
    )
    typer.echo(shown_json(made.to_dict()) if as_json else "\n".join(made.lines()))
