"""What a bundle says about itself: its `manifest.json`, and whether its files are the ones that were exported.

A bundle may come from anywhere, so nothing in it is trusted: every field has a type and bounds, and neither a
name nor a link leads out of the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crossmost.runtime.bundle_json import Fields, InvalidBundle, check_plain, read_json, shown
from crossmost.runtime.orientation import FRAMES
from crossmost.runtime.sampling import RADII

__all__ = [
    "INT8",
    "MANIFEST",
    "SCHEMA_VERSION",
    "Encoder",
    "FileFacts",
    "InvalidBundle",
    "Manifest",
    "check_files",
    "hash_file",
    "load_manifest",
    "locate",
]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
INT8 = "encoder.int8.onnx"
"""The encoder that CPUs take, where a bundle has it."""
RUN = ("config.yaml", "provenance.json")
"""Files of a run's folder, which is no bundle yet."""
PRECISIONS = ("fp32", "fp16", "bf16")

# Each part starts with a letter, digit or underscore: no `..`, no hidden file and no root, and there is no
# colon or backslash, so that a name means the same file on every system.
FILE_NAME = re.compile(r"\w[\w.+=,@-]*(/\w[\w.+=,@-]*)*", re.ASCII)
LONGEST_NAME = 200
DIGEST = re.compile("[0-9a-f]{64}")
CHUNK = 2**20


@dataclass(frozen=True)
class Encoder:
    """The conventions of the exported encoder.

    Attributes:
        name: of its card.
        points: N, what a larger cloud is thinned to.
        groups: G, patches a cloud.
        neighbors: K, points a patch.
        channels: C, 3 for xyz, 6 for xyz and rgb.
        up_axis: the axis that points up in its clouds: x, y, z, -x, -y, -z, or z-mirrored.
        color_filler: rgb of a cloud without color, where C is 6.
        dim: D, width of the embedding.
        scale: how clouds are scaled: "unit-sphere" is centroid to 0, largest norm to 1.
        radius: a patch is the first K points so near its centre; None, as in bundles without it, for the K nearest.
    """

    name: str
    points: int
    groups: int
    neighbors: int
    channels: int
    up_axis: str
    color_filler: float
    dim: int
    scale: str = "unit-sphere"
    radius: float | None = None

    @property
    def least(self) -> int:
        """Points that a cloud must have to be cut into patches; one with fewer is filled up."""
        return max(self.groups, self.neighbors)


@dataclass(frozen=True)
class FileFacts:
    """Digest (64 hexadecimal digits) and size of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """Everything `manifest.json` holds.

    Attributes:
        schema: version of this form.
        crossmost: version that made the bundle.
        encoder: conventions of the encoder.
        precision: "fp32", "fp16" or "bf16"; inputs and outputs are float32 in each.
        opset: of the ONNX graphs.
        ir_version: of the ONNX graphs.
        files: facts by name, relative to the bundle, with `/`; of all files but the manifest.
        engines: the names of those that are TensorRT engines.
        notes: what the user should know, such as why there is no engine.
        provenance: where the weights come from.
        parity: report of the verification.
    """

    schema: int
    crossmost: str
    encoder: Encoder
    precision: str
    opset: int
    ir_version: int
    files: dict[str, FileFacts] = field(default_factory=dict)
    engines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)

    @property
    def precisions(self) -> str:
        """The precision in words, with that of the encoder for CPUs where there is another."""
        return f"{self.precision}, on a CPU int8" if INT8 in self.files else self.precision

    @property
    def trained_color(self) -> str:
        """Whether the clouds that the encoder was adapted to had their colors: "auto", or "none" where left out."""
        found: Any = self.provenance
        for key in ("training", "reading", "color"):
            found = found.get(key) if isinstance(found, dict) else None
        return "none" if found == "none" else "auto"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {**asdict(self), "engines": list(self.engines), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, found: Any) -> Manifest:
        """Check what was read from JSON; keys this version does not know are left out.

        Raises:
            InvalidBundle: a newer schema, a key that is missing, or a value of the wrong type or out of bounds.
        """
        entries = Fields(found, "manifest")
        for key, value in entries.found.items():
            check_plain(key, "manifest")
            check_plain(value, shown(key))
        _check_schema(entries)
        files = {name: _file_facts(name, facts) for name, facts in entries.take("files", dict).items()}
        engines = entries.texts("engines")
        for name in engines:
            if name not in files:
                raise InvalidBundle(f"engines: expected names of files, found {shown(name)}")
        return cls(
            schema=SCHEMA_VERSION,
            crossmost=entries.text("crossmost"),
            encoder=_encoder(entries.take("encoder", dict)),
            precision=entries.text("precision", PRECISIONS),
            opset=entries.whole("opset", 1, 1000),
            ir_version=entries.whole("ir_version", 1, 1000),
            files=files,
            engines=engines,
            notes=entries.texts("notes"),
            provenance=entries.take("provenance", dict),
            parity=entries.take("parity", dict),
        )


def load_manifest(bundle: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a bundle; its files are left to `check_files`.

    Raises:
        InvalidBundle: no bundle, a newer one, or a manifest that is damaged or makes no sense.
    """
    try:
        bundle = Path(bundle)
    except TypeError:
        raise InvalidBundle(f"expected the path of a bundle, found {bundle!r}") from None
    if not os.path.lexists(bundle / MANIFEST):
        what = (
            f"no {MANIFEST} in it" if bundle.is_dir() else "a file" if bundle.exists() else "no such folder"
        )
        if all((bundle / name).is_file() for name in RUN):
            what = f"a run: make one with `crossmost export {bundle} --out {bundle.name}.bundle`"
        raise InvalidBundle(f"{bundle}: expected a bundle made by `crossmost export`, found {what}")
    found = read_json(locate(bundle, MANIFEST))
    try:
        return Manifest.from_dict(found)
    except InvalidBundle as error:
        raise InvalidBundle(f"{bundle / MANIFEST}: {error}") from None


