"""`crossmost predict` and `embed`: files or recordings in, one answer a cloud out. Works without torch on a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray

from crossmost.checkpoints.atomic import replacing, shown_json, sync
from crossmost.checkpoints.destination import check_destination
from crossmost.checkpoints.run_files import is_run
from crossmost.data.catalog import printable
from crossmost.data.dataset import CloudDataset
from crossmost.data.folder import FolderSource
from crossmost.data.reading import EncoderForm, Reading
from crossmost.errors import InputError
from crossmost.runtime.class_names import read_class_names
from crossmost.runtime.classifier import Classifier
from crossmost.runtime.errors import InvalidInput
from crossmost.runtime.manifest import MANIFEST, load_manifest
from crossmost.runtime.prediction import Prediction
from crossmost.runtime.recording import is_recording, read_recording
from crossmost.skipped import one_line, say_skipped
from crossmost.zoo_models import list_models

AT_ONCE = 16
"""Clouds a call: enough for the encoder, few enough for the first answers to come soon."""
POINTS_AT_ONCE = 1 << 21
"""Points a call: whole scans of a mapping sensor are large, and stay in memory until they are answered."""
IDS = ".ids.txt"
"""How the name ends of the file that says what the rows of embeddings are."""
DATASET_UP = "z"
"""What points up in a dataset's clouds, whatever it is in their files."""


class Named(NamedTuple):
    """A cloud and what it is called: a file's name, an id, or the time of a message in nanoseconds.

    `path` is its file: below the folder that was given, or as it was given itself. `header` is what else a message
    says of it: when and in which frame it was taken.
    """

    name: str
    path: str
    points: NDArray[np.floating[Any]]
    header: Mapping[str, Any] = MappingProxyType({})


def predict(
    bundle: Path,
    paths: Sequence[Path],
    reading: Reading,
    *,
    split: str | None = None,
    topic: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    classes: Sequence[str] | Path | None = None,
    messages_up: str = "z",
    as_json: bool = False,
) -> None:
    """Print one line for each cloud of files, folders, datasets or recordings, whose messages are `messages_up`.

    Raises:
        InputError: nothing that can be classified.
    """
    refuse_unexported(bundle)
    recordings = {path for path in paths if opens_as_recording(path, split)}
    for path in paths:
        check_given(path, topic if path not in recordings else None)
    with Classifier.load(bundle, backend=backend, threads=threads, color=reading.color) as classifier:
        if classes is not None:
            classifier.set_classes(classes)
            if note := classifier.info()["classes"]["note"]:
                typer.echo(note, err=True)
        bad: dict[str, str] = {}
        answered = 0
        for path in paths:
            unread: dict[str, str] = {}
            if path in recordings:
                up_axis = messages_up
                clouds = messages(path, topic, unread, colored=looks_at_colors(bundle, reading))
            else:
                up_axis = DATASET_UP
                clouds = readable(open_clouds(bundle, path, reading, split, topic), path, unread)
            given = {"given": str(path)} if len(paths) > 1 else {}
            for part in parts(clouds):
                predictions = classifier([cloud.points for cloud in part], up_axis=up_axis)
                for cloud, prediction in zip(part, predictions, strict=True):
                    line = json_of(cloud, prediction, given) if as_json else line_of(cloud.name, prediction)
                    typer.echo(line)
                    answered += 1
            bad |= told_apart(unread, path, several=len(paths) > 1)
    if not answered:
        raise none_readable(paths, bad)
    say_skipped(bad)


def check_given(path: Path, topic: str | None) -> None:
    """Refuse what is not there, and a topic for what is no recording, before anything is answered.

    Raises:
        InputError: one of the two.
    """
    if not path.exists():
        raise InputError(f"{path}: expected a folder or file of clouds, found nothing there")
    if topic is not None:
        raise InputError(f"{path}: expected a recording (.mcap, .bag, .db3) for --topic, found none")


def told_apart(bad: Mapping[str, str], given: Path, *, several: bool) -> dict[str, str]:
    """Reasons by name; where several paths are given, the path stands before each name."""
    return {f"{given}: {name}": reason for name, reason in bad.items()} if several else dict(bad)


def looks_at_colors(bundle: Path, reading: Reading) -> bool:
    """Whether the colours of a recording matter: they are wanted, and the encoder has a use for them."""
    return reading.color != "none" and load_manifest(bundle).encoder.channels == 6


def opens_as_recording(path: Path, split: str | None) -> bool:
    """Whether a path is a recording.

    Raises:
        InputError: it is, and a split was asked for, which only files and datasets have.
    """
    recorded = is_recording(path)
    if recorded and split:
        raise InputError(f"{path}: --split is for files and datasets")
    return recorded


