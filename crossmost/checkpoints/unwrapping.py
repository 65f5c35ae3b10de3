"""From what a checkpoint holds to the tensors of one network by their own names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from crossmost.errors import InputError

Network = Literal["student", "teacher"]

STUDENT = ("state_dict", "model_state_dict", "model", "module", "base_model")
"""Entries that hold a network: of plain training scripts, of self-training, of DeepSpeed and of Point-BERT's."""
TEACHER = ("model_ema", "state_dict_ema", "ema")
"""Entries that hold the averaged network, as self-training, timm and others call it."""

DEEPEST = 3
BESIDE = "logit_scale"
"""The entry that some training scripts save beside the network, though it belongs to it."""

WRAPPERS = {"module", "_orig_mod"}
"""Parts of a name that come from DistributedDataParallel, DeepSpeed and torch.compile."""
PREFIX = "pc_encoder."


class Unwrapped(NamedTuple):
    """The tensors of a network by name, and the other entries of the file with why they are left out."""

    tensors: dict[str, Tensor]
    others: dict[str, str]


def unwrap(content: Mapping[Any, Any], network: Network, path: Path) -> Unwrapped:
    """Find the network in a checkpoint and take the names that training scripts put around its own away.

    Args:
        content: of the file.
        network: which one, where self-training saved two.
        path: of the file, for messages.

    Raises:
        InputError: no tensors, no such network, or two tensors of one name.
    """
    beside: dict[Any, Any] = {}
    others: dict[str, str] = {}
    found: Network = "student"
    for _ in range(DEEPEST):
        inner = _entry(content, network)
        if inner is None:
            break
        found = "teacher" if inner in TEACHER else found
        for name, value in content.items():
            if name == BESIDE:
                beside |= value if isinstance(value, Mapping) else {BESIDE: value}
            elif name != inner:
                others[str(name)] = _why(name, value, network)
        content = content[inner]
    if found != network:
        raise InputError(f"{path}: expected {' or '.join(TEACHER)} in it for --network teacher, found none")
    tensors = _tensors({**beside, **content}, path)
    others |= {str(name): "no tensor" for name, value in content.items() if not _usable(value)}
    if not tensors:
        averaged = next((name for name in TEACHER if _holds_tensors(content.get(name))), None)
        what = f"no tensor: {_listed(content)}"
        if averaged:
            what = f"only the averaged one, {averaged!r}: --network teacher takes it"
        raise InputError(f"{path}: expected the weights of a network, found {what}")
    return Unwrapped(tensors, others)


def _entry(content: Mapping[Any, Any], network: Network) -> str | None:
    """Name of the entry that holds the network; None where it is not wrapped."""
    wanted = (*TEACHER, *STUDENT) if network == "teacher" else STUDENT
    return next((name for name in wanted if _holds_tensors(content.get(name))), None)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        _usable(each) or isinstance(each, Mapping) for each in value.values()
    )


def _why(name: Any, value: Any, network: Network) -> str:
    if name in (*TEACHER, *STUDENT) and _holds_tensors(value):
        return f"the other network: --network {'student' if network == 'teacher' else 'teacher'} takes it"
    return "state of the training that made the file"


def _tensors(state: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if _usable(value):
            name = ".".join(part for part in str(key).split(".") if part not in WRAPPERS).removeprefix(PREFIX)
            if name in tensors:
                raise InputError(f"{path}: expected one tensor {name!r}, found it with and without a wrapper")
            single = name == BESIDE and value.numel() == 1  # some save it as a vector of one
            tensors[name] = value.detach().reshape(()) if single else value.detach()
    return tensors


def _usable(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _listed(content: Mapping[Any, Any]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "it is empty"
