"""Arrays on an NVIDIA GPU, whoever made them, copied to the host through `__cuda_array_interface__`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.cuda_calls import CudaError, call, import_driver
from crossmost.runtime.cuda_exclusion import CAPTURING, EXCLUSIVE
from crossmost.runtime.errors import InvalidInput

INTERFACE = "__cuda_array_interface__"
TRIES, PAUSE = 10, 0.02
"""Tries of a copy while another library captures a graph, and seconds between two of them."""


class UnreadableArray(InvalidInput):
    """An array whose numbers cannot be brought to the host; the message says why and what to do."""


def to_host(array: Any, load_driver: Callable[[], Any] = import_driver) -> NDArray[Any]:
    """Copy an array from the GPU, once the work on its stream is done: on all streams where it names none.

    Args:
        array: of torch, CuPy, Numba, Warp or whatever else has a `__cuda_array_interface__`.
        load_driver: gives `cuda.bindings.driver`.

    Raises:
        UnreadableArray: no cuda-python, no driver, another form of interface, or the copy failed.
    """
    source = _Source.of(getattr(array, INTERFACE))
    content = np.empty(source.size, np.uint8)
    if source.size:
        try:
            driver = load_driver()
            with _device_of(driver, source.start):
                _copy(driver, source, content)
        except (ModuleNotFoundError, CudaError) as error:
            raise UnreadableArray(
                f"expected points that the CPU can read, found them on a GPU ({error}): copy them to the CPU"
            ) from error
    view: NDArray[Any] = np.ndarray(
        source.shape, source.dtype, content, source.address - source.start, source.strides
    )
    return view


class _Unknown(Enum):
    """What a stream is that nobody named."""

    UNKNOWN = "unknown"


UNKNOWN = _Unknown.UNKNOWN


@dataclass(frozen=True)
class _Source:
    """Where an array lies: its first element at `address`, all of it in `size` bytes from `start` on.

    `stream` is None where the array says that nothing is to be waited for, and unknown in version 2 of the interface,
    which has no streams; torch speaks it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...]
    address: int
    start: int
    size: int
    stream: int | _Unknown | None

    @classmethod
    def of(cls, facts: Any) -> _Source:
        """Read the interface, version 2 or 3."""
        try:
            if facts.get("mask") is not None:
                raise ValueError("a mask")
            shape, dtype = tuple(int(length) for length in facts["shape"]), np.dtype(facts["typestr"])
            address, stream = int(facts["data"][0]), facts.get("stream", UNKNOWN)
            strides = facts.get("strides")
            if strides is None:  # C-contiguous
                steps = np.cumprod([dtype.itemsize, *shape[:0:-1]])[::-1]
                strides = [int(step) for step in steps[: len(shape)]]
            strides = tuple(int(stride) for stride in strides)
            reach = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise UnreadableArray(
                f"expected a {INTERFACE} as NumPy describes arrays, found {error}"
            ) from error
        before, after = (sum(step for step in reach if step * sign > 0) for sign in (-1, 1))
        size = after - before + dtype.itemsize if 0 not in shape else 0
        return cls(shape, dtype, strides, address, address + before if size else address, size, stream)


def _copy(driver: Any, source: _Source, content: NDArray[np.uint8]) -> None:
    """Wait for the work on an array and copy it; again where another library was capturing a graph."""
    for left in reversed(range(TRIES)):
        try:
            with EXCLUSIVE:
                if source.stream is UNKNOWN:
                    call(driver, "cuCtxSynchronize")
                elif source.stream is not None:
                    call(driver, "cuStreamSynchronize", source.stream)
                call(driver, "cuMemcpyDtoH", content.ctypes.data, source.start, source.size)
            return
        except CudaError as error:
            if error.status not in CAPTURING or not left:
                raise
        time.sleep(PAUSE)


@contextmanager
def _device_of(driver: Any, address: int) -> Iterator[None]:
    """Make current the context that all libraries share on the GPU that holds an address."""
    call(driver, "cuInit", 0)
    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    device = call(driver, "cuDeviceGet", int(call(driver, "cuPointerGetAttribute", attribute, address)))
    context = call(driver, "cuDevicePrimaryCtxRetain", device)
    try:
        call(driver, "cuCtxPushCurrent", context)
        try:
            yield
        finally:
            call(driver, "cuCtxPopCurrent")
    finally:
        call(driver, "cuDevicePrimaryCtxRelease", device)
