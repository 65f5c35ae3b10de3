""".ply files whose headers or colours the libraries stumble over."""

from pathlib import Path

import numpy as np
import pytest

from crossmost.data.ply import read_header
from crossmost.data.readers import read_cloud

XYZ = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype="<f4")
FACES = ((0, 1, 2), (0, 2, 3))
FORMATS = ("ascii", "binary_little_endian", "binary_big_endian")


def write_ply(
    path: Path, form: str, colors: dict[str, np.ndarray] | None = None, *, mesh: bool, comment: bytes = b""
) -> None:
    """Write a square, as its corners or as two triangles."""
    fields = {axis: XYZ[:, i] for i, axis in enumerate("xyz")} | (colors or {})
    order = ">" if form.endswith("big_endian") else "<"
    named = {"f4": "float", "f8": "double", "u1": "uchar", "u2": "ushort", "u4": "uint"}
    head = [b"ply", b"format %s 1.0" % form.encode(), *([b"comment " + comment] if comment else [])]
    head += [b"element vertex 4"]
    head += [f"property {named[data.dtype.str[1:]]} {name}".encode() for name, data in fields.items()]
    head += [b"element face 2", b"property list uchar int vertex_indices"] if mesh else []
    rows = [[data[row] for data in fields.values()] for row in range(4)]
    if form == "ascii":
        lines = [" ".join(f"{value:g}" for value in row) for row in rows]
        lines += [f"3 {a} {b} {c}" for a, b, c in FACES] if mesh else []
        body = ("\n".join(lines) + "\n").encode()
    else:
        kinds = [data.dtype.newbyteorder(order) for data in fields.values()]
        body = b"".join(
            np.array(value, kind).tobytes() for row in rows for value, kind in zip(row, kinds, strict=True)
        )
        body += b"".join(b"\3" + np.array(face, order + "i4").tobytes() for face in FACES) if mesh else b""
    path.write_bytes(b"\n".join([*head, b"end_header", b""]) + body)


def shade(
    kind: str, scale: float, names: tuple[str, ...] = ("red", "green", "blue")
) -> dict[str, np.ndarray]:
    """The colour 200, 100, 50 at each corner."""
    return {
        name: np.full(4, value * scale).astype(kind)
        for name, value in zip(names, (200, 100, 50), strict=True)
    }


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mesh", [False, True])
@pytest.mark.parametrize("comment", ["scanné par Jürgen".encode(), "scanné par Jürgen".encode("latin-1")])
def test_a_comment_in_another_language_is_no_damage(
    tmp_path: Path, form: str, mesh: bool, comment: bytes
) -> None:
    write_ply(tmp_path / "a.ply", form, mesh=mesh, comment=comment)
    cloud = read_cloud(tmp_path / "a.ply", samples=500)
    assert cloud.sampled == mesh
    (tmp_path / "other").mkdir()
    write_ply(tmp_path / "other/a.ply", form, mesh=mesh)
    np.testing.assert_array_equal(cloud.xyz, read_cloud(tmp_path / "other/a.ply", samples=500).xyz)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mesh", [False, True])
@pytest.mark.parametrize(
    "colors",
    [
        shade("<u1", 1),
        shade("<u2", 257),
        shade("<u4", 257),
        shade("<f4", 1),
        shade("<f4", 1 / 255),
        shade("<f8", 1),
        shade("<u1", 1, ("diffuse_red", "diffuse_green", "diffuse_blue")),
    ],
)
def test_colors_of_clouds_and_meshes_neither_wrap_nor_get_lost(
    tmp_path: Path, form: str, mesh: bool, colors: dict[str, np.ndarray]
) -> None:
    write_ply(tmp_path / "a.ply", form, colors, mesh=mesh)
    cloud = read_cloud(tmp_path / "a.ply", samples=30)
    assert cloud.sampled == mesh
    assert cloud.rgb is not None
    np.testing.assert_allclose(cloud.rgb * 255, np.tile([200, 100, 50], (len(cloud.rgb), 1)), atol=0.5)


@pytest.mark.parametrize("alpha", [0, 0xFF])
@pytest.mark.parametrize("form", FORMATS[1:])
def test_colors_packed_into_a_float_of_either_byte_order(tmp_path: Path, form: str, alpha: int) -> None:
    packed = np.full(4, alpha << 24 | 0x80FF20, dtype="<u4").view("<f4")
    write_ply(tmp_path / "a.ply", form, {"rgb": packed}, mesh=False)
    rgb = read_cloud(tmp_path / "a.ply").rgb
    assert rgb is not None
    np.testing.assert_allclose(rgb * 255, np.tile([128, 255, 32], (4, 1)), atol=1e-4)


def test_only_colors_that_trimesh_misreads_are_read_apart(tmp_path: Path) -> None:
    kinds = {
        "none": None,
        "bytes": shade("<u1", 1),
        "floats": shade("<f4", 1),
        "wide": shade("<u2", 257),
    }
    foreign = {}
    for name, colors in kinds.items():
        write_ply(tmp_path / "a.ply", "ascii", colors, mesh=True)
        header = read_header(tmp_path / "a.ply")
        assert header.faces == 2
        foreign[name] = header.foreign_colors
    assert foreign == {"none": False, "bytes": False, "floats": True, "wide": True}
