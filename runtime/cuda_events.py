"""The time between two events, asked through ctypes.

cuda-python 13 knows the function only by a name that drivers have since CUDA 12.8; its older name is in all of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from crossmost.runtime.cuda_calls import CudaError
from crossmost.runtime.cuda_driver import open_library


def elapsed_milliseconds(first: Any, second: Any, load: Callable[[str], Any] = ctypes.CDLL) -> float:
    """Milliseconds between two events that were passed; their context must be current.

    Args:
        first: a CUevent or its handle.
        second: another one.
        load: opens a shared library by name; raises OSError where there is none.

    Raises:
        CudaError: the driver has no such function, or refused.
    """
    function = getattr(open_library(load), "cuEventElapsedTime", None)
    if function is None:
        raise CudaError("cuEventElapsedTime failed: expected a CUDA driver that has it, found none")
    milliseconds = ctypes.c_float()
    events = [ctypes.c_void_p(int(event)) for event in (first, second)]
    if status := function(ctypes.byref(milliseconds), *events):
        raise CudaError(f"cuEventElapsedTime failed with error {status}")
    return milliseconds.value
