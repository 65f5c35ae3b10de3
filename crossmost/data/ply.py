""".ply files: clouds by plyfile, meshes by trimesh, and a header that neither stumbles over."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.data.columns import Cloud, cloud_from_fields, color_names, decode_colors
from crossmost.data.meshes import read_mesh
from crossmost.errors import InputError

TRIMESH_COLORS = {"uchar", "uint8"}
"""Types of vertex colours that trimesh reads rightly: of integers it keeps the last byte, floats it takes for 0..1."""


@dataclass(frozen=True)
class Header:
    """What is needed of a file before a library reads it.

    Attributes:
        text: the header's own bytes, the line `end_header` included.
        faces: how many it promises.
        vertex: type of each property of a vertex, by name; "list" for a list.
    """

    text: bytes
    faces: int
    vertex: Mapping[str, str]

    @property
    def foreign_colors(self) -> bool:
        """Whether the vertices have colours that trimesh does not read, or not rightly."""
        names = color_names(self.vertex)
        return names is not None and not (
            names == ("red", "green", "blue") and {self.vertex[name] for name in names} <= TRIMESH_COLORS
        )


def read_ply(path: Path, samples: int) -> Cloud:
    """Read the vertices of a .ply, or sample its faces where it has some.

    Args:
        path: ascii or binary, either byte order.
        samples: points drawn from a mesh.

    Raises:
        InputError: no .ply, no vertices, or what `read_mesh` raises.
        Exception: whatever the libraries raise for damage.
    """
    header = read_header(path)
    content = None
    if not header.text.isascii():  # a comment in another language, which both libraries refuse
        ascii_text = header.text.decode("latin-1").encode("ascii", "replace")
        content = ascii_text + path.read_bytes()[len(ascii_text) :]
    if not header.faces:
        return cloud_from_fields(_vertices(path, content))
    colors = None
    if header.foreign_colors:
        vertices = _vertices(path, content)
        names = color_names(vertices) or ()
        unit, _ = decode_colors(np.stack([vertices[name] for name in names], axis=1))
        colors = np.rint(unit * 255).astype(np.uint8)
    return read_mesh(path, samples, header.faces, content=content, colors=colors)


def read_header(path: Path) -> Header:
    """Read a .ply's header.

    Raises:
        InputError: the file does not begin as one.
    """
    element, faces, lines, vertex = b"", 0, [], {}
    with path.open("rb") as file:
        lines.append(file.readline(16))
        if lines[0].strip() != b"ply":
            raise InputError("expected a .ply file, its first line is not 'ply'")
        for _ in range(1000):  # a header is a few dozen lines; binary data never ends one
            line = file.readline(4096)
            lines.append(line)
            words = line.split()
            if words[:1] == [b"end_header"] or not line:
                break
            if words[:1] == [b"element"] and len(words) > 2:
                element = words[1]
                if element == b"face" and words[2].isdigit():
                    faces = int(words[2])
            elif words[:1] == [b"property"] and element == b"vertex":
                vertex[words[-1].decode("latin-1")] = words[1].decode("latin-1")
    return Header(b"".join(lines), faces, vertex)


def _vertices(path: Path, content: bytes | None) -> dict[str, NDArray[Any]]:
    """The columns of the vertices, by name."""
    import plyfile

    source = str(path) if content is None else io.BytesIO(content)
    elements = {element.name: element for element in plyfile.PlyData.read(source).elements}
    if "vertex" not in elements:
        raise InputError(f"expected an element named vertex, found {', '.join(elements) or 'none'}")
    vertices = elements["vertex"].data
    return {name: vertices[name] for name in vertices.dtype.names}
