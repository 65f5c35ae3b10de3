"""A bundle is written whole or not at all, and replaced in one piece.

It is made in a hidden folder beside its destination, `.NAME.partial-PID`, and renamed once every file of it is
on the disk. Replacing one takes two renames: the bundle there before becomes `.NAME.old-PID`, the new one
takes its place, and only then is the old one removed. A crash between the two leaves no `NAME`, and both the
old bundle and the new one whole beside it: the next export to `NAME` puts the old one back before it does
anything else, and `mv .NAME.old-PID NAME` does the same by hand. One process at a time exports to one place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from crossmost.checkpoints.atomic import failing_as_work, sync, sync_folder, write_json_atomic
from crossmost.errors import InputError
from crossmost.runtime.manifest import MANIFEST, InvalidBundle, Manifest, hash_file, load_manifest, locate

ENGINES = "engines"
"""The folder of a bundle that may hold files of no manifest: engines that were built after the export."""


def write_bundle(out: Path, build: Callable[[Path], Manifest], *, overwrite: bool = False) -> Manifest:
    """Make a bundle; a failure or an interruption leaves nothing new, and what was there before untouched.

    Args:
        out: the bundle's folder; missing parents are made.
        build: fills the empty folder it is given and returns the manifest, whose `files` are filled in here.
        overwrite: whether a bundle at `out` is replaced.

    Returns:
        The manifest as `load_manifest` reads it.

    Raises:
        InputError: something is at `out` that may not be replaced.
        WorkFailed: the files cannot be written.
        InvalidBundle: `build` left files or a manifest that no runtime would read.
    """
    out = Path(os.path.realpath(out))  # what a link names is replaced, not the link
    partial = _beside(out, "partial")
    failing = failing_as_work(f"cannot write the bundle {out}", "what was there before is untouched")
    with failing, _made_parents(out):
        _finish_interrupted(out)
        _check_destination(out, overwrite)
        try:
            partial.mkdir()
            manifest = _fill(partial, build)
            _swap(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _fill(partial: Path, build: Callable[[Path], Manifest]) -> Manifest:
    manifest = build(partial)
    names = sorted(path.relative_to(partial).as_posix() for path in _walk_files(partial))
    files = {name: hash_file(locate(partial, name)) for name in names}
    write_json_atomic(partial / MANIFEST, replace(manifest, files=files).to_dict())
    for path in _walk_files(partial):
        with open(path, "rb+") as file:
            sync(file)
    for folder, _, _ in os.walk(partial):
        sync_folder(Path(folder))
    return load_manifest(partial)


def _swap(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`; what was at `out` ends as `partial`, or at `out` again if that fails."""
    old = _beside(out, "old")
    try:
        if out.exists():
            os.rename(out, old)
        os.rename(partial, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    sync_folder(out.parent)
    # From here on it is nothing to put back: under the other name it may be removed in pieces.
    with suppress(OSError):
        os.rename(old, partial)


def _check_destination(out: Path, overwrite: bool) -> None:
    """Refuse to replace anything but a bundle, and a bundle in which somebody keeps files of their own."""
    if not os.path.lexists(out):
        return
    elsewhere = "choose another --out, or move it away"
    if not overwrite:
        raise InputError(
            f"{out}: expected a new folder, found one that exists: add --overwrite, or {elsewhere}"
        )
    try:
        listed = {MANIFEST, *load_manifest(out).files}
    except InvalidBundle as error:
        raise InputError(f"expected a bundle to overwrite: {elsewhere} ({error})") from None
    names = (path.relative_to(out).as_posix() for path in _walk_files(out))
    foreign = next(
        (name for name in names if name not in listed and not name.startswith(f"{ENGINES}/")), None
    )
    if foreign is not None:
        raise InputError(
            f"{out}: expected only files of the bundle to overwrite, found {foreign}: {elsewhere}"
        )


def _finish_interrupted(out: Path) -> None:
    """Put back a bundle that a crash left renamed, and remove what dead processes left."""
    for old in _left_behind(out, "old"):
        if not os.path.lexists(out):
            os.rename(old, out)
        else:
            shutil.rmtree(old, ignore_errors=True)
    for partial in _left_behind(out, "partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _left_behind(out: Path, what: str) -> list[Path]:
    prefix = f".{out.name}.{what}-"
    found = (path for path in out.parent.iterdir() if path.name.startswith(prefix))
    return sorted(path for path in found if not _is_alive(path.name.removeprefix(prefix)))


def _is_alive(process: str) -> bool:
    """Whether another process may be at work; one of our own number is not, whoever had it before."""
    if not process.isdecimal():
        return True  # no name of ours
    if int(process) == os.getpid():
        return False
    if os.name == "nt":  # there, signal 0 is Ctrl-C and not a question
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # alive, and somebody else's
        return True
    return True


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}.{what}-{os.getpid()}")


def _walk_files(folder: Path) -> Iterator[Path]:
    """Everything in a folder that is not a folder; links to folders count as files, and are not followed."""
    for top, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(top) / name).is_symlink()]
        yield from (Path(top) / name for name in sorted([*files, *links]))


@contextmanager
def _made_parents(out: Path) -> Iterator[None]:
    """Make the folders that `out` is to lie in; those that were made go again after a failure."""
    missing = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:  # the innermost comes first
            with suppress(OSError):
                parent.rmdir()
        raise
