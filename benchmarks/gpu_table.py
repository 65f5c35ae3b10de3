"""The table of benchmarks/gpu.py, from its result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STAGES = ("prepare", "fill", "group", "encode", "launch")
"""Of the backends, as `Prediction.timings` names them; not every backend has each."""
COPIES = {
    "device_copy": "device memory (read and written)",
    "host_to_device": "pinned host to device",
    "device_to_host": "device to pinned host",
}
LAUNCHES = {"kernel_launch": "an empty kernel", "graph_launch": "a graph of an empty kernel"}


def table(results: Path) -> str:
    """The newest result of each GPU in a folder as Markdown; short runs and failed proofs have no place in it."""
    newest: dict[str, dict[str, Any]] = {}
    rows = [json.loads(path.read_text()) for path in results.glob("*.json")]
    for row in sorted(rows, key=lambda row: row["date"]):
        if row["proof"]["passed"] and not row["quick"]:
            newest[row["gpu"]] = row
    return "\n\n".join(section(newest[name]) for name in sorted(newest))


def section(row: dict[str, Any]) -> str:
    """Everything about one GPU."""
    parts = [head(row)]
    if row["limits"]:
        parts.append(limit_lines(row["limits"]))
    if row["kernels"]:
        parts.append(kernel_lines(row["kernels"], row["limits"]))
    if row["backends"]:
        parts.append(backend_lines(row["backends"], row["bundles"], row["limits"]))
    return "\n\n".join(parts)


def head(row: dict[str, Any]) -> str:
    """The GPU, the software, and whether the proof held."""
    count = len(row["proof"]["checks"])
    failures = row["proof"]["failures"]
    verdict = f"{len(failures)} of {count} checks FAILED" if failures else f"all {count} checks passed"
    software = ", ".join(f"{name} {version}" for name, version in row["software"].items())
    quick = "; a short run" if row["quick"] else ""
    return f"**{row['gpu']}** (compute capability {row['capability']}); {software}; {row['date']}; {verdict}{quick}"


def limit_lines(limits: dict[str, Any]) -> str:
    """What the GPU did at best in the same run."""
    lines = ["| limit, measured beside the rest | median | p99 | spread |", "|---|---|---|---|"]
    for name, title in COPIES.items():
        found = limits[name]
        slowest = found["rate"] * found["p50"] / found["p99"]
        lines.append(
            f"| {title} | {found['rate'] / 1e9:.0f} GB/s | {slowest / 1e9:.0f} GB/s | {found['spread']:.1%} |"
        )
    for name, title in LAUNCHES.items():
        found = limits[name]
        lines.append(
            f"| {title}, launched and waited for | {1e6 * found['p50']:.1f} µs | {1e6 * found['p99']:.1f} µs "
            f"| {found['spread']:.1%} |"
        )
    return "\n".join(lines)


def kernel_lines(rows: list[dict[str, Any]], limits: dict[str, Any]) -> str:
    """Copy, sampling and grouping in microseconds; in brackets, how many times what the copies above would take."""
    lines = [
        "Kernels as one CUDA graph, median in µs by the GPU's clock; in brackets, times what moving the same bytes at "
        "the rates above takes\n",
        "| G | K | C | batch | points | copy | sampling | a step of it | grouping | launched and waited for (p99) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        middle = {stage: found["p50"] for stage, found in row["seconds"].items()}
        copy = micros(middle["copy"], row["bytes"]["copy"], limits.get("host_to_device"))
        grouping = micros(middle["grouping"], row["bytes"]["grouping"], limits.get("device_copy"))
        step = 1e6 * middle["sampling"] / row["groups"]
        total = f"{1e6 * middle['total']:.0f} ({1e6 * row['seconds']['total']['p99']:.0f})"
        cells = [copy, f"{1e6 * middle['sampling']:.0f}", f"{step:.2f}", grouping, total]
        patch = row["neighbors"] if row["radius"] is None else f"{row['neighbors']} within {row['radius']:g}"
        about = [row["groups"], patch, row["channels"], row["batch"], row["points"]]
        lines.append(f"| {' | '.join(map(str, [*about, *cells]))} |")
    return "\n".join(lines)


def backend_lines(rows: list[dict[str, Any]], bundles: dict[str, Any], limits: dict[str, Any]) -> str:
    """From raw clouds to embeddings in milliseconds."""
    lines = [
        "From raw clouds to embeddings, median in ms; `encode` in brackets: times what reading the weights once from "
        "device memory takes (below 1 where they stay in the cache); `points` in brackets: what the encoder keeps\n",
        f"| bundle | precision | backend | batch | points | {' | '.join(STAGES)} | total | p90 | p99 | spread | "
        "clouds/s |",
        f"|---|---|---|---|---|{'---|' * len(STAGES)}---|---|---|---|---|",
    ]
    for row in rows:
        bundle, total = bundles[row["bundle"]], row["seconds"]["total"]
        points = f"{row['points']}"
        if bundle["encoder"]["points"] < row["points"]:
            points += f" ({bundle['encoder']['points']})"
        cells = [
            row["bundle"], bundle["precision"], row["backend"], row["batch"], points,
            *(stage_cell(stage, row, bundle, limits) for stage in STAGES),
            *(f"{1e3 * total[name]:.2f}" for name in ("p50", "p90", "p99")),
            f"{total['spread']:.1%}", f"{row['batch'] / total['p50']:.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def stage_cell(stage: str, row: dict[str, Any], bundle: dict[str, Any], limits: dict[str, Any]) -> str:
    """A stage in milliseconds; the encoder beside its limit."""
    if stage not in row["seconds"]:
        return ""
    seconds = row["seconds"][stage]["p50"]
    text = f"{1e3 * seconds:.3f}"
    copy = limits.get("device_copy")
    return f"{text} ({over(seconds, bundle['weight_bytes'], copy)})" if stage == "encode" and copy else text


def micros(seconds: float, size: int, limit: dict[str, float] | None) -> str:
    """Microseconds, and how many times what the bytes take at the rate of the limit."""
    text = f"{1e6 * seconds:.0f}"
    return f"{text} ({over(seconds, size, limit)})" if limit else text


def over(seconds: float, size: int, limit: dict[str, float]) -> str:
    """How many times what so many bytes take at the rate of the limit."""
    return f"{seconds * limit['rate'] / size:.1f}x"
