"""Whether an engine can run on this machine, decided from its facts before TensorRT sees the plan."""

from __future__ import annotations

import re
import shlex
from collections.abc import Container, Mapping
from dataclasses import dataclass

from crossmost.runtime.cuda_driver import Gpu
from crossmost.runtime.engine_facts import PACKAGES, EngineFacts, EngineRecipe
from crossmost.runtime.manifest import INT8
from crossmost.runtime.text_encoder import GRAPH as TEXT_ENCODER

OPTIONAL = {INT8: "--int8", TEXT_ENCODER: "--text-encoder"}
"""Files that a bundle has where the export was asked for them."""


@dataclass(frozen=True)
class Machine:
    """What an engine meets where it is loaded.

    Attributes:
        package: the TensorRT package installed here, `tensorrt` or `tensorrt-rtx`; empty for none.
        version: of that package, all its numbers.
        gpu: the one to run on; None where none answers.
        platform: see `engine_facts.this_platform`.
    """

    package: str
    version: str
    gpu: Gpu | None
    platform: str


def preflight(
    facts: EngineFacts,
    here: Machine,
    *,
    files: Mapping[str, str] | None = None,
    run: str = "RUN",
    bundle: str = "BUNDLE",
) -> str | None:
    """Say why an engine cannot be used here and the command that rebuilds it; None if it can be used.

    Args:
        facts: of the engine.
        here: this machine.
        files: sha256 by name of the bundle's files; an engine of other graphs or weights is refused.
        run: the run the bundle was exported from, for the command.
        bundle: the folder of the bundle, for the command.
    """
    recipe = facts.recipe
    why = (
        _other_files(recipe, files or {})
        or _other_package(recipe, here)
        or _other_version(recipe, here)
        or _other_gpu(recipe, here)
    )
    if why is None:
        return None
    command = rebuild_command(facts, run, bundle, here.package or recipe.package, files or ())
    return f"engine {facts.key}: {why}; rebuild it here: {command}"


def is_of_other_gpu(facts: EngineFacts, here: Machine) -> bool:
    """Whether an engine that can be used was tuned on another GPU of the same compute capability."""
    recipe = facts.recipe
    meant_for_one = not recipe.targets and recipe.flags.hardware == "none"
    return (
        meant_for_one and recipe.gpu is not None and here.gpu is not None and recipe.gpu.name != here.gpu.name
    )


def rebuild_command(
    facts: EngineFacts, run: str, bundle: str, package: str, files: Container[str] = ()
) -> str:
    """The `crossmost export` that builds an engine like this one for the machine it is typed on.

    Args:
        facts: of the engine.
        run: what the bundle was exported from.
        bundle: its folder.
        package: `tensorrt` or `tensorrt-rtx`, whichever shall load the engine.
        files: of the bundle, which shall have the same again.
    """
    words = shlex.split(export_command(run, bundle, facts.precision, package, files))
    for axis, sizes in facts.recipe.profile.items():
        words += [f"--{axis}", ":".join(map(str, sizes))]
    flags = facts.recipe.flags
    wanted = {
        "--version-compatible": flags.version_compatible,
        "--hardware-compatible": flags.hardware != "none",
        "--strip-weights": flags.strip_weights,
        "--refittable": flags.refittable,
    }
    return shlex.join(words + [option for option, on in wanted.items() if on])


def export_command(run: str, bundle: str, precision: str, package: str, files: Container[str] = ()) -> str:
    """The `crossmost export` that builds an engine with the default options; arguments as in `rebuild_command`."""
    words = ["crossmost", "export", run, "--out", bundle, "--overwrite"]
    if precision != "fp32":
        words.append(f"--{precision}")
    words += [option for name, option in OPTIONAL.items() if name in files]
    return shlex.join([*words, "--tensorrt-rtx" if package == "tensorrt-rtx" else "--tensorrt"])


def _other_files(recipe: EngineRecipe, files: Mapping[str, str]) -> str | None:
    for name, sha256 in {recipe.graph: recipe.onnx_sha256, **recipe.weights}.items():
        if files.get(name, sha256) != sha256:
            return f"built from another {name} than the one in the bundle"
    return None


def _other_package(recipe: EngineRecipe, here: Machine) -> str | None:
    if recipe.package == here.package:
        return None
    found = (
        f"{PACKAGES[here.package]} {here.version}" if here.package else "neither TensorRT nor TensorRT-RTX"
    )
    return f"needs {_product(recipe)}, found {found}"


def _other_version(recipe: EngineRecipe, here: Machine) -> str | None:
    if recipe.version == here.version:
        return None
    if not recipe.flags.version_compatible:
        return f"needs {_product(recipe)} exactly, found {here.version}"
    built, found = _numbers(recipe.version), _numbers(here.version)
    # A compatible plan runs on later versions of its major; those of 10 on 11 as well (TensorRT's support matrix).
    if found >= built and (found[0] == built[0] or (built[0], found[0]) == (10, 11)):
        return None
    return f"needs {_product(recipe)} or a later version that is compatible with it, found {here.version}"


def _other_gpu(recipe: EngineRecipe, here: Machine) -> str | None:
    if here.gpu is None:
        return "needs an NVIDIA GPU, and none answers here"
    if recipe.platform not in ("any", here.platform):
        return f"needs {recipe.platform}, found {here.platform}"
    if recipe.targets:
        if here.gpu.compute_capability in recipe.targets:
            return None
        return f"needs compute capability {', '.join(recipe.targets)}, found {here.gpu}"
    if recipe.gpu is None or recipe.gpu.compute_capability == here.gpu.compute_capability:
        return None
    if recipe.flags.hardware != "ampere+":
        return f"built for {recipe.gpu}, found {here.gpu}"
    if _numbers(here.gpu.compute_capability) < (8, 0):
        return f"needs compute capability 8.0 or later, found {here.gpu}"
    return None


def _product(recipe: EngineRecipe) -> str:
    return f"{PACKAGES.get(recipe.package, recipe.package)} {recipe.version}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)) or (0,)