def refuse_columns(paths: Sequence[Path], columns: str | None) -> None:
    """Refuse columns that were stated for a recording; what a model's own files have is nothing to it either.

    Raises:
        InputError: names the recording.
    """
    if columns is not None and (recorded := next(filter(is_recording, paths), None)):
        raise InputError(
            f"{recorded}: --columns is for files and datasets; the messages of a recording name their columns"
        )


def none_readable(paths: Sequence[Path], bad: Mapping[str, str]) -> InputError:
    """The error of clouds of which none can be read: the reason of the first."""
    reason = next(iter(bad.values()), "there are none")
    given = ", ".join(map(str, paths))
    return InputError(f"{given}: expected clouds, found none that can be read: {reason}")


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
    check_given(path, topic)
    clouds = reading.open(path, form_of(bundle), split)
    for line in clouds.left_out:
        typer.echo(line, err=True)
    return clouds


def messages(path: Path, topic: str | None, bad: dict[str, str], *, colored: bool = True) -> Iterator[Named]:
    """The clouds of a recording, with their colours or without; messages that hold none are put into `bad`."""

    def note(time: int, reason: str) -> None:
        name, times = str(time), 1
        while name in bad:  # messages may have been recorded at one time
            times += 1
            name = f"{time} ({times})"
        bad[name] = reason

    for recorded in read_recording(path, topic, note, colors=colored):
        xyz = recorded.points[:, :3]
        xyz[~xyz.any(axis=1)] = np.nan  # where the sensor is itself: nothing came back
        if np.isfinite(xyz).all(axis=1).any():
            header = {"stamp": recorded.stamp, "frame_id": recorded.frame_id}
            yield Named(str(recorded.time), printable(str(path)), recorded.points, header)
        else:
            note(recorded.time, "it holds no usable point")


def readable(dataset: CloudDataset, given: Path, bad: dict[str, str]) -> Iterator[Named]:
    """The clouds of a dataset that can be read, whole: the classifier prepares them; the others go into `bad`.

    Args:
        dataset: that was opened.
        given: the path that was opened.
        bad: reason by id of each cloud that cannot be read.
    """
    for index, points in dataset.whole():
        yield Named(dataset.ids[index], path_of(dataset, index, given), points)
    bad |= dataset.bad


def path_of(dataset: CloudDataset, index: int, given: Path) -> str:
    """The file of a cloud below the folder that was given, or what was given where that is no such folder."""
    source = dataset.source
    if isinstance(source, FolderSource) and given.is_dir():
        return printable(source.files[int(dataset.rows[index])])
    return printable(str(given))


class Holding(Protocol):
    """What holds a cloud."""

    @property
    def points(self) -> NDArray[Any]:
        """(N, C)."""


T = TypeVar("T", bound=Holding)


def parts(entries: Iterable[T], size: int = AT_ONCE, most: int = POINTS_AT_ONCE) -> Iterator[list[T]]:
    """Cut a stream into lists; where it breaks off, what came before is a list still.

    Args:
        entries: clouds.
        size: the most of them in a list.
        most: points from which on a list takes no further cloud.
    """
    part: list[T] = []
    held = 0
    try:
        for entry in entries:
            part.append(entry)
            held += len(entry.points)
            if len(part) == size or held >= most:
                yield part
                part, held = [], 0
    except InvalidInput:  # a recording that is damaged further on
        if part:
            yield part
        raise
    if part:
        yield part


def form_of(bundle: Path) -> EncoderForm:
    """What a bundle's encoder asks of its clouds."""
    encoder = load_manifest(bundle).encoder
    return EncoderForm(encoder.points, encoder.least, encoder.channels, encoder.radius is not None)


def json_of(cloud: Named, prediction: Prediction, given: Mapping[str, str]) -> str:
    """One line of JSON; `given` says which of several paths the cloud is from."""
    return shown_json(
        {**given, "file": cloud.name, "path": cloud.path, **cloud.header, **prediction.to_dict()}
    )


def line_of(name: str, prediction: Prediction) -> str:
    """One line for people."""
    label = f"unknown (like {prediction.label})" if prediction.unknown else prediction.label
    others = ", ".join(f"{other} {score:.2f}" for other, score in prediction.top_k[1:3])
    return f"{one_line(name)}\t{label}\t{prediction.score:.2f}" + (f"\t{others}" if others else "")


