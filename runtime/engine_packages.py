"""Finding a TensorRT to work with here: TensorRT itself, which needs a GPU, or TensorRT-RTX, which builds without."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from crossmost.runtime.cuda_driver import CudaDriver, Gpu, probe_cuda
from crossmost.runtime.engine_facts import PACKAGES

Wanted = Literal["auto", "tensorrt", "tensorrt-rtx"]
OLDEST_TENSORRT = 10
"""The first major version with strongly typed networks, in which half precision is the graph's alone."""


@dataclass(frozen=True)
class TensorRt:
    """A TensorRT that can build.

    Attributes:
        package: `tensorrt` or `tensorrt-rtx`.
        module: the imported package; both have one API.
        version: of the package, all its numbers.
        gpu: the GPU that answers; always there for `tensorrt`, None where `tensorrt-rtx` builds without one.
        driver: the newest CUDA the driver can run; empty without a driver.
    """

    package: str
    module: Any
    version: str
    gpu: Gpu | None
    driver: str

    @property
    def portable(self) -> bool:
        """Whether its plans are for a list of compute capabilities instead of the GPU at hand."""
        return self.package == "tensorrt-rtx"

    def __str__(self) -> str:
        return f"{PACKAGES[self.package]} {self.version}"


@dataclass(frozen=True)
class Unavailable:
    """No engine can be built here; `reason` is one line, for the manifest and the screen."""

    reason: str


def find_tensorrt(
    wanted: Wanted = "auto",
    *,
    device: int = 0,
    probe: Callable[[], CudaDriver] = probe_cuda,
    load: Callable[[str], Any] = importlib.import_module,
) -> TensorRt | Unavailable:
    """Look for TensorRT and, where it is missing or no GPU answers, for TensorRT-RTX; never raises, never crashes.

    Args:
        wanted: one of the two alone, or `auto`.
        device: index of the GPU to build for.
        probe: asks the CUDA driver.
        load: imports a module by name.
    """
    driver = probe()
    if driver.gpus and device >= len(driver.gpus):
        return Unavailable(
            f"expected GPU {device}, found {len(driver.gpus)} of them, the first with number 0"
        )
    packages = ("tensorrt", "tensorrt-rtx") if wanted == "auto" else (wanted,)
    reasons = []
    for package in packages:
        find = _tensorrt if package == "tensorrt" else _tensorrt_rtx
        found = find(driver, device, load)
        if isinstance(found, TensorRt):
            return found
        reasons.append(found.reason)
    return Unavailable("; ".join(reasons))


def _tensorrt(driver: CudaDriver, device: int, load: Callable[[str], Any]) -> TensorRt | Unavailable:
    if not driver.gpus:  # before the import: without a driver TensorRT ends the process
        return Unavailable(f"TensorRT works on a GPU only: {driver.reason}")
    module = _load("tensorrt", "tensorrt", load)
    if isinstance(module, Unavailable):
        return module
    version = str(module.__version__)
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < OLDEST_TENSORRT:
        return Unavailable(f"expected TensorRT {OLDEST_TENSORRT} or later, found {version}")
    return TensorRt("tensorrt", module, version, driver.gpus[device], driver.version)


def _tensorrt_rtx(driver: CudaDriver, device: int, load: Callable[[str], Any]) -> TensorRt | Unavailable:
    module = _load("tensorrt-rtx", "tensorrt_rtx", load)
    if isinstance(module, Unavailable):
        return module
    gpu = driver.gpus[device] if driver.gpus else None
    return TensorRt("tensorrt-rtx", module, str(module.__version__), gpu, driver.version)


def _load(package: str, module: str, load: Callable[[str], Any]) -> Any:
    try:
        return load(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return Unavailable(f"{PACKAGES[package]} is not installed: pip install {package}")
        return _broken(package, error)
    except (
        ImportError,
        OSError,
    ) as error:  # the bindings are there, the libraries are not, or not this version
        return _broken(package, error)


def _broken(package: str, error: Exception) -> Unavailable:
    return Unavailable(
        f"{PACKAGES[package]} is installed and cannot be loaded: {' '.join(str(error).split())}"
    )
