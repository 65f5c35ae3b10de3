"""`crossmost predict` and `embed`: files or recordings in, one answer a cloud out. Works without torch on a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray

from crossmost.checkpoints.atomic import replacing, sync
from crossmost.checkpoints.destination import check_destination
from crossmost.checkpoints.run_files import is_run
from crossmost.data.catalog import printable
from crossmost.data.dataset import CloudDataset
from crossmost.data.folder import FolderSource
from crossmost.data.reading import EncoderForm, Reading
from crossmost.errors import InputError
from crossmost.runtime.class_names import read_class_names
from crossmost.runtime.classifier import Classifier
from crossmost.runtime.manifest import MANIFEST, load_manifest
from crossmost.runtime.prediction import Prediction
from crossmost.runtime.recording import is_recording, read_recording
from crossmost.zoo_models import list_models

AT_ONCE = 16
"""Clouds a call: enough for the encoder, few enough for the first answers to come soon."""
IDS = ".ids.txt"
"""How the name ends of the file that says what the rows of embeddings are."""
DATASET_UP = "z"
"""What points up in a dataset's clouds, whatever it is in their files."""
T = TypeVar("T")


class Named(NamedTuple):
    """A cloud and what it is called: a file's name, an id, or the time of a message in nanoseconds.

    `path` is its file: below the folder that was given, or as it was given itself.
    """

    name: str
    path: str
    points: NDArray[np.floating[Any]]


def predict(
    bundle: Path,
    path: Path,
    reading: Reading,
    *,
    split: str | None = None,
    topic: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    classes: Sequence[str] | Path | None = None,
    as_json: bool = False,
) -> None:
    """Print one line for each cloud of a file, a folder, a dataset or a recording.

    Raises:
        InputError: nothing that can be classified.
    """
    refuse_unexported(bundle)
    recorded = is_recording(path)
    if recorded and (split or reading.columns):
        unused = "--split" if split else "--columns"
        raise InputError(
            f"{path}: {unused} is for files and datasets; the messages of a recording name their columns"
        )
    up_axis = reading.up_axis if recorded else DATASET_UP
    with Classifier.load(bundle, backend=backend, threads=threads, up_axis=up_axis) as classifier:
        if classes is not None:
            classifier.set_classes(classes)
            if note := classifier.info()["classes"]["note"]:
                typer.echo(note, err=True)
        bad: dict[str, str] = {}
        answered = 0
        if recorded:
            clouds = messages(path, topic, bad, colored=reading.color != "none")
        else:
            clouds = readable(open_clouds(bundle, path, reading, split, topic), path, bad)
        for part in parts(clouds):
            for cloud, prediction in zip(part, classifier([cloud.points for cloud in part]), strict=True):
                typer.echo(json_of(cloud, prediction) if as_json else line_of(cloud.name, prediction))
                answered += 1
    if bad:
        typer.echo(f"skipped {len(bad)} clouds that could not be read: {', '.join(bad)}", err=True)
    if not answered:
        reason = next(iter(bad.values()), "there are none")
        raise InputError(f"{path}: expected clouds to classify, found none that can be read: {reason}")


def refuse_unexported(path: Path) -> None:
    """Say how a bundle is made of what was given in place of one.

    Raises:
        InputError: a run, a base, or the name of a public encoder.
    """
    run, base = is_run(path), path.suffix == ".safetensors" and path.is_file()
    public = not path.exists() and str(path) in [model.name for model in list_models()]
    if run or base or public:
        classes = "" if run else " --classes mug,bowl"
        raise InputError(
            f"{path}: expected a bundle, found {'a run' if run else 'a base'}: make one with "
            f"`crossmost export {path} --out {path.stem}.bundle{classes}`"
        )


def named_classes(text: str | None) -> tuple[str, ...] | Path | None:
    """Class names from `mug,bowl` or a file of names, one a line; a classes.npz stays a path.

    Raises:
        InvalidVocabulary: see `read_class_names`.
    """
    if text is None:
        return None
    return Path(text) if text.endswith(".npz") else read_class_names(text)


def open_clouds(
    bundle: Path, path: Path, reading: Reading, split: str | None = None, topic: str | None = None
) -> CloudDataset:
    """Open a dataset as training on the bundle's encoder would: as many points are drawn from a mesh.

    Raises:
        InputError: nothing there, or a topic for something that is no recording.
    """
    if topic is not None:
        raise InputError(f"{path}: expected a recording (.mcap, .bag, .db3) for --topic, found none")
    encoder = load_manifest(bundle).encoder
    least, scattered = encoder.least, encoder.radius is not None
    return reading.open(path, EncoderForm(encoder.points, least, encoder.channels, scattered), split)


def messages(path: Path, topic: str | None, bad: dict[str, str], *, colored: bool = True) -> Iterator[Named]:
    """The clouds of a recording, with their colours or without; those without a usable point are put into `bad`."""
    for stamp, recorded in read_recording(path, topic):
        points = recorded if colored else recorded[:, :3]
        if np.isfinite(points[:, :3]).all(axis=1).any():
            yield Named(str(stamp), printable(str(path)), points)
        else:
            bad[str(stamp)] = "it holds no usable point"


