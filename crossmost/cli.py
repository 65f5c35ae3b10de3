"""The `crossmost` command, put together."""

from __future__ import annotations

import sys
from io import TextIOWrapper

from crossmost.commands import converting, exporting, looking, running, training, vocabulary, zoo
from crossmost.commands.app import app

__all__ = ["app", "converting", "exporting", "looking", "main", "running", "training", "vocabulary", "zoo"]


def main() -> None:
    """Entry point of the console script."""
    # Names of files may have letters that a terminal's encoding lacks.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="crossmost", args=sys.argv[1:])
