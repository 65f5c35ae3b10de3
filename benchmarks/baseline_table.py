"""The table of baselines.py, from result files alone: theirs, and those of adaptation.py beside them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptation_rows import answering
from pairs import PAIRS
from tables import write_between

HERE = Path(__file__).resolve().parent
ADAPTED = HERE / "results" / "adaptation"
BRANCHES = ("point", "image", "both")
OURS = ("point-only", "separate", "joint")
JOINT = "ours: joint"
TITLES = {
    "zero-shot": "zero-shot",
    "cache": "cache, the runtime's defaults",
    "cache-published": "cache, Point-Cache's settings",
    "cache-filled": "cache, filled beforehand",
    "tent-stream": "TENT, online",
    "tent-train": "TENT, offline",
    "means": "class means",
    "means-text": "class means with text",
    "normalized": "DN, half the mean subtracted",
    "centered": "the whole mean subtracted",
    "centered-stream": "the same, online",
    "ours: point-only": "**ours**: point-only",
    "ours: separate": "**ours**: separate",
    JOINT: "**ours**: joint",
    "probe": "*supervised*: linear probe",
    "fine-tuned": "*supervised*: fine-tuned",
}
Row = dict[str, Any]


def load_rows(results: Path, adapted: Path) -> list[Row]:
    """All results, the baselines' and ours: each with pair, baseline, seed, top1 and where known ece."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    for path in sorted(adapted.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        name = found.get("row", found["mode"])
        if name in OURS:
            top1 = {branch: found["adapted"][branch] for branch in answering(name)}
            ours = {"baseline": f"ours: {name}", "sees": "train split, unlabelled", "top1": top1}
            rows.append({**ours, **{key: found[key] for key in ("pair", "seed", "n", "machine")}})
    return rows


def percent(values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds, in percent; one seed has no spread, and no value no mean."""
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def line(name: str, rows: Sequence[Row]) -> str:
    """One line of the table."""
    cells = [percent([row["top1"][b] for row in rows if b in row["top1"]]) for b in BRANCHES]
    cells.append(percent([row["ece"]["point"] for row in rows if "ece" in row]))
    for branch in ("point", "both"):
        labels = [row["pseudo_labels"]["surest half"][branch] for row in rows if "pseudo_labels" in row]
        cells.append(percent(labels))
    seeds = ", ".join(str(row["seed"]) for row in sorted(rows, key=lambda row: row["seed"]))
    return f"| {TITLES[name]} | {rows[0]['sees']} | {' | '.join(cells)} | {seeds} |"


def gains(first: Sequence[Row], second: Sequence[Row], branch: str) -> list[float]:
    """By how much the first is better than the second, seed by seed, where both were measured."""
    shares = {row["seed"]: row["top1"][branch] for row in second if branch in row["top1"]}
    return [
        row["top1"][branch] - shares[row["seed"]]
        for row in first
        if row["seed"] in shares and branch in row["top1"]
    ]


def beaten(by_name: dict[str, list[Row]]) -> str:
    """Which label-free baselines are better than the joint adaptation on the same seeds, and by how much."""
    if JOINT not in by_name:
        return "Not adapted yet: no row of ours."
    found = []
    for name, rows in by_name.items():
        if name.startswith("ours") or rows[0]["supervised"]:
            continue
        for branch, title in zip(BRANCHES, ("points", "images", "both"), strict=True):
            gain = gains(rows, by_name[JOINT], branch)
            if gain and statistics.mean(gain) > 0:
                found.append(f"{TITLES[name]} ({title}, {100 * statistics.mean(gain):+.1f})")
    return f"Better than joint on the mean of the same seeds: {'; '.join(found) or 'none of the label-free baselines'}."


def closed(by_name: dict[str, list[Row]]) -> str:
    """How much of the gap between zero-shot and the fine-tuned ceiling the joint adaptation closes."""
    if not {JOINT, "fine-tuned", "zero-shot"} <= by_name.keys():
        return ""
    found = []
    for branch, title in (("point", "points"), ("both", "both")):
        shares = []
        for row in by_name["fine-tuned"]:
            same = {
                name: each
                for name in (JOINT, "zero-shot")
                for each in by_name[name]
                if each["seed"] == row["seed"]
            }
            if len(same) == 2:
                ours, zero = (same[name]["top1"][branch] for name in (JOINT, "zero-shot"))
                shares.append((ours - zero) / (row["top1"][branch] - zero))
        if shares:
            found.append(f"{title} {percent(shares)} %")
    return f" Joint closes of the gap between zero-shot and fine-tuned: {', '.join(found)}." if found else ""


def table(results: Path, adapted: Path = ADAPTED) -> str:
    """Every pair that has been measured."""
    rows, lines = load_rows(results, adapted), []
    for pair in PAIRS:
        of_pair = [row for row in rows if row["pair"] == pair]
        by_name = {
            name: found for name in TITLES if (found := [row for row in of_pair if row["baseline"] == name])
        }
        if "zero-shot" not in by_name:
            continue
        first = by_name["zero-shot"][0]
        lines += [
            f"\n**{pair}**: {first['n']} test clouds, {first['machine']}\n",
            "| row | sees of the target | points | images | both | ECE | labels, points | labels, both | seeds |",
            "|---|---|---|---|---|---|---|---|---|",
            *(line(name, found) for name, found in by_name.items()),
            f"\n{beaten(by_name)}{closed(by_name)}",
        ]  # fmt: skip
    return "\n".join(lines)


def write_tables(results: Path) -> None:
    """Write the table into the README."""
    write_between(HERE / "README.md", "baselines", table(results))
