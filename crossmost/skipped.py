"""What is said of clouds and pictures that could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import typer

from crossmost.data.catalog import printable

MOST_NAMED = 10


def say_skipped(bad: Mapping[str, str]) -> None:
    """Count what could not be read, and name the first ones, each with the reason.

    Args:
        bad: reason by name.
    """
    if not bad:
        return
    typer.echo(f"skipped {len(bad)} that could not be read:", err=True)
    for name, reason in islice(bad.items(), MOST_NAMED):
        about = "" if name in reason.split(": ")[0] else f"{one_line(name)}: "  # most reasons begin with it
        typer.echo(f"  {about}{one_line(reason)}", err=True)
    if len(bad) > MOST_NAMED:
        typer.echo(f"  and {len(bad) - MOST_NAMED} more", err=True)


def one_line(text: str) -> str:
    """Text without line breaks and tabs, which a file's name may hold: a line stays one answer, a tab its column."""
    return " ".join(printable(text).splitlines()).replace("\t", " ")
