"""Parts of an exported graph, opened in ONNX Runtime: any tensor can be looked at, and the graph is left as it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from crossmost.runtime.onnx_session import create_session

if TYPE_CHECKING:
    import onnxruntime


def open_part(
    graph: Path, inputs: Sequence[str], outputs: Sequence[str], *, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Open the nodes between some tensors of a graph.

    Args:
        graph: an .onnx file, its weights beside it.
        inputs: names of float32 tensors to feed; not only the graph's own inputs.
        outputs: names of tensors to get.
        threads: of one inference; None for one a core.
    """
    model = onnx.load(graph, load_external_data=False)
    cut(model.graph, inputs, outputs)
    # Beside the weights: external data must lie in the folder of the graph.
    part = graph.with_name(f".{graph.stem}.{os.getpid()}.part")
    try:
        part.write_bytes(model.SerializeToString())
        return create_session(part, threads=threads)
    finally:
        part.unlink(missing_ok=True)


def cut(graph: onnx.GraphProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Reduce a graph to what leads from `inputs` to `outputs`, in place."""
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output) - set(inputs):
            nodes.append(node)
            needed.update(node.input)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    known = {value.name: value for value in graph.input}
    fed = [known.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    # ONNX Runtime infers the types of outputs that are only named.
    named = [onnx.ValueInfoProto(name=name) for name in outputs]
    for part in ("node", "initializer", "input", "output", "value_info"):
        graph.ClearField(part)
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)
    graph.input.extend(fed)
    graph.output.extend(named)


def widen(graph: Path, target: Path, constants: Sequence[float]) -> None:
    """Write a bfloat16 graph as a float32 one with the same, rounded, weights.

    Args:
        graph: an .onnx file, its weights beside it.
        target: where to; its weights go beside it.
        constants: numbers of the graph that are no weights. Torch knows them exactly where the exporter rounded
            them, so they are given their digits back: what is compared then differs by nothing but faults.
    """
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        widen_tensor(tensor, constants)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                widen_tensor(attribute.t, constants)
            elif attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    model.graph.ClearField("value_info")  # types that are wrong now, and can be inferred
    # Beside it: one file holds no more than 2 GiB.
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.weights")


def widen_tensor(tensor: TensorProto, constants: Sequence[float]) -> None:
    """Turn a bfloat16 tensor into a float32 one, in place; see `widen`."""
    if tensor.data_type != TensorProto.BFLOAT16:
        return
    rounded = numpy_helper.to_array(tensor)
    wide = rounded.astype(np.float32)
    for constant in constants:
        if wide.size == 1 and rounded.item() == rounded.dtype.type(constant):
            wide = np.full_like(wide, constant)
    tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
