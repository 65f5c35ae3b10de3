"""`crossmost doctor`: what this machine has to run bundles with, what would be used, and why not the rest.

What could end the process, because a library does not fit the driver, is asked in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from crossmost.runtime.child_process import SECONDS, ProcessFailed, ask
from crossmost.runtime.class_choice import CLASSES, ClassChoice, needed
from crossmost.runtime.cuda_driver import CudaDriver, probe_cuda
from crossmost.runtime.engine_cache import cache_folder
from crossmost.runtime.manifest import InvalidBundle, Manifest, check_files, load_manifest
from crossmost.runtime.onnx_backend import GRAPH
from crossmost.runtime.selection import BACKENDS, MODULES
from crossmost.runtime.vocabulary import InvalidVocabulary

State = Literal["ok", "none", "bad"]
MARKS: dict[State, str] = {"ok": "ok  ", "none": "-   ", "bad": "BAD "}
DAMAGED = "none is chosen for a bundle that is damaged"
BUILD_SECONDS = 3600
"""Until the building of an engine counts as failed."""

PACKAGES = {
    "numpy": ("numpy",),
    "ONNX Runtime": ("onnxruntime", "onnxruntime-gpu"),
    "TensorRT": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "TensorRT-RTX": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "cuda-python": ("cuda-bindings", "cuda-python"),
    "filelock": ("filelock",),
    "tokenizers": ("tokenizers",),
    "torch": ("torch",),
}
"""The distributions that bring each library."""

PURPOSES = {
    "ONNX Runtime": 'runs bundles anywhere: pip install "crossmost[cpu]", or "crossmost[gpu]"',
    "TensorRT": 'for NVIDIA GPUs: pip install "crossmost[tensorrt]"',
    "TensorRT-RTX": 'for RTX GPUs: pip install "crossmost[tensorrt-rtx]"',
    "cuda-python": "the sampling kernels on a GPU need it: pip install cuda-bindings",
    "filelock": "engines built here are kept with it: pip install filelock",
    "tokenizers": 'new class names on the robot need it: pip install "crossmost[text]"',
    "torch": "the runtime does without",
}
"""What a missing one would be good for."""

PROVIDERS = """
import ctypes, json, pathlib, sys
import onnxruntime
if hasattr(onnxruntime, "preload_dlls") and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
    onnxruntime.preload_dlls()
