"""Tables and figures of `robustness.py`, from its result files."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from changes import FEW, MANY, TURNS, WHOLE, WRONG_AXES
from corruptions import CORRUPTIONS, SEVERITIES
from networks import NAMES, ZERO_SHOT
from robustness_figures import draw
from summaries import cell, table
from tables import write_between

HERE = Path(__file__).resolve().parent
BEST = NAMES[1]
Results = dict[str, list[dict[str, Any]]]
"""Change to the rows of its seeds."""


def read(results: Path) -> Results:
    """All result files, the seeds in order."""
    found: Results = {}
    for path in sorted(results.glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(row["change"], []).append(row)
    return found


def values(results: Results, change: str, level: str, name: str, measure: str = "top1") -> list[float]:
    """What each seed measured; empty where it was not."""
    return [
        entry["networks"][name][measure]
        for row in results.get(change, [])
        for entry in row["levels"]
        if entry["level"] == level
    ]


def difference(after: list[float], before: list[float]) -> list[float]:
    """Of the same seeds."""
    return [second - first for second, first in zip(after, before, strict=True)]


def over_severities(results: Results, change: str, name: str) -> list[float]:
    """Each seed's mean over the severities."""
    by_severity = [values(results, change, str(severity), name) for severity in SEVERITIES]
    return [statistics.mean(of_seed) for of_seed in zip(*by_severity, strict=True)]


def row_of(label: str, by_name: dict[str, list[float]], *further: str) -> list[str]:
    """A label, a cell a network, and how far the best adapted one lies above zero-shot."""
    moved = cell(difference(by_name[BEST], by_name[ZERO_SHOT]), signed=True)
    return [label, *(cell(by_name[name]) for name in NAMES), moved, *further]


def corruption_table(results: Results) -> list[str]:
    """Mean over severities, and the worst one."""
    measured = [change for change in CORRUPTIONS if change in results]
    rows = []
    if "clean" in results:
        rows.append(row_of("none", {name: values(results, "clean", "0", name) for name in NAMES}, "", ""))
    means = {change: {name: over_severities(results, change, name) for name in NAMES} for change in measured}
    for change in measured:
        last = [cell(values(results, change, str(SEVERITIES[-1]), name)) for name in (ZERO_SHOT, BEST)]
        rows.append(row_of(change, means[change], *last))
    if len(measured) == len(CORRUPTIONS):
        mean = {
            name: [statistics.mean(seed) for seed in zip(*(means[c][name] for c in measured), strict=True)]
            for name in NAMES
        }
        rows.append(row_of("mean of the seven", mean, "", ""))
    head = ["corruption", *NAMES, f"{BEST} − zero-shot", "zero-shot at 5", f"{BEST} at 5"]
    return table(head, rows)


def scan_table(results: Results) -> list[str]:
    """Accuracy and calibration error of the scans."""
    rows = []
    for label, change, level in (
        ("none", "clean", "0"),
        *((level, "scan", level) for level in ("low", "moderate", "high")),
    ):
        if change in results:
            errors = [cell(values(results, change, level, name, "ece")) for name in NAMES]
            rows.append(
                row_of(label, {name: values(results, change, level, name) for name in NAMES}, *errors)
            )
    head = ["scan", *NAMES, f"{BEST} − zero-shot", *(f"ECE {name}" for name in NAMES)]
    return table(head, rows)


def orientation_table(results: Results) -> list[str]:
    """Turns about the up axis and wrong up axes, of clean and of scanned clouds."""
    lines = [("upright", "clean", "0", "scan", "moderate")]
    lines += [
        (f"turned by {level}{'' if level == 'any' else '°'}", "yaw", level, "scanned-yaw", level)
        for level in TURNS
    ]
    lines += [
        (f"{level} up, read as z up", "up-axis", level, "scanned-up-axis", level) for level in WRONG_AXES
    ]
    rows = [
        [
            label,
            *(cell(values(results, clean, level, name)) for name in NAMES),
            *(cell(values(results, scan, of_scan, name)) for name in NAMES),
        ]
        for label, clean, level, scan, of_scan in lines
    ]
    return table(["", *(f"clean: {name}" for name in NAMES), *(f"scans: {name}" for name in NAMES)], rows)


def points_table(results: Results) -> list[str]:
    """Fewer points of ModelNet10's clouds."""
    rows = [
        [
            level,
            *(cell(values(results, change, level, name)) for change in ("points", "even-points") for name in NAMES),
        ]
        for level in FEW
    ]  # fmt: skip
    rows.append([WHOLE, *(cell(values(results, "clean", "0", name)) for _ in range(2) for name in NAMES)])
    head = [*(f"random: {name}" for name in NAMES), *(f"even: {name}" for name in NAMES)]
    return table(["points", *head], rows)


def dense_table(results: Results) -> list[str]:
    """More points than ModelNet10's clouds have."""
    columns = {
        "bathtubs right": ("bathtub-points", "top1"),
        "meshes: same class as at 1024": ("mesh-points", "same"),
        "meshes of five classes right": ("mesh-points", "top1"),
    }
    rows = [
        [
            level,
            *(cell(values(results, change, level, name, measure))
              for change, measure in columns.values() for name in (ZERO_SHOT, BEST)),
        ]
        for level in MANY
    ]  # fmt: skip
    return table(["points", *(f"{title}: {name}" for title in columns for name in (ZERO_SHOT, BEST))], rows)


def counts(results: Results) -> dict[str, dict[str, Any]]:
    """Number of clouds and machine of each change."""
    return {
        change: {
            **rows[0]["levels"][0],
            "machine": rows[0]["machine"],
            "seeds": [row["seed"] for row in rows],
        }
        for change, rows in results.items()
    }


def tables(results: Results) -> str:
    """All of them with their figures."""
    facts = counts(results)
    first = next(iter(facts.values()))
    seeds = ", ".join(map(str, first["seeds"]))

    def of(change: str, key: str) -> str:
        return str(facts[change][key]) if change in facts else "no"

    parts = [
        f"p1-moderate, seeds {seeds}, {first['machine']}; {of('clean', 'n')} test clouds of ModelNet10 but where a "
        "table says otherwise",
        "**Corruptions of clean clouds**: mean of five severities",
        *corruption_table(results),
        "![accuracy by severity of each corruption](figures/robustness_corruptions.png)",
        "**Simulated scans**",
        *scan_table(results),
        "![accuracy and calibration error by severity of the scan](figures/robustness_scans.png)",
        "**Turned and toppled clouds**",
        *orientation_table(results),
        "![accuracy by angle and by up axis](figures/robustness_orientation.png)",
        "**Fewer points** (of 1,024)",
        *points_table(results),
        f"**More points**: {of('bathtub-points', 'n')} bathtubs of 2,048 points; "
        f"{of('mesh-points', 'n')} clouds sampled from CC0 meshes, {of('mesh-points', 'labelled')} of them of the "
        "five meshes whose class is in the vocabulary",
        *dense_table(results),
        "![accuracy by number of points](figures/robustness_points.png)",
    ]
    return "\n".join(spaced(parts))


def spaced(parts: list[str]) -> list[str]:
    """Empty lines around everything that is no row of a table."""
    lines: list[str] = []
    for part in parts:
        if lines and not (part.startswith("|") and lines[-1].startswith("|")):
            lines.append("")
        lines.append(part)
    return lines


def write(results: Path) -> None:
    """Write tables and figures."""
    found = read(results)
    draw(found, HERE / "figures")
    write_between(HERE / "README.md", "robustness", tables(found))