def check_files(bundle: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Compare files, all or those named, with the sizes and digests of the manifest.

    Raises:
        InvalidBundle: names the file that is missing, unlisted, changed, or not inside the bundle.
    """
    bundle = Path(bundle)
    for name in manifest.files if names is None else names:
        expected = manifest.files.get(name)
        if expected is None:
            listed = ", ".join(manifest.files) or "nothing"
            raise InvalidBundle(f"{bundle}: expected {shown(name)} in the manifest, found {listed[:200]}")
        found = _measure(locate(bundle, name), expected.bytes)
        if found.bytes != expected.bytes:
            what = f"{expected.bytes} bytes, found {found.bytes}"
        elif found.sha256 != expected.sha256:
            what = f"sha256 {expected.sha256[:12]}..., found {found.sha256[:12]}..."
        else:
            continue
        raise InvalidBundle(
            f"{bundle / name}: expected {what}: it was changed; copy or export the bundle again"
        )


def locate(bundle: Path, name: str) -> Path:
    """The path of a file that is inside the bundle.

    Raises:
        InvalidBundle: a name or a link that leaves the folder, or no such file.
    """
    _check_name(name, str(bundle))
    path = bundle / name
    try:
        resolved = Path(os.path.realpath(path))
        inside = resolved.is_relative_to(os.path.realpath(bundle))
        is_file = resolved.is_file()
    except OSError as error:
        raise InvalidBundle(f"{path}: cannot be read: {error.strerror}") from error
    if not inside:
        raise InvalidBundle(f"{path}: expected a file of the bundle, found a link that leaves it")
    if not is_file:
        raise InvalidBundle(f"{path}: expected a file, found none: copy or export the bundle again")
    return path


def hash_file(path: Path) -> FileFacts:
    """Digest and size of a file, read in pieces."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            size += len(piece)
    return FileFacts(digest.hexdigest(), size)


def _measure(path: Path, expected: int) -> FileFacts:
    """Digest and size; of a file that has not the expected size, only that: it is not worth reading."""
    try:
        size = path.stat().st_size
        return hash_file(path) if size == expected else FileFacts("", size)
    except OSError as error:
        raise InvalidBundle(f"{path}: cannot be read: {error.strerror}") from error


def _check_name(name: str, where: str) -> None:
    if len(name) > LONGEST_NAME or not FILE_NAME.fullmatch(name):
        what = "names of files inside the bundle, such as engines/a.engine"
        raise InvalidBundle(f"{where}: expected {what}, found {shown(name)}")


def _check_schema(entries: Fields) -> None:
    schema = entries.whole("schema", 1, 2**31)
    if schema > SCHEMA_VERSION:
        maker = shown(entries.found.get("crossmost", "of another version")).strip("'\"")
        raise InvalidBundle(
            f"made by crossmost {maker}, schema {schema}; this one reads up to {SCHEMA_VERSION}: "
            "upgrade crossmost, or export the bundle with this version"
        )


def _encoder(found: dict[str, Any]) -> Encoder:
    entries = Fields(found, "encoder")
    if entries.take("channels", int) not in (3, 6):
        raise InvalidBundle(f"encoder: expected 3 or 6 channels, found {found['channels']}")
    return Encoder(
        name=entries.text("name"),
        points=entries.whole("points", 1, 2**24),
        groups=entries.whole("groups", 1, 2**16),
        neighbors=entries.whole("neighbors", 1, 2**16),
        channels=found["channels"],
        up_axis=entries.text("up_axis", FRAMES),
        color_filler=entries.real("color_filler", 0.0, 1.0),
        dim=entries.whole("dim", 1, 2**16),
        scale=entries.text("scale", ("unit-sphere",)),
        radius=None if found.get("radius") is None else entries.real("radius", *RADII),
    )


def _file_facts(name: str, found: Any) -> FileFacts:
    _check_name(name, "files")
    entries = Fields(found, name)
    digest = entries.text("sha256")
    if not DIGEST.fullmatch(digest):
        raise InvalidBundle(f"{name}: expected sha256 as 64 hexadecimal digits, found {shown(digest)}")
    return FileFacts(digest, entries.whole("bytes", 0, 2**62))
