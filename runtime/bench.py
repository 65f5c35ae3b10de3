"""Latency of a bundle on this machine: stages, batch sizes, backends beside each other, cold start and memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.backend import BackendUnavailable
from crossmost.runtime.child_process import ProcessFailed, ask
from crossmost.runtime.classifier import Classifier
from crossmost.runtime.errors import InvalidInput
from crossmost.runtime.onnx_session import reason
from crossmost.runtime.selection import BACKENDS

PERCENTILES = (50, 90, 99)
COLD_SECONDS = 600
"""Until a cold start counts as failed: a driver may compile for minutes."""
COLD_START = """
import json, sys, time
began = time.perf_counter()
from crossmost.runtime import Classifier
imported = time.perf_counter()
classifier = Classifier.load(sys.argv[1], backend=sys.argv[2], threads=json.loads(sys.argv[3]))
loaded = time.perf_counter()
classifier.warmup()
print(json.dumps([imported - began, loaded - imported, time.perf_counter() - loaded]))
"""


@dataclass(frozen=True)
class Timing:
    """Percentiles of one stage, in seconds: of a call with `batch` clouds."""

    backend: str
    batch: int
    stage: str
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class BenchReport:
    """What `measure` found.

    Attributes:
        points: N of every cloud.
        repeats: calls a batch size and backend.
        timings: of each stage and of the whole call, `total`.
        cold: backend to seconds of import, load and first call, in a process of its own.
        refused: why a backend, or its cold start, could not be measured, by its name.
        peak_bytes: most memory this process ever held; None on Windows, which does not say.
    """

    points: int
    repeats: int
    timings: tuple[Timing, ...]
    cold: dict[str, tuple[float, float, float]]
    refused: dict[str, str]
    peak_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "points": self.points,
            "repeats": self.repeats,
            "timings": [vars(timing) for timing in self.timings],
            "cold_start": {
                name: dict(zip(("import", "load", "first"), found, strict=True))
                for name, found in self.cold.items()
            },
            "refused": self.refused,
            "peak_bytes": self.peak_bytes,
        }

    def lines(self) -> list[str]:
        """A table for the screen, in milliseconds."""
        lines = [
            f"clouds of {self.points} points, {self.repeats} calls each, milliseconds a call",
            f"{'backend':<18}{'batch':>6}  {'stage':<10}" + "".join(f"{f'p{p}':>10}" for p in PERCENTILES),
        ]
        for timing in self.timings:
            found = (timing.p50, timing.p90, timing.p99)
            cells = "".join(f"{1e3 * seconds:>10.2f}" for seconds in found)
            lines.append(f"{timing.backend:<18}{timing.batch:>6}  {timing.stage:<10}{cells}")
        for name, (imported, loaded, first) in self.cold.items():
            lines.append(
                f"cold start of {name}: import {imported:.2f} s, load {loaded:.2f} s, first call {first:.2f} s"
            )
        lines += [f"not measured: {name}: {why}" for name, why in self.refused.items()]
        if self.peak_bytes is not None:
            lines.append(f"peak memory of this process: {self.peak_bytes / 2**20:.0f} MiB")
        return lines


def measure(
    bundle: Path,
    *,
    backends: Sequence[str] = BACKENDS,
    batches: Sequence[int] = (1, 8),
    points: int | None = None,
    repeats: int = 50,
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Time a bundle on made-up clouds, the backends by turns so that a busy machine slows all of them.

    Args:
        bundle: folder of the bundle.
        backends: those to compare; what does not work here is named in the report.
        batches: clouds a call.
        points: N of the clouds; None for the encoder's.
        repeats: calls measured, after two that are not.
        threads: of a pass on the CPU.
        say: told what is measured.

    Raises:
        InvalidBundle: no bundle, or a damaged one.
        BackendUnavailable: none of the backends works.
    """
    opened, refused = _open_all(bundle, backends, threads)
    if not opened:
        raise BackendUnavailable("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    count = points or int(next(iter(opened.values())).info()["bundle"]["encoder"]["points"])
    timings: list[Timing] = []
    try:
        for batch in batches:
            say(f"batch {batch}")
            clouds = [_cloud(seed, count) for seed in range(batch)]
            seconds = _time_by_turns(opened, clouds, repeats)
            for name, stages in seconds.items():
                timings += [_timing(name, batch, stage, found) for stage, found in stages.items()]
    finally:
        for classifier in opened.values():
            classifier.close()
    cold = {}
    for name in opened:
        say(f"cold start of {name}")
        try:
            cold[name] = cold_start(bundle, name, threads)
        except ProcessFailed as error:
            refused[f"cold start of {name}"] = str(error)
    return BenchReport(count, repeats, tuple(timings), cold, refused, _peak_bytes())


def cold_start(bundle: Path, backend: str, threads: int | None) -> tuple[float, float, float]:
    """Seconds to import the runtime, load a bundle and answer the first call, in a new process.

    Raises:
        ProcessFailed: it did not come to its end.
    """
    imported, loaded, first = ask(COLD_START, str(bundle), backend, json.dumps(threads), seconds=COLD_SECONDS)
    return imported, loaded, first


def _open_all(
    bundle: Path, backends: Sequence[str], threads: int | None
) -> tuple[dict[str, Classifier], dict[str, str]]:
    opened: dict[str, Classifier] = {}
    refused: dict[str, str] = {}
    for name in backends:
        try:
            opened[name] = Classifier.load(bundle, backend=name, threads=threads)
        except BackendUnavailable as error:
            refused[name] = str(error)
        except InvalidInput:  # the bundle's, or the caller's: no backend will do
            raise
        # A vendor's library may raise anything, and the others are measured all the same.
        except Exception as error:
            refused[name] = f"it failed with {type(error).__name__}: {reason(error)}"
    return opened, refused


def _time_by_turns(
    opened: dict[str, Classifier], clouds: list[NDArray[np.float64]], repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every call, by backend and stage."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in opened}
    for turn in range(repeats + 2):
        for name, classifier in opened.items():
            timings = classifier(clouds)[0].timings
            if turn >= 2:  # the first calls find cold caches
                for stage, seconds in timings.items():
                    found[name].setdefault(stage, []).append(seconds)
    return found


def _timing(backend: str, batch: int, stage: str, seconds: list[float]) -> Timing:
    return Timing(backend, batch, stage, *(float(value) for value in np.percentile(seconds, PERCENTILES)))


def _cloud(seed: int, count: int) -> NDArray[np.float64]:
    """A hollow, lopsided ellipsoid: the cost hardly depends on the shape."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return direction * (1.0, 0.7, 0.4) + 0.02 * rng.normal(size=(count, 3))


def _peak_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
