"""Kernels of TensorRT-RTX kept in a file: the file's name, and that its own package offers what is used of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from crossmost.runtime.cuda_driver import Gpu
from crossmost.runtime.engine_compiled import CompiledKernels, compiled_file
from crossmost.runtime.engine_packages import TensorRt


class Facts:
    key = "0123456789abcdef"


def tensorrt(name: str = "NVIDIA Orin", driver: str = "12.6") -> TensorRt:
    return TensorRt("tensorrt-rtx", None, "1.7", Gpu(name, "8.7"), driver)


def test_each_engine_gpu_and_driver_has_its_file(tmp_path: Path) -> None:
    facts: Any = Facts()
    found = [compiled_file(tmp_path, facts, tensorrt(*which)) for which in ((), ("B",), ("B", "13.0"))]
    assert found[0] == tmp_path / "0123456789abcdef-nvidia-orin-cuda12.6.rtxcache"
    assert len(set(found)) == 3


def test_kernels_are_kept_and_taken_over(tmp_path: Path, fake_gpu: ModuleType) -> None:
    path, cache = tmp_path / "new folder" / "x.rtxcache", fake_gpu.FakeRuntimeCache()
    first = CompiledKernels(cache, path)
    cache.compile(4)
    first.keep()
    content = path.read_bytes()
    assert content == hashlib.sha256(b"this 4").digest() + b"this 4"
    again = fake_gpu.FakeRuntimeCache()
    second = CompiledKernels(again, path)
    assert again.known == {4}
    path.unlink()
    second.keep()  # nothing is new
    assert not path.exists()
    again.compile(8)
    second.keep()
    assert path.read_bytes().endswith(b"this 4 8")
    assert second.note == ""


def test_without_a_folder_nothing_is_kept(fake_gpu: ModuleType) -> None:
    cache = fake_gpu.FakeRuntimeCache()
    cache.serialize = lambda: pytest.fail("asked")
    kernels = CompiledKernels(cache, None)
    kernels.keep()
    assert kernels.note == ""


def test_what_cannot_be_kept_is_a_note_until_it_can(
    tmp_path: Path, fake_gpu: ModuleType, full_disk: Any
) -> None:
    path, cache = tmp_path / "x.rtxcache", fake_gpu.FakeRuntimeCache()
    kernels = CompiledKernels(cache, path)
    with full_disk(10):
        kernels.keep()
    assert kernels.note.startswith(
        "the kernels compiled here are not kept, the next process compiles again: "
    )
    assert "\n" not in kernels.note
    assert not path.exists()
    kernels.keep()
    assert kernels.note == ""
    assert path.exists()
    cache.serialize = lambda: None  # as TensorRT answers where it fails
    kernels.keep()
    assert "not kept" in kernels.note


def test_tensorrt_rtx_has_what_is_used_of_it() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    assert "IHostMemory" in rtx.IRuntimeCache.serialize.__doc__
    assert "Buffer) -> bool" in rtx.IRuntimeCache.deserialize.__doc__
    assert "IRuntimeCache" in rtx.IRuntimeConfig.create_runtime_cache.__doc__
    assert rtx.IRuntimeConfig.set_runtime_cache.__doc__
