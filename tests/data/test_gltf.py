"""A .glb that would be misread without a word is refused with the name of what it was saved with."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from crossmost.data.meshes import _face_colors
from crossmost.data.readers import read_cloud
from crossmost.errors import InputError

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
FACES = np.array([0, 1, 2, 0, 2, 3], dtype="<u2")
BYTE, UNSIGNED, SHORT, FLOAT = 5121, 5123, 5122, 5126


def write_glb(path: Path, tree: dict[str, Any], blob: bytes = b"", version: int = 2) -> None:
    """Write a .glb with one chunk of JSON and one of bytes."""
    tree = {"asset": {"version": "2.0"}, "buffers": [{"byteLength": len(blob)}], **tree}
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    path.write_bytes(struct.pack("<4sII", b"glTF", version, 12 + len(chunks)) + chunks)


def square(positions: np.ndarray, component: int, **of_positions: object) -> tuple[dict[str, Any], bytes]:
    """A square of two triangles: the tree of its file, and its bytes."""
    stride = positions.dtype.itemsize * positions.shape[1]
    blob = positions.tobytes() + FACES.tobytes()
    tree = {
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "scale": [2, 2, 2]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": component, "count": 4, "type": "VEC3", **of_positions},
            {"bufferView": 1, "componentType": UNSIGNED, "count": 6, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 4 * stride, "byteStride": stride},
            {"buffer": 0, "byteOffset": 4 * stride, "byteLength": 12},
        ],
    }
    return tree, blob


def plain() -> tuple[dict[str, Any], bytes]:
    return square(CORNERS.astype("<f4"), FLOAT)


def with_colors(colors: np.ndarray, component: int) -> tuple[dict[str, Any], bytes]:
    """A plain square whose corners all have a colour (4,), stored as it is."""
    tree, blob = plain()
    stored = np.tile(colors, (4, 1)).tobytes()
    whole = {"normalized": True} if component != FLOAT else {}
    tree["accessors"].append(
        {"bufferView": 2, "componentType": component, "count": 4, "type": "VEC4", **whole}
    )
    tree["bufferViews"].append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(stored)})
    tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"] = 2
    return tree, blob + stored


def integers() -> np.ndarray:
    """The corners as 16-bit integers, padded to four columns as the format wants it."""
    return np.pad(CORNERS * 100, ((0, 0), (0, 1))).astype("<i2")


@pytest.mark.parametrize(
    ("extension", "word"),
    [
        ("KHR_draco_mesh_compression", "Draco compression"),
        ("EXT_meshopt_compression", "meshopt compression"),
        ("EXT_mesh_gpu_instancing", "the extension EXT_mesh_gpu_instancing"),
        ("KHR_texture_basisu", "Basis textures"),
    ],
)
def test_an_extension_that_changes_the_shape_or_the_colour_is_named(
    tmp_path: Path, extension: str, word: str
) -> None:
    tree, blob = plain()
    write_glb(tmp_path / "a.glb", {**tree, "extensionsRequired": [extension]}, blob)
    with pytest.raises(InputError, match=rf"a\.glb: .*{word}.*: export it without"):
        read_cloud(tmp_path / "a.glb")


@pytest.mark.parametrize("extensions", [[], ["KHR_materials_unlit", "KHR_lights_punctual"]])
def test_a_plain_file_is_read(tmp_path: Path, extensions: list[str]) -> None:
    tree, blob = plain()
    write_glb(tmp_path / "a.glb", {**tree, "extensionsRequired": extensions}, blob)
    cloud = read_cloud(tmp_path / "a.glb", samples=2000)
    np.testing.assert_allclose(np.ptp(cloud.xyz, axis=0), [2, 2, 0], atol=0.05)


def test_compressed_positions_are_no_zeros_even_where_nothing_is_required(tmp_path: Path) -> None:
    tree, blob = plain()
    del tree["accessors"][0]["bufferView"]
    tree["meshes"][0]["primitives"][0]["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0}}
    write_glb(tmp_path / "a.glb", tree, blob)
    with pytest.raises(InputError, match="compressed or sparse: export it without"):
        read_cloud(tmp_path / "a.glb")


def test_sparse_positions_are_refused(tmp_path: Path) -> None:
    tree, blob = square(CORNERS.astype("<f4"), FLOAT, sparse={"count": 1})
    write_glb(tmp_path / "a.glb", tree, blob)
    with pytest.raises(InputError, match="compressed or sparse: export it without"):
        read_cloud(tmp_path / "a.glb")


def test_positions_as_integers_are_read_and_as_normalised_ones_refused(tmp_path: Path) -> None:
    required = {"extensionsRequired": ["KHR_mesh_quantization"]}
    tree, blob = square(integers(), SHORT)
    write_glb(tmp_path / "whole.glb", {**tree, **required}, blob)
    cloud = read_cloud(tmp_path / "whole.glb", samples=2000)
    np.testing.assert_allclose(np.ptp(cloud.xyz, axis=0), [200, 200, 0], atol=5)
    tree, blob = square(integers(), SHORT, normalized=True)
    write_glb(tmp_path / "share.glb", {**tree, **required}, blob)
    with pytest.raises(InputError, match=r"normalised integers .*: export it without"):
        read_cloud(tmp_path / "share.glb")


def test_texture_coordinates_as_normalised_integers_are_refused_where_there_is_a_texture(
    tmp_path: Path,
) -> None:
    tree, blob = plain()
    tree["accessors"].append(
        {"bufferView": 2, "componentType": UNSIGNED, "count": 4, "type": "VEC2", "normalized": True}
    )
    tree["bufferViews"].append({"buffer": 0, "byteOffset": len(blob), "byteLength": 16})
    blob += np.zeros((4, 2), "<u2").tobytes()
    primitive = tree["meshes"][0]["primitives"][0]
    primitive["attributes"]["TEXCOORD_0"], primitive["material"] = 2, 0
    tree["materials"] = [{}]
    write_glb(tmp_path / "a.glb", tree, blob)
    assert read_cloud(tmp_path / "a.glb", samples=10).xyz.shape == (10, 3)
    tree["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
    write_glb(tmp_path / "a.glb", tree, blob)
    with pytest.raises(InputError, match="texture coordinates as normalised integers"):
        read_cloud(tmp_path / "a.glb")


def test_the_first_version_of_the_format_is_told_apart(tmp_path: Path) -> None:
    write_glb(tmp_path / "a.glb", {}, version=1)
    with pytest.raises(InputError, match="expected glTF 2, found version 1"):
        read_cloud(tmp_path / "a.glb")


def test_without_texture_coordinates_the_colour_of_the_material_counts_once(tmp_path: Path) -> None:
    from PIL import Image
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    mesh = trimesh.Trimesh(CORNERS.astype(float), FACES.reshape(2, 3), process=False)
    picture = Image.new("RGB", (8, 8), (255, 255, 255))
    mesh.visual = TextureVisuals(material=PBRMaterial(baseColorFactor=[128] * 4, baseColorTexture=picture))
    found = _face_colors(mesh, np.array([0, 1]), np.full((2, 3), 1 / 3))
    np.testing.assert_allclose(found, [128, 128, 128])


def test_a_texture_is_multiplied_with_the_colour_of_its_material(tmp_path: Path) -> None:
    from PIL import Image
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    picture = Image.new("RGB", (8, 8), (200, 100, 50))
    mesh = trimesh.Trimesh(CORNERS.astype(float), FACES.reshape(2, 3), process=False)
    for factor, expected in (([255, 0, 51, 255], [200, 0, 10]), (None, [200, 100, 50])):
        material = PBRMaterial(baseColorFactor=factor, baseColorTexture=picture)
        mesh.visual = TextureVisuals(uv=CORNERS[:, :2].astype(float), material=material)
        mesh.export(tmp_path / "a.glb")
        rgb = read_cloud(tmp_path / "a.glb", samples=20).rgb
        assert rgb is not None
        np.testing.assert_allclose(rgb * 255, np.tile(expected, (20, 1)), atol=0.5)


@pytest.mark.parametrize(
    ("material", "expected"),
    [
        (None, [1, 0.5, 0]),
        ({}, [1, 0.5, 0]),
        ({"pbrMetallicRoughness": {"metallicFactor": 0}}, [1, 0.5, 0]),
        ({"pbrMetallicRoughness": {"baseColorFactor": [0.4, 0.8, 1, 1]}}, [0.4, 0.4, 0]),
    ],
)
@pytest.mark.parametrize(
    ("colors", "component"),
    [
        (np.array([255, 128, 0, 255], "u1"), BYTE),
        (np.array([65535, 32768, 0, 65535], "<u2"), UNSIGNED),
        (np.array([1, 0.5, 0, 1], "<f4"), FLOAT),
    ],
)
def test_colours_of_vertices_are_those_of_the_file_whatever_they_are_stored_as_and_multiply_the_material(
    tmp_path: Path, colors: np.ndarray, component: int, material: dict[str, Any] | None, expected: list[float]
) -> None:
    tree, blob = with_colors(colors, component)
    if material is not None:
        tree["materials"] = [material]
        tree["meshes"][0]["primitives"][0]["material"] = 0
    write_glb(tmp_path / "a.glb", tree, blob)
    cloud = read_cloud(tmp_path / "a.glb", samples=20)
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb, np.tile(expected, (20, 1)), atol=0.004)
    np.testing.assert_allclose(np.ptp(cloud.xyz, axis=0), [2, 2, 0], atol=0.9)


def test_dark_colours_of_16_bits_stay_dark(tmp_path: Path) -> None:
    write_glb(tmp_path / "a.glb", *with_colors(np.array([0, 257, 200, 65535], "<u2"), UNSIGNED))
    rgb = read_cloud(tmp_path / "a.glb", samples=5).rgb
    assert rgb is not None
    np.testing.assert_allclose(rgb, np.tile([0, 257 / 65535, 200 / 65535], (5, 1)), atol=1e-6)


def test_a_material_that_names_no_colour_is_none(tmp_path: Path) -> None:
    tree, blob = plain()
    tree["materials"] = [{"pbrMetallicRoughness": {"roughnessFactor": 1}}]
    tree["meshes"][0]["primitives"][0]["material"] = 0
    write_glb(tmp_path / "a.glb", tree, blob)
    assert read_cloud(tmp_path / "a.glb", samples=5).rgb is None


def test_points_keep_colours_of_8_bits_and_those_of_16_are_refused(tmp_path: Path) -> None:
    tree, blob = with_colors(np.array([255, 128, 0, 255], "u1"), BYTE)
    tree["meshes"][0]["primitives"][0] = {"mode": 0, "attributes": {"POSITION": 0, "COLOR_0": 2}}
    write_glb(tmp_path / "a.glb", tree, blob)
    rgb = read_cloud(tmp_path / "a.glb").rgb
    assert rgb is not None
    np.testing.assert_allclose(rgb, np.tile([1, 128 / 255, 0], (4, 1)), atol=1e-6)
    tree, blob = with_colors(np.array([65535, 32768, 0, 65535], "<u2"), UNSIGNED)
    tree["meshes"][0]["primitives"][0] = {"mode": 0, "attributes": {"POSITION": 0, "COLOR_0": 2}}
    write_glb(tmp_path / "a.glb", tree, blob)
    with pytest.raises(InputError, match="points with colours of 16 bits: export it without"):
        read_cloud(tmp_path / "a.glb")


def test_fans_of_triangles_are_refused(tmp_path: Path) -> None:
    tree, blob = plain()
    tree["meshes"][0]["primitives"][0]["mode"] = 6
    write_glb(tmp_path / "a.glb", tree, blob)
    with pytest.raises(InputError, match="fans of triangles"):
        read_cloud(tmp_path / "a.glb")
