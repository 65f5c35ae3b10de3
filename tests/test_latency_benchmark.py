"""benchmarks/latency.py without measuring: exponents, ratios, limits, what its tables and its sweep do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

latency, fits, tables, figure, worker = map(
    import_module, ("latency", "latency_fits", "latency_table", "latency_figure", "latency_worker")
)
ENCODERS = ("plain", "eager", "compiled", "fp32", "fp16", "int8")


def answers_of(seconds: dict[str, float], top1: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Three calls of each way, the second twice and the third four times as long as the first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for way in latency.WAYS:
        stage = {"model": "graph", "copy": "copy"}.get(way, "encode")
        found[way] = [
            {
                "seconds": {stage: turn * seconds.get(way, 1.0), "total": 2 * turn * seconds.get(way, 1.0)},
                "waited": 0.0, "operations": 4e9, "bytes": 2e10, "top1": [top1 if way == "int8" else 1],
            }
            for turn in (1.0, 2.0, 4.0)
        ]  # fmt: skip
    return found


def a_row(
    groups: int = 64, points: int = 2048, batch: int = 1, threads: int = 2, scale: float = 1.0
) -> dict[str, Any]:
    """A result whose FPS takes points^0.5 and whose total takes groups^1.5."""
    row = latency.summary(answers_of(dict.fromkeys(latency.WAYS, scale)))
    for by in row["seconds"].values():
        by["FPS"] = [scale * points**0.5] * 3
        by["normalize"] = by["grouping"] = [0.001] * 3
        by["total"] = [scale * groups**1.5] * 3
    weights = {"fp32": 80_000_000, "fp16": 40_000_000, "int8": 20_000_000}
    setting = latency.Setting(groups, points, batch, threads, 3)
    return row | setting._asdict() | {"weight_bytes": weights, "machine": "A machine, 2 threads, torch 2"}


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    for index, row in enumerate(rows):
        (folder / f"{index}.json").write_text(json.dumps(row))


def test_ratios_are_call_by_call_and_limits_take_the_faster_library() -> None:
    row = latency.summary(
        answers_of({"plain": 6.0, "fp32": 2.0, "int8": 1.0, "torch": 4.0, "integer": 0.5}, top1=0)
    )
    assert row["faster"]["fp32"]["plain"] == [3.0, 3.0, 3.0]
    assert row["encoder_over_products"]["fp32"] == [2.0, 2.0, 2.0]  # NumPy's take 1 and torch's 4
    assert row["int8_over_integer_products"] == [2.0, 2.0, 2.0]
    assert row["copied_bytes_per_second"][1] == 1e10
    assert row["same_top1"]["fp32"] == 1.0
    assert row["same_top1"]["int8"] == 0.0
    assert "model" not in row["encoder_over_products"]


def test_moving_the_weights_once_is_the_memory_limit() -> None:
    row = a_row()
    assert fits.memory_seconds(row, "fp32") == pytest.approx(80e6 / 1e10)
    assert fits.memory_seconds(row, "int8") == pytest.approx(20e6 / 1e10)


def test_exponents_are_slopes_of_the_settings_that_differ_in_one_number() -> None:
    by_points = [a_row(points=points) for points in (1024, 8192, 2048)]
    others = [a_row(points=4096, threads=1), a_row(points=4096, batch=8), a_row(groups=512, points=8192)]
    chosen = fits.along([*by_points, *others], "points")
    assert [row["points"] for row in chosen] == [1024, 2048, 8192]
    assert fits.exponent(chosen, "points", "fp32", "FPS") == pytest.approx(0.5)
    assert fits.exponent(chosen[:2], "points", "fp32", "FPS") is None
    assert fits.exponent(chosen, "points", "fp32", "graph") is None
    by_groups = fits.along([a_row(groups=groups, points=8192) for groups in (64, 128, 512)], "groups")
    assert fits.exponent(by_groups, "groups", "int8", "total") == pytest.approx(1.5)


def test_the_tables_read_and_the_figure_is_drawn(tmp_path: Path) -> None:
    assert tables.table(tmp_path) == ""
    figure.draw(tmp_path, tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
    write(
        tmp_path,
        [a_row(points=points) for points in (1024, 2048, 8192)]
        + [a_row(groups=groups, points=8192) for groups in (128, 512)]
        + [a_row(threads=1, scale=1.8), a_row(512, 8192, threads=1)],
    )
    text = tables.table(tmp_path)
    assert "A machine, torch 2; median milliseconds" in text
    assert "| runtime, float32 | 512000.0 | 1448154.7 | 11585237.5 | G^1.50 |" in text
    assert "| 921600.0 | 512000.0 | 1.80x |" in text
    assert (
        "| 64, 2048, 1, 2 | 4.0 | 2000.0 | 1.00x | 2000.0 | 1.00x | 10.0 | 8.0 | 250.0x | 2.0 | 1000.0x |"
        in text
    )
    for block in text.split("\n\n"):
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, block
    figure.draw(tmp_path, tmp_path / "figures" / "latency.png")
    assert (tmp_path / "figures" / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[tuple[str, int]] = []

    @contextmanager
    def worker(way: str, threads: int, work: Path) -> Iterator[object]:
        started.append((way, threads))
        yield object()

    monkeypatch.setattr(latency, "worker", worker)
    monkeypatch.setattr(latency, "measure", lambda setting, *_: {"groups": setting.groups})
    settings = [
        latency.Setting(groups, 2048, 1, threads, 3) for groups, threads in ((64, 2), (128, 2), (64, 1))
    ]
    (tmp_path / f"{settings[0].name}.json").write_text("{}")
    latency.sweep(settings[:2], float("inf"), tmp_path, tmp_path, tmp_path)
    assert (tmp_path / "64_2048_1_2.json").read_text("utf-8") == "{}"
    assert json.loads((tmp_path / "128_2048_1_2.json").read_text("utf-8")) == {"groups": 128}
    assert started == [(way, 2) for way in latency.WAYS]
    latency.sweep(settings, -1.0, tmp_path, tmp_path, tmp_path)
    assert not (tmp_path / "64_2048_1_1.json").exists()


def test_settings_reach_every_number_that_is_swept() -> None:
    for axis in fits.AXES:
        rows = [setting._asdict() for setting in latency.SETTINGS]
        assert len(fits.along(rows, axis)) >= 4
    names = [setting.name for setting in latency.SETTINGS]
    assert len(set(names)) == len(names)
    for groups, points in tables.THREADS:
        found = [setting for setting in latency.SETTINGS if setting[:3] == (groups, points, 1)]
        assert {setting.threads for setting in found} == {1, 2}


def test_a_copy_says_how_many_bytes_it_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.setattr(worker, "COPIED", 4096)
    try:
        answer = worker.copy_way(1)([np.zeros((4, 3), np.float32)])
    finally:
        torch.set_num_threads(before)
    assert answer["bytes"] == 8192
    assert answer["seconds"]["copy"] > 0


def test_every_way_has_a_name() -> None:
    assert set(tables.NAMES) == {*ENCODERS, "model"}
    assert set(latency.WAYS) == {*tables.NAMES, *latency.LIMITS}
