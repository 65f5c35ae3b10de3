import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crossmost.errors import InputError, WorkFailed
from crossmost.export import bundle as module
from crossmost.export.bundle import write_bundle
from crossmost.runtime.manifest import Encoder, InvalidBundle, Manifest, check_files, load_manifest

MANIFEST = Manifest(
    schema=1,
    crossmost="0.1.0",
    encoder=Encoder("point-tiny", 512, 32, 16, 3, "z", 0.4, 16),
    precision="fp32",
    opset=18,
    ir_version=10,
)


def builder(content: bytes = b"new", **entries: Any) -> Callable[[Path], Manifest]:
    """Make a `build` that writes two files."""

    def build(folder: Path) -> Manifest:
        (folder / "model.onnx").write_bytes(content)
        (folder / "engines").mkdir()
        (folder / "engines" / "a.engine").write_bytes(b"plan")
        return dataclasses.replace(MANIFEST, engines=("engines/a.engine",), **entries)

    return build


def content_of(bundle: Path) -> bytes:
    check_files(bundle, load_manifest(bundle))
    return (bundle / "model.onnx").read_bytes()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scans.bundle"


@pytest.fixture
def old(out: Path) -> Path:
    """A bundle that is there before."""
    write_bundle(out, builder(b"old"), overwrite=False)
    return out


def test_a_bundle_is_its_files_and_their_digests(out: Path) -> None:
    notes = {"provenance": {"seed": (1, 2)}, "notes": ("a note",)}
    manifest = write_bundle(out, builder(**notes), overwrite=False)
    assert manifest == load_manifest(out)
    assert set(manifest.files) == {"model.onnx", "engines/a.engine"}
    assert manifest.files["model.onnx"].bytes == 3
    assert (manifest.provenance, manifest.notes) == ({"seed": [1, 2]}, ("a note",))
    assert content_of(out) == b"new"
    assert names_in(out) == {"manifest.json", "model.onnx", "engines"}
    assert names_in(out.parent) == {out.name}


def test_numbers_that_json_has_not_are_null(out: Path) -> None:
    manifest = write_bundle(out, builder(parity={"worst": float("nan")}), overwrite=False)
    assert manifest.parity == {"worst": None}


