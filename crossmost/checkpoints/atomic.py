"""Single files that are written whole or not at all.

The new content is written beside its destination, brought to the disk and moved over it: after a crash or on
a full disk a reader finds the old file or the new one, never half of one.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.errors import WorkFailed
from crossmost.runtime import whole_files
from crossmost.runtime.whole_files import sync, sync_folder

__all__ = [
    "failing_as_work",
    "json_line",
    "reason",
    "replacing",
    "save_arrays",
    "sync",
    "sync_folder",
    "write_json_atomic",
    "write_text_atomic",
]


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file (UTF-8), whole or not at all.

    Raises:
        WorkFailed: the file cannot be written; the one written before is untouched.
    """
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(text.encode("utf-8"))
        sync(file)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all; NaN and infinity, which JSON does not have, become null.

    Raises:
        WorkFailed: the file cannot be written; the one written before is untouched.
    """
    text = json.dumps(_without_nonfinite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")


def json_line(value: Any) -> str:
    """One line of JSON; NaN and infinity become null."""
    return json.dumps(_without_nonfinite(value), ensure_ascii=False, allow_nan=False)


def shown_json(value: Any) -> str:
    """One line of JSON for the screen, in letters that its encoding has: others are escaped as JSON does it."""
    if "utf" in (sys.stdout.encoding or "").lower():
        return json_line(value)
    return json.dumps(_without_nonfinite(value), allow_nan=False)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a .npz archive, whole or not at all.

    Raises:
        WorkFailed: the file cannot be written; the one written before is untouched.
    """
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
        sync(file)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; what was written there becomes `path` if nothing failed.

    Raises:
        WorkFailed: the operating system refused something; `path` is as it was.
    """
    with (
        failing_as_work(f"cannot save {path}", "what was there before is untouched"),
        whole_files.replacing(path) as partial,
    ):
        yield partial


@contextmanager
def failing_as_work(what: str, remains: str) -> Iterator[None]:
    """Turn an OSError into a one-line WorkFailed: what failed, why, and what remains."""
    try:
        yield
    except OSError as error:
        raise WorkFailed(f"{what}: {reason(error)}; {remains}") from error


def reason(error: Exception) -> str:
    """One line: what the operating system says, or the first line of a library's message."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.partition("\n")[0]


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
