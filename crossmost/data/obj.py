"""Colours that .obj writers put behind a vertex as 0..255, where trimesh expects 0..1 and cuts off what is above."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from crossmost.errors import InputError
from crossmost.runtime.colors import NotColors, unit_colors

_COLORED = re.compile(rb"^([ \t]*v(?:[ \t]+[^\s#]+){3})((?:[ \t]+[^\s#]+){3})[ \t\r]*$", re.MULTILINE)
"""A vertex with three numbers behind its coordinates."""


def with_unit_colors(path: Path) -> bytes | None:
    """The text of a .obj with its vertex colours as 0..1; None where it has none or they are that already.

    Raises:
        InputError: numbers behind the coordinates that are no colours.
    """
    if not _first_vertex_is_colored(path):
        return None
    text = path.read_bytes()
    stored = np.array([colors.split() for _, colors in _COLORED.findall(text)], dtype=np.float64)
    try:
        unit, found = unit_colors(stored)
    except NotColors as error:
        raise InputError(f"{error} behind the vertices") from None
    if found.unit:
        return None
    rows = iter(unit.tolist())
    return _COLORED.sub(lambda match: match[1] + b" %.6f %.6f %.6f" % tuple(next(rows)), text)


def _first_vertex_is_colored(path: Path) -> bool:
    """Whether colours are to be looked for at all: either all vertices have one or none has."""
    with path.open("rb") as file:
        first = next((line for line in file if line.split(None, 1)[:1] == [b"v"]), b"")
    return _COLORED.match(first.rstrip(b"\n")) is not None
