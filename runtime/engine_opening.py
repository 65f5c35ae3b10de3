"""The engine a backend runs: the best one that fits and loads or, where that is wanted, one that is built here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossmost.runtime.backend import BackendUnavailable
from crossmost.runtime.engine_cache import GRAPH, Candidate, Search, find_engines
from crossmost.runtime.engine_errors import EngineBuildFailed
from crossmost.runtime.engine_facts import EngineFacts, this_platform
from crossmost.runtime.engine_loading import EngineFailed, LoadedEngine, load_engine
from crossmost.runtime.engine_packages import TensorRt
from crossmost.runtime.engine_preflight import Machine, export_command
from crossmost.runtime.engine_rebuild import check_graph, rebuild_engine
from crossmost.runtime.manifest import InvalidBundle, Manifest


@dataclass(frozen=True)
class OpenedEngine:
    """An engine, where it came from, and what the user should know about that."""

    engine: LoadedEngine
    origin: str
    notes: tuple[str, ...] = ()


def open_engine(
    bundle: Path, manifest: Manifest, tensorrt: TensorRt, *, cache: Path | None, rebuild: bool
) -> OpenedEngine:
    """Load an engine for the GPU whose context is current.

    Args:
        bundle: its folder.
        manifest: of the bundle.
        tensorrt: what loads it, and its GPU.
        cache: folder of engines built and kernels compiled here; None for none.
        rebuild: whether one is built where none fits, or only one that was tuned on another GPU.

    Raises:
        BackendUnavailable: why, and the command that builds an engine.
        InvalidBundle: the graph that is to be built or its weights are damaged.
    """
    search = _search(bundle, manifest, tensorrt, cache)
    refused = list(search.refused)

    def load_first(candidates: Sequence[Candidate], *notes: str) -> OpenedEngine | None:
        for found in candidates:
            try:
                plan = found.path.read_bytes()
                engine = _load(bundle, manifest, tensorrt, plan, found.facts, cache)
                return OpenedEngine(engine, str(found.path), tuple(filter(None, (found.note, *notes))))
            except (EngineFailed, InvalidBundle) as error:
                refused.append(str(error))
            except OSError as error:
                refused.append(f"{found.path}: {error.strerror or error}")
        return None

    foreign = [found for found in search.fitting if found.note]
    opened = load_first([found for found in search.fitting if not (rebuild and found.note)])
    if opened is not None:
        return opened
    if rebuild:
        try:
            return _build(bundle, manifest, tensorrt, cache, search)
        except BackendUnavailable as error:
            if (opened := load_first(foreign, str(error))) is not None:
                return opened
            raise
    if not refused:
        command = export_command("RUN", str(bundle), manifest.precision, tensorrt.package, manifest.files)
        refused = [f"there is no engine of {GRAPH} for {tensorrt}; build one: {command}"]
    here = shlex.join(["crossmost", "doctor", str(bundle), "--rebuild"])
    raise BackendUnavailable(
        f"{'; '.join(refused)}; or on this machine: {here}, in Python load with rebuild=True"
    )


def _search(bundle: Path, manifest: Manifest, tensorrt: TensorRt, cache: Path | None) -> Search:
    here = Machine(tensorrt.package, tensorrt.version, tensorrt.gpu, this_platform())
    return find_engines(bundle, manifest, here, cache)


def _load(
    bundle: Path,
    manifest: Manifest,
    tensorrt: TensorRt,
    plan: bytes,
    facts: EngineFacts,
    cache: Path | None,
) -> LoadedEngine:
    if facts.recipe.flags.strip_weights:
        check_graph(bundle, manifest)
    return load_engine(tensorrt, plan, facts, bundle / GRAPH, cache)


def _build(
    bundle: Path, manifest: Manifest, tensorrt: TensorRt, cache: Path | None, search: Search
) -> OpenedEngine:
    tried = {found.path for found in search.fitting}  # they did not load, or were tuned on another GPU

    def look() -> Candidate | None:
        again = _search(bundle, manifest, tensorrt, cache)
        return next((found for found in again.fitting if found.path not in tried), None)

    foreign = [found.facts for found in search.fitting if found.note]
    like = next(iter([*foreign, *search.others]), None)
    try:
        built = rebuild_engine(bundle, manifest, tensorrt, like, cache, look)
        engine = _load(bundle, manifest, tensorrt, built.plan, built.facts, cache)
    except (EngineBuildFailed, EngineFailed) as error:
        raise BackendUnavailable(f"no engine could be built here: {error}") from error
    return OpenedEngine(engine, f"built from {bundle / GRAPH}", built.notes)
