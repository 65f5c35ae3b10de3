"""What the user may ask of an engine: sizes of its dynamic axes, and options of the builder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from crossmost.runtime.engine_errors import InvalidEngineRequest

LEVELS = range(6)


@dataclass(frozen=True)
class Profile:
    """Sizes of one dynamic axis: the engine takes `min` to `max` and is tuned for `opt`."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InvalidEngineRequest(
                f"expected 1 <= min <= opt <= max, found {self.min}:{self.opt}:{self.max}: write it as 1:8:64"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(min, opt, max)."""
        return self.min, self.opt, self.max


@dataclass(frozen=True)
class EngineOptions:
    """What is asked of the builder beyond its defaults.

    Attributes:
        version_compatible: the plan shall also run on later TensorRT versions.
        hardware_compatible: the plan shall also run on other GPUs: on all from Ampere on, or, built on an older one,
            on those of its compute capability.
        strip_weights: leave the weights out of the plan; they are refitted from the ONNX graph when it is loaded.
        refittable: the weights shall be replaceable by others.
        optimization_level: 0, built fast, to 5, searched long; None is TensorRT's default.
        workspace_bytes: the most scratch memory a layer may take; None is TensorRT's default.
        timing_cache: folder that keeps measured kernel timings from one build to the next; None for none.
    """

    version_compatible: bool = False
    hardware_compatible: bool = False
    strip_weights: bool = False
    refittable: bool = False
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.optimization_level is not None and self.optimization_level not in LEVELS:
            raise InvalidEngineRequest(
                f"expected an optimization level from 0 to 5, found {self.optimization_level}"
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise InvalidEngineRequest(
                f"expected a workspace of at least 1 byte, found {self.workspace_bytes}"
            )


def parse_profile(text: str) -> Profile:
    """Read `min:opt:max`, such as `1:8:64`, or one number for an axis of that size alone.

    Raises:
        InvalidEngineRequest: anything else, or sizes out of order.
    """
    parts = text.strip().split(":")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise InvalidEngineRequest(f"expected min:opt:max, such as 1:8:64, or one number, found {text!r}")
    sizes = [int(part) for part in parts]
    return Profile(*sizes) if len(sizes) == 3 else Profile(*sizes * 3)
