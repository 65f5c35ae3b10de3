"""One stream of work on the GPU: clouds in, sampling, grouping and the encoder, embeddings out.

The two kernels and the engine are enqueued on one stream and captured into one CUDA graph a shape, so that a
batch takes one launch. TensorRT leaves undefined what a graph does whose context was changed since, so each shape
has a context of its own; all of them share the memory of the worker, which holds one batch at a time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.cloud_staging import CloudStaging
from crossmost.runtime.cuda_calls import CudaError
from crossmost.runtime.cuda_device import CudaGraph, CudaStream, DeviceMemory, PinnedMemory
from crossmost.runtime.cuda_exclusion import EXCLUSIVE
from crossmost.runtime.encoder_engine import EncoderEngine, EngineFailed
from crossmost.runtime.engine_shapes import Shape, offsets
from crossmost.runtime.gpu_sampling import GpuSampling

Embeddings = tuple[NDArray[np.float32], dict[str, float]]
MOST_SHAPES = 16
MOST_CAPTURES = 3
"""Times that the work of a shape is captured in vain: another library may disturb a capture, and not the next one."""
BEGIN, GROUPED, ENCODED = range(3)
"""The marks on the stream between which time is taken."""


class Places(NamedTuple):
    """Addresses on the GPU of everything a batch needs there."""

    points: int
    sizes: int
    patches: int
    centers: int
    embedding: int
    workspace: int
    scratch: int


@dataclass(eq=False)
class Plan:
    """What a worker keeps for one shape.

    Attributes:
        shape: of the batch.
        context: the engine's, for this shape and these addresses.
        at: where its tensors are.
        graph: the captured work; None until it was captured, or where that failed.
        captures: how often a capture is still to be tried.
    """

    shape: Shape
    context: Any
    at: Places
    graph: CudaGraph | None = None
    captures: int = MOST_CAPTURES

    def close(self) -> None:
        """Drop graph and context."""
        if self.graph is not None:
            self.graph.close()
        self.graph = self.context = None


class EngineWorker:
    """A stream, its memory, and the plans of the shapes seen last; for one thread at a time.

    Its context must be current for every call. Memory grows to what the largest batch needs, and no further.
    """

    def __init__(self, sampling: GpuSampling, engine: EncoderEngine) -> None:
        """Make the stream; memory comes with the first batch.

        Raises:
            CudaError: the driver refused.
        """
        self._engine, self._kernels, self._encoder = engine, sampling.kernels, sampling.encoder
        self._device = sampling.device
        self._stream = CudaStream(self._device, marks=3)
        self._memory: DeviceMemory | None = None
        self._input = CloudStaging(self._device, self._encoder)
        self._output: PinnedMemory | None = None
        self._plans: OrderedDict[Shape, Plan] = OrderedDict()
        self._batches: set[int] = set()
        self.notes: list[str] = []
        self.launches = 0
        """Batches that were one launch of a graph."""

    @property
    def shapes(self) -> dict[Shape, bool]:
        """The shapes it is ready for, and whether as a graph; the one used last comes last."""
        plans = list(self._plans.items())  # at once: another thread may be embedding
        return {shape: plan.graph is not None for shape, plan in plans}

    @property
    def bytes(self) -> int:
        """Memory on the GPU that it holds, without the engine's own."""
        return self._memory.size if self._memory else 0

    def embed(self, clouds: Sequence[NDArray[np.float32]], shape: Shape) -> Embeddings:
        """Embed a batch.

        Args:
            clouds: (n_i, C) float32 each, at most `shape.batch` of at most `shape.points`.
            shape: what they are padded to.

        Returns:
            (B, D) float32, and the seconds each stage took.

        Raises:
            EngineFailed: the engine refused.
            CudaError: the driver refused, or work on the GPU failed.
        """
        started = time.perf_counter()
        plan = self._plan(shape)
        try:
            self._input.fill(clouds, shape)
            filled = time.perf_counter()
            if plan.graph is not None:
                plan.graph.launch(self._stream)
                self.launches += 1
            else:
                self._engine.apart(lambda: self._enqueue(plan))
            self._stream.wait()
            rows = self._rows(shape)[: len(clouds)].copy()
            seconds = {"fill": filled - started, **self._stages(time.perf_counter() - filled)}
        except BaseException:
            self._forget(shape)  # whatever state it is in, it is not used again
            raise
        if plan.graph is None and plan.captures:
            self._capture(plan)
        if shape.batch not in self._batches:  # for which kernels may have been compiled
            self._batches.add(shape.batch)
            self._engine.keep_compiled()
        return rows, seconds

    def close(self) -> None:
        """Free everything; nothing may be under way. Further calls do nothing."""
        for shape in list(self._plans):
            self._forget(shape)
        self._free()
        self._input.close()
        self._engine.leave(self._stream.handle)
        self._stream.close()

    def _plan(self, shape: Shape) -> Plan:
        """The plan of a shape; the one used longest ago goes where there are too many."""
        if shape not in self._plans:
            with EXCLUSIVE:
                while len(self._plans) >= MOST_SHAPES:
                    self._forget(next(iter(self._plans)))
                self._plans[shape] = self._make_plan(shape)
        self._plans.move_to_end(shape)
        return self._plans[shape]

    def _make_plan(self, shape: Shape) -> Plan:
        (batch, points), encoder = shape, self._encoder
        patches = (batch, encoder.groups, encoder.neighbors, encoder.channels)
        centers = (batch, encoder.groups, 3)
        context = self._engine.make_context(self._stream.handle)
        for name, size in (("patches", patches), ("centers", centers)):
            if not context.set_input_shape(name, size):
                raise self._engine.failed(f"does not take {name} of shape {size}")
        scratch = context.update_device_memory_size_for_shapes()
        needed = [
            *self._input.needed(shape),
            *(4 * int(np.prod(sizes)) for sizes in (patches, centers, (batch, encoder.dim))),
            self._kernels.workspace_bytes(batch, points),
            scratch,
        ]
        starts, total = offsets(needed)
        base = self._reserve(total, shape, needed[4])
        places = Places(*(base + start for start in starts))
        context.set_device_memory(places.scratch, scratch)
        for name in ("patches", "centers", "embedding"):
            if not context.set_tensor_address(name, getattr(places, name)):
                raise self._engine.failed(f"does not take the address of {name}")
        return Plan(shape, context, places)

    def _reserve(self, total: int, shape: Shape, outgoing: int) -> int:
        """Make sure there is so much memory, and say where it starts.

        Graphs hold addresses: where memory has to move, all plans go.
        """
        fits = all(
            memory is not None and memory.size >= size
            for memory, size in ((self._memory, total), (self._output, outgoing))
        )
        if not fits or not self._input.holds(shape):
            sizes = [
                max(size, memory.size if memory else 0)
                for memory, size in ((self._memory, total), (self._output, outgoing))
            ]
            for known in list(self._plans):
                self._forget(known)
            self._free()
            self._memory = DeviceMemory(self._device, sizes[0])
            self._input.reserve(shape)
            self._output = PinnedMemory(self._device, sizes[1])
        assert self._memory is not None
        return self._memory.address

    def _rows(self, shape: Shape) -> NDArray[np.float32]:
        assert self._output is not None
        return self._output.view(0, (shape.batch, self._encoder.dim), np.float32)

    def _enqueue(self, plan: Plan) -> None:
        """Enqueue the whole way of a batch, from pinned memory to pinned memory."""
        assert self._output is not None
        stream, at, (batch, points) = self._stream, plan.at, plan.shape
        stream.mark(BEGIN)
        stream.copy_in(self._input.address, at.points, at.patches - at.points)
        self._kernels.launch(
            at.points,
            at.sizes,
            at.patches,
            at.centers,
            batch,
            points,
            stream.handle,
            workspace_ptr=at.workspace,
        )
        stream.mark(GROUPED)
        if not plan.context.execute_async_v3(
            stream.handle
        ):  # unnoticed, the last embeddings would come again
            raise self._engine.failed(f"refused a batch of {batch}")
        stream.mark(ENCODED)
        stream.copy_out(at.embedding, self._output.address, 4 * batch * self._encoder.dim)

    def _capture(self, plan: Plan) -> None:
        """Capture the work of a plan that ran once, as TensorRT and the driver want it; it works without, too."""
        plan.captures -= 1
        can = getattr(plan.context, "is_stream_capturable", None)  # of TensorRT-RTX
        if can is not None and not can(self._stream.handle):
            plan.captures = 0
            self._note(plan, "the engine cannot be captured: rebuild it with this version")
            return

        def capture() -> None:
            # Here, and not where it is waited for: interrupted there, nobody would have it.
            plan.graph = self._stream.capture(lambda: self._enqueue(plan))

        try:
            self._engine.apart(capture)
        except (CudaError, EngineFailed) as error:
            if not plan.captures:
                self._note(plan, str(error))

    def _note(self, plan: Plan, why: str) -> None:
        batch, points = plan.shape
        note = f"no CUDA graph for {batch} clouds of {points} points, they are slower: {why}"
        if note not in self.notes:
            self.notes = [*self.notes[1 - MOST_SHAPES :], note]

    def _stages(self, total: float) -> dict[str, float]:
        """Seconds of the stages on the GPU, and what is left of the whole for the launch and the way back."""
        try:
            group = self._stream.seconds(BEGIN, GROUPED)
            encode = self._stream.seconds(GROUPED, ENCODED)
        except CudaError:  # the embeddings are there all the same
            return {"gpu": total}
        return {"group": group, "encode": encode, "launch": max(0.0, total - group - encode)}

    def _forget(self, shape: Shape) -> None:
        plan = self._plans.pop(shape, None)
        if plan is not None:
            with suppress(CudaError):  # contexts and graphs may be in use until then
                self._stream.wait()
            with EXCLUSIVE:
                plan.close()

    def _free(self) -> None:
        memories = (self._memory, self._output)
        self._memory = self._output = None
        with EXCLUSIVE:
            for memory in memories:
                if memory is not None:
                    memory.close()