folder = pathlib.Path(onnxruntime.__file__).parent / "capi"
found = {name: "" for name in onnxruntime.get_available_providers()}
pattern = "onnxruntime_providers_{}.dll" if sys.platform == "win32" else "libonnxruntime_providers_{}.so"
for name, library in (("CUDAExecutionProvider", "cuda"), ("TensorrtExecutionProvider", "tensorrt")):
    if name in found:
        try:
            for part in ("shared", library):
                ctypes.CDLL(str(folder / pattern.format(part)), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            found[name] = str(error)
print("\\n" + json.dumps(found))
"""
"""Prints why each provider cannot be loaded: ONNX Runtime itself lists those it was compiled with."""

SELECTION = """
import json, sys
from pathlib import Path
from crossmost.runtime.backend import BackendUnavailable
from crossmost.runtime.manifest import InvalidBundle, load_manifest
from crossmost.runtime.selection import Wish, select_backend
bundle = Path(sys.argv[1])
try:
    wish = Wish(rebuild=json.loads(sys.argv[2]))
    found = select_backend(bundle, load_manifest(bundle), wish)
    notes = found.backend.info().get("notes", [])
    answer = {"used": found.backend.name, "why": found.why, "refused": found.refused, "notes": notes}
    found.backend.close()
except (BackendUnavailable, InvalidBundle) as error:
    answer = {"used": "", "why": str(error), "refused": {}}
print("\\n" + json.dumps(answer))
"""


@dataclass(frozen=True)
class Finding:
    """One fact: `ok`, something that is absent and may be (`none`), or something to mend (`bad`)."""

    name: str
    state: State
    text: str


UNBUILT = Finding("rebuild", "bad", "no TensorRT engine was built: why is said below")


@dataclass(frozen=True)
class Choice:
    """What `auto` takes for a bundle.

    Attributes:
        used: the backend; empty for none.
        why: it was taken.
        refused: why each other one was not.
        notes: what is not as it could be here.
    """

    used: str
    why: str
    refused: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """All that was found; `choice` only for a bundle."""

    findings: tuple[Finding, ...]
    choice: Choice | None = None

    def lines(self) -> list[str]:
        """For the screen, one line a fact."""
        lines = [f"{MARKS[found.state]}{found.name:<22}{found.text}" for found in self.findings]
        if self.choice is None:
            return lines
        mark = MARKS["ok" if self.choice.used else "bad"]
        lines.append(f"{mark}{'would be used':<22}{self.choice.used or 'nothing'}: {self.choice.why}")
        lines += [f"    but {note}" for note in self.choice.notes]
        return lines + [f"    not {name:<18}{why}" for name, why in self.choice.refused.items()]

    @property
    def usable(self) -> bool:
        """Whether the bundle can be used here, and the engine that was asked for was built; True without a bundle."""
        return self.choice is None or (bool(self.choice.used) and UNBUILT not in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def diagnose(bundle: Path | None = None, *, rebuild: bool = False) -> Diagnosis:
    """Look at this machine and, where one is given, at a bundle.

    Args:
        bundle: the folder.
        rebuild: build a TensorRT engine where none of the bundle was built for this GPU, and keep it.

    Raises:
        InvalidBundle: the bundle is none.
    """
    manifest = None if bundle is None else load_manifest(bundle)
    driver, versions = probe_cuda(), installed()
    findings = [*_machine(), *_gpus(driver), *_packages(versions), *_onnxruntime(versions), _cache()]
    if bundle is None or manifest is None:
        return Diagnosis(tuple(findings))
    files = _files(bundle, manifest)
    choice = _choose(bundle, rebuild) if files.state == "ok" else Choice("", DAMAGED)
    unbuilt = [UNBUILT] if rebuild and choice.used not in MODULES else []
    return Diagnosis((*findings, files, *_beside(bundle, manifest), *unbuilt), choice)


def installed() -> dict[str, str]:
    """Version by name of each distribution of `PACKAGES` that is installed; nothing is imported."""
    versions = {}
    for names in PACKAGES.values():
        for name in names:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return versions


def _machine() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield Finding("platform", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}")


def _gpus(driver: CudaDriver) -> Iterator[Finding]:
    if driver.version:
        yield Finding("NVIDIA driver", "ok", f"runs CUDA up to {driver.version}")
    for index, gpu in enumerate(driver.gpus):
        yield Finding(f"GPU {index}", "ok", str(gpu))
    if driver.reason:  # a driver that offers no GPU is to be mended; a machine without one is not
        yield Finding("GPU", "bad" if driver.version else "none", driver.reason)


def _packages(versions: Mapping[str, str]) -> Iterator[Finding]:
    for library, names in PACKAGES.items():
        found = [f"{name} {versions[name]}" for name in names if name in versions]
        if found:
            yield Finding(library, "ok", ", ".join(found))
        else:
            needed = library == "numpy"
            yield Finding(library, "bad" if needed else "none", f"not installed; {PURPOSES.get(library, '')}")


def _onnxruntime(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Two distributions of one module break each other, and neither pip nor the module says so."""
    both = [name for name in PACKAGES["ONNX Runtime"] if name in versions]
    if len(both) > 1:
        names = " and ".join(both)
        remedy = f'pip uninstall {" ".join(both)}, then pip install "crossmost[gpu]"'
        yield Finding("ONNX Runtime", "bad", f"{names} share a folder, and the first one wins: {remedy}")
    if not both:
        return
    try:
        providers: dict[str, str] = ask(PROVIDERS)
    except ProcessFailed as error:
        yield Finding("ONNX Runtime", "bad", f"cannot be imported: {error}")
        return
    for name, why in providers.items():
        if not why:
            yield Finding("ORT provider", "ok", name)
        else:  # that of TensorRT wants version 10, which few have: crossmost uses TensorRT itself
            state: State = "none" if name.startswith("Tensorrt") else "bad"
            yield Finding("ORT provider", state, f"{name} cannot be loaded: {' '.join(why.split())}")


def _cache() -> Finding:
    folder = cache_folder()
    if folder is None:
        return Finding("engine cache", "none", "no folder for it: set CROSSMOST_CACHE")
    try:
        sizes = [path.stat().st_size for path in folder.glob("*.engine")]
    except OSError as error:
        return Finding("engine cache", "bad", f"{folder}: {error.strerror}: set CROSSMOST_CACHE to another")
    state: State = "ok" if sizes else "none"
    return Finding("engine cache", state, f"{folder}: {len(sizes)} engines, {sum(sizes)} bytes")


def _files(bundle: Path, manifest: Manifest) -> Finding:
    """Whether the classifier would take them."""
    try:
        check_files(bundle, manifest, {CLASSES, GRAPH, *needed(manifest)})
        ClassChoice(bundle, manifest, None)
    except (InvalidBundle, InvalidVocabulary) as error:
        return Finding("bundle", "bad", str(error))
    engines = len(manifest.engines)
    return Finding(
        "bundle", "ok", f"{bundle}: {manifest.encoder.name}, {manifest.precisions}, {engines} engines, intact"
    )


def _beside(bundle: Path, manifest: Manifest) -> Iterator[Finding]:
    """Engines and text encoder, which the classifier does without."""
    for name in sorted(set(manifest.files) - needed(manifest)):
        try:
            check_files(bundle, manifest, [name])
        except InvalidBundle as error:
            yield Finding("beside it", "bad", f"{error}; the bundle works without it")


def _choose(bundle: Path, rebuild: bool) -> Choice:
    """What `auto` takes; those behind it were not tried."""
    try:
        seconds = BUILD_SECONDS if rebuild else SECONDS
        answer = ask(SELECTION, str(bundle), json.dumps(rebuild), seconds=seconds)
    except ProcessFailed as error:
        return Choice("", f"looking for one failed: {error}")
    used, why, refused = answer["used"], answer["why"], answer["refused"]
    behind = BACKENDS[BACKENDS.index(used) + 1 :] if used else ()
    behind_it = dict.fromkeys(behind, f"not tried: {used} comes first")
    return Choice(used, why, refused | behind_it, tuple(answer.get("notes", ())))
