"""Engines that fit a bundle and this machine: those in the bundle, and those that were built here and kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crossmost.runtime.engine_facts import EngineFacts, InvalidEngine, load_engine_facts
from crossmost.runtime.engine_loading import check_tensors
from crossmost.runtime.engine_preflight import Machine, is_of_other_gpu, preflight
from crossmost.runtime.manifest import InvalidBundle, Manifest, locate

GRAPH, WEIGHTS = "encoder.onnx", "weights.bin"
ENGINES = "engines"
"""The folder of engines, in a bundle and in the cache."""
TRUST = "CROSSMOST_TRUST_ENGINES"
"""Environment variable: a bundle's engines may run code of their own on the host."""

OTHER_GPU = "the engine was tuned on {}: one built here may be faster"


@dataclass(frozen=True)
class Candidate:
    """An engine that passed the preflight; its plan was not read yet.

    Attributes:
        path: of the plan.
        facts: of the plan.
        note: what one should know of it; empty where there is nothing.
    """

    path: Path
    facts: EngineFacts
    note: str = ""


@dataclass(frozen=True)
class Search:
    """What was found.

    Attributes:
        fitting: the best first: made for this GPU and version alone, then those that fit several, then those that were
            tuned on another GPU and have a note that says so.
        refused: a line for each of the others, with the command that rebuilds it.
        others: facts of those others, where they could be read.
    """

    fitting: tuple[Candidate, ...]
    refused: tuple[str, ...]
    others: tuple[EngineFacts, ...]


def cache_root() -> Path | None:
    """$CROSSMOST_CACHE, else `crossmost` in the user's cache folder; None where the system knows no place."""
    if given := os.environ.get("CROSSMOST_CACHE"):
        return Path(given).absolute()
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    folder = os.environ.get(variable, "")
    try:
        base = Path(folder) if Path(folder).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    return base / "crossmost"


def cache_folder() -> Path | None:
    """Where engines built on this machine are kept; None where the system knows no place."""
    root = cache_root()
    return None if root is None else root / ENGINES


def find_engines(bundle: Path, manifest: Manifest, here: Machine, cache: Path | None) -> Search:
    """Look for engines of the bundle's `encoder.onnx`; never raises for an engine that is damaged.

    Args:
        bundle: its folder.
        manifest: of the bundle.
        here: this machine.
        cache: folder of engines built here; those of other bundles in it are passed over.
    """
    fitting: list[Candidate] = []
    refused: list[str] = []
    others: list[EngineFacts] = []
    for path, own in _plans(bundle, cache):
        try:
            facts = load_engine_facts(path)
            if facts.recipe.graph != GRAPH or not (own or _is_of(facts, manifest)):
                continue
            why = _reason(path, facts, bundle, manifest, here)
            if why is None and own and facts.recipe.flags.version_compatible and os.environ.get(TRUST) != "1":
                why = (
                    f"{path} is version compatible, so it holds code that would run here: set {TRUST}=1 if you trust "
                    "whoever made the bundle"
                )
        except InvalidBundle as error:
            if own:
                refused.append(str(error))
            continue
        if why is None:
            note = OTHER_GPU.format(facts.recipe.gpu) if is_of_other_gpu(facts, here) else ""
            fitting.append(Candidate(path, facts, note))
        else:
            refused.append(why)
            others.append(facts)
    fitting.sort(key=lambda candidate: (bool(candidate.note), _reach(candidate.facts)))
    return Search(tuple(fitting), tuple(refused), tuple(others))


def _plans(bundle: Path, cache: Path | None) -> Iterator[tuple[Path, bool]]:
    """Every .engine file, and whether it is the bundle's; those built into a bundle later are in no manifest."""
    for folder, own in ((bundle / ENGINES, True), (cache, False)):
        if folder is None:
            continue
        try:
            paths = sorted(folder.glob("*.engine"))
        except OSError:
            continue
        yield from ((path, own) for path in paths)


def _is_of(facts: EngineFacts, manifest: Manifest) -> bool:
    made_of = {GRAPH: facts.recipe.onnx_sha256, **facts.recipe.weights}
    found = (manifest.files.get(name) for name in made_of)
    return all(
        file is not None and file.sha256 == own for file, own in zip(found, made_of.values(), strict=True)
    )


def _reason(path: Path, facts: EngineFacts, bundle: Path, manifest: Manifest, here: Machine) -> str | None:
    """Why an engine cannot be used, or None.

    Raises:
        InvalidBundle: its plan is not the one the manifest lists, is elsewhere, or has other tensors.
    """
    if path.is_relative_to(bundle):
        name = path.relative_to(bundle).as_posix()
        locate(bundle, name)
        listed = manifest.files.get(name)
        if listed is not None and listed.sha256 != facts.plan_sha256:
            raise InvalidEngine(f"{path}: expected the plan of the manifest, found the facts of another")
    files = {name: entry.sha256 for name, entry in manifest.files.items()}
    why = preflight(facts, here, files=files, bundle=str(bundle))
    if why is None:
        check_tensors(facts, manifest.encoder)
    return why


def _reach(facts: EngineFacts) -> int:
    """How much an engine gives up to run elsewhere, too."""
    recipe = facts.recipe
    return 2 * (recipe.flags.hardware != "none") + recipe.flags.version_compatible
