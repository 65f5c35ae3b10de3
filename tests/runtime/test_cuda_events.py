"""The time between two events where cuda-python and the driver are of different ages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crossmost.runtime.cuda_calls import CudaError
from crossmost.runtime.cuda_events import elapsed_milliseconds

OLD_DRIVER = """
#include <string.h>
typedef unsigned long long u64;
enum { VERSION = 12020 };
static int done(void) { return 0; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuEventElapsedTime(float *milliseconds, void *first, void *second) { *milliseconds = 1.5f; return 0; }
int cuGetProcAddress_v2(const char *name, void **function, int version, u64 flags, int *status) {
    if (version > VERSION) return 1;
    *function = strcmp(name, "cuDriverGetVersion") ? (void *)done : (void *)cuDriverGetVersion;
    if (!strcmp(name, "cuEventElapsedTime")) *function = (void *)cuEventElapsedTime;
    return 0;
}
int cuGetProcAddress(const char *name, void **function, int version, u64 flags) {
    return cuGetProcAddress_v2(name, function, version, flags, 0);
}
"""
"""A driver for CUDA 12.2 that can do nothing and knows nothing newer, as cuda-python asks it for functions."""


def library(status: int = 0) -> Any:
    """A driver whose two events are 2.5 ms apart."""

    def elapsed(milliseconds: Any, first: Any, second: Any) -> int:
        assert (first.value, second.value) == (16, 17)
        milliseconds._obj.value = 2.5
        return status

    return SimpleNamespace(cuEventElapsedTime=elapsed)


def test_the_time_comes_from_the_library_of_the_driver() -> None:
    assert elapsed_milliseconds(16, 17, lambda _: library()) == 2.5


def absent(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (lambda _: library(600), "error 600"),
        (lambda _: SimpleNamespace(), "found none"),
        (absent, "found none"),
    ],
)
def test_without_it_there_is_one_line(load: Any, said: str) -> None:
    with pytest.raises(CudaError, match=rf"^cuEventElapsedTime failed.* {said}$"):
        elapsed_milliseconds(16, 17, load)


@pytest.mark.skipif(sys.platform != "linux", reason="compiles a library for Linux")
def test_a_stream_takes_the_time_with_an_older_driver(tmp_path: Path) -> None:
    """The installed cuda-python on a driver that it is too new for."""
    pytest.importorskip("cuda.bindings.driver")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is not here")
    (tmp_path / "driver.c").write_text(OLD_DRIVER)
    made = [compiler, "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "driver.c")]
    subprocess.run(made, check=True)
    code = (
        "from crossmost.runtime.cuda_device import CudaDevice, CudaStream;"
        "print(CudaStream(CudaDevice(0), marks=2).seconds(0, 1))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout) == (0, "0.0015\n"), done.stderr
