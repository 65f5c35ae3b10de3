"""A GPU that is NumPy: the parts of `cuda.bindings.driver` and of TensorRT that a backend touches.

Work is done when a stream is waited for and not before, and every call wants a current context, as on a real one.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.sampling import group

FREE_OF_CONTEXT = {
    "cuInit",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease",
    "cuCtxPushCurrent",
    "cuPointerGetAttribute",
}


class CUresult(enum.IntEnum):
    """The driver's answers, with its numbers."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class FakeDriver:
    """`cuda.bindings.driver`; `calls` counts what was asked, `failing` holds answers by name, `room` is the memory.

    `missing` are functions that the driver is too old for: cuda-python raises where one is called.
    """

    CUresult = CUresult
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9)
    CUstream_flags = enum.IntEnum("CUstream_flags", {"CU_STREAM_NON_BLOCKING": 1})
    CUstreamCaptureMode = enum.IntEnum("CUstreamCaptureMode", {"CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1})
    CUevent_record_flags = enum.IntEnum(
        "CUevent_record_flags", {"CU_EVENT_RECORD_DEFAULT": 0, "CU_EVENT_RECORD_EXTERNAL": 1}
    )

    def __init__(self) -> None:
        self.room = 2**30
        self.calls: Counter[str] = Counter()
        self.order: list[str] = []
        self.failing: dict[str, CUresult] = {}
        self.missing: set[str] = set()
        self.alive: dict[Any, Any] = {}
        self._device: dict[int, NDArray[np.uint8]] = {}
        self._pinned: dict[int, NDArray[np.uint8]] = {}
        self._queues: dict[int, list[Callable[[], None]]] = {}
        self._captures: dict[int, list[Callable[[], None]]] = {}
        self._spoiled: set[int] = set()
        self._recorded: set[int] = set()
        self._numbers = itertools.count(1)
        self._stacks = threading.local()
        self._lock = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cu"):
            return found

        def answer(*arguments: Any) -> tuple[Any, ...]:
            with self._lock:
                self.calls[name] += 1
                self.order.append(name)
                if name in self.missing:
                    raise RuntimeError(f"function {name}_v2 is not found")
                if name in self.failing:
                    if name == "cuStreamEndCapture":  # it ends all the same
                        self._captures.pop(arguments[0])
                    return self.failing[name], None
                if name not in FREE_OF_CONTEXT and not self._stack:
                    return CUresult.CUDA_ERROR_INVALID_CONTEXT, None
                value = found(*arguments)
                return (value, None) if isinstance(value, CUresult) else (CUresult.CUDA_SUCCESS, value)

        return answer

    @property
    def _stack(self) -> list[Any]:
        if not hasattr(self._stacks, "found"):
            self._stacks.found = []
        return self._stacks.found

    def _new(self, kind: str) -> int:
        number = next(self._numbers)
        self.alive[number] = kind
        return number

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Put work on a stream, or into the graph that is captured from it."""
        with self._lock:
            self._captures.get(stream, self._queues[stream]).append(work)

    def device(self, address: int, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """An array on the GPU, which must lie within one allocation."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for start, memory in self._device.items():
            if start <= address and address + size <= start + len(memory):
                return memory[address - start : address - start + size].view(dtype).reshape(shape)
        raise AssertionError(f"{size} bytes at {address} are not on the GPU")

    def host(self, address: int, size: int) -> NDArray[np.uint8]:
        """Bytes of pinned memory."""
        for start, memory in self._pinned.items():
            if start <= address and address + size <= start + len(memory):
                return memory[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address} are not pinned")

    def cuInit(self, flags: int) -> None:
        pass

    def cuDeviceGet(self, index: int) -> int:
        return index

    def cuDevicePrimaryCtxRetain(self, device: int) -> str:
        self.alive["context"] = self.alive.get("context", 0) + 1
        return "context"

    def cuDevicePrimaryCtxRelease(self, device: int) -> None:
        self.alive["context"] -= 1
        if not self.alive["context"]:
            del self.alive["context"]

    def cuCtxPushCurrent(self, context: str) -> None:
        self._stack.append(context)

    def cuCtxPopCurrent(self) -> str:
        return self._stack.pop()

    def cuMemAlloc(self, size: int) -> Any:
        if sum(map(len, self._device.values())) + size > self.room:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY
        address = 2**40 * self._new("memory")
        self._device[address] = np.full(size, 255, np.uint8)  # NaN in every float
        self.alive[address] = self.alive.pop(address // 2**40)
        return address

    def cuMemFree(self, address: int) -> None:
        del self.alive[address], self._device[address]

    def cuPointerGetAttribute(self, attribute: int, address: int) -> int:
        assert attribute == 9
        return 0

    def cuMemcpyDtoH(self, to: int, source: int, size: int) -> None:
        ctypes.memmove(to, self.device(source, (size,), np.uint8).ctypes.data, size)

    def cuMemHostAlloc(self, size: int, flags: int) -> int:
        memory = np.full(size, 255, np.uint8)
        self._pinned[memory.ctypes.data] = memory
        self.alive[memory.ctypes.data] = "pinned"
        return memory.ctypes.data

    def cuMemFreeHost(self, address: int) -> None:
        del self.alive[address], self._pinned[address]

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> None:
        target, read = self.device(to, (size,), np.uint8), self.host(source, size)
        self.enqueue(stream, lambda: np.copyto(target, read))

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> None:
        target, read = self.host(to, size), self.device(source, (size,), np.uint8)
        self.enqueue(stream, lambda: np.copyto(target, read))

    def cuStreamCreate(self, flags: int) -> int:
        assert flags == 1, "the default stream would wait for it"
        stream = self._new("stream")
        self._queues[stream] = []
        return stream

    def cuStreamDestroy(self, stream: int) -> None:
        assert not self._queues.pop(stream), "work was under way"
        del self.alive[stream]

    def cuStreamSynchronize(self, stream: int) -> Any:
        if stream in self._captures:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        queue = self._queues[stream]
        while queue:
            queue.pop(0)()

    def cuCtxSynchronize(self) -> Any:
        """As on a real one, where a stream is captured this fails, and the capture with it."""
        if self._captures:
            self._spoiled.update(self._captures)
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        for stream in [stream for stream in self._queues if stream > 0]:
            self.cuStreamSynchronize(stream)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> None:
        self._captures[stream] = []

    def cuStreamEndCapture(self, stream: int) -> Any:
        captured = self._captures.pop(stream)
        if stream in self._spoiled:
            self._spoiled.remove(stream)
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        graph = self._new("graph")
        self._queues[-graph] = captured
        return graph

    def cuGraphInstantiate(self, graph: int, flags: int) -> int:
        launched = self._new("graph")
        self._queues[-launched] = list(self._queues[-graph])
        return launched

    def cuGraphLaunch(self, graph: int, stream: int) -> None:
        self._queues[stream].extend(self._queues[-graph])

    def cuGraphDestroy(self, graph: int) -> None:
        del self.alive[graph], self._queues[-graph]

    cuGraphExecDestroy = cuGraphDestroy

    def cuEventCreate(self, flags: int) -> int:
        return self._new("event")

    def cuEventDestroy(self, event: int) -> None:
        del self.alive[event]

    def cuEventRecordWithFlags(self, event: int, stream: int, flags: int) -> Any:
        if flags != (stream in self._captures):  # only such a record becomes a part of a graph
            return CUresult.CUDA_ERROR_INVALID_VALUE
        self.enqueue(stream, lambda: self._recorded.add(event))

    def cuEventElapsedTime(self, first: int, second: int) -> Any:
        return 1.0 if {first, second} <= self._recorded else CUresult.CUDA_ERROR_NOT_READY


class FakeKernels:
    """`SamplingKernels`, computed by `crossmost.runtime.sampling`."""

    def __init__(
        self,
        ptx: bytes,
        *,
        groups: int,
        neighbors: int,
        channels: int,
        radius: float | None,
        driver: FakeDriver,
    ) -> None:
        assert b".entry" in ptx
        self.sizes, self.radius, self.driver = (groups, neighbors, channels), radius, driver
        driver.alive[id(self)] = "kernels"

    def workspace_bytes(self, batch: int, points: int) -> int:
        """Some, so that it has a place."""
        return 4 * batch * points

    def launch(
        self,
        points_ptr: int,
        sizes_ptr: int,
        patches_ptr: int,
        centers_ptr: int,
        batch: int,
        points: int,
        stream: int,
        *,
        workspace_ptr: int,
    ) -> None:
        """Enqueue sampling and grouping of the real points of each row; the workspace is overwritten."""
        groups, neighbors, channels = self.sizes
        device = self.driver.device
        clouds = device(points_ptr, (batch, points, channels))
        sizes = device(sizes_ptr, (batch,), np.int32)
        patches = device(patches_ptr, (batch, groups, neighbors, channels))
        centers = device(centers_ptr, (batch, groups, 3))
        workspace = device(workspace_ptr, (batch, points))

        def work() -> None:
            for row, size in enumerate(sizes):
                assert max(groups, neighbors) <= size <= points
                patches[row], centers[row] = group(clouds[row, :size].copy(), groups, neighbors, self.radius)
            workspace[:] = np.nan

        self.driver.enqueue(stream, work)

    def close(self) -> None:
        """Unload."""
        self.driver.alive.pop(id(self), None)


class FakeContext:
    """`IExecutionContext` of an encoder whose embedding is the mean of patches and centers."""

    def __init__(self, module: Any, first: bool) -> None:
        self.module, self.shapes, self.addresses = module, {}, {}
        self.active_optimization_profile = 0 if first else -1
        self.memory = (0, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.active_optimization_profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return 1 <= shape[0] <= self.module.most

    def update_device_memory_size_for_shapes(self) -> int:
        return 512 * self.shapes["patches"][0]

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.update_device_memory_size_for_shapes()
        assert address % 256 == 0
        self.memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        assert self.active_optimization_profile == 0
        module, device = self.module, self.module.driver.device
        module.enqueued += 1
        if module.refuse:
            module.logger.log(module.ILogger.Severity.ERROR, "Error Code 1:\n  no such kernel")
            return False
        if module.kernels is not None:
            module.kernels.compile(self.shapes["patches"][0])
        patches = device(self.addresses["patches"], self.shapes["patches"])
        centers = device(self.addresses["centers"], self.shapes["centers"])
        embedding = device(self.addresses["embedding"], (len(patches), 3))
        scratch = device(self.memory[0], (self.memory[1],), np.uint8)

        def work() -> None:
            scratch[:] = 255
            embedding[:] = encode(patches, centers)

        module.driver.enqueue(stream, work)
        return True


def encode(patches: NDArray[np.float32], centers: NDArray[np.float32]) -> NDArray[np.float32]:
    """The encoder of the fake engine: (B, 3)."""
    return patches[..., :3].mean(axis=(1, 2)) + centers.mean(axis=1) + 1


class FakeRuntimeCache:
    """`IRuntimeCache` of TensorRT-RTX: kernels by batch; `compiled` are those that no file brought."""

    def __init__(self, environment: str = "this") -> None:
        self.environment, self.known, self.compiled = environment, set(), []

    def compile(self, batch: int) -> None:
        """Compile for a batch, unless that was done."""
        if batch not in self.known:
            self.known.add(batch)
            self.compiled.append(batch)

    def serialize(self) -> bytes:
        return " ".join([self.environment, *map(str, sorted(self.known))]).encode()

    def deserialize(self, blob: bytes) -> bool:
        environment, *known = blob.decode("ascii").split()
        if environment != self.environment:
            return False
        self.known = set(map(int, known))
        return True


class FakeEngine(SimpleNamespace):
    """`ICudaEngine`."""

    __hash__ = object.__hash__


class FakeTensorRt:
    """As much of TensorRT as loading and running touches; `broken` plans do not load, `refuse` fails every batch.

    `kernels` is the runtime cache of TensorRT-RTX, where the package has one; `freed` has the engines and execution
    contexts that were freed, and whether the GPU's context was current.
    """

    def __init__(self, driver: FakeDriver, version: str = "10.13.3.9") -> None:
        self.__version__ = version
        self.driver, self.most = driver, 8
        self.broken = self.refuse = False
        self.enqueued, self.contexts = 0, 0
        self.told: list[str] = []
        self.kernels: FakeRuntimeCache | None = None
        self.freed: list[tuple[str, bool]] = []
        severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING"])
        self.ILogger = type("ILogger", (), {"Severity": severity})
        self.ExecutionContextAllocationStrategy = enum.Enum("Strategy", ["STATIC", "USER_MANAGED"])

    def Runtime(self, logger: Any) -> Any:
        self.logger = logger
        self.runtime = SimpleNamespace(deserialize_cuda_engine=self._load, engine_host_code_allowed=False)
        return self.runtime

    def _load(self, plan: bytes) -> Any:
        assert self.driver.calls["cuCtxPushCurrent"] > self.driver.calls["cuCtxPopCurrent"]
        if self.broken:
            self.logger.log(self.ILogger.Severity.ERROR, "Error Code 4:\n  magic tag")
            return None
        engine = FakeEngine(
            create_execution_context=self._make_context, create_runtime_config=self._make_config
        )
        self._watch(engine, "engine")
        return engine

    def _watch(self, made: Any, name: str) -> None:
        weakref.finalize(made, lambda: self.freed.append((name, bool(self.driver._stack))))

    def _make_context(self, how: Any) -> FakeContext:
        assert how in (self.ExecutionContextAllocationStrategy.USER_MANAGED, "configured")
        self.contexts += 1
        context = FakeContext(self, self.contexts == 1)
        self._watch(context, "context")
        return context

    def _make_config(self) -> Any:
        return "configured"

    def Refitter(self, engine: Any, logger: Any) -> Any:
        return SimpleNamespace(refit_cuda_engine=lambda: self.told.append("refit") or True)

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:
        return SimpleNamespace(refit_from_file=lambda path: self.told.append(path) or not self.refuse)
