import dataclasses
import hashlib
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.runtime.manifest import (
    Encoder,
    FileFacts,
    InvalidBundle,
    Manifest,
    check_files,
    load_manifest,
    locate,
)

CONTENT = {"model.onnx": b"graph", "weights.bin": bytes(3 * 2**20), "engines/a-1.engine": b"plan"}
ENCODER = Encoder("point-tiny", 512, 32, 16, 3, "z", 0.4, 16)


def facts(content: bytes) -> FileFacts:
    return FileFacts(hashlib.sha256(content).hexdigest(), len(content))


MANIFEST = Manifest(
    schema=1,
    crossmost="0.1.0",
    encoder=ENCODER,
    precision="fp16",
    opset=18,
    ir_version=10,
    files={name: facts(content) for name, content in CONTENT.items()},
    engines=("engines/a-1.engine",),
    notes=("a note",),
    provenance={"kind": "run", "training": {"seed": 1}},
    parity={"verdict": "passed", "checks": [{"value": 1e-6}]},
)


def put(bundle: Path, manifest: Any) -> None:
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "a.bundle"
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    put(folder, MANIFEST.to_dict())
    return folder


def refusal(action: Any, *arguments: Any) -> str:
    """The line of the InvalidBundle that an action ends with."""
    with pytest.raises(InvalidBundle) as error:
        action(*arguments)
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 600
    return line


def changed(*keys: Any, value: Any) -> Any:
    """The manifest as JSON with the entry under `keys` replaced."""
    made = json.loads(json.dumps(MANIFEST.to_dict()))
    at = made
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    return made


def test_a_bundle_comes_back_as_it_was_written(bundle: Path) -> None:
    assert load_manifest(bundle) == MANIFEST
    check_files(bundle, MANIFEST)
    check_files(bundle, MANIFEST, ["model.onnx"])


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(TEXT, PLAIN, max_size=3),
    st.lists(TEXT, max_size=3),
    st.integers(1, 2**16),
    st.none() | st.floats(1e-18, 1e18),
)
def test_every_manifest_survives_json(
    provenance: dict[str, Any], notes: list[str], groups: int, radius: float | None
) -> None:
    manifest = dataclasses.replace(
        MANIFEST,
        provenance=provenance,
        notes=tuple(notes),
        encoder=dataclasses.replace(ENCODER, groups=groups, radius=radius),
    )
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    assert Manifest.from_dict(manifest.to_dict()) == manifest


def test_keys_of_the_same_schema_that_it_does_not_know_are_left_out(bundle: Path) -> None:
    put(bundle, {**changed("encoder", "mood", value="good"), "further": 1})
    assert load_manifest(bundle) == MANIFEST


def test_bundles_from_before_there_was_a_radius_have_none(bundle: Path) -> None:
    made = MANIFEST.to_dict()
    del made["encoder"]["radius"]
    put(bundle, made)
    assert load_manifest(bundle).encoder.radius is None


@pytest.mark.parametrize("others", [{}, {"encoder": "another form", "files": []}])
def test_a_newer_schema_says_to_upgrade(bundle: Path, others: dict[str, Any]) -> None:
    put(bundle, {**MANIFEST.to_dict(), "schema": 7, "crossmost": "3.1.4", **others})
    assert "made by crossmost 3.1.4, schema 7; this one reads up to 1: upgrade" in refusal(
        load_manifest, bundle
    )


def test_a_newer_schema_without_its_maker_says_so_too(bundle: Path) -> None:
    put(bundle, {"schema": 2})
    assert "schema 2; this one reads up to 1: upgrade" in refusal(load_manifest, bundle)


@pytest.mark.parametrize("key", [*MANIFEST.to_dict(), "encoder.name", "encoder.scale"])
def test_a_missing_key_is_named(bundle: Path, key: str) -> None:
    made = MANIFEST.to_dict()
    *outer, last = key.split(".")
    del (made[outer[0]] if outer else made)[last]
    put(bundle, made)
    line = refusal(load_manifest, bundle)
    assert repr(last) in line
    assert "manifest.json" in line


