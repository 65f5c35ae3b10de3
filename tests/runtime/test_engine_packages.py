import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from crossmost.runtime.cuda_driver import CudaDriver, Gpu
from crossmost.runtime.engine_packages import TensorRt, Unavailable, find_tensorrt

ORIN = Gpu("NVIDIA Orin", "8.7")
WITH_GPU = CudaDriver("12.6", (ORIN, Gpu("second", "8.6")), "")
NO_GPU = CudaDriver("", (), "no CUDA driver on this machine")
BOTH = {"tensorrt": "10.13.3.9", "tensorrt_rtx": "1.7.1.116"}


def find(
    wanted: Any, driver: CudaDriver, modules: dict[str, Any]
) -> tuple[TensorRt | Unavailable, list[str]]:
    """What is found among modules given by version or by the error of their import, and what was imported."""
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        found = modules.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(__version__=found)

    return find_tensorrt(wanted, probe=lambda: driver, load=load), loaded


@pytest.mark.parametrize(
    ("wanted", "driver", "modules", "package", "portable"),
    [
        ("auto", WITH_GPU, BOTH, "tensorrt", False),
        ("auto", NO_GPU, BOTH, "tensorrt-rtx", True),
        ("auto", WITH_GPU, {"tensorrt_rtx": "1.7.1.116"}, "tensorrt-rtx", True),
        ("tensorrt-rtx", WITH_GPU, BOTH, "tensorrt-rtx", True),
        ("tensorrt", WITH_GPU, {"tensorrt": "11.4.0.106"}, "tensorrt", False),
    ],
)
def test_tensorrt_where_a_gpu_answers_else_rtx(wanted, driver, modules, package, portable):
    found, _ = find(wanted, driver, modules)
    assert isinstance(found, TensorRt)
    assert (found.package, found.portable) == (package, portable)
    assert found.gpu == (driver.gpus[0] if driver.gpus else None)
    assert found.version == modules[package.replace("-", "_")]
    assert found.driver == driver.version


def test_the_gpu_with_a_number_is_taken_if_there_is_one():
    options = {"probe": lambda: WITH_GPU, "load": lambda _: SimpleNamespace(__version__="10.13.3.9")}
    found = find_tensorrt("tensorrt", device=1, **options)
    assert isinstance(found, TensorRt)
    assert found.gpu == WITH_GPU.gpus[1]
    missing = find_tensorrt("tensorrt", device=2, **options)
    assert isinstance(missing, Unavailable)
    assert "expected GPU 2, found 2" in missing.reason


@pytest.mark.parametrize("wanted", ["auto", "tensorrt"])
def test_tensorrt_is_not_even_imported_without_a_gpu(wanted):
    found, loaded = find(wanted, NO_GPU, {"tensorrt": "10.13.3.9"})
    assert "tensorrt" not in loaded
    assert isinstance(found, Unavailable)
    assert NO_GPU.reason in found.reason


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            ImportError("libnvonnxparser.so.11: cannot open shared\nobject file"),
            "cannot open shared object file",
        ),
        (FileNotFoundError("Could not find: nvinfer_10.dll"), "nvinfer_10.dll"),
        (ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs"), "tensorrt_libs"),
        ("8.6.1", "expected TensorRT 10 or later, found 8.6.1"),
    ],
)
def test_a_broken_or_old_installation_is_a_reason(module, said):
    found, _ = find("tensorrt", WITH_GPU, {"tensorrt": module})
    assert isinstance(found, Unavailable)
    assert said in found.reason
    assert "\n" not in found.reason


def test_nothing_installed_says_what_to_install():
    found, _ = find("auto", WITH_GPU, {})
    assert isinstance(found, Unavailable)
    assert "pip install tensorrt;" in found.reason
    assert found.reason.endswith("pip install tensorrt-rtx")


def test_the_search_of_this_machine_ends_well():
    code = "from crossmost.runtime.engine_packages import find_tensorrt; print(find_tensorrt('tensorrt'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "TensorRT" in done.stdout
