"""One NVIDIA GPU: its context, memory, streams, graphs and clocks. Whatever is made here is closed by its owner."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.cuda_calls import CudaError, MissingFunction, call, import_driver
from crossmost.runtime.cuda_events import elapsed_milliseconds
from crossmost.runtime.cuda_exclusion import EXCLUSIVE


class CudaDevice:
    """A GPU and its primary context, the one that TensorRT and every other library in the process works in."""

    def __init__(self, index: int = 0, driver: Any = None) -> None:
        """Retain the context of the GPU with this index.

        Args:
            index: as in `cuda_driver.probe_cuda`.
            driver: `cuda.bindings.driver`; None imports it.

        Raises:
            ModuleNotFoundError: cuda-python is not installed.
            CudaError: no driver, or no such GPU.
        """
        self.driver = import_driver() if driver is None else driver
        self.call("cuInit", 0)
        self._device = self.call("cuDeviceGet", index)
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the driver; see `cuda_calls.call`."""
        return call(self.driver, function, *arguments)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current on this thread, and afterwards the one that was current before."""
        if self._context is None:
            raise CudaError("expected a GPU in use, found a closed one: load again")
        self.call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent")

    def close(self) -> None:
        """Give the context back. Further calls do nothing."""
        if self._context is not None:
            self._context = None
            with suppress(CudaError):
                self.call("cuDevicePrimaryCtxRelease", self._device)


class DeviceMemory:
    """Bytes on the GPU at `address`, which is a multiple of 256."""

    def __init__(self, device: CudaDevice, size: int) -> None:
        self._device = device
        self.address = int(device.call("cuMemAlloc", size))
        self.size = size

    def close(self) -> None:
        """Free them. Further calls do nothing."""
        if self.size:
            self.size = 0
            with suppress(CudaError):  # after an error of the GPU every call fails, and the context frees all
                self._device.call("cuMemFree", self.address)


class PinnedMemory:
    """Bytes of the host that the GPU copies from and to by itself, all zero at first."""

    def __init__(self, device: CudaDevice, size: int) -> None:
        self._device = device
        self.address = int(device.call("cuMemHostAlloc", size, 0))
        self.size = size
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))
        self._bytes[:] = 0

    def view(self, offset: int, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """A part of them as an array, which must not be used after `close`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._bytes[offset : offset + size].view(dtype).reshape(shape)

    def close(self) -> None:
        """Free them. Further calls do nothing."""
        if self.size:
            self.size = 0
            self._bytes = self._bytes[:0].copy()
            with suppress(CudaError):
                self._device.call("cuMemFreeHost", self.address)


class CudaGraph:
    """Work that was captured once and is launched as a whole."""

    def __init__(self, device: CudaDevice, handle: Any) -> None:
        self._device, self._handle = device, handle

    def launch(self, stream: CudaStream) -> None:
        """Enqueue all of it."""
        self._device.call("cuGraphLaunch", self._handle, stream.handle)

    def close(self) -> None:
        """Destroy it. Further calls do nothing."""
        if self._handle is not None:
            with suppress(CudaError):
                self._device.call("cuGraphExecDestroy", self._handle)
            self._handle = None


class CudaStream:
    """A queue of work on the GPU, with some marks between which time can be taken."""

    def __init__(self, device: CudaDevice, marks: int) -> None:
        self._device = device
        flag = device.driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.handle = int(device.call("cuStreamCreate", int(flag)))
        self._marks = [device.call("cuEventCreate", 0) for _ in range(marks)]
        self._capturing = False

    def copy_in(self, source: int, to: int, size: int) -> None:
        """Enqueue a copy of bytes from pinned memory to the GPU."""
        self._device.call("cuMemcpyHtoDAsync", to, source, size, self.handle)

    def copy_out(self, source: int, to: int, size: int) -> None:
        """Enqueue a copy of bytes from the GPU to pinned memory."""
        self._device.call("cuMemcpyDtoHAsync", to, source, size, self.handle)

    def mark(self, index: int) -> None:
        """Enqueue taking the time; in a graph it is taken at every launch."""
        flags = self._device.driver.CUevent_record_flags
        how = flags.CU_EVENT_RECORD_EXTERNAL if self._capturing else flags.CU_EVENT_RECORD_DEFAULT
        self._device.call("cuEventRecordWithFlags", self._marks[index], self.handle, int(how))

    def seconds(self, first: int, second: int) -> float:
        """Time between two marks that were passed.

        Raises:
            CudaError: the driver cannot say.
        """
        marks = self._marks[first], self._marks[second]
        try:
            milliseconds = float(self._device.call("cuEventElapsedTime", *marks))
        except MissingFunction:
            milliseconds = elapsed_milliseconds(*marks)
        return milliseconds / 1000

    def wait(self) -> None:
        """Wait for all that was enqueued; errors of the work show here."""
        self._device.call("cuStreamSynchronize", self.handle)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """Turn what a function enqueues on this stream into a graph; nothing of it runs.

        Raises:
            CudaError: something in it cannot be captured, or another library disturbed it.
        """
        with EXCLUSIVE:
            return self._capture(enqueue)

    def _capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        mode = self._device.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._device.call("cuStreamBeginCapture", self.handle, mode)  # other libraries may allocate meanwhile
        self._capturing = True
        try:
            enqueue()
        except BaseException:
            with suppress(CudaError):
                self._device.call("cuGraphDestroy", self._device.call("cuStreamEndCapture", self.handle))
            raise
        finally:
            self._capturing = False
        graph = self._device.call("cuStreamEndCapture", self.handle)
        try:
            return CudaGraph(self._device, self._device.call("cuGraphInstantiate", graph, 0))
        finally:
            self._device.call("cuGraphDestroy", graph)

    def close(self) -> None:
        """Destroy stream and marks. Further calls do nothing."""
        marks, self._marks = self._marks, []
        for mark in marks:
            with suppress(CudaError):
                self._device.call("cuEventDestroy", mark)
        if self.handle:
            with suppress(CudaError):
                self._device.call("cuStreamDestroy", self.handle)
            self.handle = 0
