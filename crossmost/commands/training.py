"""`demo`, `train`, `pretrain` and `eval`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from crossmost.checkpoints.run_files import is_run
from crossmost.commands.app import command
from crossmost.commands.options import (
    Classes,
    Clip,
    ClipWeights,
    Color,
    Columns,
    Data,
    Device,
    IgnoreLabels,
    Json,
    OwnColor,
    OwnColumns,
    OwnUpAxis,
    Split,
    UpAxis,
    VocabularyFile,
    Workers,
    find_base,
    refuse_stated,
)
from crossmost.errors import InputError

MOST_SEED = 2**32 - 1
"""Of training: NumPy's generators take no more."""


@command(epilog="Example: `crossmost demo --out demo-out --seed 1`")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of shapes, scans and training.")] = 0,
) -> None:
    """Adapt a small classifier of everyday shapes to simulated scans, in about a minute on two CPU cores."""
    from crossmost.demo import run_demo

    run_demo(out, seed)


@command(
    interrupted="interrupted; a run that was saved continues with --resume",
    epilog="Example: `crossmost train scans/ --base base.safetensors --classes mug,bowl,can --out runs/scans`\n\n"
    "See every option: `crossmost train --print-config`. Override one: `--set epochs=10 --set mode=point-only`",
)
def train(
    data: Annotated[
        Path | None, typer.Argument(help="Unlabelled clouds: a folder, .h5 files, or one .npz.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="What training starts from: a base .safetensors, or a name that `crossmost zoo` lists."
        ),
    ] = None,
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
        str | None,
        typer.Option(
            help="joint (default), separate, point-only (default where the base has no image branch), image-only, "
            "agreement."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything drawn.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that read and augment; default: none on a CPU, up to 8 beside a GPU."),
    ] = None,
    split: Split = None,
    up_axis: Annotated[
        str | None,
        typer.Option(help="What points up in your files: x, y, z (default), -x, -y, -z; resumed: as before."),
    ] = None,
    columns: Columns = None,
    color: Annotated[
        str | None,
        typer.Option(
            "--color", "--colour", help="auto (default): use it where there is some; none: ignore it."
        ),
    ] = None,
    clip: Clip = None,
    clip_weights: ClipWeights = None,
    test: Annotated[
        Path | None,
        typer.Option(help="Dataset for the report; default: DATA, its test split where it has one."),
    ] = None,
    ignore_labels: IgnoreLabels = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events too.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the options and stop.")] = False,
) -> None:
    """Adapt a base to unlabelled clouds and their views, and report what changed."""
    from crossmost.config import (
        beside_another_recipe,
        explained_yaml,
        fit_to_base,
        make_config,
        parse_assignments,
        read_options,
        without_effect,
    )

    direct: dict[str, Any] = {
        "recipe": recipe, "mode": mode, "epochs": epochs, "seed": seed, "device": device, "workers": workers,
    }  # fmt: skip
    given = {name: value for name, value in direct.items() if value is not None}
    stated = {**given, **parse_assignments(assignments or [])}
    of_file = beside_another_recipe(read_options(config), stated.get("recipe")) if config else {}
    settings = make_config({**of_file, **stated})
    if print_config and resume:
        raise InputError(
            "expected no --print-config with --resume: the run's own options are in its config.yaml"
        )
    if print_config:
        _warn(without_effect(settings, stated))
        typer.echo(explained_yaml(settings), nl=False)
        return
    if data is None or out is None or (base is None and not resume):
        raise InputError("expected DATA, --base and --out (with --resume: DATA and --out)")
    from crossmost import workflows
    from crossmost.checkpoints.base import load_architecture
    from crossmost.data.reading import Reading
    from crossmost.words import Words

    if resume:
        machine: dict[str, Any] = {name: given.pop(name) for name in ("device", "workers") if name in given}
        fixed = {
            **given, "config": config, "set": assignments, "base": base, "classes": classes,
            "vocabulary": vocabulary, "clip": clip, "clip-weights": clip_weights,
        }  # fmt: skip
        if changed := [name for name, value in fixed.items() if value is not None]:
            raise InputError(
                f"expected no --{changed[0]} with --resume: a run goes on with the options it began with"
            )
        workflows.resume_training(
            data, out, {"up_axis": up_axis, "columns": columns, "color": color},
            split=split, test=test, ignore_labels=ignore_labels, tensorboard=tensorboard, machine=machine,
        )  # fmt: skip
        return
    assert base is not None
    base_file = find_base(base)
    # As the base can be trained: one without an image branch is trained point-only, whatever the default.
    fitted = fit_to_base(settings, images=load_architecture(base_file).image is not None)
    _warn(without_effect(fitted, stated))
    words = Words(
        classes=classes,
        vocabulary=vocabulary,
        clip=clip,
        clip_weights=clip_weights,
        spaces=settings.recipe == "crossmost",  # the published code keeps the underscores
    )
    workflows.start_training(
        data, base_file, words, settings, out,
        Reading(up_axis or "z", columns, color or "auto"),
        split=split, test=test, ignore_labels=ignore_labels, tensorboard=tensorboard,
    )  # fmt: skip


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(f"warning: {line}", err=True)


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
    workers: Workers = None,
    split: Split = None,
    up_axis: UpAxis = "z",
    columns: Columns = None,
    color: Color = "auto",
    clip: Annotated[
        str | None, typer.Option(help="open_clip model whose text tower embeds the class names.")
    ] = None,
    clip_weights: ClipWeights = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --out.")] = False,
) -> None:
    """Make a base: align a point encoder (and a small image tower) with CLIP text embeddings."""
    from crossmost import pretraining
    from crossmost.adaptation.pretrain import make_pretrain_config
    from crossmost.data.reading import Reading
    from crossmost.words import Words

    if card == "list":
        pretraining.list_cards()
        return
    if data is None or out is None:
        raise InputError("expected DATA and --out")
    pretraining.make_base(
        data,
        out,
        Words(classes=classes, vocabulary=vocabulary, clip=clip, clip_weights=clip_weights),
        Reading(up_axis=up_axis, columns=columns, color=color),
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
        overwrite=overwrite,
    )


