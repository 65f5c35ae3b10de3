"""Locks between processes, so that two of them do not build the same thing at once."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock that a file stands for; the file stays, the lock goes with the process at the latest.

    Args:
        path: of the file, in a folder that exists.
        seconds: how long to wait for others.

    Raises:
        OSError: the file cannot be made, or others held it for too long (`TimeoutError`).
        ModuleNotFoundError: filelock, which comes with the extras that train or build engines, is not installed.
    """
    filelock = importlib.import_module("filelock")
    lock = filelock.FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise TimeoutError(errno.ETIMEDOUT, "held by another process", str(path)) from None
    try:
        yield
    finally:
        lock.release()