@pytest.mark.skipif(os.name == "nt", reason="no modes")
@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_modes_are_those_of_the_umask(out: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_bundle(out, builder(), overwrite=False)
    finally:
        os.umask(before)
    for path in (out, *out.rglob("*")):
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~mask, path


def test_everything_is_on_the_disk_before_the_rename(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_sync(descriptor)

    def rename(source: Any, target: Any) -> None:
        synced.append("rename")
        real_rename(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the system does not say what a descriptor is of")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    write_bundle(out, builder(), overwrite=False)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    before, after = synced[: synced.index("rename")], synced[synced.index("rename") :]
    for name in ("", "model.onnx", "engines", "engines/a.engine"):
        assert str(partial / name) in before
    assert any("manifest.json" in name for name in before)
    assert str(out.parent) in after


# Destinations


def test_missing_parents_are_made_and_go_again_after_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "scans.bundle"
    with pytest.raises(WorkFailed, match="gate"):
        write_bundle(out, failing(WorkFailed("a gate failed")), overwrite=False)
    assert names_in(tmp_path) == set()
    write_bundle(out, builder(), overwrite=False)
    assert content_of(out) == b"new"


def test_an_existing_bundle_needs_overwrite(old: Path) -> None:
    with pytest.raises(InputError, match="expected a new folder, found one that exists: add --overwrite"):
        write_bundle(old, forbidden, overwrite=False)
    assert content_of(old) == b"old"
    write_bundle(old, builder(), overwrite=True)
    assert content_of(old) == b"new"
    assert names_in(old.parent) == {old.name}


def test_overwriting_nothing_is_writing(out: Path) -> None:
    write_bundle(out, builder(), overwrite=True)
    assert content_of(out) == b"new"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "damaged bundle", "dangling name"])
def test_what_is_no_bundle_is_never_replaced(out: Path, kind: str, overwrite: bool) -> None:
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        if kind == "folder":
            (out / "mine.txt").write_text("mine")
        if kind == "damaged bundle":
            (out / "manifest.json").write_text("{}")
        if kind == "dangling name":
            (out / "manifest.json").symlink_to("nowhere")
    before = sorted(out.rglob("*"))
    with pytest.raises(InputError, match="choose another --out") as error:
        write_bundle(out, forbidden, overwrite=overwrite)
    assert str(out) in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(out.rglob("*")) == before
    assert names_in(out.parent) == {out.name}


@pytest.mark.parametrize("name", ["notes.txt", ".git/config", "engines.txt"])
def test_a_bundle_that_holds_files_of_others_is_not_replaced(old: Path, name: str) -> None:
    (old / name).parent.mkdir(exist_ok=True)
    (old / name).write_text("mine")
    with pytest.raises(InputError, match=f"only files of the bundle to overwrite, found {name}"):
        write_bundle(old, forbidden, overwrite=True)
    assert (old / name).read_text("utf-8") == "mine"


def test_a_link_to_others_folders_is_not_replaced(old: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (old / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="found link"):
        write_bundle(old, forbidden, overwrite=True)


def test_engines_that_were_built_since_go_with_their_bundle(old: Path) -> None:
    (old / "engines" / "b.engine").write_bytes(b"plan")
    write_bundle(old, builder(), overwrite=True)
    assert not (old / "engines" / "b.engine").exists()


def test_what_a_link_names_is_replaced_and_the_link_stays(old: Path, tmp_path: Path) -> None:
    current = tmp_path / "current"
    current.symlink_to(old.name)
    write_bundle(current, builder(), overwrite=True)
    assert current.is_symlink()
    assert content_of(old) == content_of(current) == b"new"
    assert names_in(tmp_path) == {"current", old.name}


def test_a_relative_destination_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bundle(Path("scans.bundle"), builder(), overwrite=False)
    assert content_of(tmp_path / "scans.bundle") == b"new"


def test_a_parent_that_is_a_file_fails_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WorkFailed, match="cannot write the bundle"):
        write_bundle(tmp_path / "file" / "scans.bundle", forbidden, overwrite=False)
    assert (tmp_path / "file").read_text("utf-8") == "mine"


# Failures


def forbidden(folder: Path) -> Manifest:
    raise AssertionError("nothing is built for a destination that is refused")


def failing(error: BaseException) -> Callable[[Path], Manifest]:
    def build(folder: Path) -> Manifest:
        builder()(folder)
        raise error

    return build


@pytest.fixture(params=[False, True], ids=["alone", "over an old one"])
def existing(request: pytest.FixtureRequest, out: Path) -> Iterator[Path]:
    """A destination, at which in one case a bundle is; afterwards that must be all there is."""
    if request.param:
        write_bundle(out, builder(b"old"), overwrite=False)
    yield out
    if request.param:
        assert content_of(out) == b"old"
    assert names_in(out.parent) == ({out.name} if request.param else set())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, InputError, WorkFailed, ZeroDivisionError, SystemExit])
