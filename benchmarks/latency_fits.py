"""How latency grows: the slopes of benchmarks/latency.py's result files in a log-log diagram."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
AXES = {"points": "points N", "groups": "patches G", "batch": "clouds B"}
FIXED = {
    "points": {"groups": 64, "batch": 1, "threads": 2},
    "groups": {"points": 8192, "batch": 1, "threads": 2},
    "batch": {"groups": 64, "points": 2048, "threads": 2},
}
"""What stands still while one number grows."""
STAGES = ("normalize", "FPS", "grouping", "encode", "graph", "total")


def read_rows(results: Path) -> list[Row]:
    """All result files of a folder."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]


def along(rows: Iterable[Row], axis: str) -> list[Row]:
    """The settings that differ in one number, by that number."""
    chosen = [row for row in rows if all(row[name] == value for name, value in FIXED[axis].items())]
    return sorted(chosen, key=lambda row: row[axis])


def medians(rows: Iterable[Row], way: str, stage: str) -> list[float]:
    """Median seconds of a way's stage in each setting."""
    return [row["seconds"][way][stage][1] for row in rows]


def exponent(rows: list[Row], axis: str, way: str, stage: str) -> float | None:
    """The x of time ~ axis^x, least squares in logarithms; None for fewer than three settings or no such stage."""
    if len(rows) < 3 or any(stage not in row["seconds"][way] for row in rows):
        return None
    sizes = np.log([row[axis] for row in rows])
    return float(np.polyfit(sizes, np.log(medians(rows, way, stage)), 1)[0])


def written(found: float) -> str:
    """An exponent with two decimals, and none of them below zero by a hair."""
    return f"{round(found, 2) + 0.0:.2f}"


def memory_seconds(row: Row, precision: str) -> float:
    """How long it takes to move an encoder's weights once, as fast as this machine copies."""
    return float(row["weight_bytes"][precision] / row["copied_bytes_per_second"][1])
