"""Farthest point sampling and grouping on an NVIDIA GPU: `crossmost.runtime.sampling` with the same indices.

`kernels/sampling.cu` is the source and says how the kernels work. What is loaded is its PTX, which the driver
translates for its GPU: no compiler and no compiled extension, only NVIDIA's cuda-python.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from crossmost.runtime.cuda_calls import CudaError, call, import_driver
from crossmost.runtime.errors import InvalidInput
from crossmost.runtime.sampling import squared_radius

KERNELS = Path(__file__).parent / "kernels"
"""The folder of the PTX files that come with this version."""

ARCHITECTURES = (80, 75)
"""Compute capabilities there is a PTX file for; it runs on its own GPU generation and all later ones."""

MOST_NEIGHBORS = 64
MOST_IN_BALL = 256
SAMPLING_THREADS = 256
SAMPLING_SLOTS = (4, 8, 16, 32, 64)  # points a thread can hold: one kernel each
STREAMING = "farthest_points_streamed"
STREAMING_THREADS = 1024
BALL = "group_ball"
GROUPING_THREADS = 128
GROUPING_CENTERS = 4  # of a block


class InvalidLaunch(InvalidInput):
    """Sizes the kernels cannot work with; the message says what was expected and what was found."""


def ptx_name(capability: tuple[int, int]) -> str:
    """The name of the PTX file for a GPU of this compute capability.

    Raises:
        CudaError: the GPU is older than every file.
    """
    found = 10 * capability[0] + capability[1]
    for architecture in ARCHITECTURES:
        if found >= architecture:
            return f"sampling_{architecture}.ptx"
    expected = "expected a GPU of compute capability 7.5 or newer"
    raise CudaError(f"{expected}, found {capability[0]}.{capability[1]}: use the CPU")


class SamplingKernels:
    """The kernels, loaded into the CUDA context that is current on the calling thread.

    `launch` needs the same context to be current. It may be called from several threads at once.
    """

    def __init__(
        self,
        ptx: bytes,
        *,
        groups: int,
        neighbors: int,
        channels: int,
        radius: float | None = None,
        driver: Any = None,
    ) -> None:
        """Load the module; the driver translates it once a machine and keeps the result.

        Args:
            ptx: the content of the file that `ptx_name` names, from the bundle or from `KERNELS`.
            groups: G.
            neighbors: K, at most 64, or 256 of a ball.
            channels: C, 3 or 6.
            radius: a patch is the first K points of a ball; None for the K nearest.
            driver: `cuda.bindings.driver`; None imports it.

        Raises:
            ModuleNotFoundError: cuda-python is not installed.
            CudaError: no driver, no context, or PTX the driver does not take.
            InvalidLaunch: G, K or C out of range.
            ValueError: a radius out of range.
        """
        most = MOST_NEIGHBORS if radius is None else MOST_IN_BALL
        if groups < 1 or not 1 <= neighbors <= most or channels not in (3, 6):
            expected = f"expected at least 1 group, 1 to {most} neighbors and 3 or 6 channels"
            raise InvalidLaunch(f"{expected}, found {groups}, {neighbors} and {channels}")
        self.groups, self.neighbors, self.channels = groups, neighbors, channels
        self._grouping, self._limit = _grouping(neighbors, radius)
        self._driver = import_driver() if driver is None else driver
        self._module = self._call("cuModuleLoadData", ptx + b"\0")
        names = [f"farthest_points_{slots}" for slots in SAMPLING_SLOTS]
        self._functions = {
            name: self._call("cuModuleGetFunction", self._module, name.encode())
            for name in (*names, STREAMING, self._grouping)
        }

    def workspace_bytes(self, batch: int, points: int) -> int:
        """Device memory a launch needs besides its inputs and outputs: none for up to 16384 points a cloud."""
        return 0 if _slots(points) else 4 * batch * points

    def sampler(self, points: int) -> str:
        """The name of the kernel that samples from clouds of so many points."""
        slots = _slots(points)
        return f"farthest_points_{slots}" if slots else STREAMING

    def local_bytes(self) -> dict[str, int]:
        """Bytes a thread of each kernel keeps in local memory on this GPU: above 0, the driver spilled registers."""
        attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES
        return {
            name: int(self._call("cuFuncGetAttribute", attribute, function))
            for name, function in self._functions.items()
        }

    def launch(
        self,
        points_ptr: int,
        sizes_ptr: int,
        patches_ptr: int,
        centers_ptr: int,
        batch: int,
        points: int,
        stream: Any,
        *,
        indices_ptr: int = 0,
        workspace_ptr: int = 0,
    ) -> None:
        """Enqueue sampling and grouping; returns at once.

        It neither allocates nor waits, so that a CUDA graph can capture it; enqueue it once before the capture,
        because the driver may load a kernel at its first launch. Pointers are device addresses.

        Args:
            points_ptr: (batch, points, C) float32, the rows padded to the largest cloud with whatever numbers.
            sizes_ptr: (batch,) int32, how many points of each row are real, each at least max(G, K); 0 for all.
            patches_ptr: output, (batch, G, K, C) float32, xyz relative to the centre, colours as they are.
            centers_ptr: output, (batch, G, 3) float32.
            batch: B.
            points: N, at least max(G, K).
            stream: a CUstream or its handle; 0 is the default stream.
            indices_ptr: output, (batch, G) int32, the centres' places in their clouds; 0 if not wanted.
            workspace_ptr: `workspace_bytes` of memory with any content, not shared by launches that overlap.

        Raises:
            InvalidLaunch: no cloud, too few points, or no workspace where one is needed.
            CudaError: the driver refused.
        """
        self._check(batch, points, workspace_ptr)
        cloud, numbers = [points_ptr, sizes_ptr], [points, self.channels, self.groups]
        chosen, name, threads = [indices_ptr, centers_ptr], self.sampler(points), SAMPLING_THREADS
        if name == STREAMING:
            threads, chosen = STREAMING_THREADS, [*chosen, workspace_ptr]
        self._enqueue(name, (batch, 1), threads, stream, (cloud, numbers, chosen))
        grid = (batch, -(-self.groups // GROUPING_CENTERS))
        arguments = [*cloud, centers_ptr], [*numbers, self.neighbors, *self._limit], [patches_ptr]
        self._enqueue(self._grouping, grid, GROUPING_THREADS, stream, arguments)

    def close(self) -> None:
        """Unload the module; no launch may be under way. Further calls do nothing."""
        if self._functions:
            self._functions = {}
            self._call("cuModuleUnload", self._module)

    def _check(self, batch: int, points: int, workspace: int) -> None:
        if not self._functions:
            raise InvalidLaunch("expected loaded kernels, found closed ones: make new ones")
        least = max(self.groups, self.neighbors)
        if batch < 1 or points < least:
            expected = f"expected at least 1 cloud of at least {least} points"
            raise InvalidLaunch(f"{expected}, found {batch} of {points}: repeat points")
        if needed := 0 if workspace else self.workspace_bytes(batch, points):
            raise InvalidLaunch(
                f"expected a workspace of {needed} bytes for {points} points a cloud, found none"
            )

    def _enqueue(
        self, name: str, grid: tuple[int, int], threads: int, stream: Any, arguments: tuple[list[int], ...]
    ) -> None:
        """Launch a kernel with its arguments in the order of the source: inputs, numbers, outputs."""
        inputs, numbers, outputs = arguments
        values = tuple(int(value) for value in (*inputs, *numbers, *outputs))
        pointers = (ctypes.c_void_p,)
        types = pointers * len(inputs) + (ctypes.c_int,) * len(numbers) + pointers * len(outputs)
        shape = (*grid, 1, threads, 1, 1)
        self._call("cuLaunchKernel", self._functions[name], *shape, 0, stream, (values, types), 0)

    def _call(self, function: str, *arguments: Any) -> Any:
        return call(self._driver, function, *arguments)


def _grouping(neighbors: int, radius: float | None) -> tuple[str, list[int]]:
    """The kernel that cuts the patches, and the limit it takes: the bits of the squared radius, if any."""
    if radius is None:
        return ("group_32" if neighbors <= 32 else "group_64"), []
    return BALL, [int(squared_radius(radius).view(np.int32))]


def _slots(points: int) -> int:
    """Points a thread must be able to hold; 0 where they are too many for the registers."""
    return next((slots for slots in SAMPLING_SLOTS if slots * SAMPLING_THREADS >= points), 0)
