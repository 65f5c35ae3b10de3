"""The table of benchmarks/throughput.py, from its result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WAYS = {
    "plain": "plain, as published",
    "reference": "crossmost, reference recipe",
    "crossmost": "crossmost, its own recipe",
}
STAGES = ("read", "augment", "render", "group", "teacher", "student", "total")
TOWERS = {"tiny": "small image tower (56 pixels)", "ViT-B-16-quickgelu": "ViT-B/16 (224 pixels)"}


def table(results: Path) -> str:
    """All result files of a folder as Markdown, the cheapest step first."""
    rows = [json.loads(path.read_text()) for path in results.glob("*.json")]
    rows.sort(key=lambda row: row["seconds"]["plain"]["total"][1] / row["batch"])
    if not rows:
        return ""
    lines = [
        f"{rows[0]['machine']}; {rows[0]['threads']} threads in every way, no loading processes; "
        "median samples a second\n"
    ]
    for row in rows:
        lines += setting_lines(row)
    return "\n".join(lines).rstrip()


def setting_lines(row: dict[str, Any]) -> list[str]:
    """One setting: a line a way, then how many times faster each is."""
    lines = [
        f"**{row['card']} and {TOWERS[row['image']]}, {row['points']} points, batch {row['batch']}** "
        f"({row['turns']} turns)\n",
        f"| samples/s | {' | '.join(STAGES[:-1])} | whole step | peak memory |",
        "|---" * (len(STAGES) + 2) + "|",
    ]
    for way, name in WAYS.items():
        found = row["seconds"][way]
        cells = [f"{rate(row['batch'] / found[stage][1])}" if stage in found else "" for stage in STAGES]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['peak_bytes'][way] / 1e9:.1f} GB |")
    for way, faster in row["faster"].items():
        cells = [f"{faster[stage][1]:.2f}x" if stage in faster else "" for stage in STAGES[:-1]]
        low, middle, high = faster["total"]
        cells.append(f"{middle:.2f}x [{low:.2f}, {high:.2f}]")
        lines.append(f"| {WAYS[way]}, over plain | {' | '.join(cells)} | |")
    return [*lines, ""]


def rate(value: float) -> str:
    """Samples a second, to three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