@pytest.mark.parametrize(
    ("keys", "value", "what"),
    [
        (("schema",), True, "schema as an integer, found True"),
        (("schema",), 0, "an integer from 1"),
        (("crossmost",), 1, "crossmost as text"),
        (("encoder",), [], "encoder as a JSON object"),
        (("encoder", "points"), 0, "points as an integer from 1"),
        (("encoder", "points"), 10**18, "points as an integer from 1"),
        (("encoder", "groups"), "64", "groups as an integer, found '64'"),
        (("encoder", "neighbors"), 32.0, "neighbors as an integer"),
        (("encoder", "channels"), 4, "3 or 6 channels, found 4"),
        (("encoder", "up_axis"), "w", "up_axis as x or y or z"),
        (("encoder", "color_filler"), 1.5, "color_filler as a number from 0 to 1"),
        (("encoder", "color_filler"), False, "color_filler as a number, found False"),
        (("encoder", "scale"), "unit-cube", "scale as unit-sphere"),
        (("encoder", "radius"), 0, "radius as a number from 1e-18 to 1e+18, found 0"),
        (("encoder", "radius"), -0.2, "radius as a number from 1e-18"),
        (("encoder", "radius"), "0.2", "radius as a number, found '0.2'"),
        (("encoder", "radius"), True, "radius as a number, found True"),
        (("encoder", "radius"), float("inf"), "finite numbers"),
        (("precision",), "int3", "precision as fp32 or fp16 or bf16"),
        (("opset",), -1, "opset"),
        (("files",), [], "files as a JSON object"),
        (("files", "model.onnx"), 3, "model.onnx: expected a JSON object"),
        (("files", "model.onnx", "bytes"), -1, "model.onnx: expected bytes"),
        (("files", "model.onnx", "sha256"), "A" * 64, "64 hexadecimal digits"),
        (("engines",), ["b.engine"], "names of files, found 'b.engine'"),
        (("notes",), [1], "notes as a list of texts"),
        (("notes",), "one", "notes as a list"),
        (("provenance",), None, "provenance as a JSON object, found None"),
        (("parity", "verdict"), float("nan"), "'parity': expected finite numbers, found nan"),
        (("parity", "verdict"), float("inf"), "finite numbers"),
        (("parity", "verdict"), 2**63, "integers of 64 bits"),
        (("notes", 0), "\ud800", "half a character"),
    ],
)
def test_what_makes_no_sense_is_refused(bundle: Path, keys: tuple[Any, ...], value: Any, what: str) -> None:
    put(bundle, changed(*keys, value=value))
    assert what in refusal(load_manifest, bundle)


ESCAPES = (
    "../x",
    "a/../../x",
    "/etc/passwd",
    "..\\x",
    "C:\\x",
    "C:x",
    "a//b",
    "a/",
    "",
    ".",
    ".hidden",
    "a\0b",
)


@pytest.mark.parametrize("name", [*ESCAPES, "a/./b", "a\nb", "\u212b.bin", "x" * 201])
def test_a_name_that_leaves_the_folder_is_refused(bundle: Path, name: str) -> None:
    put(bundle, changed("files", name, value=dataclasses.asdict(facts(b""))))
    assert "names of files inside the bundle" in refusal(load_manifest, bundle)
    assert "names of files inside the bundle" in refusal(locate, bundle, name)


@pytest.mark.parametrize("name", ["weights.bin", "engines", "manifest.json"])
def test_a_link_that_leaves_the_bundle_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    moved = tmp_path / "outside"
    (bundle / name).rename(moved)
    (bundle / name).symlink_to(moved)

    def load() -> None:
        check_files(bundle, load_manifest(bundle))

    line = refusal(load)
    assert "a link that leaves it" in line
    assert name in line


def test_links_to_the_bundle_and_within_it_are_followed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "weights.bin").rename(bundle / "other.bin")
    (bundle / "weights.bin").symlink_to("other.bin")
    (tmp_path / "current").symlink_to(bundle)
    check_files(tmp_path / "current", load_manifest(tmp_path / "current"))


def test_a_circle_of_links_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to("model.onnx")
    assert "model.onnx" in refusal(check_files, bundle, MANIFEST)


@pytest.mark.parametrize("at", [0, 2**20, 3 * 2**20 - 1])
def test_a_changed_byte_names_the_file(bundle: Path, at: int) -> None:
    with open(bundle / "weights.bin", "r+b") as file:
        file.seek(at)
        file.write(b"\x01")
    line = refusal(check_files, bundle, MANIFEST)
    assert "weights.bin: expected sha256" in line
    check_files(bundle, MANIFEST, ["model.onnx"])


def test_another_size_and_a_missing_file_are_named(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"graph!")
    assert "model.onnx: expected 5 bytes, found 6" in refusal(check_files, bundle, MANIFEST)
    (bundle / "model.onnx").unlink()
    assert "model.onnx: expected a file, found none" in refusal(check_files, bundle, MANIFEST)
    (bundle / "model.onnx").mkdir()
    assert "model.onnx: expected a file, found none" in refusal(check_files, bundle, MANIFEST)


