"""benchmarks/gpu_torch.py without a GPU: it says so, torch's way embeds as the network, the table is the results'."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import gpu_torch
from export_cards import joint_space, random_base

from crossmost.models.point_cards import load_point_card
from crossmost.models.student import embed_points

CARD = "point-tiny"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to the GPU stays on the CPU, in torch and in ONNX Runtime."""
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, **_: self)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_torch.py"])
    assert gpu_torch.main() == 2
    assert capsys.readouterr().err == "expected a GPU that this torch can use, found none\n"


def test_torchs_way_embeds_as_the_network_does(tmp_path: Path, no_gpu: None) -> None:
    card = load_point_card(CARD)
    base, _ = random_base(card, *joint_space(CARD), tmp_path)
    clouds = gpu_torch.make_raw(3, 200)
    found = gpu_torch.torch_way(base, half=False, compiled=False)(clouds)
    network, _ = gpu_torch.load_base(base)
    network.eval()
    with torch.no_grad():
        expected = embed_points(network.point_encoder, network.point_head(), gpu_torch.prepared(clouds, card))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_runtime_without_kernels_is_not_measured_as_if_it_had_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backend:
        """Behind NumPy, though the kernels were asked for."""

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def info(self) -> dict[str, Any]:
            return {"sampling": "NumPy", "notes": ["sampling and grouping stay on the CPU"]}

        def close(self) -> None:
            pass

    monkeypatch.setattr(gpu_torch, "OnnxBackend", Backend)
    monkeypatch.setattr(gpu_torch, "load_manifest", lambda bundle: None)
    with ExitStack() as stack, pytest.raises(SystemExit, match="expected the sampling kernels and graphs"):
        gpu_torch.runtime_way(tmp_path, load_point_card(CARD), numpy_sampling=False, stack=stack)


def test_the_table_compares_with_the_runtime_in_float16(tmp_path: Path) -> None:
    rows = [
        {"card": "a", "points": 8, "batch": batch, "way": way, "cosine": 1.0, "seconds": {"p50": seconds}}
        for way, batch, seconds in (
            ("torch, float32", 1, 0.01), ("torch, float32", 32, 0.064),
            ("runtime, float16", 1, 0.002), ("runtime, float16", 32, 0.016),
        )
    ]  # fmt: skip
    result = {"gpu": "NVIDIA X", "software": "torch 1", "date": "2026-01-01", "rows": rows}
    (tmp_path / "x.json").write_text(json.dumps(result))
    table = gpu_torch.table(tmp_path)
    assert "**NVIDIA X**; torch 1; 2026-01-01" in table
    assert "| a | torch, float32 | 10.00 (5.00x) | 64.00 (4.00x) | 500 |" in table
    assert "| a | runtime, float16 | 2.00 (1.00x) | 16.00 (1.00x) | 2,000 |" in table
