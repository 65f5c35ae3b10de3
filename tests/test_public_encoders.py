"""benchmarks/public_encoders.py without measuring: what it has is not measured again, and what it writes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from crossmost.zoo import find


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return importlib.import_module("public_encoders")


def row(name: str, seconds: float) -> str:
    stages = {"total": [0.9 * seconds, seconds, 1.2 * seconds], "encode": [0.7 * seconds] * 3}
    exports = {"fp32": {"bytes": 90_400_000}, "fp16": {"bytes": 46_000_000}}
    return json.dumps(
        {
            "name": name, "points": find(name).card.points, "threads": 2, "seconds": stages,
            "exports": exports, "machine": "A machine",
        }
    )  # fmt: skip


def test_the_table_is_in_the_order_of_the_zoo(benchmark: ModuleType, tmp_path: Path) -> None:
    assert benchmark.table(tmp_path) == ""
    for name, seconds in (("uni3d-s", 0.5), ("ulip-pointbert", 0.25)):
        (tmp_path / f"{name}.json").write_text(row(name, seconds))
    lines = benchmark.table(tmp_path).splitlines()
    assert lines[0].startswith("A machine; 2 threads")
    assert lines[-2:] == [
        "| ulip-pointbert | 22.3 M | 8192 | 512 x 32 nearest | 250 ms [225, 300] | 75 ms | 90 MB | 46 MB |",
        "| uni3d-s | 22.5 M | 10000 | 512 x 64 nearest | 500 ms [450, 600] | 150 ms | 90 MB | 46 MB |",
    ]
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|")


def test_what_was_measured_is_not_measured_again(benchmark: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "uni3d-g.json").write_text("{}")
    benchmark.measure(find("uni3d-g"), tmp_path / "no data", tmp_path / "no work", tmp_path, quick=False)
    assert (tmp_path / "uni3d-g.json").read_text("utf-8") == "{}"
