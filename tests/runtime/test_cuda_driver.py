import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from crossmost.runtime.cuda_driver import Gpu, probe_cuda

WORDS = {100: b"no CUDA-capable device is detected"}


def make_driver(*devices: tuple[str, int, int], init: int = 0, version: int = 12060) -> SimpleNamespace:
    """A stand-in for libcuda with the driver's own calling convention: results go where pointers point."""

    def put(pointer, value) -> int:
        pointer._obj.value = value
        return 0

    def name(buffer, size, device) -> int:
        buffer.value = devices[device.value][0].encode()[: size.value - 1]
        return 0

    return SimpleNamespace(
        cuDriverGetVersion=lambda out: put(out, version),
        cuInit=lambda flags: init,
        cuDeviceGetCount=lambda out: put(out, len(devices)),
        cuDeviceGet=lambda out, index: put(out, index.value),
        cuDeviceGetName=name,
        cuDeviceGetAttribute=lambda out, which, device: put(
            out, devices[device.value][{75: 1, 76: 2}[which.value]]
        ),
        cuGetErrorString=lambda status, out: put(out, WORDS.get(status.value)),
    )


def absent(name: str) -> object:
    raise OSError(f"{name}: cannot open shared object file")


def test_gpus_come_with_name_capability_and_driver():
    found = probe_cuda(lambda name: make_driver(("NVIDIA Orin", 8, 7), ("NVIDIA GeForce RTX 5090", 12, 0)))
    assert found.gpus == (Gpu("NVIDIA Orin", "8.7"), Gpu("NVIDIA GeForce RTX 5090", "12.0"))
    assert found.version == "12.6"
    assert found.reason == ""


def test_without_a_driver_there_is_a_reason_and_no_error():
    found = probe_cuda(absent)
    assert found.gpus == ()
    assert found.version == ""
    assert "no CUDA driver" in found.reason


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (
            make_driver(("x", 8, 0), init=100),
            "cuInit failed with error 100 (no CUDA-capable device is detected)",
        ),
        (make_driver(("x", 8, 0), init=999), "cuInit failed with error 999"),
        (make_driver(), "counts 0 devices"),
        (SimpleNamespace(), "it has no cuDriverGetVersion"),
    ],
)
def test_a_driver_that_offers_nothing_says_why_in_one_line(driver, said):
    found = probe_cuda(lambda name: driver)
    assert found.gpus == ()
    assert said in found.reason
    assert "\n" not in found.reason


def test_a_driver_that_fails_keeps_its_version():
    assert probe_cuda(lambda name: make_driver(init=803, version=13000)).version == "13.0"


@pytest.mark.skipif(sys.platform != "linux", reason="names a library of Linux")
def test_another_library_is_no_driver():
    found = probe_cuda(lambda name: ctypes.CDLL("libc.so.6"))
    assert "no CUDA driver" in found.reason


def test_the_probe_of_this_machine_ends_well_and_loads_nothing_heavy():
    code = (
        "import sys; from crossmost.runtime.cuda_driver import probe_cuda; found = probe_cuda();"
        "assert bool(found.gpus) != bool(found.reason);"
        "assert not {'numpy', 'torch', 'tensorrt'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
