"""The sampling kernels on a GPU for benchmarks/gpu.py: proved against NumPy, and timed by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

import numpy as np
from gpu_checks import Check
from gpu_clouds import Case, Cloud, Sizes
from numpy.typing import NDArray

from crossmost.runtime.cuda_calls import CudaError
from crossmost.runtime.cuda_device import CudaDevice, CudaGraph, CudaStream, DeviceMemory, PinnedMemory
from crossmost.runtime.cuda_kernels import ARCHITECTURES, KERNELS, SamplingKernels
from crossmost.runtime.engine_shapes import offsets
from crossmost.runtime.sampling import farthest_point_indices, group

BEGIN, COPIED, SAMPLED, GROUPED = range(4)
"""The marks on the stream between which time is taken."""
STAGES = {"copy": (BEGIN, COPIED), "sampling": (COPIED, SAMPLED), "grouping": (SAMPLED, GROUPED)}


class Sampled(NamedTuple):
    """What the kernels wrote: (B, G) int32, (B, G, K, C) float32, (B, G, 3) float32."""

    indices: NDArray[np.int32]
    patches: NDArray[np.float32]
    centers: NDArray[np.float32]


class MarkedDriver:
    """The driver, which calls `after` once, behind the next kernel: that is where sampling ends."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.after: Callable[[], None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def cuLaunchKernel(self, *arguments: Any) -> Any:
        """Enqueue a kernel."""
        answer = self._driver.cuLaunchKernel(*arguments)
        after, self.after = self.after, None
        if after is not None:
            after()
        return answer


class Kernels:
    """The kernels of some sizes from the PTX of an architecture; their context must be current."""

    def __init__(self, device: CudaDevice, sizes: Sizes, architecture: int) -> None:
        self.sizes, self.device, self.driver = sizes, device, MarkedDriver(device.driver)
        ptx = (KERNELS / f"sampling_{architecture}.ptx").read_bytes()
        self.loaded = SamplingKernels(ptx, **sizes._asdict(), driver=self.driver)

    def close(self) -> None:
        """Unload them."""
        self.loaded.close()


class Batch:
    """Clouds on a stream of their own with memory for all that is made of them."""

    def __init__(self, kernels: Kernels, clouds: Sequence[Cloud]) -> None:
        """Pad the clouds with NaN, which no kernel may read."""
        self._kernels, sizes = kernels, kernels.sizes
        self.count, self.points = len(clouds), max(map(len, clouds))
        rows, groups = self.count, sizes.groups
        shapes = (rows, self.points, sizes.channels), (rows,), (rows, groups)
        self._outputs = (shapes[2], (rows, groups, *sizes[1:3]), (rows, groups, 3))
        needed = [4 * int(np.prod(shape)) for shape in (*shapes[:2], *self._outputs)]
        starts, total = offsets([*needed, kernels.loaded.workspace_bytes(rows, self.points)])
        device = kernels.device
        self._stream = CudaStream(device, marks=4)
        self._memory = DeviceMemory(device, total)
        self._at = [self._memory.address + start for start in starts]
        self._places = [start - starts[2] for start in starts[2:5]]
        self._input, self._output = (
            PinnedMemory(device, starts[2]),
            PinnedMemory(device, starts[5] - starts[2]),
        )
        self.bytes_in = starts[2]
        """Copied to the GPU."""
        self.bytes_grouped = sum(needed) - needed[2] - needed[1]
        """That grouping must read (the points) and write (patches), once, with the centers."""
        padded = self._input.view(0, shapes[0], np.float32)
        padded[:] = np.nan
        for row, cloud in zip(padded, clouds, strict=True):
            row[: len(cloud)] = cloud
        self._input.view(starts[1], shapes[1], np.int32)[:] = [len(cloud) for cloud in clouds]

    def enqueue(self) -> None:
        """Enqueue the copy and the kernels, with marks between them."""
        stream, (points, sizes, indices, patches, centers, workspace) = self._stream, self._at
        stream.mark(BEGIN)
        stream.copy_in(self._input.address, points, self.bytes_in)
        stream.mark(COPIED)
        self._kernels.driver.after = lambda: stream.mark(SAMPLED)
        self._kernels.loaded.launch(
            points, sizes, patches, centers, self.count, self.points, stream.handle,
            indices_ptr=indices, workspace_ptr=workspace,
        )  # fmt: skip
        stream.mark(GROUPED)

    def capture(self) -> CudaGraph:
        """The same as a graph."""
        return self._stream.capture(self.enqueue)

    def run(self, graph: CudaGraph | None = None) -> None:
        """Enqueue it or launch its graph, and wait."""
        self._start(graph)
        self._stream.wait()

    def sampled(self, graph: CudaGraph | None = None) -> Sampled:
        """Do it on outputs that were overwritten, so that what an earlier run left is not taken for this one's."""
        output, size = self._output, self._output.size
        output.view(0, (size,), np.uint8)[:] = 255
        self._stream.copy_in(output.address, self._at[2], size)
        self._start(graph)
        self._stream.copy_out(self._at[2], output.address, size)
        self._stream.wait()
        types: tuple[Any, ...] = (np.int32, np.float32, np.float32)
        return Sampled(
            *(output.view(*part).copy() for part in zip(self._places, self._outputs, types, strict=True))
        )

    def seconds(self) -> dict[str, float]:
        """Of each stage of the last run, by the GPU's clock."""
        return {stage: self._stream.seconds(*marks) for stage, marks in STAGES.items()}

    def _start(self, graph: CudaGraph | None) -> None:
        if graph is None:
            self.enqueue()
        else:
            graph.launch(self._stream)

    def close(self) -> None:
        """Free everything."""
        settle(self._stream)
        for part in (self._memory, self._input, self._output, self._stream):
            part.close()


