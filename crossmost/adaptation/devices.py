"""Where a run computes, and how precisely."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from crossmost.errors import InputError
from crossmost.runtime.cuda_driver import probe_cuda

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def idle_gpu(name: str) -> str | None:
    """One line where "auto" means the CPU though the machine has an NVIDIA GPU, which this torch cannot use."""
    if name != "auto" or torch.cuda.is_available():
        return None
    driver = probe_cuda()
    if not driver.gpus:
        return None
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs"
    return (
        f"{driver.gpus[0]} stays unused: this torch {built}, and the driver runs CUDA up to {driver.version}; "
        "install the build of torch that fits"
    )


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision around the networks; float32 is no context at all.

    Raises:
        InputError: float16 on a CPU, whose gradients would underflow unscaled.
    """
    if precision == "float32":
        return nullcontext()
    if precision == "float16" and device.type == "cpu":
        raise InputError("precision float16 needs a GPU: use bfloat16 or float32 on the CPU")
    return torch.autocast(device.type, PRECISIONS[precision])


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch compute in so many threads on the CPU; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let glibc keep what training frees, for the next step.

    A step on the CPU allocates and frees the same tensors of some megabytes again and again. Given back to the
    kernel each time, they come back as page faults, which can take as long as the arithmetic. Elsewhere than
    on glibc this does nothing.
    """
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_threshold, 32 << 20)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 << 20)
