"""What an engine's recipe says about its ONNX graph: hashes of everything in it, and its precision."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

from crossmost.errors import InputError
from crossmost.runtime.engine_builder import GraphSource
from crossmost.runtime.manifest import hash_file

PRECISIONS: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}


def read_source(path: Path) -> GraphSource:
    """Hash an ONNX graph with its external data; the weights are not loaded.

    Raises:
        InputError: no file, no ONNX graph, or external data missing.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
        tensors = list(_tensors(model))
        names = sorted({entry.value for tensor in tensors for entry in _locations(tensor)})
        weights = {name: hash_file(path.parent / name).sha256 for name in names}
        return GraphSource(hash_file(path).sha256, weights, _precision(tensors))
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: expected a file of {path.name}, found {error.strerror}"
        ) from None
    except DecodeError:
        raise InputError(f"{path}: expected an ONNX graph, found another kind of file") from None


def _locations(tensor: TensorProto) -> Iterator[Any]:
    if uses_external_data(tensor):
        yield from (entry for entry in tensor.external_data if entry.key == "location")


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor, wherever it is: weights, constants, bodies of loops and functions."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for entry in (value,) if isinstance(value, Message) else value:
                yield from _tensors(entry)


def _precision(tensors: list[TensorProto]) -> str:
    """The precision of most weights: coordinates and lengths stay float32 in a graph of half precision."""
    entries: Counter[str] = Counter({"fp32": 0})
    for tensor in tensors:
        if tensor.data_type in PRECISIONS:
            entries[PRECISIONS[tensor.data_type]] += math.prod(tensor.dims)
    return entries.most_common(1)[0][0]
