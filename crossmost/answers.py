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
from crossmost.data.dataset import CloudDataset
from crossmost.data.reading import Reading, Whole
from crossmost.errors import InputError
from crossmost.runtime.classifier import Classifier
from crossmost.runtime.manifest import MANIFEST, load_manifest
from crossmost.runtime.prediction import Prediction
from crossmost.runtime.recording import is_recording, read_recording

AT_ONCE = 16
"""Clouds a call: enough for the encoder, few enough for the first answers to come soon."""
DATASET_UP = "z"
"""What points up in a dataset's clouds, whatever it is in their files."""
T = TypeVar("T")


class Named(NamedTuple):
    """A cloud and what it is called: a file's name, an id, or the time of a message in nanoseconds."""

    name: str
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
    recorded = is_recording(path)
    up_axis = reading.up_axis if recorded else DATASET_UP
    with Classifier.load(bundle, backend=backend, threads=threads, up_axis=up_axis) as classifier:
        if classes is not None:
            classifier.set_classes(classes)
        bad: dict[str, str] = {}
        answered = 0
        if recorded:
            clouds = messages(path, topic, bad)
        else:
            clouds = readable(open_whole(bundle, path, reading, split, topic), bad)
        for part in parts(clouds):
            for cloud, prediction in zip(part, classifier([cloud.points for cloud in part]), strict=True):
                typer.echo(json_of(cloud.name, prediction) if as_json else line_of(cloud.name, prediction))
                answered += 1
    if bad:
        typer.echo(f"skipped {len(bad)} clouds that could not be read: {', '.join(bad)}", err=True)
    if not answered:
        reason = next(iter(bad.values()), "there are none")
        raise InputError(f"{path}: expected clouds to classify, found none that can be read: {reason}")


def named_classes(text: str | None) -> tuple[str, ...] | Path | None:
    """Class names from `mug,bowl` or a file of names, one a line; a classes.npz stays a path."""
    if text is None:
        return None
    path = Path(text)
    if path.suffix == ".npz":
        return path
    entries = path.read_text("utf-8-sig").splitlines() if path.is_file() else text.split(",")
    return tuple(entry.strip() for entry in entries if entry.strip() and not entry.lstrip().startswith("#"))


def open_whole(
    bundle: Path, path: Path, reading: Reading, split: str | None = None, topic: str | None = None
) -> CloudDataset:
    """Open a dataset for a classifier, which thins clouds itself, after it has normalised them.

    Raises:
        InputError: nothing there, or a topic for something that is no recording.
    """
    if topic is not None:
        raise InputError(f"{path}: expected a recording (.mcap, .bag, .db3) for --topic, found none")
    return reading.open(path, Whole(load_manifest(bundle).encoder.channels), split)


def messages(path: Path, topic: str | None, bad: dict[str, str]) -> Iterator[Named]:
    """The clouds of a recording; those without a usable point are put into `bad`."""
    for stamp, points in read_recording(path, topic):
        if np.isfinite(points[:, :3]).all(axis=1).any():
            yield Named(str(stamp), points)
        else:
            bad[str(stamp)] = "it holds no usable point"


def readable(dataset: CloudDataset, bad: dict[str, str]) -> Iterator[Named]:
    """The clouds of a dataset that can be read; the others are put into `bad`."""
    for index, name in enumerate(dataset.ids):
        cloud = dataset.try_load(index)
        if cloud is None:
            bad[name] = dataset.bad[name]
        else:
            yield Named(name, cloud)


def parts(entries: Iterable[T], size: int = AT_ONCE) -> Iterator[list[T]]:
    """Cut a stream into lists of at most `size`."""
    stream = iter(entries)
    while part := list(islice(stream, size)):
        yield part


def json_of(name: str, prediction: Prediction) -> str:
    """One line of JSON."""
    return json.dumps({"file": name, **prediction.to_dict()}, ensure_ascii=False)


def line_of(name: str, prediction: Prediction) -> str:
    """One line for people."""
    label = f"unknown (like {prediction.label})" if prediction.unknown else prediction.label
    others = ", ".join(f"{other} {score:.2f}" for other, score in prediction.top_k[1:3])
    return f"{name}\t{label}\t{prediction.score:.2f}" + (f"\t{others}" if others else "")


def embed(model: Path, paths: Sequence[Path], out: Path, reading: Reading, *, threads: int | None) -> None:
    """Write the embeddings of all clouds, in their order: (N, D) float32 unit rows.

    Args:
        model: a bundle, a run, a base, or the name of a public encoder, which is fetched.
        paths: of clouds.
        out: the .npy to write.
        reading: how the clouds are read.
        threads: of a bundle's passes.

    Raises:
        InputError: no .npy to write, or a cloud that cannot be read: no row may be missing.
    """
    if out.suffix != ".npy":
        raise InputError(f"expected a .npy to write, found {out}")
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise InputError(f"{missing}: expected a folder or file of clouds, found nothing there")
    if (model / MANIFEST).is_file():
        datasets = [open_whole(model, path, reading) for path in paths]
        clouds = (dataset.load(index) for dataset in datasets for index in range(len(dataset)))
        with Classifier.load(model, threads=threads, up_axis=DATASET_UP) as classifier:
            rows = np.concatenate([classifier.embed(part) for part in parts(clouds)])
    else:
        from crossmost.workflows import embed_clouds
        from crossmost.zoo import resolve

        base = resolve(model, lambda line: typer.echo(line, err=True))
        rows = embed_clouds(base, paths, reading)
    with replacing(out) as partial, partial.open("wb") as file:
        np.save(file, rows)
        sync(file)
    typer.echo(str(out))
