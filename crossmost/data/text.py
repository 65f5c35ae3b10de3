"""Clouds as plain text, one point a line: .xyz and .pts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossmost.errors import InputError

_COMMENT = re.compile(r"(#|//).*")
_BETWEEN = str.maketrans(",;", "  ")
"""What stands between numbers, to blanks."""
_DIGITS_AROUND_COMMA = re.compile(r"\d,\d")
_MAYBE_ONE_NUMBER = re.compile(r"[-+]?\d+,\d+(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
"""Two numbers, or one with a decimal comma or a thousands separator."""


class Rows(NamedTuple):
    """The numbers of a text file, (N, C) float64, and the C words of the line above them in lower case, or none."""

    values: NDArray[Any]
    names: tuple[str, ...]


def read_rows(path: Path) -> Rows:
    """Read the numbers of a text file, a row a line: blanks, tabs, commas or semicolons stand between them.

    Comments behind `#` or `//` are passed over, and so are the number of points that .pts files, and some .xyz files,
    begin with, and a line above the numbers that has not a word for each column.

    Args:
        path: of the file.

    Returns:
        The rows, and what the file calls its columns.

    Raises:
        InputError: no rows, other rows than their number says, rows of different lengths or of something else than
            numbers, commas that may be decimal ones, or bytes that are no text.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("expected text, found other bytes") from None
    lines = [_COMMENT.sub("", line) for line in text.splitlines()]
    if _DIGITS_AROUND_COMMA.search(text):
        _refuse_decimal_commas(lines)
    lines = [line.translate(_BETWEEN).strip() for line in lines]
    lines = [line for line in lines if line]
    counted = int(lines.pop(0)) if lines and lines[0].isdecimal() else None
    names = lines.pop(0).lower().split() if lines and not _is_row(lines[0]) else []
    if not lines:
        raise InputError("expected a point a line, found none")
    if counted is not None and counted != len(lines):
        raise InputError(
            f"expected {counted} points as its first line says, found {len(lines)}: copy it again"
        )
    try:
        values = np.loadtxt(lines, ndmin=2)
    except ValueError:
        wide = len(lines[0].split())
        for number, line in enumerate(lines, 1):
            if len(line.split()) != wide or not _is_row(line):
                raise InputError(
                    f"expected {wide} numbers a line, found {line[:40]!r} for point {number}"
                ) from None
        raise
    return Rows(values, tuple(names) if len(names) == values.shape[1] else ())


def _refuse_decimal_commas(lines: list[str]) -> None:
    """Refuse a line like `1,5;2,3;3,1`, which would be read as six numbers where it may be three.

    In `1,2,3`, `1, 2, 3` and `1,2,3 255 0 0` no comma can be part of a number.
    """
    for line in lines:
        words = line.replace(";", " ").split()
        commas = [word for word in words if "," in word] if len(words) > 1 else []
        if commas and all(map(_MAYBE_ONE_NUMBER.fullmatch, commas)):
            raise InputError(
                f"expected numbers with decimal points, found {line.strip()[:40]!r}, whose commas may be decimal: "
                "write points, or nothing but commas between numbers"
            )


def _is_row(line: str) -> bool:
    """Whether a line holds numbers alone, and not the names of columns."""
    try:
        return bool([float(word) for word in line.split()])
    except ValueError:
        return False
