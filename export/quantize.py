"""`encoder.int8.onnx`: the encoder for CPUs, its linear layers in 8-bit integers, by ONNX Runtime's own quantizer.

Weights get a scale a channel, activations one a tensor, both found before the export: a cloud's embedding depends
neither on the batch it comes in nor on the machine. Weights have seven bits, because CPUs without VNNI sum two
products in 16 bits and would overflow with eight. What stays float32 costs little and matters much: the layer that
reads coordinates, the position code, layer norms, softmax, the projection and the scaling to unit length. So do the
products of attention, whose factors are both made at run time.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from crossmost import __version__
from crossmost.errors import InputError
from crossmost.export.exported_layers import in_parts
from crossmost.export.graph import EncoderGraph
from crossmost.export.graph_checks import Comparison
from crossmost.export.graph_files import ENCODER, METADATA
from crossmost.export.onnx_encoder import encoder_model, strip_notes
from crossmost.export.parity import COSINE_MEAN, COSINE_MIN, FINITE, RUNS, TOP1, Check, Gate
from crossmost.export.verification_clouds import VerificationClouds, feed_clouds
from crossmost.export.verify import Verification, accuracies
from crossmost.export.weights import save_with_weights
from crossmost.models.clip import quiet_logging
from crossmost.models.point_cards import PointCard
from crossmost.models.point_encoder import PointEncoder
from crossmost.models.student import Projection
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.manifest import INT8
from crossmost.runtime.orientation import turn
from crossmost.runtime.preprocess import prepare
from crossmost.runtime.sampling import group

INT8_WEIGHTS = "int8_weights.bin"
CALIBRATION_CLOUDS = 32
"""The most that ranges are taken from."""
EXACT = ("first_conv.0.weight", "sa.of_point.weight")
"""Endings of the names of weights whose layers stay float32, beside all that is no linear layer with a bias or input
of two axes."""

GATES = {
    RUNS: Gate(1.0, "a graph that a backend refuses is no graph"),
    FINITE: Gate(1.0, "where numbers are not finite no other metric means anything"),
    COSINE_MIN: Gate(0.997, "polygraphy's default for a cosine"),
    COSINE_MEAN: Gate(0.999, "ten times fp16's distance from 1, as for bf16"),
    TOP1: Gate(0.99, "MLPerf's 99 % for quantized models", spared=1),
}


def quantize_encoder(folder: Path, graph: EncoderGraph, calibration: Sequence[NDArray[np.float32]]) -> Path:
    """Write `encoder.int8.onnx` and `int8_weights.bin` beside the float32 `encoder.onnx` of a bundle.

    Args:
        folder: of the bundle that is made; its `encoder.onnx` is left as it is.
        graph: the float32 encoder that was written there.
        calibration: unlabelled clouds, each (n, C), as the encoder will see them; some are used, evenly spaced.

    Returns:
        The path of the graph.

    Raises:
        InputError: no cloud.
    """
    if not calibration:
        raise InputError(
            "int8: expected clouds to find the ranges of activations with, found none: add --verify"
        )
    for_cpu = copy.deepcopy(graph)
    in_parts(for_cpu.encoder.encoder, graph.encoder.card.neighbors)
    model = encoder_model(for_cpu)
    quantized = quantize(model, CalibrationClouds(calibration, graph.encoder.card))
    note = metadata(folder / ENCODER) | {"graph": INT8, "precision": "int8"}
    onnx.helper.set_model_props(quantized, {METADATA: json.dumps(note, sort_keys=True)})
    quantized.producer_name, quantized.producer_version = "crossmost", __version__
    save_with_weights([(quantized, folder / INT8)], folder / INT8_WEIGHTS)
    onnx.checker.check_model(str(folder / INT8), full_check=True)
    return folder / INT8


def metadata(path: Path) -> dict[str, Any]:
    """What a graph says about itself."""
    model = onnx.load(path, load_external_data=False)
    return next((json.loads(note.value) for note in model.metadata_props if note.key == METADATA), {})


def quantize(model: onnx.ModelProto, clouds: CalibrationDataReader) -> onnx.ModelProto:
    """Put quantizing nodes around the linear layers of a float32 graph, which ONNX Runtime fuses with them."""
    exact = [node.name for node in model.graph.node if any(name.endswith(EXACT) for name in node.input)]
    with tempfile.TemporaryDirectory() as folder, quiet_logging():
        path = Path(folder) / INT8
        quantize_static(
            model,
            path,
            clouds,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Gemm"],
            nodes_to_exclude=exact,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=True,  # one file holds no more than 2 GiB
            # Sums leave a layer as float32: what follows is not quantized.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        quantized = onnx.load(path)
    strip_notes(quantized.graph)
    return quantized


class CalibrationClouds(CalibrationDataReader):
    """Clouds as ONNX Runtime's quantizer asks for them."""

    def __init__(self, clouds: Sequence[NDArray[np.float32]], card: PointCard):
        """Choose some of the clouds, evenly spaced."""
        count = min(len(clouds), CALIBRATION_CLOUDS)
        chosen = np.linspace(0, len(clouds) - 1, count).round().astype(int)
        self.feeds: Iterator[Mapping[str, NDArray[np.float32]]] = (feed(clouds[i], card) for i in chosen)

    def get_next(self) -> Mapping[str, NDArray[np.float32]] | None:
        """Inputs of the graph for the next cloud, or None after the last."""
        return next(self.feeds, None)


def feed(cloud: NDArray[np.float32], card: PointCard) -> dict[str, NDArray[np.float32]]:
    """Inputs of the graph for one z-up cloud (n, C)."""
    turned = turn(cloud, "z", card.up_axis)
    points = prepare(turned, most=card.points, least=card.least, scattered=card.scattered)
    patches, centers = group(points, card.groups, card.neighbors, card.radius)
    return {"patches": patches[None], "centers": centers[None]}


def int8_checks(
    folder: Path,
    encoder: PointEncoder,
    head: Projection,
    bank: ClassBank,
    clouds: VerificationClouds,
    *,
    batches: tuple[int, int, int],
    threads: int | None = None,
) -> tuple[list[Check], dict[str, float]]:
    """Compare `encoder.int8.onnx` with torch in float32, for the report of a verification.

    Args:
        folder: of the bundle that is made.
        encoder: in evaluation mode, float32, on the CPU.
        head: behind the encoder.
        bank: whose top-1 class must stay.
        clouds: at least one.
        batches: smallest, typical and largest size.
        threads: of one inference; None for one a core.

    Returns:
        The checks, and the share of labelled clouds that it classifies right, by its name; empty without labels.

    Raises:
        InputError: a cloud that the encoder cannot read.
    """
    fed = feed_clouds(clouds, encoder.card)
    torch_side = Verification(encoder, head, "fp32", bank, fed, batches, threads)
    comparison = Comparison("int8 in ONNX Runtime", INT8, folder / INT8, "fp32", torch_side.expected, GATES)
    checks, embeddings = torch_side.run(comparison)
    labels = clouds.labels
    return checks, {} if labels is None else accuracies({INT8: embeddings}, bank, labels)