def readable(dataset: CloudDataset, given: Path, bad: dict[str, str]) -> Iterator[Named]:
    """The clouds of a dataset that can be read, whole: the classifier prepares them; the others go into `bad`.

    Args:
        dataset: that was opened.
        given: the path that was opened.
        bad: reason by id of each cloud that cannot be read.
    """
    for index, name in enumerate(dataset.ids):
        try:
            yield Named(name, path_of(dataset, index, given), dataset.load_whole(index))
        except InputError as error:
            bad[name] = str(error)


def path_of(dataset: CloudDataset, index: int, given: Path) -> str:
    """The file of a cloud below the folder that was given, or what was given where that is no such folder."""
    source = dataset.source
    if isinstance(source, FolderSource) and given.is_dir():
        return printable(source.files[int(dataset.rows[index])])
    return printable(str(given))


def parts(entries: Iterable[T], size: int = AT_ONCE) -> Iterator[list[T]]:
    """Cut a stream into lists of at most `size`."""
    stream = iter(entries)
    while part := list(islice(stream, size)):
        yield part


def json_of(cloud: Named, prediction: Prediction) -> str:
    """One line of JSON."""
    return json.dumps({"file": cloud.name, "path": cloud.path, **prediction.to_dict()}, ensure_ascii=False)


def line_of(name: str, prediction: Prediction) -> str:
    """One line for people."""
    label = f"unknown (like {prediction.label})" if prediction.unknown else prediction.label
    others = ", ".join(f"{other} {score:.2f}" for other, score in prediction.top_k[1:3])
    return f"{name}\t{label}\t{prediction.score:.2f}" + (f"\t{others}" if others else "")


def embed(
    model: Path,
    paths: Sequence[Path],
    out: Path,
    reading: Reading,
    *,
    split: str | None = None,
    threads: int | None = None,
) -> None:
    """Write the embeddings of all clouds, in their order: (N, D) float32 unit rows, and beside them what each row is.

    Args:
        model: a bundle, a run, a base, or the name of a public encoder, which is fetched.
        paths: of clouds.
        out: the .npy to write; `row_names` go into the .ids.txt of the same stem, one a line.
        reading: how the clouds are read.
        split: of each of the paths; None for all of it.
        threads: of a pass on the CPU; None for one a core.

    Raises:
        InputError: a place where nothing can be written, before any work; or a cloud that cannot be read: no row may
            be missing.
        WorkFailed: the files cannot be written.
    """
    ids = out.with_suffix(IDS)
    check_free(out, model, paths)
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise InputError(f"{missing}: expected a folder or file of clouds, found nothing there")
    if (model / MANIFEST).is_file():
        datasets = [open_clouds(model, path, reading, split) for path in paths]
        clouds = (dataset.load_whole(index) for dataset in datasets for index in range(len(dataset)))
        with Classifier.load(model, threads=threads, up_axis=DATASET_UP) as classifier:
            rows = np.concatenate([classifier.embed(part) for part in parts(clouds)])
    else:
        from crossmost.workflows import embed_clouds
        from crossmost.zoo import resolve

        base = resolve(model, lambda line: typer.echo(line, err=True))
        datasets, rows = embed_clouds(base, paths, reading, split=split, threads=threads)
    names = row_names(datasets, paths)
    with replacing(out) as rows_file, replacing(ids) as names_file:
        with rows_file.open("wb") as file:
            np.save(file, rows)
            sync(file)
        with names_file.open("wb") as file:
            file.writelines(f"{name}\n".encode() for name in names)
            sync(file)
    typer.echo(str(out))


def check_free(out: Path, model: Path, paths: Sequence[Path]) -> None:
    """Refuse a place where embeddings cannot be written, or where they would replace what is read.

    Raises:
        InputError: see `check_destination`; or a file among the clouds of a folder.
    """
    for path, suffix in ((out, ".npy"), (out.with_suffix(IDS), ".txt")):
        check_destination(path, suffix, [model, *paths], overwrite=True)
    folders = (path for path in paths if out.exists() and path.resolve() in out.resolve().parents)
    if folder := next(folders, None):
        raise InputError(
            f"expected a new file to write, found {out} among the clouds of {folder}: choose another place"
        )


def row_names(datasets: Sequence[CloudDataset], paths: Sequence[Path]) -> list[str]:
    """What each row of the embeddings is: the path of its file, or the id of a cloud that shares a file with others.

    Args:
        datasets: in the order of the rows.
        paths: where each was opened.

    Returns:
        N lines. Paths are relative to the folder that was given; where several paths were given they start with it,
        and so do ids.
    """
    lines = []
    for dataset, given in zip(datasets, paths, strict=True):
        whole = isinstance(dataset.source, FolderSource)
        start = f"{given}/" if len(paths) > 1 and (given.is_dir() or not whole) else ""
        names = [path_of(dataset, index, given) for index in range(len(dataset))] if whole else dataset.ids
        # A line is a row, also where a name has line breaks in it.
        lines += [" ".join(printable(f"{start}{name}").splitlines()) for name in names]
    return lines
