"""`export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossmost.commands.app import command
from crossmost.commands.options import Json, find_base
from crossmost.errors import InputError

VERIFICATION, ENGINES, NAMES = "Verification", "TensorRT engines", "Class names of a base, and the text tower"
"""Panels of `export --help`."""


@command(
    epilog="Example: `crossmost export runs/scans --fp16 --out scans.bundle`\n\n"
    "With an engine, verified on your own clouds: `crossmost export runs/scans --fp16 --tensorrt --verify scans/ "
    "--out scans.bundle`\n\n"
    "A base that was never adapted: `crossmost export base.safetensors --classes mug,bowl --out b.bundle`\n\n"
    "The bundle: `model.onnx` (points to embedding, in any ONNX Runtime), `encoder.onnx` (the fast path of "
    "`crossmost.runtime`), their `weights.bin`, `classes.npz`, `manifest.json`. `crossmost inspect BUNDLE` reads it. "
    "A gate of the verification that fails is exit 1, and leaves no bundle."
)
def export(
    model: Annotated[
        Path,
        typer.Argument(
            help="Folder made by `crossmost train`, a base .safetensors, or a name that `crossmost zoo` lists."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision, typed in the graphs.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16; runs on recent GPUs only.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Add an encoder in 8-bit integers, for CPUs.")] = False,
    text_encoder: Annotated[
        bool, typer.Option("--text-encoder", help="Add the CLIP text tower: new class names on the robot.")
    ] = False,
    unknown_rate: Annotated[
        float | None, typer.Option(help="Share of clouds like yours that may be called unknown: 0.05.")
    ] = None,
    unknown_labels: Annotated[
        Path | None,
        typer.Option(help="Labelled clouds, some of foreign classes: find the threshold with them instead."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle in --out.")] = False,
    as_json: Json = False,
    verify: Annotated[
        Path | None,
        typer.Option(help="Clouds of yours; default: those the run kept.", rich_help_panel=VERIFICATION),
    ] = None,
    verify_clouds: Annotated[
        int | None,
        typer.Option(
            min=1, help="The most of them; default: 32, fewer of many patches.", rich_help_panel=VERIFICATION
        ),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(
            help="Smallest, typical and largest batch; engines take these too.", rich_help_panel=VERIFICATION
        ),
    ] = "1:8:64",
    split: Annotated[
        str | None, typer.Option(help="Use only this split: train, test, all.", rich_help_panel=VERIFICATION)
    ] = None,
    up_axis: Annotated[
        str | None,
        typer.Option(
            help="What points up in them: x, y, z, -x, -y, -z; default: as the run's own clouds were read, or z.",
            rich_help_panel=VERIFICATION,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Meaning of array columns: xyz, xyzrgb, xyz_rgb; default: as for the run's own clouds.",
            rich_help_panel=VERIFICATION,
        ),
    ] = None,
    color: Annotated[
        str | None,
        typer.Option(
            "--color",
            "--colour",
            help="auto or none (ignore it); default: as for the run's own clouds, or auto.",
            rich_help_panel=VERIFICATION,
        ),
    ] = None,
    tensorrt: Annotated[
        bool,
        typer.Option(
            "--tensorrt",
            help="Build engines: by TensorRT where a GPU answers, else by TensorRT-RTX.",
            rich_help_panel=ENGINES,
        ),
    ] = False,
    tensorrt_rtx: Annotated[
        bool,
        typer.Option(
            "--tensorrt-rtx", help="By TensorRT-RTX, which needs no GPU to build.", rich_help_panel=ENGINES
        ),
    ] = False,
    points: Annotated[
        str | None,
        typer.Option(
            help="Also an engine of model.onnx, for this many points: 1024:2048:8192.",
            rich_help_panel=ENGINES,
        ),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", help="For later TensorRT versions too.", rich_help_panel=ENGINES
        ),
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="For other GPUs too.", rich_help_panel=ENGINES)
    ] = False,
    strip_weights: Annotated[
        bool,
        typer.Option(
            "--strip-weights", help="Without weights: refitted from the ONNX.", rich_help_panel=ENGINES
        ),
    ] = False,
    refittable: Annotated[
        bool, typer.Option("--refittable", help="Weights can be replaced.", rich_help_panel=ENGINES)
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps measured timings for the next build.", rich_help_panel=ENGINES),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class names: a file, or 'mug,bowl'.", rich_help_panel=NAMES)
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option("--vocabulary", help="A classes.npz of `crossmost vocabulary`.", rich_help_panel=NAMES),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="open_clip model of the text tower; default: the base's.", rich_help_panel=NAMES),
    ] = None,
    clip_weights: Annotated[
        str | None, typer.Option(help="Its weights: an open_clip tag or a file.", rich_help_panel=NAMES)
    ] = None,
) -> None:
    """Make a verified bundle for the robot: ONNX graphs, class bank, TensorRT engines."""
    if fp16 and bf16:
        raise InputError("expected --fp16 or --bf16, found both")
    if unknown_rate is not None and unknown_labels:
        raise InputError("expected --unknown-rate or --unknown-labels, found both")
    of_clouds = {"--split": split, "--up-axis": up_axis, "--columns": columns, "--color": color}
    if (given := [name for name, value in of_clouds.items() if value]) and not (verify or unknown_labels):
        raise InputError(f"{given[0]} says how clouds are read, and none are given: add --verify")
    if (clip or clip_weights) and not (text_encoder or classes or vocabulary):
        raise InputError(
            "--clip names a text tower, and nothing asks for one: add --text-encoder or --classes"
        )
    if int8 and (fp16 or bf16):
        raise InputError("expected --int8 beside float32 graphs: leave out --fp16 and --bf16")
    of_engines = (points, version_compatible, hardware_compatible, strip_weights, refittable, timing_cache)
    if any(of_engines) and not (tensorrt or tensorrt_rtx):
        raise InputError("options of TensorRT engines were given, and none is asked for: add --tensorrt")
    from crossmost.export.command import export_bundle
    from crossmost.export.workflow import EngineRequest, ExportOptions
    from crossmost.own_reading import reading_of
    from crossmost.runtime.engine_options import EngineOptions, parse_profile
    from crossmost.words import Words

    engine = EngineRequest(
        "tensorrt-rtx" if tensorrt_rtx else "auto",
        EngineOptions(
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            strip_weights=strip_weights,
            refittable=refittable,
            timing_cache=timing_cache,
        ),
        parse_profile(points) if points else None,
    )
    model = find_base(model)
    export_bundle(
        model,
        out,
        Words(classes=classes, vocabulary=vocabulary, clip=clip, clip_weights=clip_weights),
        reading_of(model, {"up_axis": up_axis, "columns": columns, "color": color}),
        ExportOptions(
            precision="fp16" if fp16 else "bf16" if bf16 else "fp32",
            int8=int8,
            batch=parse_profile(batch),
            unknown_rate=ExportOptions.unknown_rate if unknown_rate is None else unknown_rate,
            clouds=verify_clouds,
            engine=engine if tensorrt or tensorrt_rtx else None,
            overwrite=overwrite,
        ),
        verify=verify,
        split=split,
        unknown_labels=unknown_labels,
        text_encoder=text_encoder,
        as_json=as_json,
    )
