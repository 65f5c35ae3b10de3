"""The tables of benchmarks/throughput.py, from its result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WAYS = {
    "plain": "plain, as published",
    "reference": "crossmost, reference recipe",
    "crossmost": "crossmost, its own recipe",
}
EXTRAS = {"bfloat16": "bfloat16", "loading": "loading processes"}
STAGES = ("read", "augment", "render", "group", "teacher", "student", "total")
TOWERS = {"tiny": "small image tower (56 pixels)", "ViT-B-16-quickgelu": "ViT-B/16 (224 pixels)"}


def table(results: Path) -> str:
    """All result files of a folder as Markdown: those of the CPU, the cheapest step first, then those of GPUs."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    rows = [row for row in found if "gpu" not in row]
    rows.sort(key=lambda row: row["seconds"]["plain"]["total"][1] / row["batch"])
    lines = []
    if rows:
        lines.append(
            f"{rows[0]['machine']}; {rows[0]['threads']} threads in every way, no loading processes; "
            "median samples a second\n"
        )
    for row in rows:
        lines += setting_lines(row, f"{row['turns']} turns", "peak")
    for row in found:
        if "gpu" in row:
            lines += gpu_lines(row)
    return "\n".join(lines).rstrip()


def gpu_lines(row: dict[str, Any]) -> list[str]:
    """What was measured where and how, then the setting."""
    lines = [
        f"{row['gpu']}; {row['machine']}; median samples a second. Each way loads in its own process, and the GPU is "
        f"waited for at both ends of a stage. With {row['workers']} loading processes a turn is {row['workers']} steps "
        "back to back, without a wait, and what was loaded ahead before the first turn is not counted\n"
    ]
    fewer = [f"{title(way)}: {taken}" for way, taken in row["taken"].items() if taken < row["turns"]]
    lines += setting_lines(row, "; ".join([f"{row['turns']} turns", *fewer]), "peak GPU")
    if row["failed"]:
        lines += [f"Failed: {'; '.join(map(title, row['failed']))}", ""]
    return lines


def setting_lines(row: dict[str, Any], turns: str, peak: str) -> list[str]:
    """One setting: a line a way, then how many times faster each is."""
    lines = [
        f"**{row['card']} and {TOWERS[row['image']]}, {row['points']} points, batch {row['batch']}** ({turns})\n",
        f"| samples/s | {' | '.join(STAGES[:-1])} | whole step | {peak} memory |",
        "|---" * (len(STAGES) + 2) + "|",
    ]
    memory = row[f"{peak.lower().replace(' ', '_')}_bytes"]
    for way, found in row["seconds"].items():
        cells = [f"{rate(row['batch'] / found[stage][1])}" if stage in found else "" for stage in STAGES]
        lines.append(f"| {title(way)} | {' | '.join(cells)} | {memory[way] / 1e9:.1f} GB |")
    for way, faster in row["faster"].items():
        cells = [f"{faster[stage][1]:.2f}x" if stage in faster else "" for stage in STAGES[:-1]]
        low, middle, high = faster["total"]
        cells.append(f"{middle:.2f}x [{low:.2f}, {high:.2f}]")
        lines.append(f"| {title(way)}, over plain | {' | '.join(cells)} | |")
    return [*lines, ""]


def title(way: str) -> str:
    """A way in words: its recipe, and what is unlike the rest."""
    recipe, *extras = way.split("-")
    return ", ".join([WAYS[recipe], *(EXTRAS[extra] for extra in extras)])


def rate(value: float) -> str:
    """Samples a second, to three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
