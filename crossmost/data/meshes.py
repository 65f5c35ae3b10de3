"""Meshes: .off .obj .stl .glb, and .ply with faces, as points drawn uniformly by area."""

from __future__ import annotations

import io
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.data.catalog import printable
from crossmost.data.columns import Cloud, decode_colors, require_points
from crossmost.data.gltf import VERTEX_COLORS, readable_glb
from crossmost.data.obj import with_unit_colors
from crossmost.errors import InputError
from crossmost.runtime.colors import MISSING_COLOR, StoredColors

TEXTURED = (".obj", ".glb")
"""Formats that keep colours in pictures beside or inside the file."""


def read_mesh(
    path: Path,
    samples: int,
    faces: int = 0,
    *,
    content: bytes | None = None,
    colors: NDArray[np.uint8] | None = None,
) -> Cloud:
    """Sample a mesh's surface uniformly by area; a file without faces is a cloud of its vertices.

    A scene (.glb) is flattened with its transforms. The seed is the file's name, not its folder, so that
    the same file gives the same points on every machine. Colours come from vertices, faces or materials.
    Axes stay the file's: glTF is y-up by its specification and .obj, .off and .stl say nothing, so the up
    axis is the user's to give (`--up-axis`).

    Args:
        path: a file of a suffix trimesh reads.
        samples: points drawn.
        faces: how many the file says it has, where that was read already.
        content: what is read instead of the file's bytes.
        colors: (V, 3) of its V vertices, instead of what trimesh makes of them.

    Raises:
        InputError: neither faces nor vertices, fewer faces than the file says it has, or a .glb of a kind that
            trimesh misreads.
        ImportError: a library is missing.
    """
    import trimesh

    suffix = path.suffix.lower()
    if suffix in TEXTURED:
        import PIL  # noqa: F401  # without it trimesh reads white where there is a picture, and says nothing
    if suffix == ".off":
        content = _plain_off(path.read_bytes())
    elif suffix == ".glb":
        content = readable_glb(path)
    elif suffix == ".obj":
        content = with_unit_colors(path)
    geometry = [part for part in _load(path, content) if len(part.vertices)]
    if colors is not None and len(geometry) == 1 and len(geometry[0].vertices) == len(colors):
        geometry[0].visual = trimesh.visual.ColorVisuals(geometry[0], vertex_colors=colors)
    solids = [part for part in geometry if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if sum(len(part.faces) for part in solids) < faces:
        raise InputError(f"expected {faces} faces as its header says, found fewer: copy it again")
    if not geometry:
        raise InputError("expected a mesh or a cloud, found neither faces nor vertices")
    rng = np.random.default_rng(zlib.crc32(os.fsencode(path.name)))
    return _sample(solids, samples, rng) or _vertices(geometry)


def _load(path: Path, content: bytes | None) -> list[Any]:
    """The parts of a file, moved to their places."""
    import trimesh

    # Bytes, and not the path, which trimesh cannot use where it is no UTF-8.
    content = path.read_bytes() if content is None else content
    # Where materials and pictures are looked for, and what the parts of an .obj are called.
    beside = trimesh.resolvers.FilePathResolver(str(path))
    beside.file_name = printable(path.name)
    # process=False: merging vertices would cost time and change nothing about the surface.
    scene = trimesh.load_scene(
        io.BytesIO(content), file_type=path.suffix[1:].lower(), resolver=beside, process=False
    )
    parts: list[Any] = scene.dump()
    return parts


def _plain_off(text: bytes) -> bytes:
    """The text of a .off without its comments: trimesh reads what stands before one twice.

    Raises:
        InputError: fewer lines than the header counts: trimesh takes what is left for the whole.
    """
    lines = [line.partition(b"#")[0].strip() for line in text.split(b"\n")]
    lines = [line for line in lines if line]
    glued = re.match(rb"\w*OFF\s*(\d+)\s+(\d+)", b"".join(lines[:1]))  # ModelNet's "OFF490 518 0"
    counts = glued or re.match(rb"(\d+)\s+(\d+)", b"".join(lines[1:2]))
    if counts:
        promised, found = int(counts[1]) + int(counts[2]), len(lines) - (1 if glued else 2)
        if found < promised:
            raise InputError(f"expected {promised} vertices and faces as its header says, found {found}")
    return b"\n".join(lines)


def _sample(solids: list[Any], samples: int, rng: np.random.Generator) -> Cloud | None:
    """Draw points from all faces of all solids together, or None where their area is zero."""
    corners = [np.asarray(part.vertices, dtype=np.float64)[part.faces] for part in solids]  # (F, 3, 3) each
    if not corners:
        return None
    triangles = np.concatenate(corners)
    edges = triangles[:, 1:] - triangles[:, :1]
    with np.errstate(all="ignore"):
        doubled = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    cumulative = np.cumsum(np.where(np.isfinite(doubled), doubled, 0.0))
    if cumulative[-1] <= 0:
        return None
    picked = np.searchsorted(cumulative, rng.random(samples) * cumulative[-1], side="right")
    # Two uniform numbers cover a parallelogram; its far half is folded back onto the triangle.
    weights = rng.random((samples, 2))
    weights = np.where(weights.sum(axis=1, keepdims=True) > 1, 1 - weights, weights)
    barycentric = np.concatenate([1 - weights.sum(axis=1, keepdims=True), weights], axis=1)  # (samples, 3)
    xyz = np.einsum("nc,ncd->nd", barycentric, triangles[picked])

    raw = np.full((samples, 3), MISSING_COLOR * 255)
    starts = np.cumsum([0] + [len(part.faces) for part in solids])
    colored = False
    for part, start, stop in zip(solids, starts[:-1], starts[1:], strict=True):
        mine = (picked >= start) & (picked < stop)
        colors = _face_colors(part, picked[mine] - start, barycentric[mine])
        if colors is not None:
            raw[mine], colored = colors, True
    if not colored:
        return Cloud(xyz, sampled=True)
    stored = StoredColors(float(raw.min()), float(raw.max()), floating=False)  # trimesh keeps them as bytes
    return Cloud(xyz, (raw / 255).astype(np.float32), stored, sampled=True)


def _face_colors(part: Any, faces: NDArray[Any], barycentric: NDArray[np.float64]) -> NDArray[Any] | None:
    """Colours 0..255 at points given by face and barycentric coordinates, (n, 3), one for all (3,), or None."""
    visual, corners = part.visual, part.faces[faces]
    own = part.vertex_attributes.get(VERTEX_COLORS)
    if own is not None:  # glTF: what its material has is multiplied with these
        colors = _between(_unit(own)[corners, :3], barycentric)
        of_material = _material_colors(visual, corners, barycentric) if visual.kind == "texture" else None
        return colors * (255.0 if of_material is None else of_material)
    if visual.kind == "texture":
        return _material_colors(visual, corners, barycentric)
    if visual.kind == "vertex":
        return _between(visual.vertex_colors[corners][..., :3], barycentric)
    return visual.face_colors[faces][:, :3] if visual.kind == "face" else None


def _between(corners: NDArray[Any], barycentric: NDArray[np.float64]) -> NDArray[Any]:
    """Interpolate what the corners of faces have, (n, 3, d) to (n, d)."""
    return np.asarray(np.einsum("nc,ncd->nd", barycentric, corners))


def _unit(stored: NDArray[Any]) -> NDArray[Any]:
    """Colours as glTF stores them, to 0..1: floats, or integers whose largest is 1."""
    whole = np.issubdtype(stored.dtype, np.integer)
    return np.clip(stored / (np.iinfo(stored.dtype).max if whole else 1.0), 0.0, 1.0)


def _material_colors(
    visual: Any, corners: NDArray[Any], barycentric: NDArray[np.float64]
) -> NDArray[Any] | None:
    """What a material says, 0..255: (n, 3) from its picture, (3,) without one, None of glTF's that name no colour."""
    colors = None
    if visual.uv is not None:
        colors = visual.material.to_color(_between(np.asarray(visual.uv)[corners], barycentric))
    if colors is None:  # a material without a texture has one colour for all of it
        named = getattr(visual.material, "baseColorFactor", visual.material.main_color)
        return None if named is None else np.asarray(named)[..., :3]
    rgb, tint = np.asarray(colors)[..., :3], _tint(visual.material)
    return rgb if tint is None else rgb * (tint / 255.0)


def _tint(material: Any) -> NDArray[Any] | None:
    """What glTF multiplies a texture with, (3,) uint8, or None: .obj has nothing that its writers agree on."""
    if getattr(material, "baseColorTexture", None) is None or material.baseColorFactor is None:
        return None
    return np.asarray(material.baseColorFactor)[:3]


def _vertices(geometry: list[Any]) -> Cloud:
    """The vertices of everything in the file, coloured where all of it is."""
    xyz = np.concatenate([np.asarray(part.vertices, dtype=np.float64) for part in geometry])
    require_points(xyz)
    colors = [_vertex_colors(part) for part in geometry]
    known = [one for one in colors if one is not None]
    if len(known) < len(colors):
        return Cloud(xyz)
    rgb, stored = decode_colors(np.concatenate(known))
    return Cloud(xyz, rgb, stored)


def _vertex_colors(part: Any) -> NDArray[Any] | None:
    """The (n, 3) uint8 vertex colours of a trimesh geometry, or None."""
    visual = getattr(part, "visual", None)
    if visual is None or visual.kind != "vertex" or np.ndim(visual.vertex_colors) != 2:
        return None
    return np.asarray(visual.vertex_colors)[:, :3]
