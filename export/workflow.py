"""`crossmost export`: from a run or a base to a verified bundle, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from crossmost import __version__
from crossmost.data.dataset import CloudDataset
from crossmost.errors import InputError, WorkFailed
from crossmost.export.bundle import write_bundle
from crossmost.export.calibration import check_rate, threshold_from_labels, threshold_without_labels
from crossmost.export.clouds import dataset_clouds, others, sample_clouds, simulated_clouds, spread
from crossmost.export.engine_source import read_source
from crossmost.export.graph import EncoderGraph
from crossmost.export.graph_files import ENCODER, MODEL, write_graphs
from crossmost.export.onnx_encoder import IR_VERSION, OPSET
from crossmost.export.parity import Check, Parity
from crossmost.export.precision import Precision
from crossmost.export.quantize import int8_checks, quantize_encoder
from crossmost.export.source import Exportable
from crossmost.export.text_files import TextOptions, check_text, write_text_encoder
from crossmost.export.verification_clouds import VerificationClouds
from crossmost.export.verify import verify
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.engine_builder import build_engine, write_engine
from crossmost.runtime.engine_errors import EngineBuildFailed
from crossmost.runtime.engine_options import EngineOptions, Profile
from crossmost.runtime.engine_packages import Unavailable, Wanted, find_tensorrt
from crossmost.runtime.manifest import INT8, SCHEMA_VERSION, Encoder, Manifest

CLASSES, ENGINES = "classes.npz", "engines"
CALIBRATION_CLOUDS = 64
"""The most clouds that the threshold of `unknown` is found with."""
VERIFIED_PATCHES = 8192
MOST_VERIFIED = 32
"""Clouds that are verified by default: so many, or fewer where they have many patches."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class EngineRequest:
    """Which TensorRT builds engines, and how.

    Attributes:
        package: one of the two, or `auto`.
        options: of the builder.
        points: numbers of points for an engine of `model.onnx` beside that of `encoder.onnx`; None for none.
    """

    package: Wanted = "auto"
    options: EngineOptions = field(default_factory=EngineOptions)
    points: Profile | None = None


@dataclass(frozen=True)
class ExportOptions:
    """Everything that can be asked of an export.

    Attributes:
        precision: typed in the graphs.
        int8: add an encoder in 8-bit integers for CPUs.
        batch: smallest, typical and largest batch: verified, and what engines take.
        unknown_rate: share of clouds like the user's that may be called unknown.
        clouds: the most that are verified; None for as many as take about a minute on two cores.
        text: the text tower for new class names on the robot, or None.
        engine: the TensorRT engine, or None.
        overwrite: replace a bundle that is there.
        threads: of ONNX Runtime; None for one a core.
    """

    precision: Precision = "fp32"
    int8: bool = False
    batch: Profile = field(default_factory=lambda: Profile(1, 8, 64))
    unknown_rate: float = 0.05
    clouds: int | None = None
    text: TextOptions | None = None
    engine: EngineRequest | None = None
    overwrite: bool = False
    threads: int | None = None


