"""`encoder.onnx` and `model.onnx` of a bundle, beside the one file of weights that both read."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import onnx

from crossmost import __version__
from crossmost.export.graph import EncoderGraph
from crossmost.export.onnx_encoder import encoder_model
from crossmost.export.onnx_points import points_model
from crossmost.export.precision import Precision
from crossmost.export.weights import hollow, move_weights, refill
from crossmost.runtime.cuda_kernels import KERNELS
from crossmost.runtime.manifest import Encoder

MODEL, ENCODER, WEIGHTS = "model.onnx", "encoder.onnx", "weights.bin"
METADATA = "crossmost"
"""Key of the graphs' metadata: what a graph is, for whoever finds it without its bundle."""


def write_graphs(graph: EncoderGraph, facts: Encoder, precision: Precision, folder: Path) -> None:
    """Write both graphs, checked and with their shapes inferred, and the CUDA kernels that cut clouds into patches.

    Args:
        graph: the encoder in its precision.
        facts: conventions of the encoder, for the metadata.
        precision: of the graph.
        folder: where to.
    """
    encoder = encoder_model(graph)
    move_weights([encoder], folder / WEIGHTS)
    joined = points_model(graph.encoder.card, hollow(encoder))
    model = onnx.shape_inference.infer_shapes(joined, strict_mode=True)
    refill(model, encoder)
    for each, name in ((encoder, ENCODER), (model, MODEL)):
        note = {"crossmost": __version__, "graph": name, "precision": precision, "encoder": asdict(facts)}
        onnx.helper.set_model_props(each, {METADATA: json.dumps(note, sort_keys=True)})
        each.producer_name, each.producer_version = "crossmost", __version__
        (folder / name).write_bytes(each.SerializeToString(deterministic=True))
    for name in (ENCODER, MODEL):
        onnx.checker.check_model(str(folder / name), full_check=True)
    for kernel in sorted(KERNELS.glob("*.ptx")):
        shutil.copyfile(kernel, folder / kernel.name)
