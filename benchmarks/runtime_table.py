"""The table of benchmarks/runtime.py, from its result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STAGES = ("normalize", "FPS", "grouping", "encode", "total")
NAMES = {
    "plain": "eager PyTorch, as published",
    "eager": "eager PyTorch, the trainer's module",
    "fp32": "runtime, float32",
    "int8": "runtime, int8",
}
LIBRARIES = {"torch": "torch", "numpy": "NumPy"}


def table(results: Path) -> str:
    """All result files of a folder as Markdown."""
    rows = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    latency = sorted(
        (row for row in rows.values() if "faster" in row),
        key=lambda row: (row["batch"], row["operations"], row["points"]),
    )
    lines = []
    if latency:
        lines += [
            f"{latency[0]['machine']}; {latency[0]['threads']} threads in every way; median [quartiles]\n"
        ]
    for row in latency:
        lines += latency_lines(row)
    lines += product_lines(latency)
    lines += other_lines(rows)
    return "\n".join(lines)


def latency_lines(row: dict[str, Any]) -> list[str]:
    """One setting: a line a way."""
    clouds = "one cloud" if row["batch"] == 1 else f"a batch of {row['batch']} clouds"
    lines = [
        f"**{row['card']}, {row['points']} points, {clouds}** ({row['turns']} turns), milliseconds\n",
        "| | normalize | FPS | grouping | encode | total | faster than published | faster than the trainer's "
        "| same top-1 | preprocessing |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for way, name in NAMES.items():
        stages = [f"{1e3 * row['seconds'][way][stage][1]:.2f}" for stage in STAGES[:-1]]
        total = quartiles([1e3 * value for value in row["seconds"][way]["total"]], "{:.1f}")
        faster = " | ".join(
            quartiles(ratios[way], "{:.2f}x") if way in ratios else "" for ratios in row["faster"].values()
        )
        same = f"{row['same_top1'][way]:.1%}" if way in row["same_top1"] else ""
        share = f"{row['preprocessing_share'][way][1]:.1%}"
        lines.append(f"| {name} | {' | '.join(stages)} | {total} | {faster} | {same} | {share} |")
    return [*lines, ""]


def quartiles(values: list[float], form: str) -> str:
    """Median and, in brackets, first and third quartile."""
    low, middle, high = (form.format(value) for value in values)
    return f"{middle} [{low}, {high}]"


def product_lines(latency: list[dict[str, Any]]) -> list[str]:
    """The encoder beside its matrix products alone, and int8 beside float32 on the test clouds."""
    lines = [
        "| the encoder's float32 products alone | work | torch | NumPy | float32 encoder over the faster |",
        "|---|---|---|---|---|",
    ]
    for row in latency:
        speed = [
            f"{row['operations'] / row['seconds'][way]['encode'][1] / 1e9:.0f} GFLOP/s" for way in LIBRARIES
        ]
        over = quartiles(row["encoder_over_product"]["fp32"], "{:.2f}x")
        what = f"{row['card']}, batch {row['batch']}"
        lines.append(
            f"| {what}, {row['points']} points | {row['operations'] / 1e9:.1f} GFLOP | {' | '.join(speed)} | {over} |"
        )
    lines += ["", "| against torch, on the scanned test split | clouds | top-1 | cosine mean | cosine min |"]
    lines.append("|---|---|---|---|---|")
    for row in {row["card"]: row for row in latency}.values():
        lines += parity_lines(row)
    return [*lines, ""]


def parity_lines(row: dict[str, Any]) -> list[str]:
    """The graphs of a card: the batch that all clouds ran in."""
    lines = []
    for graph in dict.fromkeys(check["graph"] for check in row["parity"]):
        checks = [check for check in row["parity"] if check["graph"] == graph]
        most = max(check["clouds"] for check in checks)
        found = {check["metric"]: check["value"] for check in checks if check["clouds"] == most}
        shown = [
            f"{found['top1_agreement']:.2%}",
            *(f"{found[name]:.6f}" if name in found else "" for name in ("cosine_mean", "cosine_min")),
        ]
        lines.append(f"| {row['card']}, {graph} | {most} | {' | '.join(shown)} |")
    return lines


def other_lines(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What is no latency, each where it was measured."""
    lines = []
    if scaling := rows.get("scaling"):
        exponents = scaling["exponents"]
        lines.append(
            f"* Preprocessing grows with N^{exponents['points']:.2f} (64 groups) and G^{exponents['groups']:.2f} "
            "(8192 points)."
        )
    if start := rows.get("start"):
        milliseconds = {name: 1e3 * start[name][1] for name in ("import", "load", "first", "load_and_first")}
        lines.append(
            f"* Start: import {milliseconds['import']:.0f} ms, load {milliseconds['load']:.0f} ms and first prediction "
            f"{milliseconds['first']:.0f} ms, together {milliseconds['load_and_first']:.0f} ms; peak memory "
            f"{start['peak_bytes'][1] / 1e6:.0f} MB; torch {'loaded' if start['torch'][2] else 'not loaded'}."
        )
    if install := rows.get("install"):
        lines.append(
            f'* `pip install "crossmost[cpu]"` in a new environment: {install["bytes"] / 1e6:.0f} MB.'
        )
    if soak := rows.get("soak"):
        lines.append(
            f"* {soak['predictions']:,} predictions in a loop: {soak['changed']} results changed, memory grew by "
            f"{soak['growth_bytes'] / 1e6:.1f} MB after the first tenth."
        )
    return lines
