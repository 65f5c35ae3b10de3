"""benchmarks/idle.py: both ways answer, each with its threads as they should be; the table reads."""

from __future__ import annotations

import json
from importlib import import_module

import onnxruntime
import pytest

idle = import_module("idle")


@pytest.mark.parametrize("way", idle.WAYS)
def test_a_turn_measures_the_way_it_is_of(way, bundle, monkeypatch, capsys):
    made = []

    class Noted(onnxruntime.InferenceSession):
        def __init__(self, path, options, **more):
            super().__init__(path, options, **more)
            made.append(options.get_session_config_entry(idle.SPINNING))

    monkeypatch.setattr(onnxruntime, "InferenceSession", Noted)
    monkeypatch.setattr(
        onnxruntime, "SessionOptions", onnxruntime.SessionOptions
    )  # put back what a turn changes
    monkeypatch.setattr(idle, "CALLS", 2)
    monkeypatch.setattr(idle, "RATE", 1000.0)
    idle.work(str(bundle("fp32")), way)
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0
    assert found["share"] > 0
    assert set(made) == {"1" if way == "spinning" else "0"}


def test_the_table_has_medians_and_quartiles():
    rows = [
        {
            "card": "a",
            "way": "asleep",
            "rounds": 3,
            "seconds": [0.001, 0.002, 0.003],
            "share": [0.01, 0.02, 0.5],
        }
    ]
    table = idle.table({"machine": "m", "onnxruntime": "1", "rows": rows})
    assert table.splitlines()[-1] == "| a | asleep | 2.00 ms [1.00, 3.00] | 2 % [1, 50] | 3 |"
