"""Calls of the CUDA driver through NVIDIA's cuda-python, each answer checked."""

from __future__ import annotations

import importlib
from typing import Any

from crossmost.runtime.errors import RuntimeFailure

HINTS = {
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "update the NVIDIA driver to one for CUDA 12.1 or newer",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the kernels need a GPU of compute capability 7.5 or newer",
    "CUDA_ERROR_NOT_INITIALIZED": "call cuInit first",
    "CUDA_ERROR_INVALID_CONTEXT": "make a CUDA context current first",
    "CUDA_ERROR_OUT_OF_MEMORY": "the GPU is full: use smaller batches, or end what else runs on it",
}


class CudaError(RuntimeFailure):
    """The CUDA driver refused; the message names the call, the error and, where known, the remedy.

    Attributes:
        status: the driver's name of the error, such as `CUDA_ERROR_OUT_OF_MEMORY`; empty where it gave none.
    """

    def __init__(self, message: str, status: str = "") -> None:
        super().__init__(message)
        self.status = status


class MissingFunction(CudaError):
    """cuda-python did not find a function in the driver, which is older than the function."""


def call(driver: Any, function: str, *arguments: Any) -> Any:
    """Call a function of the driver.

    Args:
        driver: `cuda.bindings.driver`.
        function: its name, such as `cuMemAlloc`.
        arguments: of the function, without the pointers to results.

    Returns:
        The result after the status, None where there is none.

    Raises:
        MissingFunction: the driver has no such function.
        CudaError: any status but success.
    """
    try:
        status, *values = getattr(driver, function)(*arguments)
    except CudaError:  # of a driver that wraps another
        raise
    except RuntimeError as error:  # cuda-python looks for a function when it is first called
        reason = str(error).partition("\n")[0]
        raise MissingFunction(f"{function} failed: {reason}: update the NVIDIA driver") from error
    if status != driver.CUresult.CUDA_SUCCESS:
        hint = HINTS.get(status.name)
        raise CudaError(f"{function} failed with {status.name}" + (f": {hint}" if hint else ""), status.name)
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