def test_a_failure_leaves_nothing_new(existing: Path, kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        write_bundle(existing, failing(kind("why")), overwrite=True)


@pytest.mark.parametrize("room", [0, 1000, 300_000])
def test_a_full_disk_leaves_nothing_new(existing: Path, full_disk: Any, room: int) -> None:
    """It fills up at the manifest's first byte, at the weights, or at the last of them."""
    with full_disk(room), pytest.raises(WorkFailed) as error:
        write_bundle(existing, builder(bytes(400_000)), overwrite=True)
    assert "untouched" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_disk_that_fills_up_at_the_manifest_leaves_nothing_new(existing: Path, full_disk: Any) -> None:
    with full_disk(100), pytest.raises(WorkFailed, match=r"manifest\.json"):
        write_bundle(existing, builder(b"small"), overwrite=True)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", ["first", "between", "last"])
def test_a_failure_at_a_rename_brings_the_old_one_back(
    existing: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    """Before the first rename, after the old one stepped aside, or before the new one takes its place."""
    real, waiting = os.rename, {"first": 0, "between": 0, "last": 1}[moment] if existing.exists() else 0
    steps_aside = moment == "between" and existing.exists()
    calls = iter(range(9))

    def rename(source: Any, target: Any) -> None:
        now = next(calls) == waiting
        if not now or steps_aside:
            real(source, target)
        if now:
            raise error

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises((WorkFailed, KeyboardInterrupt)):
        write_bundle(existing, builder(), overwrite=True)


@pytest.mark.parametrize("bad", [{"precision": "fp64"}, {"engines": ("no.engine",)}, {"notes": (1,)}])
def test_a_manifest_that_nobody_could_read_is_not_written(existing: Path, bad: dict[str, Any]) -> None:
    def build(folder: Path) -> Manifest:
        return dataclasses.replace(builder()(folder), **bad)

    with pytest.raises(InvalidBundle):
        write_bundle(existing, build, overwrite=True)


@pytest.mark.parametrize("name", [".hidden", "a b", "link"])
def test_files_that_nobody_could_read_are_not_written(existing: Path, name: str) -> None:
    def build(folder: Path) -> Manifest:
        if name == "link":
            (folder / name).symlink_to(sys.executable)
        else:
            (folder / name).write_bytes(b"")
        return builder()(folder)

    with pytest.raises(InvalidBundle, match=name):
        write_bundle(existing, build, overwrite=True)


# Crashes: a process that is killed cleans up nothing.

CRASH = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_bundle as tests
real, calls = os.rename, iter(range(9))

def rename(source, target):
    if next(calls) == {call}:
        os._exit(9)
    real(source, target)

os.rename = rename
tests.write_bundle(Path({out!r}), tests.builder(b"crashed"), overwrite=True)
"""


def crash(out: Path, call: int) -> None:
    """Export in a process that dies before a rename."""
    code = CRASH.format(tests=str(Path(__file__).parent), call=call, out=str(out))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 9, done.stderr


def test_a_crash_before_the_swap_leaves_the_old_one_and_is_cleared_up(old: Path) -> None:
    crash(old, 0)
    assert content_of(old) == b"old"
    assert len(names_in(old.parent)) == 2
    write_bundle(old, builder(), overwrite=True)
    assert content_of(old) == b"new"
    assert names_in(old.parent) == {old.name}


def test_a_crash_within_the_swap_is_made_good_by_the_next_export(old: Path) -> None:
    crash(old, 1)
    assert not old.exists()
    # Whatever becomes of that export: here it is refused, because there is an old bundle again.
    with pytest.raises(InputError, match="add --overwrite"):
        write_bundle(old, forbidden, overwrite=False)
    assert content_of(old) == b"old"
    assert names_in(old.parent) == {old.name}


def test_a_crash_after_the_swap_leaves_the_new_one_and_is_cleared_up(old: Path) -> None:
    crash(old, 2)
    assert content_of(old) == b"crashed"
    write_bundle(old, builder(), overwrite=True)
    assert content_of(old) == b"new"
    assert names_in(old.parent) == {old.name}


def test_what_other_processes_are_at_is_left_alone(out: Path) -> None:
    alive, ours, other = os.getppid(), os.getpid(), "backup"
    for process in (alive, ours, other):
        folder = out.with_name(f".{out.name}.partial-{process}")
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"half")
    out.with_name(".another.bundle.partial-1").mkdir()
    write_bundle(out, builder(), overwrite=False)
    assert names_in(out.parent) == {
        out.name,
        f".{out.name}.partial-{alive}",
        f".{out.name}.partial-backup",
        ".another.bundle.partial-1",
    }


def test_an_old_one_that_cannot_be_removed_is_no_failure(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: None)
    write_bundle(old, builder(), overwrite=True)
    assert content_of(old) == b"new"
    monkeypatch.undo()
    write_bundle(old, builder(b"newer"), overwrite=True)
    assert names_in(old.parent) == {old.name}


def test_a_copied_bundle_is_a_bundle(old: Path, tmp_path: Path) -> None:
    shutil.copytree(old, tmp_path / "copy")
    assert content_of(tmp_path / "copy") == b"old"
    assert json.loads((tmp_path / "copy" / "manifest.json").read_text("utf-8"))["schema"] == 1
