"""External data that several graphs share: each weight is stored once, in one file beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper

INLINE_BYTES = 1024
"""Smaller tensors stay in the graph: shapes and constants that a reader of the graph needs at once."""
ALIGNMENT = 4096
"""Offsets are multiples of a memory page, so that a runtime may map weights instead of reading them."""


def save_with_weights(models: Sequence[tuple[onnx.ModelProto, Path]], weights: Path) -> None:
    """Write graphs beside one file of their weights, equal weights once.

    Args:
        models: each graph and where it goes; the graphs lose their inline weights.
        weights: the file, in the folder of the graphs.
    """
    move_weights([model for model, _ in models], weights)
    for model, path in models:
        path.write_bytes(model.SerializeToString(deterministic=True))


def move_weights(models: Iterable[onnx.ModelProto], weights: Path) -> None:
    """Move the weights of graphs, in place, into one file, equal weights once."""
    offsets: dict[str, int] = {}
    with weights.open("wb") as file:
        for model in models:
            for tensor in model.graph.initializer:
                raw = _raw(tensor)
                if len(raw) < INLINE_BYTES:
                    continue
                digest = hashlib.sha256(raw).hexdigest()
                if digest not in offsets:
                    file.write(b"\0" * (-file.tell() % ALIGNMENT))
                    offsets[digest] = file.tell()
                    file.write(raw)
                _point_at(tensor, weights.name, offsets[digest], len(raw))


def hollow(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights outside of it are inputs, for tools that look for the file or stop at 2 GiB."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    outside = [tensor for tensor in copy.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    copy.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in outside
    )
    for tensor in outside:
        copy.graph.initializer.remove(tensor)
    return copy


def refill(model: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Give what was made of a `hollow` copy the weights of its source again, in place."""
    outside = [tensor for tensor in source.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    names = {tensor.name for tensor in outside}
    kept = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(outside)


def _raw(tensor: TensorProto) -> bytes:
    """The numbers of a tensor as little-endian bytes, however they are stored."""
    if not tensor.HasField("raw_data"):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return tensor.raw_data


def _point_at(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
