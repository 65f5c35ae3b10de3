"""The tables of benchmarks/latency.py, from its result files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from latency_fits import AXES, FIXED, Row, along, exponent, medians, memory_seconds, read_rows, written

TORCH = {
    "plain": "eager PyTorch, as published",
    "eager": "eager PyTorch, the trainer's module",
    "compiled": "torch.compile of the trainer's module",
}
RUNTIME = {
    "model": "ONNX Runtime on model.onnx",
    "fp32": "runtime, float32",
    "fp16": "runtime, float16 bundle",
    "int8": "runtime, int8",
}
NAMES = {**TORCH, **RUNTIME}
SHOWN = {"points": "N = {}", "groups": "G = {}", "batch": "B = {}"}
STAGES = ("normalize", "FPS", "grouping", "encode")
THREADS = ((64, 2048), (512, 8192))
"""Groups and points of the settings that were measured with one thread, too."""


def table(results: Path) -> str:
    """All of them as Markdown."""
    rows = read_rows(results)
    if not rows:
        return ""
    lines = [
        f"{rows[0]['machine'].replace(', 1 threads', '').replace(', 2 threads', '')}; median milliseconds\n"
    ]
    for axis in AXES:
        lines += axis_lines(along(rows, axis), axis)
    lines += thread_lines(rows)
    for groups, points in THREADS:
        lines += stage_lines([row for row in rows if is_setting(row, groups, points, 2)])
    lines += exponent_lines(rows) + limit_lines(rows)
    return "\n".join(lines).rstrip()


def is_setting(row: Row, groups: int, points: int, threads: int) -> bool:
    """Whether a row is that of one cloud in this setting."""
    return (row["groups"], row["points"], row["batch"], row["threads"]) == (groups, points, 1, threads)


def axis_lines(rows: list[Row], axis: str) -> list[str]:
    """Totals while one number grows, a line a way."""
    if len(rows) < 2:
        return []
    still = ", ".join(f"{value} {name}" for name, value in FIXED[axis].items())
    lines = [
        f"**Over {AXES[axis]}** ({still})\n",
        f"| total | {' | '.join(SHOWN[axis].format(row[axis]) for row in rows)} | grows with |",
        "|---" * (len(rows) + 2) + "|",
    ]
    for way, name in NAMES.items():
        cells = [f"{1e3 * seconds:.1f}" for seconds in medians(rows, way, "total")]
        lines.append(f"| {name} | {' | '.join(cells)} | {power(exponent(rows, axis, way, 'total'), axis)} |")
    return [*lines, ""]


def power(found: float | None, axis: str) -> str:
    """An exponent as it is written."""
    return "" if found is None else f"{AXES[axis][-1]}^{written(found)}"


def thread_lines(rows: list[Row]) -> list[str]:
    """One cloud with one and with two threads."""
    pairs = [
        [[row for row in rows if is_setting(row, groups, points, threads)] for threads in (1, 2)]
        for groups, points in THREADS
    ]
    whole = [(one[0], two[0]) for one, two in pairs if one and two]
    if not whole:
        return []
    heads = [f"G = {one['groups']}, N = {one['points']}" for one, _ in whole]
    columns = [f"{head}: 1 thread | 2 threads | gain" for head in heads]
    lines = [
        "**Over threads** (one cloud)\n",
        f"| total | {' | '.join(columns)} |",
        "|---" * (3 * len(whole) + 1) + "|",
    ]
    for way, name in NAMES.items():
        cells = []
        for pair in whole:
            one, two = medians(pair, way, "total")
            cells += [f"{1e3 * one:.1f}", f"{1e3 * two:.1f}", f"{one / two:.2f}x"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def stage_lines(rows: list[Row]) -> list[str]:
    """One setting by stage."""
    if not rows:
        return []
    row = rows[0]
    lines = [
        f"**By stage** (G = {row['groups']}, N = {row['points']}, one cloud, {row['threads']} threads)\n",
        f"| | {' | '.join(STAGES)} | total | {' | '.join(f'faster than {name}' for name in TORCH)} | same top-1 |",
        "|---" * (len(STAGES) + len(TORCH) + 3) + "|",
    ]
    for way, name in NAMES.items():
        found = row["seconds"][way]
        cells = [f"{1e3 * found[stage][1]:.2f}" if stage in found else "" for stage in STAGES]
        low, middle, high = (1e3 * value for value in found["total"])
        cells.append(f"{middle:.1f} [{low:.1f}, {high:.1f}]")
        ratios = row["faster"].get(way, {})
        cells += [f"{ratios[other][1]:.2f}x" if other in ratios else "" for other in TORCH]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['same_top1'][way]:.1%} |")
    return [*lines, ""]


def exponent_lines(rows: list[Row]) -> list[str]:
    """How each stage grows."""
    lines = ["**Scaling exponents** by stage\n"]
    heads = [f"{stage}, {AXES[axis][-1]}" for axis in AXES for stage in STAGES[1:]]
    lines += [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for way, name in NAMES.items():
        if way == "model":
            continue
        found = [exponent(along(rows, axis), axis, way, stage) for axis in AXES for stage in STAGES[1:]]
        lines.append(f"| {name} | {' | '.join('' if x is None else written(x) for x in found)} |")
    return [*lines, ""]


def limit_lines(rows: list[Row]) -> list[str]:
    """The encoders beside what arithmetic and memory allow."""
    columns: dict[str, Callable[[Row], str]] = {
        "GFLOP": lambda row: f"{row['operations'] / 1e9:.1f}",
        "products, float32": lambda row: f"{1e3 * row['products'][1]:.1f}",
        "float32 over it": lambda row: f"{row['encoder_over_products']['fp32'][1]:.2f}x",
        "products, 8 bits": lambda row: f"{1e3 * row['seconds']['integer']['encode'][1]:.1f}",
        "int8 over it": lambda row: f"{row['int8_over_integer_products'][1]:.2f}x",
        "copy, GB/s": lambda row: f"{row['copied_bytes_per_second'][1] / 1e9:.1f}",
        "weights, float32": lambda row: f"{1e3 * memory_seconds(row, 'fp32'):.1f}",
        "float32 over them": lambda row: over_memory(row, "fp32"),
        "weights, int8": lambda row: f"{1e3 * memory_seconds(row, 'int8'):.1f}",
        "int8 over them": lambda row: over_memory(row, "int8"),
    }
    lines = [
        "**Distance to the limits**: the encoder beside its matrix products alone and beside its weights, moved once\n",
        f"| G, N, B, threads | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    order = ("threads", "groups", "batch", "points")
    for row in sorted(rows, key=lambda row: [row[name] for name in order]):
        setting = ", ".join(str(row[name]) for name in ("groups", "points", "batch", "threads"))
        lines.append(f"| {setting} | {' | '.join(column(row) for column in columns.values())} |")
    return lines


def over_memory(row: Row, precision: str) -> str:
    """The encoder's time over that of its weights."""
    return f"{row['seconds'][precision]['encode'][1] / memory_seconds(row, precision):.1f}x"