def export(
    source: Exportable,
    out: Path,
    options: ExportOptions,
    *,
    own: CloudDataset | None = None,
    labelled: CloudDataset | None = None,
    say: Say,
) -> Manifest:
    """Write a verified bundle, or none.

    Args:
        source: what is exported.
        out: folder of the bundle.
        options: see there.
        own: the user's clouds, to verify on; None for those the run kept.
        labelled: clouds with labels, foreign classes among them, for the threshold; None to find it without.
        say: told each step.

    Raises:
        InputError: clouds, text tower or output folder that cannot be used.
        WorkFailed: a gate of the verification failed, or the bundle cannot be written; nothing is left behind.
    """
    check_rate(options.unknown_rate)
    if options.text is not None:
        check_text(source.vocabulary, options.text)
    if labelled is not None and labelled.labels is None:
        raise InputError(
            f"{labelled.name}: expected a class folder or a label for each cloud for the threshold, found none, or not "
            "for all"
        )
    affordable = min(MOST_VERIFIED, max(1, VERIFIED_PATCHES // source.architecture.point.groups))
    most = options.clouds or affordable
    known = verification_clouds(source, own, max(most, CALIBRATION_CLOUDS))
    clouds = spread(known, most)
    real = None if own is None and source.sample is None else spread(known, CALIBRATION_CLOUDS)

    def build(folder: Path) -> Manifest:
        say(f"writing the graphs in {options.precision}")
        graph = EncoderGraph(source.encoder, source.head, options.precision)
        write_graphs(graph, encoder_facts(source), options.precision, folder)
        bank = with_threshold(source, real, labelled, options)
        if bank.unknown_similarity is None:
            say(
                "no clouds of yours to find a threshold with: nothing will be called unknown (--verify finds one)"
            )
        bank.save(folder / CLASSES)
        provenance = dict(source.provenance)
        further: list[Check] = []
        if options.text is not None:
            say(f"writing the text encoder of {options.text.clip}")
            provenance["text_encoder"], further = write_text_encoder(
                source.vocabulary, options.text, options.precision, folder, options.threads
            )
        told: list[str] = []
        accuracy: dict[str, float] = {}
        if options.int8:
            # Not those of the verification, which could not see what is cut off outside the ranges they span.
            calibration = others(known if source.sample is None else sample_clouds(source.sample), clouds)
            say(f"quantizing the encoder for CPUs, its ranges from {calibration.name}")
            if own is None and source.sample is None:
                told.append(
                    "encoder.int8.onnx: its ranges are of simulated clouds; --verify takes them from yours"
                )
                say(told[-1])
            quantize_encoder(folder, graph, calibration.points)
            checks, accuracy = int8_checks(
                folder,
                source.encoder,
                source.head,
                bank,
                clouds,
                batches=options.batch.sizes,
                threads=options.threads,
            )
            further += checks
        say(f"verifying on {len(clouds.ids)} clouds: {clouds.name}")
        parity = verified(source, folder, bank, clouds, options, further, accuracy)
        say("\n".join(parity.lines()))
        if not parity.passed:
            raise WorkFailed(f"verification failed, no bundle was written: {parity.failure}")
        engines, notes = engines_of(folder, options, say)
        return Manifest(
            schema=SCHEMA_VERSION,
            crossmost=__version__,
            encoder=encoder_facts(source),
            precision=options.precision,
            opset=OPSET,
            ir_version=IR_VERSION,
            engines=engines,
            notes=(*told, *notes),
            provenance=provenance,
            parity=parity.to_dict(),
        )

    return write_bundle(out, build, overwrite=options.overwrite)


def verification_clouds(source: Exportable, own: CloudDataset | None, most: int) -> VerificationClouds:
    """The clouds to verify on: real ones wherever there are some."""
    if own is not None:
        return dataset_clouds(own, source.vocabulary.names, most)
    if source.sample is not None:
        return sample_clouds(source.sample)
    return simulated_clouds(source.architecture.point, most)


def encoder_facts(source: Exportable) -> Encoder:
    """The card's conventions, for manifest and graphs."""
    card = source.architecture.point
    return Encoder(
        name=card.name,
        points=card.points,
        groups=card.groups,
        neighbors=card.neighbors,
        channels=card.channels,
        up_axis=card.up_axis,
        color_filler=card.color_filler,
        dim=source.architecture.dim,
        radius=card.radius,
    )


def with_threshold(
    source: Exportable,
    clouds: VerificationClouds | None,
    labelled: CloudDataset | None,
    options: ExportOptions,
) -> ClassBank:
    """The class bank with its threshold of `unknown`; without clouds of the user's, or labels, there is none."""
    if labelled is not None:
        marked = dataset_clouds(labelled, source.vocabulary.names, len(labelled))
        assert marked.labels is not None  # `export` looked
        return threshold_from_labels(source.bank, source.embed(marked.points), marked.labels)
    if clouds is None:
        return source.bank
    return threshold_without_labels(source.bank, source.embed(clouds.points), options.unknown_rate)


def verified(
    source: Exportable,
    folder: Path,
    bank: ClassBank,
    clouds: VerificationClouds,
    options: ExportOptions,
    further: list[Check],
    accuracy: Mapping[str, float],
) -> Parity:
    """Compare the graphs with torch; `further` and `accuracy` are of what is not in every bundle."""
    parity = verify(
        folder,
        source.encoder,
        source.head,
        options.precision,
        bank,
        clouds,
        batches=options.batch.sizes,
        threads=options.threads,
    )
    failed = next((check for check in further if not check.passed), None)
    failure = parity.failure
    if failed and not failure:
        shown = ", ".join(failed.failing[:3]) or failed.note
        without = ": leave out --int8" if failed.graph == INT8 else ""
        failure = (
            f"{failed.graph}: embedding: {failed.metric} {failed.value:g}, gate {failed.gate:g}, on: {shown}"
            f"{without}"
        )
    shares = {**parity.accuracy, **accuracy}
    return replace(parity, checks=(*parity.checks, *further), failure=failure, accuracy=shares)


def engines_of(folder: Path, options: ExportOptions, say: Say) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Build the engines that were asked for; where none can be built the bundle is as good without.

    Returns:
        Names of the engines, and notes for the user.
    """
    if options.engine is None:
        return (), ()
    tensorrt = find_tensorrt(options.engine.package)
    if isinstance(tensorrt, Unavailable):
        note = f"no engine was built: {tensorrt.reason}"
        say(note)
        return (), (note,)
    names: list[str] = []
    notes: list[str] = []
    for graph, points in ((ENCODER, None), (MODEL, options.engine.points)):
        if graph == MODEL and points is None:
            continue
        say(f"building an engine of {graph} with {tensorrt}")
        try:
            engine = build_engine(
                folder / graph,
                read_source(folder / graph),
                tensorrt,
                options.batch,
                options.engine.options,
                points=points,
            )
        except EngineBuildFailed as error:
            notes.append(f"no engine of {graph} was built: {error}")
            say(notes[-1])
            continue
        path = write_engine(folder / ENGINES, engine)
        names.append(path.relative_to(folder).as_posix())
        notes += engine.notes
    return tuple(names), tuple(notes)
