"""Where a file is to be written, looked at before the work that makes it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from crossmost.errors import InputError


def check_utf8(path: Path) -> None:
    """Refuse a path that safetensors and torch cannot open, though the system can.

    Raises:
        InputError: bytes that are not UTF-8.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"expected a path in UTF-8, found {path}: rename it, or choose another place"
        ) from None


def check_destination(out: Path, suffix: str, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse a place where nothing can be written, or where something would be lost.

    Args:
        out: the file to write.
        suffix: what its name has to end in.
        inputs: what the work reads, whether or not it is there.
        overwrite: whether another file may be replaced; an input never is.

    Raises:
        InputError: another suffix, no folder around it, a folder or an input in its place, a file that may not be
            replaced, or a path that is not UTF-8.
    """
    check_utf8(out)
    if out.suffix != suffix:
        raise InputError(f"expected a {suffix} to write, found {out}: choose another name")
    if not out.parent.is_dir():
        raise InputError(f"expected a folder at {out.parent}, found none: make it first")
    if out.is_dir():
        raise InputError(f"expected a new file to write, found a folder at {out}: choose another name")
    if not out.exists():
        return
    for path in inputs:
        # Not Path.exists, which raises where a list of class names is too long for a file's.
        if os.path.exists(path) and out.samefile(path):
            raise InputError(f"expected a new file to write, found {path} at {out}: choose another name")
    if not overwrite:
        raise InputError(f"{out} exists: give --overwrite to replace it")
