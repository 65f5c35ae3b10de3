"""The .pcd files of every version and writer, brought to the one form that pypcd4 reads."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossmost.errors import InputError

LONGEST_LINE = 4096
MOST_LINES = 1000
"""Of a header: binary data that begins none ends neither."""


class _Stored(NamedTuple):
    """A file's parts: the words of each header line by its first one, and what follows the header."""

    header: dict[str, list[str]]
    body: bytes


def read_fields(path: Path) -> dict[str, NDArray[Any]]:
    """Read the columns of a .pcd by name; fields of several numbers and padding (`_`) are left out.

    What older files leave out has the meaning that PCL gives it: fields of one float32 each, as many points as width
    times height.

    Args:
        path: ascii, binary or binary_compressed.

    Raises:
        InputError: a header without fields or number of points, or another number of points than it says.
        Exception: whatever pypcd4 raises for damage.
    """
    import pypcd4

    header, body = _parts(path)
    names = header.get("FIELDS") or header.get("COLUMNS")  # the name of it before version 0.6
    if not names:
        raise InputError(f"expected a header with a line FIELDS, found {' '.join(header) or 'none'}")
    counts = header.get("COUNT") or ["1"] * len(names)
    points = _points(header)
    kind = header["DATA"][0].lower()
    plain = "\n".join(
        [
            "VERSION 0.7",
            # Names of our own: pypcd4 stumbles over brackets and the like, and over one that comes twice.
            "FIELDS " + " ".join(f"f{number}" for number in range(len(names))),
            "SIZE " + " ".join(header.get("SIZE") or ["4"] * len(names)),
            "TYPE " + " ".join(header.get("TYPE") or ["F"] * len(names)).upper(),
            "COUNT " + " ".join(counts),
            f"WIDTH {points}",
            "HEIGHT 1",
            "VIEWPOINT 0 0 0 1 0 0 0",
            f"POINTS {points}",
            f"DATA {kind}\n",
        ]
    )
    content = plain.encode("ascii") + (_single_spaced(body) if kind == "ascii" else body)
    rows = np.atleast_1d(pypcd4.PointCloud.from_fileobj(io.BufferedReader(io.BytesIO(content))).pc_data)
    if len(rows) != points:
        raise InputError(f"expected {points} points as its header says, found {len(rows)}: copy it again")
    fields: dict[str, NDArray[Any]] = {}
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        if int(count) == 1 and name != "_":
            fields.setdefault(name, rows[f"f{number}"])
    return fields


def _parts(path: Path) -> _Stored:
    header: dict[str, list[str]] = {}
    with path.open("rb") as file:
        for _ in range(MOST_LINES):
            line = file.readline(LONGEST_LINE)
            words = line.decode("latin-1").split()
            if words and not words[0].startswith("#"):
                header[words[0].upper()] = words[1:]
            if "DATA" in header or not line:
                break
        return _Stored(header, file.read())


def _points(header: dict[str, list[str]]) -> int:
    """How many points the header promises."""
    if "POINTS" in header:
        return int(header["POINTS"][0])
    if "WIDTH" in header:
        return int(header["WIDTH"][0]) * int(header.get("HEIGHT", ["1"])[0])
    raise InputError(f"expected a header with a line POINTS or WIDTH, found {' '.join(header)}")


def _single_spaced(text: bytes) -> bytes:
    """Rows of numbers with one blank between two and none around them."""
    return re.sub(rb" ?[\r\n]+ ?", b"\n", re.sub(rb"[ \t]+", b" ", text)).strip(b" \n") + b"\n"
