"""Compiling the kernels: the PTX in the repository is what their source gives, and failures are one line."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from crossmost.errors import InputError, WorkFailed
from crossmost.export.ptx import SOURCE, compile_kernels, compile_ptx, ptx_version
from crossmost.runtime.cuda_kernels import ARCHITECTURES, KERNELS


@pytest.fixture(autouse=True)
def _needs_nvrtc() -> None:
    try:
        compile_ptx("", 75)
    except InputError as error:
        pytest.skip(str(error))


def test_the_ptx_is_that_of_the_source(tmp_path: Path) -> None:
    """If this fails, run `python -m crossmost.export.ptx`."""
    written = compile_kernels(tmp_path)
    assert len(written) == len(ARCHITECTURES)
    for path in written:
        assert path.read_text("utf-8") == (KERNELS / path.name).read_text("utf-8"), path.name


@pytest.mark.parametrize("architecture", [75, 80, 90])
def test_any_architecture_that_nvrtc_knows(architecture: int) -> None:
    ptx = compile_ptx(SOURCE.read_text("utf-8"), architecture)
    assert ptx_version(ptx) <= (8, 1)
    assert f".target sm_{architecture}\n" in ptx


def test_a_mistake_in_the_source_is_one_line() -> None:
    with pytest.raises(
        WorkFailed, match=r"^NVRTC refused the kernels: sampling\.cu\(1\): error: .*nowhere[^\n]*$"
    ):
        compile_ptx('extern "C" __global__ void f() { nowhere(); }', 75)


def test_an_architecture_nvrtc_does_not_know() -> None:
    with pytest.raises(WorkFailed, match=r"^NVRTC refused the kernels: [^\n]+$"):
        compile_ptx("", 13)


def test_without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, *rest: Any) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(InputError, match=r"^expected NVRTC 12\.1, found none: pip install [^\n]+$"):
        compile_ptx("", 75)


def test_text_that_is_no_ptx() -> None:
    with pytest.raises(WorkFailed, match="found none"):
        ptx_version("// nothing")
