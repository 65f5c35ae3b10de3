"""From an ONNX graph to TensorRT's network and configuration: one code path for TensorRT 10, 11 and TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossmost.runtime.cuda_driver import Gpu
from crossmost.runtime.engine_errors import EngineBuildFailed, InvalidEngineRequest
from crossmost.runtime.engine_facts import EngineFlags, TensorFacts
from crossmost.runtime.engine_log import Messages, make_logger
from crossmost.runtime.engine_options import Profile
from crossmost.runtime.engine_packages import TensorRt

RTX_TARGETS = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""All that TensorRT-RTX 1.7 can build for, but 7.5: it has no float32 matrix products there. 9.0 is not among them."""

HARDWARE = {"ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
"""TensorRT's name of each `EngineFlags.hardware` but `none`."""
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
"""numpy's names of TensorRT's dtypes, where lower case is not enough."""


@dataclass(frozen=True)
class Build:
    """TensorRT's objects of one build; all of them must live until it is over, the parser with its weights too."""

    builder: Any
    network: Any
    parser: Any
    config: Any
    messages: Messages


def open_build(tensorrt: TensorRt, graph: Path) -> Build:
    """Read an ONNX graph, its external data beside it, as a strongly typed network.

    Raises:
        EngineBuildFailed: TensorRT cannot work with this driver, or does not accept the graph.
    """
    trt, messages = tensorrt.module, Messages()
    logger = make_logger(trt, messages)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError):  # what the bindings make of a null pointer
        raise EngineBuildFailed(f"{tensorrt} cannot start: {messages.last_error()}") from None
    # TensorRT 11 knows nothing but strong typing, whatever the flag; its number differs between versions.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        why = _parser_error(parser.get_error(0)) if parser.num_errors else messages.last_error()
        raise EngineBuildFailed(f"{tensorrt} cannot read {graph.name}: {why}")
    return Build(builder, network, parser, builder.create_builder_config(), messages)


def _parser_error(error: Any) -> str:
    """One line: the node, as operator and name, and what is wrong with it."""
    node = " ".join(part for part in (error.node_operator(), error.node_name()) if part)
    return " ".join(f"{node}: {error.desc()}".split()) if node else " ".join(error.desc().split())


def add_profile(build: Build, profile: Mapping[str, Profile]) -> dict[str, Profile]:
    """Give every dynamic input its sizes.

    Args:
        build: of a network whose dynamic axes have names.
        profile: sizes by name of the axis.

    Returns:
        The entries of `profile` that the graph has an axis for.

    Raises:
        InvalidEngineRequest: a dynamic axis without sizes.
        EngineBuildFailed: TensorRT does not accept the sizes.
    """
    shapes = build.builder.create_optimization_profile()
    used: dict[str, Profile] = {}
    for tensor in _dynamic_inputs(build.network):
        axes = [size if size >= 0 else _axis(tensor, i, profile) for i, size in enumerate(tensor.shape)]
        used |= {axis: profile[axis] for axis in axes if isinstance(axis, str)}
        # for each of min, opt, max: the sizes of all axes
        corners = zip(*(profile[a].sizes if isinstance(a, str) else (a,) * 3 for a in axes), strict=True)
        shapes.set_shape(tensor.name, *corners)
    if used and build.config.add_optimization_profile(shapes) < 0:
        sizes = ", ".join(f"{axis} {':'.join(map(str, entry.sizes))}" for axis, entry in used.items())
        raise EngineBuildFailed(f"TensorRT does not accept the sizes {sizes} for this graph")
    return used


def configure(tensorrt: TensorRt, config: Any, flags: EngineFlags, targets: tuple[str, ...]) -> None:
    """Configure the build; precision is the graph's, and float32 is float32, not TF32.

    Args:
        tensorrt: what builds.
        config: of the build.
        flags: what was asked for.
        targets: compute capabilities; none for the GPU at hand.

    Raises:
        EngineBuildFailed: this TensorRT does not know an option, or cannot build for a target.
    """
    trt = tensorrt.module
    config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(
        trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"
    ):  # of TensorRT-RTX: no CUDA graph captures a plan without
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for option, name in _builder_flags(flags):
        config.set_flag(_member(tensorrt, trt.BuilderFlag, name, option))
    if flags.hardware != "none":
        level = _member(
            tensorrt, trt.HardwareCompatibilityLevel, HARDWARE[flags.hardware], "--hardware-compatible"
        )
        config.hardware_compatibility_level = level
    if flags.optimization_level is not None:
        config.builder_optimization_level = flags.optimization_level
    if flags.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, flags.workspace_bytes)
    if targets:
        config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, _sm(target)), index):
            raise EngineBuildFailed(f"{tensorrt} does not build for compute capability {target}")


def known_targets(tensorrt: TensorRt) -> tuple[str, ...]:
    """The compute capabilities a plan is for; none where it is for the GPU at hand."""
    if not tensorrt.portable:
        return ()
    return tuple(target for target in RTX_TARGETS if hasattr(tensorrt.module.ComputeCapability, _sm(target)))


def hardware_level(gpu: Gpu | None) -> str:
    """The widest compatibility that can be asked for on a GPU."""
    ampere = gpu is None or int(gpu.compute_capability.partition(".")[0]) >= 8
    return "ampere+" if ampere else "same-compute-capability"


def tensor_facts(tensor: Any) -> TensorFacts:
    """Name, dtype and shape of a network's input or output."""
    dtype = tensor.dtype.name
    return TensorFacts(tensor.name, DTYPES.get(dtype, dtype.lower()), tuple(tensor.shape))


def inputs_of(network: Any) -> list[Any]:
    """The input tensors, in the graph's order."""
    return [network.get_input(index) for index in range(network.num_inputs)]


def outputs_of(network: Any) -> list[Any]:
    """The output tensors, in the graph's order."""
    return [network.get_output(index) for index in range(network.num_outputs)]


def _dynamic_inputs(network: Any) -> Iterator[Any]:
    return (tensor for tensor in inputs_of(network) if any(size < 0 for size in tensor.shape))


def _axis(tensor: Any, index: int, profile: Mapping[str, Profile]) -> str:
    name: str = tensor.get_dimension_name(index) or f"axis {index}"
    if name not in profile:
        given = ", ".join(f"--{axis}" for axis in profile) or "none"
        raise InvalidEngineRequest(
            f"expected sizes for the axis {name!r} of {tensor.name}, found {given}: add --{name} min:opt:max"
        )
    return name


def _builder_flags(flags: EngineFlags) -> Iterator[tuple[str, str]]:
    if flags.version_compatible:
        yield "--version-compatible", "VERSION_COMPATIBLE"
    if flags.refittable:
        yield "--refittable", "REFIT"
    if flags.strip_weights:
        yield "--strip-weights", "STRIP_PLAN"
        if not flags.refittable:
            yield "--strip-weights", "REFIT_IDENTICAL"


def _member(tensorrt: TensorRt, enum: Any, name: str, option: str) -> Any:
    if not hasattr(enum, name):
        raise EngineBuildFailed(f"{tensorrt} does not know {option}: leave it out")
    return getattr(enum, name)


def _sm(compute_capability: str) -> str:
    return f"SM{compute_capability.replace('.', '')}"
