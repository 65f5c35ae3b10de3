"""Which backend runs a bundle here: the one that was named, or the best one that works."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crossmost.runtime.backend import Backend, BackendUnavailable
from crossmost.runtime.cuda_driver import CudaDriver, probe_cuda
from crossmost.runtime.errors import InvalidInput
from crossmost.runtime.manifest import Manifest

BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")
"""Best first: the order in which `auto` tries them."""

AUTO = "auto"
MOST_THREADS = 1024
"""ONNX Runtime starts each of them when it opens a graph: a slip of the hand would hang it."""
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


class InvalidChoice(InvalidInput):
    """A backend, device or number of threads that does not exist."""


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        backend: one of `BACKENDS`, or `auto`.
        device: index of the GPU; None for the first.
        threads: of one pass on the CPU; None for one a core.
        rebuild: build a TensorRT engine where none fits.
    """

    backend: str = AUTO
    device: int | None = None
    threads: int | None = None
    rebuild: bool = False

    def __post_init__(self) -> None:
        if self.backend not in (AUTO, *BACKENDS):
            raise InvalidChoice(
                f"expected backend {', '.join((AUTO, *BACKENDS[:-1]))} or {BACKENDS[-1]}, found {self.backend!r}"
            )
        for name, value, least in (("device", self.device, 0), ("threads", self.threads, 1)):
            if value is not None and (type(value) is not int or value < least):
                raise InvalidChoice(
                    f"expected {name} as an integer from {least} on, or None, found {value!r}"
                )
        if self.threads is not None and self.threads > MOST_THREADS:
            raise InvalidChoice(f"expected at most {MOST_THREADS} threads, found {self.threads}")


@dataclass(frozen=True)
class Selection:
    """The backend that was opened.

    Attributes:
        backend: ready to embed.
        why: one line, how it was chosen.
        refused: why each better one was not, by name.
    """

    backend: Backend
    why: str
    refused: dict[str, str] = field(default_factory=dict)


def select_backend(
    bundle: Path, manifest: Manifest, wish: Wish, *, probe: Callable[[], CudaDriver] = probe_cuda
) -> Selection:
    """Open the backend that was named or, for `auto`, the best one that works.

    Args:
        bundle: the folder, its files checked.
        manifest: of the bundle.
        wish: what was asked for.
        probe: asks the CUDA driver for its GPUs; not called where no GPU is wanted.

    Raises:
        BackendUnavailable: the named one, or every one, cannot run here; says why and what to type.
        InvalidBundle: a file of the bundle is missing.
    """
    if wish.backend != AUTO:
        return Selection(_open(wish.backend, bundle, manifest, wish, probe), "it was asked for")
    refused: dict[str, str] = {}
    for name in BACKENDS[:-1]:
        try:
            backend = _open(name, bundle, manifest, wish, probe)
        except BackendUnavailable as error:
            refused[name] = str(error)
        except Exception as error:  # a vendor's library may raise anything, and the CPU works all the same
            refused[name] = f"it failed with {type(error).__name__}: {' '.join(str(error).split())}"
        else:
            return Selection(backend, "the best one that works here", refused)
    try:
        return Selection(_open(BACKENDS[-1], bundle, manifest, wish, probe), _why_cpu(refused), refused)
    except BackendUnavailable as error:
        refused[BACKENDS[-1]] = str(error)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in reversed(refused.items()))
        raise BackendUnavailable(f"no backend can run {bundle}: {reasons}") from error


def _open(
    name: str, bundle: Path, manifest: Manifest, wish: Wish, probe: Callable[[], CudaDriver]
) -> Backend:
    """Import and open one backend; what it needs is looked for first, because a missing one is never imported."""
    if name == "onnxruntime-cpu":
        return _open_onnx("cpu", bundle, manifest, wish)
    if name in MODULES and importlib.util.find_spec(MODULES[name]) is None:
        raise BackendUnavailable(f'the {MODULES[name]} package is missing: pip install "crossmost[{name}]"')
    _require_gpu(probe(), wish.device or 0)
    if name == "onnxruntime-cuda":
        return _open_onnx("cuda", bundle, manifest, wish)
    from crossmost.runtime.tensorrt_backend import TensorRtBackend

    package: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt" if name == "tensorrt" else "tensorrt-rtx"
    return TensorRtBackend(bundle, manifest, package=package, device=wish.device, rebuild=wish.rebuild)


def _open_onnx(provider: str, bundle: Path, manifest: Manifest, wish: Wish) -> Backend:
    from crossmost.runtime.onnx_backend import OnnxBackend

    return OnnxBackend(bundle, manifest, provider=provider, device=wish.device, threads=wish.threads)


def _require_gpu(driver: CudaDriver, device: int) -> None:
    if driver.reason:
        raise BackendUnavailable(driver.reason)
    if device >= len(driver.gpus):
        raise BackendUnavailable(f"expected GPU {device}, found {len(driver.gpus)}: count from 0")


def _why_cpu(refused: dict[str, str]) -> str:
    """One reason that all others share is the only one worth reading."""
    reasons = set(refused.values())
    return f"no GPU backend works here: {reasons.pop()}" if len(reasons) == 1 else "no GPU backend works here"
