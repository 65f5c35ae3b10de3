"""`zoo`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crossmost.commands.app import command
from crossmost.commands.options import Json

if TYPE_CHECKING:
    from crossmost.zoo_models import Model


@command(
    epilog="Example: `crossmost zoo uni3d-b`\n\n"
    "A name may stand wherever a base does: `crossmost train scans/ --base uni3d-b --classes mug,bowl "
    "--out runs/scans`"
)
def zoo(
    name: Annotated[str | None, typer.Argument(help="All about this one; default: a table of all.")] = None,
    as_json: Json = False,
) -> None:
    """List the public point encoders to start from: size, text model, licence, reported accuracy."""
    from crossmost.checkpoints.atomic import shown_json
    from crossmost.zoo import facts, find, list_models

    if as_json:
        found = facts(find(name)) if name else [facts(model) for model in list_models()]
        typer.echo(shown_json(found))
    elif name:
        typer.echo("\n".join(description(find(name))))
    else:
        print_table(list_models())


def print_table(models: tuple[Model, ...]) -> None:
    """A line an encoder, as wide as the terminal, or wide enough where there is none."""
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from crossmost.zoo_text import accuracy, licenses, parameters

    table = Table(box=box.SIMPLE, pad_edge=False)
    for title in ("name", "parameters", "points", "text model", "licence", "zero-shot top-1 %, as reported"):
        table.add_column(title, no_wrap=title == "name", justify="right" if title == "points" else "left")
    for model in models:
        table.add_row(
            model.name,
            parameters(model),
            str(model.card.points),
            model.text,
            licenses(model),
            accuracy(model) or "-",
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    typer.echo("All about one, and how to use it: crossmost zoo NAME")


def description(model: Model) -> list[str]:
    """All facts of one, and the commands it can be used with."""
    from crossmost.zoo import base_path, download_path
    from crossmost.zoo_text import accuracy, channels, filler, licenses, parameters, patches

    card, base = model.card, base_path(model.name)
    size = f" ({model.bytes / 1e6:.0f} MB)" if model.bytes else ""
    missing = f" ({filler(card)} where there is no colour)" if filler(card) else ""
    lines = {
        "file": f"{model.file.url}{size}",
        "sha256": model.sha256 or "not publicly known",
        "base": f"{base}{'' if base.is_file() else ' (made when it is first used)'}",
        "by hand": f"a file at {download_path(model)} is used instead of a download",
        "licence": licenses(model),
        "paper": model.paper,
        "code": model.code,
        "parameters": parameters(model),
        "points": f"{card.points}, {channels(card)}{missing}, {card.up_axis} up, unit sphere",
        "patches": patches(card),
        "embedding": f"{model.dim} numbers, aligned with {model.text}",
        "image tower": model.image or "none: it trains on points alone",
        "zero-shot": accuracy(model) or "nothing reported of this file",
        "note": model.note,
    }
    width = max(map(len, lines))
    facts = [f"{title:<{width}}  {text}" for title, text in lines.items() if text]
    return [model.name, "", *facts, "", *commands(model)]


def commands(model: Model) -> list[str]:
    """Commands to copy."""
    words = "--classes mug,bowl"
    if model.text.startswith("slip-"):  # which no library downloads
        words += " --clip-weights slip_base_100ep.pt"
    return [
        f"crossmost train scans/ --base {model.name} {words} --out runs/scans",
        f"crossmost export {model.name} {words} --fp16 --out {model.name}.bundle",
        f"crossmost embed {model.name} scans/ --out embeddings.npy",
    ]
