"""What `crossmost inspect` says of a run: where it came from, how far it is, and what was measured of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossmost.checkpoints.run import EVALUATION, EVALUATION_REPORT, REPORT, load_run, shortcomings
from crossmost.checkpoints.run_files import read_note
from crossmost.evaluation.run_report import run_rows


def describe_run(folder: Path) -> dict[str, Any]:
    """The facts of a run, in JSON types.

    Raises:
        InputError: it is damaged.
    """
    run = load_run(folder)
    measured = folder / EVALUATION
    found = read_note(measured) if measured.is_file() else {}
    return {
        "run": str(folder),
        **dict(run_rows(run)),
        "Classes": list(run.vocabulary.names),
        "Options": run.config.model_dump(mode="json"),
        "Measured": {name: value for name, value in found.items() if name != "details"} or None,
        "Reports": [name for name in (REPORT, EVALUATION_REPORT) if (folder / name).is_file()],
        "Warnings": shortcomings(run),
    }


def summarize_run(folder: Path) -> list[str]:
    """The same as lines for people."""
    facts = describe_run(folder)
    measured, names = facts.pop("Measured"), facts.pop("Classes")
    del facts["Options"]  # config.yaml has them
    warnings, reports = facts.pop("Warnings"), facts.pop("Reports")
    lines = [f"{name:<20} {value}" for name, value in facts.items()]
    lines.append(f"{'classes':<20} {len(names)}: {' '.join(names[:10])}{' ...' if len(names) > 10 else ''}")
    if measured and measured.get("zero_shot"):
        of = measured.get("data", {}).get("name", "a data set")  # runs did not always note it
        shares = (
            f"{branch} {before:.1%} -> {measured['adapted'][branch]:.1%}"
            for branch, before in measured["zero_shot"].items()
            if before is not None
        )
        lines.append(
            f"{'last measured':<20} {measured['n']} clouds of {of} ({measured['split']}): {', '.join(shares)}"
        )
    lines.append(f"{'reports':<20} {', '.join(reports) or 'none'}")
    return lines + [f"warning: {line}" for line in warnings]
