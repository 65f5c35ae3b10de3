"""The `crossmost` command, put together."""

from __future__ import annotations

import sys

from crossmost.commands import converting, exporting, looking, running, training, vocabulary, zoo
from crossmost.commands.app import app

__all__ = ["app", "converting", "exporting", "looking", "main", "running", "training", "vocabulary", "zoo"]


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="crossmost", args=sys.argv[1:])