def embed(
    model: Path,
    paths: Sequence[Path],
    out: Path,
    reading: Reading,
    *,
    split: str | None = None,
    topic: str | None = None,
    backend: str | None = None,
    threads: int | None = None,
    messages_up: str = "z",
) -> None:
    """Write the embeddings of all clouds, in their order: (N, D) float32 unit rows, and beside them what each row is.

    Clouds that cannot be read have no row; they are named.

    Args:
        model: a bundle, a run, a base, or the name of a public encoder, which is fetched.
        paths: of clouds, and with a bundle of recordings.
        out: the .npy to write; what each row is goes into the .ids.txt of the same stem, one a line: see `row_names`.
        reading: how the clouds of files are read.
        split: of each of the paths; None for all of it.
        topic: of the recordings, all of which have it; None where they have one of clouds.
        backend: of a bundle; None for the best.
        threads: of a pass on the CPU; None for one a core.
        messages_up: which axis is up in the messages of recordings.

    Raises:
        InputError: a place where nothing can be written, before any work; a topic for what is no recording; or no cloud
            that can be read.
        WorkFailed: the files cannot be written.
    """
    ids = out.with_suffix(IDS)
    check_free(out, model, paths)
    for path in paths:
        check_given(path, None)
    bad: dict[str, str] = {}
    if (model / MANIFEST).is_file():
        names, rows = embedded(
            model, paths, reading, bad,
            split=split, topic=topic, backend=backend or "auto", threads=threads, messages_up=messages_up,
        )  # fmt: skip
    elif topic is not None or backend is not None:
        option = (
            "--backend: others are run by torch" if topic is None else "--topic: recordings are read with one"
        )
        raise InputError(f"{model}: expected a bundle for {option}")
    else:
        from crossmost.workflows import embed_clouds
        from crossmost.zoo import resolve

        base = resolve(model, lambda line: typer.echo(line, err=True))
        datasets, rows, bad = embed_clouds(base, paths, reading, split=split, threads=threads)
        names = []
        for dataset, given in zip(datasets, paths, strict=True):
            by_file, start = row_names(dataset, given, several=len(paths) > 1)
            for index, name in enumerate(dataset.ids):
                names.append(f"{start}{path_of(dataset, index, given) if by_file else name}")
    if not names:
        raise none_readable(paths, bad)
    with replacing(out) as rows_file, replacing(ids) as names_file:
        with rows_file.open("wb") as file:
            np.save(file, rows)
            sync(file)
        with names_file.open("wb") as file:
            file.writelines(f"{one_line(name)}\n".encode() for name in names)
            sync(file)
    say_skipped(bad)
    typer.echo(str(out))


def check_free(out: Path, model: Path, paths: Sequence[Path]) -> None:
    """Refuse a place where embeddings cannot be written, or where they would replace what is read.

    Raises:
        InputError: see `check_destination`; or a file among the clouds of a folder.
    """
    for path, suffix in ((out, ".npy"), (out.with_suffix(IDS), ".txt")):
        check_destination(path, suffix, [model, *paths], overwrite=True)
    if model.resolve() in out.resolve().parents:
        raise InputError(f"expected a place outside {model}, found {out}: choose another")
    folders = (path for path in paths if out.exists() and path.resolve() in out.resolve().parents)
    if folder := next(folders, None):
        raise InputError(
            f"expected a new file to write, found {out} among the clouds of {folder}: choose another place"
        )


def embedded(
    bundle: Path,
    paths: Sequence[Path],
    reading: Reading,
    bad: dict[str, str],
    *,
    split: str | None,
    topic: str | None,
    backend: str,
    threads: int | None,
    messages_up: str,
) -> tuple[list[str], NDArray[np.float32]]:
    """Names and embeddings of clouds by a bundle; those that cannot be read go into `bad`: see `embed`."""
    names: list[str] = []
    rows = [np.empty((0, load_manifest(bundle).encoder.dim), np.float32)]
    several = len(paths) > 1
    with Classifier.load(bundle, backend=backend, threads=threads, color=reading.color) as classifier:
        for path in paths:
            unread: dict[str, str] = {}
            by_file, start = False, f"{path}/" if several else ""
            if opens_as_recording(path, split):
                up_axis = messages_up
                clouds = messages(path, topic, unread, colored=looks_at_colors(bundle, reading))
            else:
                up_axis, dataset = DATASET_UP, open_clouds(bundle, path, reading, split, topic)
                by_file, start = row_names(dataset, path, several=several)
                clouds = readable(dataset, path, unread)
            for part in parts(clouds):
                names += [f"{start}{cloud.path if by_file else cloud.name}" for cloud in part]
                rows.append(classifier.embed([cloud.points for cloud in part], up_axis=up_axis))
            bad |= told_apart(unread, path, several=several)
    return names, np.concatenate(rows)


def row_names(dataset: CloudDataset, given: Path, *, several: bool) -> tuple[bool, str]:
    """What the rows of the embeddings are called.

    Args:
        dataset: of the clouds.
        given: where it was opened.
        several: whether other paths were given beside it: paths and ids start with it then. Alone, paths are relative
            to the folder that was given.

    Returns:
        Whether by the path of its file, or by the id of a cloud that shares a file with others; and what stands before.
    """
    by_file = isinstance(dataset.source, FolderSource)
    return by_file, f"{given}/" if several and (given.is_dir() or not by_file) else ""
