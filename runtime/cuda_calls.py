"""Calls of the CUDA driver through NVIDIA's cuda-python, each answer checked."""

from __future__ import annotations

import importlib
from typing import Any

HINTS = {
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "update the NVIDIA driver to one for CUDA 12.1 or newer",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the kernels need a GPU of compute capability 7.5 or newer",
    "CUDA_ERROR_NOT_INITIALIZED": "call cuInit first",
    "CUDA_ERROR_INVALID_CONTEXT": "make a CUDA context current first",
    "CUDA_ERROR_OUT_OF_MEMORY": "the GPU is full: use smaller batches, or end what else runs on it",
}


class CudaError(RuntimeError):
    """The CUDA driver refused; the message names the call, the error and, where known, the remedy."""


def call(driver: Any, function: str, *arguments: Any) -> Any:
    """Call a function of the driver.

    Args:
        driver: `cuda.bindings.driver`.
        function: its name, such as `cuMemAlloc`.
        arguments: of the function, without the pointers to results.

    Returns:
        The result after the status, None where there is none.

    Raises:
        CudaError: any status but success.
    """
    status, *values = getattr(driver, function)(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        hint = HINTS.get(status.name)
        raise CudaError(f"{function} failed with {status.name}" + (f": {hint}" if hint else ""))
    return values[0] if values else None


def import_driver() -> Any:
    """The module `cuda.bindings.driver`, once it is certain that it found NVIDIA's driver.

    Raises:
        ModuleNotFoundError: cuda-python is not installed.
        CudaError: it is, and there is no driver.
    """
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the GPU kernels need cuda-python: pip install cuda-bindings") from error
    try:
        driver.cuDriverGetVersion()
    except RuntimeError as error:  # the driver's own library is only looked for at the first call
        reason = str(error).partition("\n")[0]
        raise CudaError(f"the GPU kernels need an NVIDIA driver: {reason}") from error
    return driver
