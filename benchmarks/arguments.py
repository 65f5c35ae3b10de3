"""What the benchmark scripts can be told in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

SEEDS = (0, 1, 2)


def parser(
    description: str | None, *, work: str, pairs: Iterable[str] = (), seeds: bool = False, quick: str = ""
) -> argparse.ArgumentParser:
    """The arguments of a script, to which it adds its own.

    Args:
        description: the script's docstring.
        work: what is kept in the folder of --work.
        pairs: of source and target to choose from with --pairs; none: no such option.
        seeds: whether --seeds chooses seeds.
        quick: what --quick measures, and where to; empty: no such option.
    """
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--data", type=Path, required=True, help="folder of the real clouds")
    found.add_argument("--work", type=Path, required=True, help=f"folder for {work}")
    if chosen := list(pairs):
        found.add_argument("--pairs", nargs="+", choices=chosen, default=chosen)
    if seeds:
        found.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    if quick:
        found.add_argument("--quick", action="store_true", help=quick)
    return found


def add_tables_only(to: argparse.ArgumentParser) -> None:
    """The option --tables-only, of scripts whose tables are made from result files."""
    to.add_argument(
        "--tables-only", action="store_true", help="write tables and figures from the results there are"
    )
