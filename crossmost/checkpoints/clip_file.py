"""A weights file of a CLIP, of which only the tensors that are asked for are read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from crossmost.checkpoints.legacy import PICKLE, ZIP, read_legacy
from crossmost.checkpoints.store import not_safetensors
from crossmost.checkpoints.torchscript import NotReadable, is_torchscript, outline, read_tensor
from crossmost.checkpoints.unwrapping import unwrap
from crossmost.errors import InputError


class Stored(NamedTuple):
    """A tensor on the disk: its shape is known, `read` brings it to the CPU."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@contextmanager
def open_weights(path: Path) -> Iterator[dict[str, Stored]]:
    """List the tensors of a file by the names in the network, without `module.` and other wrappers.

    They can be read as long as the context lasts: one by one from a .safetensors and from OpenAI's TorchScript
    archive, of which nothing is run; from a .pt or .bin of this decade through a memory map. What was read may
    lie in that map: copy it.

    Raises:
        InputError: no such file, damaged, or holding more than tensors and plain values.
    """
    if is_torchscript(path):
        with _torchscript(path) as stored:
            yield stored
    elif path.suffix == ".safetensors" and not _is_pickle(path):
        with _safetensors(path) as stored:
            yield stored
    else:
        tensors = unwrap(read_legacy(path), "student", path).tensors
        yield {name: Stored(tuple(tensor.shape), partial(_same, tensor)) for name, tensor in tensors.items()}


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4).startswith((ZIP, PICKLE))


@contextmanager
def _safetensors(path: Path) -> Iterator[dict[str, Stored]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield {
                name.removeprefix("module."): Stored(
                    tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name)
                )
                for name in file.keys()  # noqa: SIM118 (not a dict)
            }
    except SafetensorError as error:
        raise InputError(not_safetensors(path, error)) from error


@contextmanager
def _torchscript(path: Path) -> Iterator[dict[str, Stored]]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield {
                name: Stored(note.size, partial(read_tensor, archive, note))
                for name, note in outline(archive).items()
            }
    except NotReadable as error:
        raise InputError(f"{path}: expected the TorchScript archive of a model, {error}") from error


def _same(tensor: Tensor) -> Tensor:
    return tensor
