"""`predict`, `embed`, `bench` and `doctor`: what runs on the robot, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from crossmost.commands.app import command
from crossmost.commands.options import Json, OwnColor, OwnColumns, OwnUpAxis, Split
from crossmost.errors import InputError

Bundle = Annotated[Path, typer.Argument(help="Folder made by `crossmost export`.")]
Backend = Annotated[
    str, typer.Option(help="tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu, or auto: the best.")
]
Topic = Annotated[str | None, typer.Option(help="PointCloud2 topic of a recording.")]
MESSAGES_UP = "z"
"""As in the body frames of ROS, whatever the files had that a run was trained on."""
Threads = Annotated[int | None, typer.Option(min=1, help="Of one pass on the CPU; default: one a core.")]


@command(
    epilog="Example: `crossmost predict scans.bundle scans/ --json`\n\n"
    "A recording: `crossmost predict scans.bundle drive.mcap --topic /objects`"
)
def predict(
    bundle: Bundle,
    paths: Annotated[
        list[Path],
        typer.Argument(help="Clouds, folders, datasets, or ROS recordings (.mcap, .bag, .db3)."),
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            help="Other classes: 'mug,bowl' or a file of names (needs --text-encoder), or a classes.npz."
        ),
    ] = None,
    topic: Topic = None,
    backend: Backend = "auto",
    threads: Threads = None,
    split: Split = None,
    up_axis: OwnUpAxis = None,
    columns: OwnColumns = None,
    color: OwnColor = None,
    as_json: Json = False,
) -> None:
    """Classify clouds: file, label, score and runners-up, one line each."""
    from crossmost import answers
    from crossmost.own_reading import reading_of

    answers.refuse_columns(paths, columns)
    answers.predict(
        bundle,
        paths,
        reading_of(bundle, {"up_axis": up_axis, "columns": columns, "color": color}),
        messages_up=up_axis or MESSAGES_UP,
        split=split,
        topic=topic,
        backend=backend,
        threads=threads,
        classes=answers.named_classes(classes),
        as_json=as_json,
    )


@command(epilog="Example: `crossmost embed scans.bundle scans/ --out embeddings.npy`")
def embed(
    model: Annotated[
        Path, typer.Argument(help="A bundle, a run, a base, or a name that `crossmost zoo` lists.")
    ],
    paths: Annotated[list[Path], typer.Argument(help="Clouds, folders or datasets.")],
    out: Annotated[Path, typer.Option(help="The .npy to write: (N, D) float32, unit rows.")],
    topic: Topic = None,
    backend: Annotated[str | None, typer.Option(help="Of a bundle: as for `crossmost predict`.")] = None,
    threads: Threads = None,
    split: Split = None,
    up_axis: OwnUpAxis = None,
    columns: OwnColumns = None,
    color: OwnColor = None,
) -> None:
    """Write the embedding of every cloud, in their order, and beside OUT.npy what each row is: OUT.ids.txt."""
    from crossmost import answers
    from crossmost.own_reading import reading_of

    answers.refuse_columns(paths, columns)
    reading = reading_of(model, {"up_axis": up_axis, "columns": columns, "color": color})
    answers.embed(
        model, paths, out, reading,
        split=split, topic=topic, backend=backend, threads=threads, messages_up=up_axis or MESSAGES_UP,
    )  # fmt: skip


@command(epilog="Example: `crossmost bench scans.bundle --batches 1,8 --json`")
def bench(
    bundle: Bundle,
    backends: Annotated[
        str | None, typer.Option(help="Compare only these, such as 'onnxruntime-cpu,tensorrt'.")
    ] = None,
    batches: Annotated[str, typer.Option(help="Clouds a call.")] = "1,8",
    points: Annotated[
        int | None, typer.Option(min=1, help="Points a cloud; default: the encoder's N.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Calls of each backend and batch size.")] = 50,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Time a bundle here: stages, batch sizes, backends beside each other, cold start, memory."""
    from crossmost.runtime.bench import measure
    from crossmost.runtime.selection import BACKENDS

    sizes = batches.split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise InputError(f"expected --batches as numbers of clouds such as 1,8, found {batches!r}")
    report = measure(
        bundle,
        backends=[name.strip() for name in backends.split(",")] if backends else BACKENDS,
        batches=[int(size) for size in sizes],
        points=points,
        repeats=repeats,
        threads=threads,
        say=lambda line: typer.echo(line, err=True),
    )
    typer.echo(json.dumps(report.to_dict()) if as_json else "\n".join(report.lines()))


@command(epilog="Example: `crossmost doctor scans.bundle`")
def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="Also say what would run this bundle, and why.")
    ] = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Build a TensorRT engine where the bundle has none for this GPU; takes minutes."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine has to run bundles with: driver, CUDA, TensorRT, ONNX Runtime.

    Exit code 1 if the bundle cannot be used here, or the engine that --rebuild asks for was not built.
    """
    from crossmost.runtime.doctor import diagnose

    if rebuild and bundle is None:
        raise InputError("expected a bundle with --rebuild, found none")
    found = diagnose(bundle, rebuild=rebuild)
    typer.echo(json.dumps(found.to_dict()) if as_json else "\n".join(found.lines()))
    if not found.usable:
        raise typer.Exit(1)
