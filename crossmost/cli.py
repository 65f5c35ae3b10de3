"""The `crossmost` command: arguments only. Whatever is heavy is imported inside the commands."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from crossmost import __version__
from crossmost.errors import InputError, WorkFailed

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Adapt zero-shot 3D classifiers to your own unlabelled point clouds.",
    epilog="Try it: `crossmost demo`",
)
EXTRAS = {
    "train": {
        "torch",
        "torchvision",
        "open_clip",
        "timm",
        "safetensors",
        "pydantic",
        "yaml",
        "rich",
        "PIL",
        "sklearn",
    },
    "export": {"onnx", "onnxscript", "onnx_ir", "polygraphy", "filelock"},
    "cpu": {"onnxruntime"},
    "text": {"tokenizers"},
    "report": {"matplotlib", "jinja2"},
    "io": {"plyfile", "pypcd4", "trimesh", "scipy", "laspy", "h5py"},
    "tensorboard": {"tensorboard"},
}
_debug = False

Data = Annotated[Path, typer.Argument(help="Folder of clouds or meshes, official .h5 files, or one .npz.")]
Split = Annotated[str | None, typer.Option(help="Use only this split: train, test.")]
UpAxis = Annotated[str, typer.Option(help="The clouds' up axis: x, y, z, -x, -y, -z. Rotated to z.")]
Columns = Annotated[
    str | None, typer.Option(help="Meaning of array columns: xyz, xyzrgb, xyz_rgb ('_' skips).")
]
Color = Annotated[
    str, typer.Option("--color", "--colour", help="auto: use it where there is some; none: ignore it.")
]
Classes = Annotated[
    str | None,
    typer.Option(help="Class names: a file, one a line, or 'mug,bowl'. Needs the CLIP text tower."),
]
VocabularyFile = Annotated[
    Path | None,
    typer.Option("--vocabulary", help="Ready-made classes.npz: names with their text embeddings."),
]
Clip = Annotated[str | None, typer.Option(help="open_clip model whose text tower embeds the class names.")]
ClipWeights = Annotated[str | None, typer.Option(help="Its weights: an open_clip tag or a file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read and augment.")]
VERIFICATION, ENGINES, NAMES = "Verification", "TensorRT engines", "Class names of a base, and the text tower"
"""Panels of `export --help`."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def command(**options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose errors are one line on stderr and an exit code."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except Exception as error:
                if _debug:
                    raise
                code, line = explain(error)
                if line is None:
                    raise
                typer.echo(f"error: {line}", err=True)
                raise typer.Exit(code) from None
            except KeyboardInterrupt:
                typer.echo("interrupted; a run that was saved continues with --resume", err=True)
                raise typer.Exit(1) from None

        app.command(**options)(guarded)
        return function

    return register


def explain(error: Exception) -> tuple[int, str | None]:
    """Exit code and line of an error; no line for one that is a defect of ours and keeps its traceback."""
    from crossmost.runtime.bundle_json import InvalidBundle
    from crossmost.runtime.engine_errors import EngineBuildFailed, InvalidEngineRequest
    from crossmost.runtime.preprocess import InvalidCloud
    from crossmost.runtime.text_encoder import InvalidTextEncoder
    from crossmost.runtime.vocabulary import InvalidVocabulary

    bad_input = (InvalidCloud, InvalidVocabulary, InvalidBundle, InvalidTextEncoder, InvalidEngineRequest)
    if isinstance(error, (InputError, *bad_input)):
        return 2, " ".join(str(error).split())
    if isinstance(error, (WorkFailed, EngineBuildFailed)):
        return 1, " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name:
        for extra, modules in EXTRAS.items():
            if error.name.partition(".")[0] in modules:
                return 2, f'this needs {error.name}: pip install "crossmost[{extra}]"'
    if isinstance(error, OSError):
        return 1, f"{error.filename or 'file'}: {error.strerror or error}"
    return 1, None


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""
    global _debug
    _debug = debug


@command(epilog="Example: `crossmost demo --out demo-out --seed 1`")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(min=0, help="Of shapes, scans and training.")] = 0,
) -> None:
    """Adapt a small classifier of everyday shapes to simulated scans, in about a minute on two CPU cores."""
    from crossmost.demo import run_demo

    run_demo(out, seed)


@command(
    epilog="Example: `crossmost train scans/ --base base.safetensors --classes mug,bowl,can --out runs/scans`\n\n"
    "See every option: `crossmost train --print-config`. Override one: `--set epochs=10 --set mode=point-only`"
)
def train(
    data: Annotated[
        Path | None, typer.Argument(help="Unlabelled clouds: a folder, .h5 files, or one .npz.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="What training starts from: a base .safetensors.")] = None,
    classes: Classes = None,
    vocabulary: VocabularyFile = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    config: Annotated[Path | None, typer.Option(help="YAML file of options.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="key=value; overrides the file.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="crossmost (default) or reference.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="joint (default), separate, point-only, image-only, agreement.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything drawn.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read and augment.")] = None,
    split: Split = None,
    up_axis: UpAxis = "z",
    columns: Columns = None,
    color: Color = "auto",
    clip: Clip = None,
    clip_weights: ClipWeights = None,
    test: Annotated[
        Path | None,
        typer.Option(help="Dataset for the report; default: DATA, its test split where it has one."),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events too.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the options and stop.")] = False,
) -> None:
    """Adapt a base to unlabelled clouds and their views, and report what changed."""
    from crossmost import workflows
    from crossmost.config import make_config, parse_assignments, read_options, to_yaml

    direct = {
        "recipe": recipe, "mode": mode, "epochs": epochs, "seed": seed, "device": device, "workers": workers,
    }  # fmt: skip
    given = {name: value for name, value in direct.items() if value is not None}
    settings = make_config(
        {**(read_options(config) if config else {}), **given, **parse_assignments(assignments or [])}
    )
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
        return
    if data is None or out is None or (base is None and not resume):
        raise InputError("expected DATA, --base and --out (with --resume: DATA and --out)")
    reading = workflows.Reading(up_axis=up_axis, columns=columns, color=color)
    if resume:
        workflows.resume_training(data, out, reading, split=split, test=test, tensorboard=tensorboard)
        return
    assert base is not None
    words = workflows.Words(
        classes=classes,
        vocabulary=vocabulary,
        clip=clip,
        clip_weights=clip_weights,
        spaces=settings.recipe == "crossmost",  # the published code keeps the underscores
    )
    workflows.start_training(
        data, base, words, settings, out, reading, split=split, test=test, tensorboard=tensorboard
    )


@command(
    epilog="Example: `crossmost pretrain shapes/ --vocabulary classes.npz --out base.safetensors`\n\n"
    "Class folders are the captions; --captions FILE gives one per cloud (JSON: id to caption)."
)
def pretrain(
    data: Annotated[
        Path | None, typer.Argument(help="Folder of clouds or meshes, official .h5 files, or one .npz.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The base to write, .safetensors.")] = None,
    classes: Classes = None,
    vocabulary: VocabularyFile = None,
    captions: Annotated[Path | None, typer.Option(help="JSON file: cloud id to caption.")] = None,
    card: Annotated[
        str, typer.Option(help="Point encoder: see `crossmost pretrain --card list`.")
    ] = "point-tiny",
    image: Annotated[
        str,
        typer.Option(
            help="Image tower: 'tiny' (trained too) or an open_clip name (frozen, with --clip-weights)."
        ),
    ] = "tiny",
    epochs: Annotated[int, typer.Option(min=1)] = 40,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    workers: Workers = 0,
    split: Split = None,
    up_axis: UpAxis = "z",
    columns: Columns = None,
    color: Color = "auto",
    clip: Clip = None,
    clip_weights: ClipWeights = None,
) -> None:
    """Make a base: align a point encoder (and a small image tower) with CLIP text embeddings."""
    from crossmost import workflows
    from crossmost.adaptation.pretrain import make_pretrain_config

    if card == "list":
        workflows.list_cards()
        return
    if data is None or out is None:
        raise InputError("expected DATA and --out")
    workflows.make_base(
        data,
        out,
        workflows.Words(classes=classes, vocabulary=vocabulary, clip=clip, clip_weights=clip_weights),
        workflows.Reading(up_axis=up_axis, columns=columns, color=color),
        make_pretrain_config(
            {
                "epochs": epochs,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "seed": seed,
                "device": device,
                "workers": workers,
            }
        ),
        card=card,
        image=image,
        captions=captions,
        split=split,
    )


@command(name="eval", epilog="Example: `crossmost eval runs/scans labelled/ --split test --json`")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder made by `crossmost train`.")],
    data: Data,
    split: Split = None,
    up_axis: UpAxis = "z",
    columns: Columns = None,
    color: Color = "auto",
    device: Device = "auto",
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Compare zero-shot and adapted on labelled clouds: each branch and both; writes the run's report.html."""
    from crossmost import workflows

    reading = workflows.Reading(up_axis=up_axis, columns=columns, color=color)
    workflows.evaluate(run, data, reading, split=split, device=device, workers=workers, as_json=as_json)


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
    model: Annotated[Path, typer.Argument(help="Folder made by `crossmost train`, or a base .safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision, typed in the graphs.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16; runs on recent GPUs only.")] = False,
    text_encoder: Annotated[
        bool, typer.Option("--text-encoder", help="Add the CLIP text tower: new class names on the robot.")
    ] = False,
    unknown_rate: Annotated[
        float, typer.Option(help="Share of clouds like yours that may be called unknown.")
    ] = 0.05,
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
        int, typer.Option(min=1, help="The most of them.", rich_help_panel=VERIFICATION)
    ] = 32,
    batch: Annotated[
        str,
        typer.Option(
            help="Smallest, typical and largest batch; engines take these too.", rich_help_panel=VERIFICATION
        ),
    ] = "1:8:64",
    split: Annotated[
        str | None, typer.Option(help="Use only this split: train, test.", rich_help_panel=VERIFICATION)
    ] = None,
    up_axis: Annotated[
        str, typer.Option(help="Their up axis: x, y, z, -x, -y, -z.", rich_help_panel=VERIFICATION)
    ] = "z",
    columns: Annotated[
        str | None,
        typer.Option(help="Meaning of array columns: xyz, xyzrgb, xyz_rgb.", rich_help_panel=VERIFICATION),
    ] = None,
    color: Annotated[
        str,
        typer.Option("--color", "--colour", help="auto or none (ignore it).", rich_help_panel=VERIFICATION),
    ] = "auto",
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
        Path | None, typer.Option("--vocabulary", help="Ready-made classes.npz.", rich_help_panel=NAMES)
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="open_clip model of the text tower.", rich_help_panel=NAMES)
    ] = None,
    clip_weights: Annotated[
        str | None, typer.Option(help="Its weights: an open_clip tag or a file.", rich_help_panel=NAMES)
    ] = None,
) -> None:
    """Make a verified bundle for the robot: ONNX graphs, class bank, TensorRT engines."""
    if fp16 and bf16:
        raise InputError("expected --fp16 or --bf16, found both")
    of_engines = (points, version_compatible, hardware_compatible, strip_weights, refittable, timing_cache)
    if any(of_engines) and not (tensorrt or tensorrt_rtx):
        raise InputError("options of TensorRT engines were given, and none is asked for: add --tensorrt")
    from crossmost import workflows
    from crossmost.export.command import export_bundle
    from crossmost.export.workflow import EngineRequest, ExportOptions
    from crossmost.runtime.engine_options import EngineOptions, parse_profile

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
    export_bundle(
        model,
        out,
        workflows.Words(classes=classes, vocabulary=vocabulary, clip=clip, clip_weights=clip_weights),
        workflows.Reading(up_axis=up_axis, columns=columns, color=color),
        ExportOptions(
            precision="fp16" if fp16 else "bf16" if bf16 else "fp32",
            batch=parse_profile(batch),
            unknown_rate=unknown_rate,
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


@command(epilog="Example: `crossmost inspect scans/ --up-axis y`")
def inspect(
    path: Annotated[Path, typer.Argument(help="A cloud, a mesh, a dataset or a bundle.")],
    split: Split = None,
    up_axis: UpAxis = "z",
    columns: Columns = None,
    points: Annotated[
        int, typer.Option(help="Points the encoder wants; sparser clouds are warned about.")
    ] = 1024,
    as_json: Json = False,
) -> None:
    """Say what a bundle is, or what is in a cloud or dataset and what about it would make accuracy bad."""
    if (path / "manifest.json").is_file():
        from crossmost.runtime.bundle_summary import describe, summarize

        typer.echo(json.dumps(describe(path)) if as_json else "\n".join(summarize(path)))
        return
    from crossmost.data.inspection import inspect_path

    found = inspect_path(path, split=split, points=points, up_axis=up_axis, columns=columns)
    if as_json:
        from crossmost.checkpoints.atomic import json_line

        typer.echo(json_line(found.to_dict()))
    else:
        typer.echo("\n".join(found.lines()))


@command(epilog="Example: `crossmost render scans/ --out sheet.png --views 4 --clouds 12`")
def render(
    path: Annotated[Path, typer.Argument(help="A cloud, a mesh or a dataset.")],
    out: Annotated[Path, typer.Option(help="The picture to write, .png.")] = Path("views.png"),
    views: Annotated[int, typer.Option(min=1, help="Views of each cloud.")] = 4,
    clouds: Annotated[int, typer.Option(min=1, help="Clouds, evenly spaced over a dataset.")] = 12,
    size: Annotated[int, typer.Option(min=16, help="Pixels a side of a view.")] = 160,
    split: Split = None,
    up_axis: UpAxis = "z",
    columns: Columns = None,
) -> None:
    """Draw the views that training would see, as one contact sheet."""
    from crossmost import workflows

    workflows.render(
        path,
        out,
        workflows.Reading(up_axis=up_axis, columns=columns),
        views=views,
        clouds=clouds,
        size=size,
        split=split,
    )


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="crossmost", args=sys.argv[1:])
