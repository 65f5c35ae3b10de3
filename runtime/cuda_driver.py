"""Which GPUs the CUDA driver offers, asked through ctypes.

TensorRT ends the whole process where there is no driver, so it is touched only after this probe found a GPU.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LIBRARIES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
COMPUTE_CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, unchanged since CUDA 6
COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name as the driver gives it, and its compute capability, such as `8.7`."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


@dataclass(frozen=True)
class CudaDriver:
    """What the driver answered.

    Attributes:
        version: the newest CUDA the driver can run, such as `12.6`; empty where there is no driver.
        gpus: by device index; those that CUDA_VISIBLE_DEVICES hides are not among them.
        reason: one line, why no GPU can be used; empty where one can.
    """

    version: str
    gpus: tuple[Gpu, ...]
    reason: str


class _DriverError(Exception):
    """The driver refused a call."""


def probe_cuda(load: Callable[[str], Any] = ctypes.CDLL) -> CudaDriver:
    """Ask the CUDA driver for its version and GPUs; never raises, whatever is or is not installed.

    Args:
        load: opens a shared library by name; raises OSError where there is none.
    """
    cuda = open_library(load)
    if cuda is None:
        return CudaDriver("", (), f"no CUDA driver on this machine ({LIBRARIES[0]} not found)")
    version = ""
    try:
        version = _version(cuda)
        _call(cuda, "cuInit", ctypes.c_uint(0))
        count = ctypes.c_int()
        _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
        gpus = tuple(_gpu(cuda, index) for index in range(count.value))
    except _DriverError as error:
        return CudaDriver(version, (), f"the CUDA driver offers no GPU: {error}")
    return CudaDriver(version, gpus, "" if gpus else "the CUDA driver offers no GPU: it counts 0 devices")


def open_library(load: Callable[[str], Any] = ctypes.CDLL) -> Any:
    """The driver's own library; None where there is none.

    Args:
        load: see `probe_cuda`.
    """
    for name in LIBRARIES:
        try:
            return load(name)
        except OSError:
            continue
    return None


def _version(cuda: Any) -> str:
    number = ctypes.c_int()
    _call(cuda, "cuDriverGetVersion", ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _gpu(cuda: Any, index: int) -> Gpu:
    device = ctypes.c_int()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    name = ctypes.create_string_buffer(256)
    _call(cuda, "cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    numbers = []
    for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR):
        number = ctypes.c_int()
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(number), ctypes.c_int(attribute), device)
        numbers.append(str(number.value))
    return Gpu(name.value.decode("utf-8", "replace"), ".".join(numbers))


def _call(cuda: Any, function: str, *arguments: Any) -> None:
    try:
        status = getattr(cuda, function)(*arguments)
    except AttributeError:
        raise _DriverError(f"it has no {function}, so it is no CUDA driver") from None
    if status != 0:
        raise _DriverError(f"{function} failed with error {status}{_meaning(cuda, status)}")


def _meaning(cuda: Any, status: int) -> str:
    """The driver's own words for an error, or nothing."""
    text = ctypes.c_char_p()
    if not hasattr(cuda, "cuGetErrorString") or cuda.cuGetErrorString(
        ctypes.c_int(status), ctypes.byref(text)
    ):
        return ""
    return f" ({text.value.decode('utf-8', 'replace')})" if text.value else ""
