"""What a TensorRT engine is and was made from: the `.json` beside each `.engine` of a bundle.

The plan itself stays pure, byte for byte what TensorRT built, so that any tool can load it. All that is known about
it is here, and is read before the plan is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from crossmost.runtime.bundle_json import InvalidBundle, check_plain, read_json, shown
from crossmost.runtime.cuda_driver import Gpu

SCHEMA_VERSION = 1
PACKAGES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""The name of each package's product."""


class InvalidEngine(InvalidBundle):
    """An engine whose facts or plan cannot be used; the message says what was expected and what was found."""


@dataclass(frozen=True)
class EngineFlags:
    """What was asked of the builder beyond its defaults.

    Attributes:
        version_compatible: the plan also runs on later TensorRT versions.
        hardware: the GPUs it runs on besides its own: `none`, `same-compute-capability` or `ampere+`.
        strip_weights: the plan holds no weights; they are refitted from the ONNX graph when it is loaded.
        refittable: the weights can be replaced by others.
        optimization_level: 0 to 5; None is TensorRT's default.
        workspace_bytes: the most scratch memory a layer may take; None is TensorRT's default.
    """

    version_compatible: bool = False
    hardware: str = "none"
    strip_weights: bool = False
    refittable: bool = False
    optimization_level: int | None = None
    workspace_bytes: int | None = None


@dataclass(frozen=True)
class EngineRecipe:
    """All that decides what a plan is; two equal recipes make plans that can stand in for one another.

    Attributes:
        graph: file name of the ONNX graph.
        onnx_sha256: of the graph's file, weights outside it not included.
        weights: sha256 by file name of the graph's external data.
        package: `tensorrt` or `tensorrt-rtx`.
        version: of that package, all its numbers.
        gpu: the GPU it was built on; None for a plan for several.
        targets: the compute capabilities of a plan for several GPUs; empty for a plan for one.
        platform: system and processor, such as `linux-x86_64`; `any` for a plan for several GPUs.
        flags: see `EngineFlags`.
        profile: (min, opt, max) by name of each dynamic axis.
    """

    graph: str
    onnx_sha256: str
    weights: dict[str, str]
    package: str
    version: str
    gpu: Gpu | None
    targets: tuple[str, ...]
    platform: str
    flags: EngineFlags
    profile: dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class TensorFacts:
    """An input or output: dtype as numpy names it, and -1 for each dynamic axis of its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class EngineFacts:
    """The sidecar of one engine.

    Attributes:
        recipe: what the plan was made from and for.
        precision: `fp32`, `fp16` or `bf16`: what the graph is typed in.
        inputs: in the graph's order.
        outputs: in the graph's order.
        driver: the newest CUDA the driver could run where the plan was built; empty where there was none.
        timing_cache: key of the timing cache that the build used; empty for none.
        plan_bytes: size of the plan.
        plan_sha256: of the plan.
    """

    recipe: EngineRecipe
    precision: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    driver: str
    timing_cache: str
    plan_bytes: int
    plan_sha256: str

    @property
    def key(self) -> str:
        """The name of the engine's files, without suffix."""
        return engine_key(self.recipe)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"schema": SCHEMA_VERSION, "key": self.key, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Any) -> EngineFacts:
        """Check and take over what `to_dict` wrote.

        Raises:
            InvalidBundle: no plain JSON values.
            InvalidEngine: of a newer schema, a field missing, unknown or of another type, or a key that is not the
                recipe's.
        """
        if not isinstance(values, dict):
            raise InvalidEngine(f"expected the facts of an engine, found {shown(values)}")
        check_plain(values, "the facts")
        fields = dict(values)
        schema, key = fields.pop("schema", None), fields.pop("key", None)
        if type(schema) is not int or schema < 1:
            raise InvalidEngine(f"expected schema {SCHEMA_VERSION}, found {schema!r}")
        if schema > SCHEMA_VERSION:
            raise InvalidEngine(
                f"expected schema {SCHEMA_VERSION}, found {schema}: update crossmost or rebuild the engine"
            )
        facts: EngineFacts = _decode(cls, fields, "the facts")
        if facts.key != key:
            raise InvalidEngine(
                f"expected key {facts.key}, found {key!r}: the facts were changed after the build"
            )
        return facts


def engine_key(recipe: EngineRecipe) -> str:
    """A short hash of everything that decides what a plan is, 16 hexadecimal digits."""
    text = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def this_platform() -> str:
    """System and processor of this machine, such as `linux-x86_64` or `linux-aarch64`."""
    return f"{sys.platform}-{platform.machine().lower()}"


def load_engine_facts(engine: Path) -> EngineFacts:
    """Read the sidecar of `<key>.engine`; the plan is not touched.

    Raises:
        InvalidEngine: there is none, or it does not hold the facts of an engine; names the file.
    """
    path = engine.with_suffix(".json")
    try:
        values = read_json(path)  # names the file itself
    except InvalidBundle as error:
        raise InvalidEngine(str(error)) from None
    try:
        return EngineFacts.from_dict(values)
    except InvalidBundle as error:
        raise InvalidEngine(f"{path}: {error}") from None


def check_plan(plan: bytes, facts: EngineFacts) -> None:
    """Compare a plan with its facts, before anything deserialises it.

    Raises:
        InvalidEngine: another size or sha256.
    """
    if len(plan) != facts.plan_bytes:
        raise InvalidEngine(f"engine {facts.key}: expected {facts.plan_bytes} bytes, found {len(plan)}")
    found = hashlib.sha256(plan).hexdigest()
    if found != facts.plan_sha256:
        raise InvalidEngine(f"engine {facts.key}: expected sha256 {facts.plan_sha256}, found {found}")


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Turn plain JSON values into the annotated type, refusing anything else."""
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin is types.UnionType:  # `X | None`, the only union there is
        return None if value is None else _decode(inner[0], value, where)
    if origin is tuple:
        return _decode_tuple(inner, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise InvalidEngine(f"{where}: expected an object, found {shown(value)}")
        return {str(key): _decode(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if type(value) is not kind:
        raise InvalidEngine(f"{where}: expected {kind.__name__}, found {shown(value)}")
    return value


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InvalidEngine(f"{where}: expected an object, found {shown(value)}")
    hints = get_type_hints(kind)
    if missing := sorted(hints.keys() - value.keys()):
        raise InvalidEngine(f"{where}: expected {', '.join(missing)}, found no such field")
    if unknown := sorted(map(str, value.keys() - hints.keys())):
        raise InvalidEngine(f"{where}: expected no field {', '.join(unknown)}")
    return kind(**{name: _decode(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


def _decode_tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise InvalidEngine(f"{where}: expected a list, found {shown(value)}")
    kinds = (inner[0],) * len(value) if inner[1:] == (Ellipsis,) else inner
    if len(kinds) != len(value):
        raise InvalidEngine(f"{where}: expected {len(kinds)} entries, found {len(value)}")
    return tuple(
        _decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )
