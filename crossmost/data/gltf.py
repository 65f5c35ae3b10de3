"""What a .glb says about itself that trimesh passes over: without it, a wrong shape would look like a sound one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossmost.errors import InputError

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


def check_glb(path: Path) -> None:
    """Refuse a .glb that trimesh would misread without a word.

    It takes compressed positions for zeros, does not scale normalised integers, and leaves sparse changes out.

    Args:
        path: of a .glb.

    Raises:
        InputError: names what the file was saved with.
        ValueError, KeyError, TypeError: damage.
    """
    header = _header(path)
    for name in header.get("extensionsRequired", []):
        if name not in HARMLESS and not name.startswith(MATERIALS):
            raise _saved_with(f"{KNOWN_AS[name]} ({name})" if name in KNOWN_AS else f"the extension {name}")
    for primitive in _primitives(header):
        position = _accessor(header, primitive, "POSITION")
        if "bufferView" not in position or "sparse" in position:
            raise _saved_with("positions that are compressed or sparse")
        if position.get("normalized"):
            raise _saved_with("positions as normalised integers (KHR_mesh_quantization)")
        if _textured(header, primitive) and _accessor(header, primitive, "TEXCOORD_0").get("normalized"):
            raise _saved_with("texture coordinates as normalised integers")


def _saved_with(what: str) -> InputError:
    return InputError(f"expected a .glb with plain meshes, found one saved with {what}: export it without")


def _header(path: Path) -> dict[str, Any]:
    """The JSON at the beginning of a .glb."""
    with path.open("rb") as file:
        start = file.read(20)  # magic, version and length of the file, length and type of its first chunk
        version = int.from_bytes(start[4:8], "little")
        if start[:4] == b"glTF" and version != 2:
            raise InputError(f"expected glTF 2, found version {version}: export it again")
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(start[12:16], "little")))
    return header


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
