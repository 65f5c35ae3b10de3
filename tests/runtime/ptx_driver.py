"""The part of `cuda.bindings.driver` that the sampling kernels are launched with, on `ptx_machine`."""

from __future__ import annotations

import ctypes
import enum
import functools
from typing import Any

import ptx_instructions
import ptx_machine
import ptx_memory

TYPES = {"u64": ctypes.c_void_p, "u32": ctypes.c_int}


parse_module = functools.cache(ptx_machine.parse_module)


class CUresult(enum.IntEnum):
    """The driver's answers, with its numbers."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222
    CUDA_ERROR_NOT_FOUND = 500


class CUfunction_attribute(enum.IntEnum):
    """What can be asked about a function."""

    CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3


class EmulatedDriver:
    """One GPU with one context; `memory` is its device memory, `calls` what it was asked, in order."""

    CUresult = CUresult
    CUfunction_attribute = CUfunction_attribute

    def __init__(self) -> None:
        self.memory = ptx_memory.GlobalMemory()
        self.calls: list[tuple[str, Any]] = []
        self.failing: dict[str, CUresult] = {}

    def _answer(self, name: str, detail: Any, *values: Any) -> tuple[Any, ...]:
        self.calls.append((name, detail))
        if name in self.failing:
            return (self.failing[name], *(None for _ in values))
        return (CUresult.CUDA_SUCCESS, *values)

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        """Parse PTX, which ends with a zero byte as in C."""
        assert image.endswith(b"\0")
        return self._answer("cuModuleLoadData", None, parse_module(image[:-1].decode()))

    def cuModuleGetFunction(self, module: Any, name: bytes) -> tuple[Any, ...]:
        """A kernel by name."""
        kernel = module.get(name.decode())
        if kernel is None:
            return (CUresult.CUDA_ERROR_NOT_FOUND, None)
        return self._answer("cuModuleGetFunction", name, kernel)

    def cuFuncGetAttribute(self, attribute: int, function: Any) -> tuple[Any, ...]:
        """Nothing is ever spilled here."""
        return self._answer("cuFuncGetAttribute", attribute, 0)

    def cuModuleUnload(self, module: Any) -> tuple[Any, ...]:
        """Forget a module."""
        return self._answer("cuModuleUnload", None)

    def cuLaunchKernel(self, function: Any, *arguments: Any) -> tuple[Any, ...]:
        """Run a kernel to its end, if the arguments fit its signature."""
        *shape, shared_bytes, stream, (values, types), extra = arguments
        grid, block = tuple(shape[:3]), tuple(shape[3:])
        expected = tuple(TYPES[kind] for _, kind in function.parameters)
        if types != expected or block != (function.threads, 1, 1) or shared_bytes or extra or 0 in grid:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        answer = self._answer("cuLaunchKernel", (function.name, grid, stream))
        if answer[0] == CUresult.CUDA_SUCCESS:
            blocks = grid[0] * grid[1] * grid[2]
            self.memory.start_launch()
            shared = ptx_memory.SharedMemory(blocks, function.threads, function.shared_bytes)
            machine = ptx_machine.Machine(function, grid, list(values), self.memory, shared)
            machine.run(ptx_instructions.execute)
        return answer
