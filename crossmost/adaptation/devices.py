"""Where a run computes, and how precisely."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from crossmost.errors import InputError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return device


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
