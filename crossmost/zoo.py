"""A base of each public point encoder: found by its name, made from the published file once, and kept.

What there is: `crossmost.zoo_models`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from crossmost.errors import InputError, WorkFailed
from crossmost.zoo_models import HubFile, Model, PageFile, find, list_models

if TYPE_CHECKING:
    from crossmost.checkpoints.base import Architecture

__all__ = ["Model", "base_path", "download_path", "facts", "fetch", "find", "kept", "list_models", "resolve"]

Say = Callable[[str], None]


def facts(model: Model) -> dict[str, Any]:
    """Everything about a public encoder in JSON types, its card's conventions and the base in the cache among it."""
    card = model.card
    base = base_path(model.name)
    own = asdict(model)
    own["file"] = {"name": model.file.name, "url": model.file.url, **own["file"]}
    conventions = {
        "points": card.points,
        "groups": card.groups,
        "neighbors": card.neighbors,
        "radius": card.radius,
        "channels": card.channels,
        "color_filler": card.color_filler if card.channels == 6 else None,
        "up_axis": card.up_axis,
    }
    return {
        **own,
        "card": card.name,
        "conventions": conventions,
        "base": str(base) if base.is_file() else None,
    }


def resolve(base: Path, say: Say = lambda _: None) -> Path:
    """What the user means by a base: a path that exists, or the name of a public encoder, which is fetched.

    Args:
        base: as it was given; anything with a folder or a suffix is a path, whether or not it exists.
        say: told what takes a while.

    Raises:
        InputError: neither path nor name.
        WorkFailed: it cannot be fetched.
    """
    if base.exists() or len(base.parts) != 1 or base.suffix:
        return base
    try:
        model = find(base.name)
    except InputError as error:
        raise InputError(f"{base}: nothing there, and {error}") from error
    return fetch(model.name, say)


def kept(base: Path) -> Path:
    """What the user means by a base that is looked at and not used: nothing is fetched for it.

    Args:
        base: as it was given.

    Raises:
        InputError: the name of a public encoder whose base is not in the cache.
        WorkFailed: this machine has no place for it.
    """
    name = str(base)
    if base.exists() or name not in [model.name for model in list_models()]:
        return base
    found = base_path(name)
    if not found.is_file():
        raise InputError(
            f"{name} is not in the cache yet: `crossmost zoo {name}` tells about it, and commands that use it fetch it"
        )
    return found


def fetch(name: str, say: Say = lambda _: None) -> Path:
    """The base of a public encoder: the one in the cache, or made from the published file, once.

    It is made anew where card, entry or converter have changed since. Processes that want the same one at the same time
    wait for the first.

    Args:
        name: of the encoder.
        say: told what takes a while.

    Raises:
        InputError: no such encoder, a file that is not the published one, or one that a person has to download.
        WorkFailed: it cannot be downloaded or written; the message names the file and where to put it.
    """
    model = find(name)
    base = base_path(name)
    if _is_current(model, base):
        return base
    with _alone(base):
        if _is_current(model, base):
            return base
        if base.is_file():
            say(f"{base} is not as this version of crossmost makes it: making it anew")
        checkpoint = _published(model, say)
        say(f"converting {checkpoint}")
        _convert(model, checkpoint, base)
    return base


def _is_current(model: Model, base: Path) -> bool:
    """Whether a base is there, and is what would be made of the published file now."""
    if not base.is_file():
        return False
    from crossmost.checkpoints.base import FORMAT, read_architecture
    from crossmost.checkpoints.conversion import VERSION
    from crossmost.checkpoints.store import load_metadata

    try:
        metadata = load_metadata(base)
        architecture = read_architecture(metadata, base, FORMAT)
    except InputError:  # damaged, or of another format
        return False
    return _is_of(model, architecture) and metadata.get("converter") == VERSION


def _is_of(model: Model, architecture: Architecture) -> bool:
    return (architecture.point, architecture.dim, architecture.text) == (model.card, model.dim, model.text)