def test_a_file_that_is_not_listed_is_refused_by_name(bundle: Path) -> None:
    (bundle / "further.onnx").write_bytes(b"")
    assert "expected 'further.onnx' in the manifest" in refusal(
        check_files, bundle, MANIFEST, ["further.onnx"]
    )


def test_no_bundle_says_what_one_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, found in (
        (tmp_path, "no manifest.json"),
        (tmp_path / "no", "no such"),
        (tmp_path / "file", "a file"),
    ):
        line = refusal(load_manifest, path)
        assert "a bundle made by `crossmost export`" in line
        assert f"found {found}" in line


def test_a_run_says_how_it_becomes_a_bundle(tmp_path: Path) -> None:
    run = tmp_path / "scans"
    run.mkdir()
    for name in ("config.yaml", "provenance.json"):
        (run / name).touch()
    made = f"found a run: make one with `crossmost export {run} --out scans.bundle`"
    assert refusal(load_manifest, run).endswith(made)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b'{"schema": 1', "expected JSON"),
        (b"[]", "a JSON object, found []"),
        (b"1", "a JSON object, found 1"),
        (b"\xff\xfe{}", "utf-8"),
        (b"\x80\x04K\x01.", "utf-8"),
        (b"[" * 10**6, "recursion"),
        (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "recursion"),
        (b'{"schema": 1, "a": ' + b"[" * 40 + b"]" * 40 + b"}", "32 levels"),
        (b'{"schema": ' + b"9" * 10**6 + b"}", "an integer of 1000000 digits"),
        (b'{"schema": 1, "a": 1e999}', "finite numbers"),
    ],
    ids=range(12),
)
def test_other_files_are_refused(bundle: Path, content: bytes, what: str) -> None:
    (bundle / "manifest.json").write_bytes(content)
    line = refusal(load_manifest, bundle)
    assert "manifest.json" in line
    assert what in line


def test_a_huge_manifest_is_not_read(bundle: Path) -> None:
    with open(bundle / "manifest.json", "wb") as file:
        file.truncate(10**11)
    tracemalloc.start()
    line = refusal(load_manifest, bundle)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "expected at most 8388608 bytes" in line
    assert peak < 32 * 2**20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(bundle: Path) -> None:
    for name in ("manifest.json", "model.onnx"):
        (bundle / name).unlink()
        os.mkfifo(bundle / name)
    assert "manifest.json" in refusal(load_manifest, bundle)
    assert "model.onnx" in refusal(check_files, bundle, MANIFEST)


def test_a_file_that_may_not_be_read_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert "cannot be read: Permission denied" in refusal(load_manifest, bundle)
    assert "cannot be read: Permission denied" in refusal(check_files, bundle, MANIFEST)


# Fuzzing. The folder is the same for all examples, and its manifest another in each.


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "model.onnx").write_bytes(CONTENT["model.onnx"])
    return folder


def read_or_refuse(folder: Path) -> None:
    """Nothing but InvalidBundle comes out, and what is accepted can be printed and written again."""
    line = ""
    try:
        manifest = load_manifest(folder)
        json.dumps(manifest.to_dict(), allow_nan=False, ensure_ascii=False).encode()
        check_files(folder, manifest)
    except InvalidBundle as error:
        line = str(error)
    assert "\n" not in line
    assert len(line.encode()) < 2000


def paths(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at] * bool(at) + [path for key, value in inner for path in paths(value, (*at, key))]


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["../x", "\ud800", 10**40]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(paths(changed("schema", value=1))), ANYTHING)
def test_any_value_anywhere_is_read_or_refused(fuzzed: Path, at: tuple[Any, ...], value: Any) -> None:
    put(fuzzed, changed(*at, value=value))
    read_or_refuse(fuzzed)


@settings(max_examples=200, deadline=None)
@given(ANYTHING | st.dictionaries(st.sampled_from([*MANIFEST.to_dict()]), ANYTHING))
def test_any_json_is_read_or_refused(fuzzed: Path, value: Any) -> None:
    put(fuzzed, value)
    read_or_refuse(fuzzed)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_bytes_are_read_or_refused(fuzzed: Path, data: st.DataObject) -> None:
    whole = json.dumps(MANIFEST.to_dict()).encode()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 20)))
    (fuzzed / "manifest.json").write_bytes(whole[:start] + data.draw(st.binary(max_size=20)) + whole[end:])
    read_or_refuse(fuzzed)
