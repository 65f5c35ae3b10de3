"""Where a run computes."""

from __future__ import annotations

import pytest
import torch

from crossmost.adaptation.devices import choose_device, idle_gpu
from crossmost.errors import InputError
from crossmost.runtime.cuda_driver import CudaDriver, Gpu


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a GPU whose driver is older than torch."""
    driver = CudaDriver("12.4", (Gpu("RTX 4090", "8.9"),), "")
    monkeypatch.setattr("crossmost.adaptation.devices.probe_cuda", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


@pytest.mark.parametrize(("built", "said"), [("13.0", "is built for CUDA 13.0"), (None, "is built for CPUs")])
def test_a_gpu_that_torch_cannot_use_is_named(
    machine: pytest.MonkeyPatch, built: str | None, said: str
) -> None:
    machine.setattr(torch.version, "cuda", built)
    line = idle_gpu("auto")
    assert line is not None
    assert line.startswith("RTX 4090 (compute capability 8.9) stays unused")
    assert said in line
    assert "CUDA up to 12.4" in line
    assert idle_gpu("cpu") is None  # as it was asked for


def test_a_gpu_that_torch_uses_and_a_machine_without_one_are_nothing_to_say(
    machine: pytest.MonkeyPatch,
) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: True)
    assert idle_gpu("auto") is None
    machine.setattr(torch.cuda, "is_available", lambda: False)
    machine.setattr("crossmost.adaptation.devices.probe_cuda", lambda: CudaDriver("", (), "no CUDA driver"))
    assert idle_gpu("auto") is None


def test_a_device_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="device 'cuda:99' cannot be used here"):
        choose_device("cuda:99")