def _convert(model: Model, checkpoint: Path, base: Path) -> None:
    """Make the base, and put it into its place if it is the encoder's.

    Raises:
        InputError: the file is of another encoder, or of none.
        WorkFailed: the base cannot be written.
    """
    from crossmost.checkpoints.atomic import failing_as_work
    from crossmost.checkpoints.convert import convert_checkpoint
    from crossmost.checkpoints.layouts import LAYOUTS

    # No name is forced: the file says what it is, and its own layout comes first where it fits several.
    layouts = sorted(LAYOUTS, key=lambda layout: layout.card.name != model.name)
    with (
        failing_as_work(f"cannot write to {base.parent}", "set CROSSMOST_CACHE to another folder"),
        TemporaryDirectory(dir=base.parent, prefix=f".{base.stem}.") as folder,
    ):
        made = convert_checkpoint(checkpoint, Path(folder) / base.name, layouts=layouts)
        if not _is_of(model, made.architecture):
            point, _, dim, text = made.architecture
            raise InputError(
                f"{checkpoint}: expected the weights of {model.name} ({model.dim} numbers, aligned with {model.text}), "
                f"found those of {made.title} ({point.name}: {dim} numbers, aligned with {text}): {_by_hand(model)}"
            )
        made.out.replace(base)


def base_path(name: str) -> Path:
    """Where the base of a public encoder is kept, whether or not it is there.

    Raises:
        WorkFailed: this machine has no place for it.
    """
    return _cache() / "bases" / f"{name}.safetensors"


def download_path(model: Model) -> Path:
    """Where a checkpoint that a person downloaded is looked for.

    Raises:
        WorkFailed: this machine has no place for it.
    """
    return _cache() / "downloads" / model.name / model.file.name


def _cache() -> Path:
    from crossmost.runtime.engine_cache import cache_root

    root = cache_root()
    if root is None:
        raise WorkFailed("this user has no folder for caches: set CROSSMOST_CACHE to one")
    return root


@contextmanager
def _alone(base: Path) -> Iterator[None]:
    """Keep other processes that want the same base waiting."""
    from filelock import FileLock

    from crossmost.checkpoints.atomic import failing_as_work

    with failing_as_work(f"cannot write to {base.parent}", "set CROSSMOST_CACHE to another folder"):
        base.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(base.with_name(f".{base.stem}.lock"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _placed(model: Model) -> Path | None:
    """The checkpoint that a person put into the cache, if there is one.

    Raises:
        InputError: there is none, and only a person can download it.
    """
    placed = download_path(model)
    if placed.is_file():
        return placed
    if isinstance(model.file, PageFile):
        raise InputError(f"{model.name} has to be downloaded by hand: {_by_hand(model)}")
    return None


def _download(model: Model, say: Say, *, again: bool = False) -> Path:
    """The checkpoint in Hugging Face's own cache, downloaded if it is not there yet, or `again`.

    Raises:
        WorkFailed: it is not there and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    file = model.file
    assert isinstance(file, HubFile)
    say(f"fetching {file.url}")
    try:
        with _silent_hub():
            found = hf_hub_download(
                file.repo, file.path, repo_type=file.kind, revision=file.revision, force_download=again
            )
    except Exception as error:  # each version of the library lets others of its network layer through
        raise WorkFailed(
            f"cannot fetch {model.name}: {_reason(error)}; without a network, {_by_hand(model)}"
        ) from error
    return Path(found)


def _reason(error: BaseException) -> str:
    """The first line of an error, and that of what it came from, which the library's own words leave out."""
    said = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    cause = error.__cause__ or error.__context__
    while cause is not None and (deeper := cause.__cause__ or cause.__context__):
        cause = deeper
    first = "" if cause is None else str(cause).partition("\n")[0].rstrip(".")
    return f"{said} ({first})" if first and first not in said else said


@contextmanager
def _silent_hub() -> Iterator[None]:
    """Leave out the library's warnings of each try: the last one is the error."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _by_hand(model: Model) -> str:
    return f"download {model.file.url} and put it at {download_path(model)}; it is found there and converted"


def _published(model: Model, say: Say) -> Path:
    """The published checkpoint, from where a person put it or from the hub.

    Raises:
        InputError: it has to be put there, or another file lies there: another sha256 than the one publicly known.
        WorkFailed: it cannot be downloaded.
    """
    placed = _placed(model)
    checkpoint = placed or _download(model, say)
    right = _is_published(model, checkpoint)
    if not right and placed is None:
        # Asked to delete it, a person could not: the hub's cache links its damaged copy anew.
        say(f"{checkpoint} is damaged")
        checkpoint = _download(model, say, again=True)
        right = _is_published(model, checkpoint)
    if not right:
        raise InputError(
            f"{checkpoint} is not the published {model.name}: expected sha256 {model.sha256}, found another: "
            "delete it, or convert it as it is with `crossmost convert`"
        )
    return checkpoint


def _is_published(model: Model, checkpoint: Path) -> bool:
    """Whether a file is the published one, as far as its sha256 is publicly known."""
    from crossmost.runtime.manifest import hash_file

    return model.sha256 is None or hash_file(checkpoint).sha256 == model.sha256
