"""Which backend `auto` takes, why, and that those which cannot run are never imported."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from crossmost.runtime import onnx_backend, selection
from crossmost.runtime.backend import BackendUnavailable
from crossmost.runtime.cuda_driver import CudaDriver, Gpu
from crossmost.runtime.selection import BACKENDS, InvalidChoice, Wish, select_backend

NO_GPU = CudaDriver("", (), "no CUDA driver on this machine")
ONE_GPU = CudaDriver("13.0", (Gpu("Test", "8.9"),), "")


class Fake:
    """A backend that only remembers what it was made with."""

    def __init__(self, name, **options):
        self.name, self.options = name, options


@pytest.fixture
def machine(monkeypatch):
    """Play a machine: which packages it has, and which backends fail, with what."""

    def play(packages=(), failing=None):
        failing = failing or {}

        def make(name, **options):
            if name in failing:
                raise failing[name]
            return Fake(name, **options)

        def tensorrt(bundle, manifest, *, package, **options):
            return make(package, **options)

        def onnx(bundle, manifest, *, provider, **options):
            return make(f"onnxruntime-{provider}", **options)

        module = ModuleType("crossmost.runtime.tensorrt_backend")
        module.TensorRtBackend = tensorrt
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(onnx_backend, "OnnxBackend", onnx)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in packages else None)

    return play


def select(wish=None, driver=NO_GPU):
    return select_backend(None, None, wish or Wish(), probe=lambda: driver)


def test_the_best_one_that_works_is_taken(machine):
    both = ("tensorrt", "tensorrt_rtx")
    for packages, failing, expected in (
        (both, (), "tensorrt"),
        (both, ("tensorrt",), "tensorrt-rtx"),
        (("tensorrt_rtx",), (), "tensorrt-rtx"),
        ((), (), "onnxruntime-cuda"),
        (both, BACKENDS[:3], "onnxruntime-cpu"),
    ):
        machine(packages, {name: BackendUnavailable("no") for name in failing})
        found = select(driver=ONE_GPU)
        assert found.backend.name == expected
        assert list(found.refused) == list(BACKENDS[: BACKENDS.index(expected)])


def test_each_reason_is_kept(machine):
    machine(("tensorrt_rtx",), {"tensorrt-rtx": BackendUnavailable("no engine fits")})
    found = select(driver=ONE_GPU)
    assert found.refused["tensorrt-rtx"] == "no engine fits"
    assert found.refused["tensorrt"] == 'the tensorrt package is missing: pip install "crossmost[tensorrt]"'
    assert found.backend.name == "onnxruntime-cuda"
    assert "best" in found.why


def test_without_a_gpu_no_gpu_backend_is_touched(machine, monkeypatch):
    machine(("tensorrt", "tensorrt_rtx"))
    monkeypatch.setitem(sys.modules, "crossmost.runtime.tensorrt_backend", None)  # importing it would fail
    found = select()
    assert found.backend.name == "onnxruntime-cpu"
    assert set(found.refused.values()) == {"no CUDA driver on this machine"}
    assert "no CUDA driver" in found.why


def test_whatever_a_vendor_raises_the_cpu_still_works(machine):
    machine(
        ("tensorrt",),
        {"tensorrt": OSError("libnvinfer.so.10:\n cannot open"), "onnxruntime-cuda": MemoryError()},
    )
    found = select(driver=ONE_GPU)
    assert found.backend.name == "onnxruntime-cpu"
    assert found.refused["tensorrt"] == "it failed with OSError: libnvinfer.so.10: cannot open"


def test_where_nothing_works_all_reasons_are_one_line(machine):
    machine((), {"onnxruntime-cpu": BackendUnavailable("not installed: pip install x")})
    with pytest.raises(BackendUnavailable, match="no backend can run") as caught:
        select()
    assert all(name in str(caught.value) for name in BACKENDS)
    assert "pip install x" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_one_that_was_named_is_taken_or_says_why_not(machine, name):
    machine(("tensorrt", "tensorrt_rtx"))
    assert select(Wish(name), ONE_GPU).backend.name == name
    machine((), {name: BackendUnavailable("no")})
    with pytest.raises(BackendUnavailable):
        select(Wish(name), ONE_GPU)


def test_wishes_arrive(machine):
    machine(("tensorrt",))
    found = select(Wish("tensorrt", rebuild=True, device=0), ONE_GPU).backend
    assert found.options == {"device": 0, "rebuild": True}
    assert select(Wish(threads=2)).backend.options == {"device": None, "threads": 2}


def test_a_gpu_that_is_not_there_is_no_gpu(machine):
    machine(())
    with pytest.raises(BackendUnavailable, match="expected GPU 1, found 1: count from 0"):
        select(Wish("onnxruntime-cuda", device=1), ONE_GPU)


@pytest.mark.parametrize(
    "wish", [{"backend": "onnx"}, {"device": -1}, {"device": "cuda"}, {"threads": 0}, {"threads": True}]
)
def test_wishes_that_make_no_sense_are_refused(wish):
    with pytest.raises(InvalidChoice, match=f"expected {next(iter(wish))}"):
        Wish(**wish)


def test_so_many_threads_that_it_would_hang_are_refused():
    with pytest.raises(InvalidChoice, match="expected at most 1024 threads, found 1025"):
        Wish(threads=1025)


def test_the_order_is_the_documented_one():
    assert selection.BACKENDS == ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")
