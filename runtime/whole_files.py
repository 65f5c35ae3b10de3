"""Files that are written whole or not at all: beside their destination first, then moved over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; what was written there becomes `path` if nothing failed.

    After a crash or on a full disk a reader finds the old file or the new one, never half of one. Two writers of one
    path at a time need a lock.

    Raises:
        OSError: the operating system refused something; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def sync(file: IO[bytes]) -> None:
    """Bring what was written to `file` to the disk: a full disk may only show here."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring renames to the disk where the system offers it; elsewhere they are still whole, and in order."""
    with suppress(OSError):  # Windows and some network file systems cannot open or sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one go, whole or not at all.

    Raises:
        OSError: see `replacing`.
    """
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(content)
        sync(file)
