"""Calls of the driver: what comes back, and what is raised."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from crossmost.runtime.cuda_calls import CudaError, MissingFunction, call


def driver(fake_gpu: ModuleType, **functions: Any) -> Any:
    return SimpleNamespace(CUresult=fake_gpu.CUresult, **functions)


def test_results_come_without_the_status(fake_gpu: ModuleType) -> None:
    success = fake_gpu.CUresult.CUDA_SUCCESS
    asked = driver(fake_gpu, one=lambda number: (success, 2 * number), none=lambda: (success,))
    assert call(asked, "one", 4) == 8
    assert call(asked, "none") is None


def test_an_error_names_the_call_the_status_and_the_remedy(fake_gpu: ModuleType) -> None:
    full = driver(fake_gpu, cuMemAlloc=lambda _: (fake_gpu.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None))
    with pytest.raises(
        CudaError, match=r"^cuMemAlloc failed with CUDA_ERROR_OUT_OF_MEMORY: .*smaller"
    ) as caught:
        call(full, "cuMemAlloc", 1)
    assert caught.value.status == "CUDA_ERROR_OUT_OF_MEMORY"


def test_a_function_that_the_driver_is_too_old_for_is_an_error_of_cuda(fake_gpu: ModuleType) -> None:
    """cuda-python raises a RuntimeError of its own, with lines of help."""

    def missing(*_: Any) -> Any:
        raise RuntimeError("function cuEventElapsedTime_v2 is not found\nsee elsewhere")

    expected = (
        r"^cuEventElapsedTime failed: function cuEventElapsedTime_v2 is not found: update the NVIDIA driver$"
    )
    with pytest.raises(MissingFunction, match=expected) as caught:
        call(driver(fake_gpu, cuEventElapsedTime=missing), "cuEventElapsedTime", 1, 2)
    assert isinstance(caught.value, CudaError)
    assert caught.value.status == ""


def test_an_error_of_a_call_within_a_call_stays_itself(fake_gpu: ModuleType) -> None:
    def inner(*_: Any) -> Any:
        raise CudaError("inner", "CUDA_ERROR_X")

    with pytest.raises(CudaError, match=r"^inner$") as caught:
        call(driver(fake_gpu, outer=inner), "outer")
    assert not isinstance(caught.value, MissingFunction)
