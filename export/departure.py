"""Where a graph leaves the torch module it was exported from: the first layer whose output differs."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from crossmost.export.graph import EncoderGraph
from crossmost.export.graph_parts import open_part
from crossmost.export.onnx_encoder import SCOPES
from crossmost.export.precision import Precision

Array = NDArray[Any]

LAST = "projection"
"""What is left to blame when every layer agrees and the embedding does not."""

TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Difference, of a layer's largest number, from which on it departs from torch's float32."""

SAMPLING = ("unit_xyz", "filled", "indices", "patches", "centers")
"""Tensors of `model.onnx` before the encoder, in order."""


def first_departure(
    onnx: Path, module: EncoderGraph, patches: Array, centers: Array, *, tolerance: float
) -> str | None:
    """Find the first layer, in torch's order of execution, whose output differs between a graph and torch.

    What is computed outside any layer, as the products of attention, shows in the layer after it.

    Args:
        onnx: `encoder.onnx` or `model.onnx`, its weights beside it.
        module: in float32, whatever the graph's precision.
        patches: (B, G, K, C) float32.
        centers: (B, G, 3) float32.
        tolerance: the largest difference that counts as none, as a share of a layer's largest number.

    Returns:
        The module's path, as `encoder.blocks.blocks.3.mlp.fc1`; `projection` where only the embedding differs; None
        where nothing does.
    """
    expected = layer_outputs(module, patches, centers)
    tensors = layer_tensors(onnx)
    # Batch norms that were folded away have no node.
    compared = [path for path in expected if path in tensors]
    session = open_part(onnx, ["patches", "centers"], [tensors[path] for path in compared])
    found = dict(zip(compared, session.run(None, {"patches": patches, "centers": centers}), strict=True))
    return first_difference(expected, found, tolerance)


def departure_in_torch(
    other: EncoderGraph, module: EncoderGraph, patches: Array, centers: Array, *, tolerance: float
) -> str | None:
    """As `first_departure`, for the same module computed in another precision by torch."""
    return first_difference(
        layer_outputs(module, patches, centers), layer_outputs(other, patches, centers), tolerance
    )


def sampling_departure(onnx_path: Path, points: Array, expected: Mapping[str, Array]) -> str | None:
    """Find the first step before the encoder that differs from NumPy's.

    Args:
        onnx_path: `model.onnx`, its weights beside it.
        points: (B, N, C) float32, normalised.
        expected: what NumPy makes of them, by the names of `SAMPLING`; any of them may be missing.

    Returns:
        The name of the step's function in the graph, as `FarthestPointSampling`; None where nothing differs.
    """
    graph = onnx.load(onnx_path, load_external_data=False).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    names = [name for name in SAMPLING if name in expected]
    found = dict(
        zip(names, open_part(onnx_path, ["points"], names).run(None, {"points": points}), strict=True)
    )
    different = first_difference({name: expected[name] for name in names}, found, tolerance=0.0)
    return None if different is None else made_by[different]


@torch.inference_mode()
def layer_outputs(module: EncoderGraph, patches: Array, centers: Array) -> dict[str, Array]:
    """Output of each layer by its path, in the order of execution, and the embedding as `LAST`."""
    outputs: dict[str, Array] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            # A copy: an activation that works in place would change it.
            outputs[path] = output.to(torch.float32, copy=True).numpy()

        return hook

    layers = [(path, layer) for path, layer in module.named_modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(keep(path)) for path, layer in layers]
    try:
        embedding = module(torch.from_numpy(patches), torch.from_numpy(centers))
    finally:
        for hook in hooks:
            hook.remove()
    return outputs | {LAST: embedding.numpy()}


def layer_tensors(path: Path) -> dict[str, str]:
    """The tensor that holds the output of each module, by the module's path: the last one made in its scope."""
    graph = onnx.load(path, load_external_data=False).graph
    tensors = {}
    for node in graph.node:
        for note in node.metadata_props:
            if note.key == SCOPES:
                *modules, _operation = ast.literal_eval(note.value) or [""]
                if modules:
                    tensors[module_path(modules[-1])] = node.output[0]
    return tensors | {LAST: graph.output[0].name}


def module_path(scope: str) -> str:
    """A scope as `named_modules` names it: a slice of a sequence is no module of its own."""
    return re.sub(r"\.slice\([^)]*\)", "", scope)


def first_difference(
    expected: Mapping[str, Array], found: Mapping[str, Array], tolerance: float
) -> str | None:
    """The first name whose arrays differ by more than a share of the largest expected number; shapes may differ."""
    for name, array in expected.items():
        if name not in found:
            continue
        ours, theirs = np.ravel(array).astype(np.float64), np.ravel(found[name]).astype(np.float64)
        if ours.shape != theirs.shape:
            return name
        # Written so that NaN is a difference.
        if not np.abs(ours - theirs).max(initial=0.0) <= tolerance * np.abs(ours).max(initial=0.0):
            return name
    return None
