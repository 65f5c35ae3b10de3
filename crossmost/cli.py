"""The `crossmost` command, put together."""

from __future__ import annotations

import sys

from crossmost.commands import exporting, looking, running, training
from crossmost.commands.app import app

__all__ = ["app", "exporting", "looking", "main", "running", "training"]


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="crossmost", args=sys.argv[1:])
