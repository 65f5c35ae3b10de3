"""`encoder.onnx`: patches and centres in, embedding out, written by torch's own exporter."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout

import onnx
import torch
from torch import Tensor, nn

from crossmost.export.graph import EncoderGraph
from crossmost.models.clip import quiet_logging

OPSET = 18
IR_VERSION = 10
"""What ONNX Runtime, TensorRT 10 and 11 and TensorRT-RTX all read."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: the modules it came from. All other notes go: they hold the exporting machine's paths."""


def encoder_model(graph: EncoderGraph) -> onnx.ModelProto:
    """Export the encoder with a dynamic batch.

    Returns:
        patches (B, G, K, C) and centers (B, G, 3) float32 to embedding (B, D) float32.
    """
    card = graph.encoder.card
    patches = torch.zeros(
        2, card.groups, card.neighbors, card.channels
    )  # a batch of 1 could be taken as fixed
    centers = torch.zeros(2, card.groups, 3)
    return export_graph(graph, {"patches": patches, "centers": centers}, output="embedding")


def export_graph(module: nn.Module, inputs: Mapping[str, Tensor], *, output: str) -> onnx.ModelProto:
    """Export a module whose inputs share a dynamic first axis, `batch`.

    Args:
        module: in evaluation mode.
        inputs: examples by name, in the order of `forward`, of batch 2.
        output: name of the one result.
    """
    batch = torch.export.Dim("batch", min=1)
    with (
        warnings.catch_warnings(),
        quiet_logging(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        # Traced on its own: given the module, the exporter would fall back to a fixed batch without a word.
        traced = torch.export.export(
            module, tuple(inputs.values()), dynamic_shapes=tuple({0: batch} for _ in inputs)
        )
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[output],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.ir_version = IR_VERSION
    strip_notes(model.graph)
    name_batch(model.graph)
    return model


def name_batch(graph: onnx.GraphProto) -> None:
    """Call the dynamic axis `batch`, which tracing gave a number for a name."""
    traced = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == traced:
                axis.dim_param = "batch"


def strip_notes(graph: onnx.GraphProto) -> None:
    """Keep of each node's notes only the modules it came from."""
    parts: Sequence[onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto]
    for parts in (graph.node, graph.value_info, graph.initializer, graph.input, graph.output):
        for part in parts:
            kept = [(note.key, note.value) for note in part.metadata_props if note.key == SCOPES]
            del part.metadata_props[:]
            for key, value in kept:
                part.metadata_props.add(key=key, value=value)
            part.doc_string = ""
    graph.doc_string = ""
    del graph.metadata_props[:]
