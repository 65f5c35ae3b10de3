"""Building an engine from a bundle's ONNX graph on the machine that will run it, and keeping it there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from crossmost.runtime.engine_builder import Engine, GraphSource, build_engine, write_engine
from crossmost.runtime.engine_cache import GRAPH, WEIGHTS, Candidate
from crossmost.runtime.engine_errors import EngineBuildFailed
from crossmost.runtime.engine_facts import EngineFacts
from crossmost.runtime.engine_network import known_targets
from crossmost.runtime.engine_options import EngineOptions, Profile
from crossmost.runtime.engine_packages import TensorRt
from crossmost.runtime.file_locks import locked
from crossmost.runtime.manifest import Manifest, check_files

BATCH = Profile(1, 8, 64)
"""The batches of `crossmost export` where nobody asked for others."""

LOCK_SECONDS = 1800
"""Another process that holds the lock is building an engine, most likely this one."""


@dataclass(frozen=True)
class Rebuilt:
    """An engine that was built here or, while this process waited, by another.

    Attributes:
        plan: the plan.
        facts: of the plan.
        notes: why it could not be kept, or nothing.
    """

    plan: bytes
    facts: EngineFacts
    notes: tuple[str, ...] = ()


def rebuild_engine(
    bundle: Path,
    manifest: Manifest,
    tensorrt: TensorRt,
    like: EngineFacts | None,
    cache: Path | None,
    look: Callable[[], Candidate | None],
) -> Rebuilt:
    """Build an engine of `encoder.onnx`, for the GPU whose context is current, into the cache.

    Where it cannot be kept it is used all the same.

    Args:
        bundle: its folder.
        manifest: of the bundle.
        tensorrt: what builds, and will load it.
        like: an engine whose batches and options are taken over; what it gave up to run elsewhere is not.
        cache: folder for it; None to keep it nowhere.
        look: finds an engine that fits, if another process has built one meanwhile.

    Raises:
        InvalidBundle: the graph or its weights are not those of the manifest.
        EngineBuildFailed: TensorRT cannot build it, or not for this GPU.
    """
    _check_target(tensorrt)
    check_graph(bundle, manifest)
    if cache is None:
        return _rebuilt(_build(bundle, manifest, tensorrt, like), ("it has no folder to be kept in",))
    with ExitStack() as held:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(cache / "build.lock", LOCK_SECONDS))
        except (OSError, ModuleNotFoundError) as error:
            engine = _build(bundle, manifest, tensorrt, like)
            return _rebuilt(engine, (_why(cache, error),))
        found = look()
        if found is not None:
            return Rebuilt(found.path.read_bytes(), found.facts)
        engine = _build(bundle, manifest, tensorrt, like)
        try:
            write_engine(cache, engine)
        except OSError as error:
            return _rebuilt(engine, (_why(cache, error),))
        return _rebuilt(engine)


def check_graph(bundle: Path, manifest: Manifest) -> None:
    """Compare `encoder.onnx` and its weights, where it has some outside, with the manifest.

    Raises:
        InvalidBundle: one of them is another.
    """
    check_files(bundle, manifest, [GRAPH, *({WEIGHTS} & manifest.files.keys())])


def _check_target(tensorrt: TensorRt) -> None:
    """Refuse a GPU that no plan of this TensorRT would run on, before the work is done."""
    targets = known_targets(tensorrt)
    if targets and tensorrt.gpu is not None and tensorrt.gpu.compute_capability not in targets:
        raise EngineBuildFailed(
            f"{tensorrt} builds for compute capability {', '.join(targets)}, found {tensorrt.gpu}: use TensorRT"
        )


def _build(bundle: Path, manifest: Manifest, tensorrt: TensorRt, like: EngineFacts | None) -> Engine:
    weights = {WEIGHTS: manifest.files[WEIGHTS].sha256} if WEIGHTS in manifest.files else {}
    source = GraphSource(manifest.files[GRAPH].sha256, weights, manifest.precision)
    profile, options = BATCH, EngineOptions()
    if like is not None:
        flags = like.recipe.flags
        profile = Profile(*like.recipe.profile.get("batch", BATCH.sizes))
        options = EngineOptions(
            optimization_level=flags.optimization_level, workspace_bytes=flags.workspace_bytes
        )
    return build_engine(bundle / GRAPH, source, tensorrt, profile, options)


def _rebuilt(engine: Engine, unkept: tuple[str, ...] = ()) -> Rebuilt:
    notes = [f"the engine was built and not kept, and will be built again next time: {why}" for why in unkept]
    return Rebuilt(engine.plan, engine.facts, (*notes, *engine.notes))


def _why(cache: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{cache}: {reason}"
