"""benchmarks/export_cards.py without exporting: its bases, what it has is not made again, and what it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import export_cards as benchmark
import pytest

from crossmost.export.source import load_exportable
from crossmost.models.point_cards import load_point_card
from crossmost.runtime.class_bank import load_class_bank


def check(
    metric: str, value: float, name: str = "fp16 in ONNX Runtime", *, passed: bool = True
) -> dict[str, Any]:
    return {"metric": metric, "value": value, "name": name, "clouds": 4, "passed": passed}


def write(folder: Path, card: str, precision: str, *checks: dict[str, Any]) -> None:
    parity = {"checks": checks, "clouds": {"points": [7, 512]}}
    row = {
        "card": card,
        "precision": precision,
        "parity": parity,
        "peak_bytes": 2**30,
        "machine": "A machine",
    }
    (folder / f"{card}_{precision}.json").write_text(json.dumps(row))


def test_a_line_is_the_worst_of_graphs_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    rounded = "fp16, every operation rounded, in torch"
    write(
        tmp_path, "uni3d-ti", "fp16",
        check("cosine_min", 0.9999), check("cosine_min", 0.9998), check("cosine_min", 0.9, rounded),
        check("fps_identical", 1.0), check("top1_agreement", 0.75, passed=False), check("top1_agreement", 1.0),
    )  # fmt: skip
    write(tmp_path, "uni3d-ti", "fp32", check("max_abs_difference", 1e-7), check("max_abs_difference", 3e-7))
    lines = benchmark.table().splitlines()
    assert lines[0] == "A machine"
    assert lines[-2:] == [
        "| uni3d-ti | fp32 | 4 | 512 | 3.0e-07 |  |  |  |  | 2 of 2 | 1.0 GiB |",
        "| uni3d-ti | fp16 | 4 | 512 |  | 0.9998000 | 0.9000000 | 100% | 75% | 5 of 6 | 1.0 GiB |",
    ]
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|")


def test_a_refused_export_is_a_result_and_any_other_failure_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)

    def export(words: str) -> dict[str, Any]:
        command = [sys.executable, "-c", f"import sys; sys.exit({words!r})"]
        return benchmark.export(command, tmp_path / "no bundle", tmp_path / "stderr.txt")

    found = export(f"{benchmark.REFUSED}cosine_mean 0.9, gate 0.999")
    assert found["refused"] == "cosine_mean 0.9, gate 0.999"
    assert found["peak_bytes"] > 0
    row = {"card": "uni3d-ti", "precision": "int8", "machine": "A machine", **found}
    (tmp_path / "uni3d-ti_int8.json").write_text(json.dumps(row))
    head, line = benchmark.table().splitlines()[-3], benchmark.table().splitlines()[-1]
    assert line.startswith("| uni3d-ti | int8 | refused: cosine_mean 0.9, gate 0.999 |")
    assert line.count("|") == head.count("|")
    with pytest.raises(SystemExit, match="failed: error: no space"):
        export("error: no space")


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    write(tmp_path, "uni3d-g", "fp32")
    benchmark.measure("uni3d-g", ["fp32"], tmp_path / "no meshes", tmp_path / "no work")


def test_every_card_has_a_width_and_a_text_model() -> None:
    assert {card: benchmark.joint_space(card) for card in ("uni3d-ti", "point-tiny")} == {
        "uni3d-ti": (1024, "EVA02-E-14-plus/laion2b_s9b_b144k"),
        "point-tiny": (benchmark.DIM, benchmark.TAG),
    }


def test_its_base_can_be_exported_with_its_class_vectors(tmp_path: Path) -> None:
    card = load_point_card("point-tiny")
    base, words = benchmark.random_base(card, 64, "a text model", tmp_path)
    source = load_exportable(base, lambda _: load_class_bank(words))
    assert source.encoder.card == card
    assert len(source.vocabulary.names) == benchmark.CLASSES


def test_a_card_that_does_not_fit_into_memory_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**20}  # 4 GiB
    monkeypatch.setattr(benchmark.os, "sysconf", pages.__getitem__)
    fitting = [card for card in ("point-tiny", "uni3d-b", "uni3d-l") if benchmark.fits(card)]
    assert fitting == ["point-tiny", "uni3d-b"]
    assert not benchmark.fits("uni3d-l", "int8")
    assert capsys.readouterr().err.splitlines() == [
        "uni3d-l in fp32: left out, 6 of 4 GiB are needed",
        "uni3d-l in int8: left out, 11 of 4 GiB are needed",
    ]
