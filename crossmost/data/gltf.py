"""What a .glb says about itself that trimesh passes over: without it, a wrong object would look like a sound one."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossmost.errors import InputError

VERTEX_COLORS = "_COLOR_0"
"""What `readable_glb` calls the colours of vertices: of `COLOR_0` trimesh makes bytes, and it leaves this alone."""
POINTS, TRIANGLES, FANS = 0, 4, 6
"""Modes of primitives."""
SHORT = 5123
"""Type of unsigned components of 16 bits."""
_START = struct.Struct("<4sIII4s")
"""Magic, version and length of a file, length and type of its first chunk."""

HARMLESS = ("KHR_mesh_quantization", "EXT_texture_webp", "KHR_lights_punctual", "KHR_xmp_json_ld")
"""Extensions that a file may require: trimesh reads them, or neither shape nor colour depends on them."""

MATERIALS = "KHR_materials_"
"""How the names of further harmless extensions begin: sheen, gloss and the like."""

KNOWN_AS = {
    "KHR_draco_mesh_compression": "Draco compression",
    "EXT_meshopt_compression": "meshopt compression",
    "KHR_meshopt_compression": "meshopt compression",
    "KHR_texture_basisu": "Basis textures",
}


def readable_glb(path: Path) -> bytes | None:
    """Refuse a .glb that trimesh would misread without a word, or bring it to a form that it reads rightly.

    It takes compressed positions for zeros, does not scale normalised integers, leaves sparse changes and fans out,
    cuts colours of 16 bits down to their last byte, and forgets the colours of vertices that have a material too.

    Args:
        path: of a .glb.

    Returns:
        The file with the colours of its meshes as `VERTEX_COLORS`; None where there are none, and the file is good
        as it is.

    Raises:
        InputError: names what the file was saved with.
        ValueError, KeyError, TypeError: damage.
    """
    header, rest = _parts(path)
    for name in header.get("extensionsRequired", []):
        if name not in HARMLESS and not name.startswith(MATERIALS):
            raise _saved_with(f"{KNOWN_AS[name]} ({name})" if name in KNOWN_AS else f"the extension {name}")
    renamed = False
    for primitive in _primitives(header):
        position = _accessor(header, primitive, "POSITION")
        if "bufferView" not in position or "sparse" in position:
            raise _saved_with("positions that are compressed or sparse")
        if position.get("normalized"):
            raise _saved_with("positions as normalised integers (KHR_mesh_quantization)")
        if _textured(header, primitive) and _accessor(header, primitive, "TEXCOORD_0").get("normalized"):
            raise _saved_with("texture coordinates as normalised integers")
        mode = primitive.get("mode", TRIANGLES)
        if mode == FANS:
            raise _saved_with("fans of triangles")
        if "COLOR_0" in primitive["attributes"]:
            if mode != POINTS:
                primitive["attributes"][VERTEX_COLORS] = primitive["attributes"].pop("COLOR_0")
                renamed = True
            elif _accessor(header, primitive, "COLOR_0")["componentType"] == SHORT:
                raise _saved_with("points with colours of 16 bits")
    return _assembled(header, rest) if renamed else None


def _saved_with(what: str) -> InputError:
    return InputError(f"expected a .glb with plain meshes, found one saved with {what}: export it without")


def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON at the beginning of a .glb, and the chunks behind it."""
    content = path.read_bytes()
    magic, version, _, length, _ = _START.unpack_from(content.ljust(_START.size, b"\0"))
    if magic == b"glTF" and version != 2:
        raise InputError(f"expected glTF 2, found version {version}: export it again")
    end = _START.size + length
    header: dict[str, Any] = json.loads(content[_START.size : end])
    return header, content[end:]


def _assembled(header: dict[str, Any], rest: bytes) -> bytes:
    """A .glb of a JSON and the chunks behind it."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    size = _START.size + len(text) + len(rest)
    return _START.pack(b"glTF", 2, size, len(text), b"JSON") + text + rest


def _primitives(header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those of all meshes that have positions."""
    for mesh in header.get("meshes", []):
        for primitive in mesh["primitives"]:
            if "POSITION" in primitive["attributes"]:
                yield primitive


def _accessor(header: dict[str, Any], primitive: dict[str, Any], attribute: str) -> dict[str, Any]:
    """How an attribute of a primitive is stored."""
    accessor: dict[str, Any] = header["accessors"][primitive["attributes"][attribute]]
    return accessor


def _textured(header: dict[str, Any], primitive: dict[str, Any]) -> bool:
    """Whether the colour of a primitive comes out of a picture."""
    if "material" not in primitive or "TEXCOORD_0" not in primitive["attributes"]:
        return False
    return "baseColorTexture" in header["materials"][primitive["material"]].get("pbrMetallicRoughness", {})
