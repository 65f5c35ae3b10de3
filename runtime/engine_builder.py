"""TensorRT engines from typed ONNX graphs, and the files they become; on the robot as in `crossmost export`.

Half precision is in the graph's types; no precision flag is ever set, so that TensorRT 10, 11 and TensorRT-RTX
compute the same network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossmost.runtime.engine_errors import EngineBuildFailed
from crossmost.runtime.engine_facts import EngineFacts, EngineFlags, EngineRecipe, this_platform
from crossmost.runtime.engine_interrupt import cancelling_on_interrupt
from crossmost.runtime.engine_network import (
    Build,
    add_profile,
    configure,
    hardware_level,
    inputs_of,
    known_targets,
    open_build,
    outputs_of,
    tensor_facts,
)
from crossmost.runtime.engine_options import EngineOptions, Profile
from crossmost.runtime.engine_packages import TensorRt
from crossmost.runtime.engine_timing import TimingCache, timing_key
from crossmost.runtime.whole_files import write_whole

DEFAULTS = EngineOptions()
SWITCHES = {
    "version_compatible": "--version-compatible",
    "hardware_compatible": "--hardware-compatible",
    "strip_weights": "--strip-weights",
    "refittable": "--refittable",
}
"""The fields of `EngineOptions` that not every TensorRT and GPU can do, as the user types them."""


@dataclass(frozen=True)
class GraphSource:
    """An ONNX file as a recipe names it.

    Attributes:
        sha256: of the file.
        weights: sha256 by file name of the external data beside it.
        precision: `fp32`, `fp16` or `bf16`: what most of its weights are.
    """

    sha256: str
    weights: dict[str, str]
    precision: str


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        plan: what TensorRT serialized, nothing added.
        facts: the content of its sidecar.
        notes: what went wrong and did not stop the build.
    """

    plan: bytes
    facts: EngineFacts
    notes: tuple[str, ...] = ()


def build_engine(
    onnx: Path,
    source: GraphSource,
    tensorrt: TensorRt,
    profile: Profile,
    options: EngineOptions = DEFAULTS,
    *,
    points: Profile | None = None,
) -> Engine:
    """Build the engine of one graph, for the GPU at hand or, with TensorRT-RTX, for several.

    Args:
        onnx: the graph, its external data beside it.
        source: what is known of it: read from the graph by the export, from the manifest on the robot.
        tensorrt: what `find_tensorrt` found.
        profile: sizes of the axis `batch`.
        options: see `EngineOptions`.
        points: sizes of the axis `points`, where the graph has one.

    Raises:
        InvalidEngineRequest: a dynamic axis without sizes.
        EngineBuildFailed: TensorRT cannot read or build the graph, or cannot do what an option asks.
        KeyboardInterrupt: Ctrl-C cancelled the build.
    """
    check_options(tensorrt, options)
    build = open_build(tensorrt, onnx)
    used = add_profile(build, {"batch": profile} if points is None else {"batch": profile, "points": points})
    recipe = _recipe(onnx.name, source, tensorrt, options, used)
    configure(tensorrt, build.config, recipe.flags, recipe.targets)
    cache = _timing_cache(tensorrt, options, build.config)
    plan = _serialize(tensorrt, build, onnx.name, options)
    facts = EngineFacts(
        recipe=recipe,
        precision=source.precision,
        inputs=tuple(map(tensor_facts, inputs_of(build.network))),
        outputs=tuple(map(tensor_facts, outputs_of(build.network))),
        driver=tensorrt.driver,
        timing_cache=cache.key if cache else "",
        plan_bytes=len(plan),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
    )
    return Engine(plan, facts, cache.store(build.config) if cache else ())


def check_options(tensorrt: TensorRt, options: EngineOptions) -> None:
    """Refuse what is known to end a build of TensorRT-RTX after its work is done.

    Raises:
        EngineBuildFailed: names the option.
    """
    if not tensorrt.portable:
        return
    if options.version_compatible:
        raise EngineBuildFailed(
            f"{tensorrt} cannot do --version-compatible, it has no lean runtime: leave it out"
        )
    for field in ("strip_weights", "refittable"):
        if getattr(options, field) and tensorrt.gpu is None:
            raise EngineBuildFailed(
                f"{tensorrt} cannot do {SWITCHES[field]} without a GPU: leave it out, or build on a GPU"
            )


def write_engine(folder: Path, engine: Engine) -> Path:
    """Write `<key>.engine`, the plan and nothing else, and `<key>.json`, its facts, each whole or not at all.

    Args:
        folder: made if it is missing.
        engine: an engine of the same key is replaced.

    Returns:
        The path of the plan.

    Raises:
        OSError: a file cannot be written; then neither is there.
    """
    path = folder / f"{engine.facts.key}.engine"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, engine.plan)
    facts = json.dumps(engine.facts.to_dict(), indent=2, ensure_ascii=False)
    try:
        write_whole(path.with_suffix(".json"), facts.encode() + b"\n")
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def _recipe(
    graph: str,
    source: GraphSource,
    tensorrt: TensorRt,
    options: EngineOptions,
    used: Mapping[str, Profile],
) -> EngineRecipe:
    gpu = None if tensorrt.portable else tensorrt.gpu
    flags = EngineFlags(
        version_compatible=options.version_compatible,
        hardware=hardware_level(gpu) if options.hardware_compatible else "none",
        strip_weights=options.strip_weights,
        refittable=options.refittable,
        optimization_level=options.optimization_level,
        workspace_bytes=options.workspace_bytes,
    )
    return EngineRecipe(
        graph=graph,
        onnx_sha256=source.sha256,
        weights=source.weights,
        package=tensorrt.package,
        version=tensorrt.version,
        gpu=gpu,
        targets=known_targets(tensorrt),
        platform="any" if tensorrt.portable else this_platform(),
        flags=flags,
        profile={axis: sizes.sizes for axis, sizes in used.items()},
    )


def _timing_cache(tensorrt: TensorRt, options: EngineOptions, config: Any) -> TimingCache | None:
    """The timings that a build was given; TensorRT-RTX compiles without measuring, so there are none."""
    if options.timing_cache is None or tensorrt.portable:
        return None
    cache = TimingCache(options.timing_cache, timing_key(tensorrt))
    cache.attach(config)
    return cache


def _serialize(tensorrt: TensorRt, build: Build, graph: str, options: EngineOptions) -> bytes:
    with cancelling_on_interrupt(tensorrt.module, build.config):
        plan = build.builder.build_serialized_network(build.network, build.config)
    if plan is None:  # TensorRT never raises
        asked = [switch for field, switch in SWITCHES.items() if getattr(options, field)]
        using = f" with {' and '.join(asked)}" if asked else ""
        raise EngineBuildFailed(f"{tensorrt} could not build {graph}{using}: {build.messages.last_error()}")
    return bytes(plan)