@command(
    name="eval",
    epilog="Example: `crossmost eval runs/scans labelled/ --split test --json`\n\n"
    "What is deployed: `crossmost eval scans.bundle labelled/`",
)
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder made by `crossmost train`, or a bundle.")],
    data: Data,
    split: Split = None,
    up_axis: OwnUpAxis = None,
    columns: OwnColumns = None,
    color: OwnColor = None,
    ignore_labels: IgnoreLabels = False,
    device: Annotated[str | None, typer.Option(help="Of a run: auto, cpu, cuda, cuda:1.")] = None,
    workers: Workers = None,
    backend: Annotated[str | None, typer.Option(help="Of a bundle: as for `crossmost predict`.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of a bundle, on the CPU.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Other classes than the bundle's: as for `crossmost predict`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure on labelled clouds: a run zero-shot and adapted, each branch and both, or a bundle as it is deployed.

    A run's report, evaluation.html, goes into its folder. Clouds of other classes than a bundle's are those that it
    should call unknown.
    """
    from crossmost.runtime.manifest import MANIFEST

    of_run = {"--ignore-labels": ignore_labels or None, "--device": device, "--workers": workers}
    of_bundle = {"--backend": backend, "--threads": threads, "--classes": classes}
    is_bundle = (model / MANIFEST).is_file()
    if not is_bundle and not is_run(model):
        raise InputError(
            f"{model}: expected a run of `crossmost train` or a bundle of `crossmost export`, found neither"
        )
    refuse_stated(of_run if is_bundle else of_bundle, "a bundle" if is_bundle else "a run")
    from crossmost.own_reading import reading_of

    reading = reading_of(
        model, {"up_axis": up_axis, "columns": columns, "color": color}, labels=not ignore_labels
    )
    if is_bundle:
        from crossmost import answers, bundle_evaluation

        bundle_evaluation.evaluate(
            model, data, reading,
            split=split, backend=backend or "auto", threads=threads, classes=answers.named_classes(classes),
            as_json=as_json,
        )  # fmt: skip
        return
    from crossmost import workflows

    workflows.evaluate(
        model, data, reading, split=split, device=device or "auto", workers=workers, as_json=as_json
    )
