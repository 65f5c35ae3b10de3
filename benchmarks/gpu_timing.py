"""The times of benchmarks/gpu.py: what the GPU can do at best, the kernels by stage, the backends by turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
from gpu_clouds import Sizes, make_raw, widened
from gpu_kernels import Batch, Kernels, settle

from crossmost.runtime import Classifier
from crossmost.runtime.cuda_device import CudaDevice, CudaGraph, CudaStream, DeviceMemory, PinnedMemory

COPIED = 256 * 2**20
"""Bytes of a copy within the GPU: more than any cache holds."""
SENT = 64 * 2**20
"""Bytes of a copy between the host and the GPU."""
EMPTY = b"""
.version 8.1
.target sm_75
.address_size 64
.visible .entry empty()
.maxntid 32, 1, 1
{
	ret;
}
\0"""
"""What NVRTC makes of `extern "C" __global__ void __launch_bounds__(32) empty() {}`."""
WARMUP = 3
"""Calls that are not counted: cold caches, the capture of a graph, its first launch."""
FEWEST, LONGEST = 10, 20.0
"""So many turns at least; further ones only within so many seconds."""

Seconds = dict[str, list[float]]


def summary(seconds: list[float]) -> dict[str, float]:
    """Percentiles in seconds; `spread` is the middle half's width over the median."""
    low, middle, high, p90, p99 = (float(value) for value in np.percentile(seconds, (25, 50, 75, 90, 99)))
    spread = (high - low) / middle if middle else 0.0
    return {"p50": middle, "p90": p90, "p99": p99, "spread": spread, "calls": len(seconds)}


def by_turns(ways: dict[Any, Callable[[], dict[str, float]]], turns: int) -> dict[Any, Seconds]:
    """Seconds by way and stage, the ways by turns, so that whatever else happens meets all of them."""
    found: dict[Any, Seconds] = {way: {} for way in ways}
    for way in ways.values():
        for _ in range(WARMUP):
            way()
    began = time.perf_counter()
    for turn in range(turns):
        if turn >= FEWEST and time.perf_counter() - began > LONGEST:
            break
        for name, way in ways.items():
            for stage, seconds in way().items():
                found[name].setdefault(stage, []).append(seconds)
    return found


def measure_limits(device: CudaDevice, turns: int) -> dict[str, dict[str, float]]:
    """Copies by the GPU's clock, with their `rate` in bytes a second, and launches by the host's, waiting included."""
    with device.current(), ExitStack() as stack:
        stream = stack.enter_context(closing(CudaStream(device, marks=2)))
        wide = stack.enter_context(closing(DeviceMemory(device, 2 * COPIED)))
        pinned = stack.enter_context(closing(PinnedMemory(device, SENT)))
        module = device.call("cuModuleLoadData", EMPTY)
        stack.callback(device.call, "cuModuleUnload", module)
        empty = device.call("cuModuleGetFunction", module, b"empty")

        def launch() -> None:
            device.call("cuLaunchKernel", empty, 1, 1, 1, 32, 1, 1, 0, stream.handle, 0, 0)

        launch()  # the driver may load a kernel at its first launch, which cannot be captured
        stream.wait()
        graph = stack.enter_context(closing(stream.capture(launch)))
        stack.callback(settle, stream)
        copies: dict[str, tuple[Callable[[], None], int]] = {
            "device_copy": (  # reads and writes
                lambda: device.call(
                    "cuMemcpyDtoDAsync", wide.address + COPIED, wide.address, COPIED, stream.handle
                ),
                2 * COPIED,
            ),
            "host_to_device": (lambda: stream.copy_in(pinned.address, wide.address, SENT), SENT),
            "device_to_host": (lambda: stream.copy_out(wide.address, pinned.address, SENT), SENT),
        }
        ways = {name: _by_events(stream, copy) for name, (copy, _) in copies.items()}
        ways["kernel_launch"] = _by_clock(stream, launch)
        ways["graph_launch"] = _by_clock(stream, lambda: graph.launch(stream))
        found = {name: summary(seconds["total"]) for name, seconds in by_turns(ways, turns).items()}
    for name, (_, size) in copies.items():
        found[name]["rate"] = size / found[name]["p50"]
    return found


def _by_events(stream: CudaStream, enqueue: Callable[[], None]) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        stream.mark(0)
        enqueue()
        stream.mark(1)
        stream.wait()
        return {"total": stream.seconds(0, 1)}

    return run


def _by_clock(stream: CudaStream, enqueue: Callable[[], None]) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        began = time.perf_counter()
        enqueue()
        stream.wait()
        return {"total": time.perf_counter() - began}

    return run


def measure_kernels(
    device: CudaDevice,
    every: Iterable[Sizes],
    architecture: int,
    settings: Iterable[tuple[int, int]],
    turns: int,
) -> Iterator[dict[str, Any]]:
    """Copy, sampling and grouping as one graph, the sizes by turns: a row for each of them and each setting.

    Args:
        device: the GPU.
        every: sizes of the kernels.
        architecture: of the PTX that the runtime takes on this GPU.
        settings: batch and points; sizes that need more points are left out.
        turns: how often each.
    """
    for batch, points in settings:
        fitting = [sizes for sizes in every if sizes.least <= points]
        with device.current(), ExitStack() as stack:
            batches, ways = {}, {}
            for sizes in fitting:
                kernels = stack.enter_context(closing(Kernels(device, sizes, architecture)))
                rng = np.random.default_rng(0)
                clouds = [widened(cloud, sizes, rng) for cloud in make_raw(batch, points)]
                made = batches[sizes] = stack.enter_context(closing(Batch(kernels, clouds)))
                made.run()
                graph = stack.enter_context(closing(made.capture()))
                ways[sizes] = _graph_way(made, graph)
            for sizes, seconds in by_turns(ways, turns).items():
                yield {
                    **sizes._asdict(),
                    "batch": batch,
                    "points": points,
                    "bytes": {"copy": batches[sizes].bytes_in, "grouping": batches[sizes].bytes_grouped},
                    "seconds": {stage: summary(found) for stage, found in seconds.items()},
                }


def _graph_way(batch: Batch, graph: CudaGraph) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        began = time.perf_counter()
        batch.run(graph)
        total = time.perf_counter() - began
        return {**batch.seconds(), "total": total}

    return run


def measure_backends(
    opened: dict[tuple[str, str], Classifier], settings: Iterable[tuple[int, int]], turns: int
) -> Iterator[dict[str, Any]]:
    """From raw clouds to embeddings, all bundles and backends by turns: a row for each of them and each setting.

    The stages are those of `Prediction.timings`: on TensorRT `group` (copy, sampling and grouping) and `encode` are
    the GPU's own clock, everything else is the host's.

    Args:
        opened: classifiers by bundle and backend.
        settings: batch and points of the raw clouds.
        turns: how often each.
    """
    for batch, points in settings:
        clouds = make_raw(batch, points)
        ways = {key: _classifier_way(classifier, clouds) for key, classifier in opened.items()}
        for (bundle, backend), seconds in by_turns(ways, turns).items():
            yield {
                "bundle": bundle,
                "backend": backend,
                "batch": batch,
                "points": points,
                "seconds": {stage: summary(found) for stage, found in seconds.items()},
            }


def _classifier_way(classifier: Classifier, clouds: list[Any]) -> Callable[[], dict[str, float]]:
    return lambda: classifier(clouds)[0].timings