def settle(stream: CudaStream) -> None:
    """Let what is under way end, before its memory goes; after an error of the GPU nothing is."""
    with suppress(CudaError):
        stream.wait()


def reference(clouds: Sequence[Cloud], sizes: Sizes) -> list[Sampled]:
    """What `crossmost.runtime.sampling` makes of each cloud."""
    return [
        Sampled(
            farthest_point_indices(cloud, sizes.groups).astype(np.int32),
            *group(cloud, sizes.groups, sizes.neighbors, sizes.radius),
        )
        for cloud in clouds
    ]


def difference(found: Sampled, expected: Sequence[Sampled]) -> str:
    """Where the kernels' batch and the expected clouds differ first, in one line; "" where they do not."""
    for row, cloud in enumerate(expected):
        for name, right, batch in zip(Sampled._fields, cloud, found, strict=True):
            different = np.argwhere(batch[row] != right)
            if len(different):
                place = tuple(map(int, different[0]))
                pair = f"expected {right[place]}, found {batch[row][place]}"
                return f"{name} of cloud {row} at {place}: {pair} ({len(different)} of {right.size} differ)"
    return ""


def architectures(capability: str) -> list[int]:
    """The PTX files that a GPU of this compute capability, such as 8.7, can run, the one it gets first."""
    major, minor = map(int, capability.split("."))
    return [architecture for architecture in ARCHITECTURES if architecture <= 10 * major + minor]


def prove_kernels(
    device: CudaDevice, sizes: Sizes, architecture: int, cases: Iterable[Case]
) -> Iterator[Check]:
    """What the driver spills, and that every case is as in NumPy, enqueued and as a graph."""
    about = f"sampling_{architecture}.ptx, G={sizes.groups}, K={sizes.neighbors}, C={sizes.channels}"
    if sizes.radius is not None:
        about += f", radius {sizes.radius:g}"
    # Distances may leave float32 on purpose.
    with (
        device.current(),
        np.errstate(over="ignore"),
        closing(Kernels(device, sizes, architecture)) as kernels,
    ):
        # The largest kernel takes every register there is, so a driver may spill one: slower, and not wrong.
        spilled = {name: count for name, count in kernels.loaded.local_bytes().items() if count}
        words = ", ".join(f"{name} {count} bytes a thread" for name, count in spilled.items())
        yield Check(f"{about}: spilled registers", values={"bytes": spilled}, note=words or "none")
        for name, clouds in cases:
            failure = prove_case(kernels, clouds)
            yield Check(f"{about}: {name}", failure, {"clouds": len(clouds)})


def prove_case(kernels: Kernels, clouds: Sequence[Cloud]) -> str:
    """What is wrong with a batch, enqueued or as a graph; "" for nothing."""
    expected = reference(clouds, kernels.sizes)
    with closing(Batch(kernels, clouds)) as batch:
        if failure := difference(batch.sampled(), expected):
            return failure
        with closing(batch.capture()) as graph:
            failure = difference(batch.sampled(graph), expected)
            return failure and f"as a graph, {failure}"
