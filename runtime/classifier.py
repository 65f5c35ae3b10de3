"""The classifier of a bundle: clouds in, predictions out."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.backend import Backend, check_finite
from crossmost.runtime.class_choice import CLASSES, ClassChoice, Classes, needed
from crossmost.runtime.clouds_in import CloudsIn, Prepared, split_clouds
from crossmost.runtime.errors import InvalidCall
from crossmost.runtime.judge import Judge
from crossmost.runtime.manifest import Manifest, check_files, load_manifest
from crossmost.runtime.onnx_backend import GRAPH
from crossmost.runtime.prediction import Prediction
from crossmost.runtime.preprocess import InvalidCloud
from crossmost.runtime.selection import AUTO, Selection, Wish, select_backend
from crossmost.runtime.test_time_cache import TestTimeCache

CLOUDS_AT_ONCE = 64
"""Clouds prepared before the encoder sees them, which bounds the memory of long lists."""


class Classifier:
    """Classifies point clouds with a bundle of `crossmost export`.

        clf = Classifier.load("scans.bundle")
        clf(points)[0]                              # Prediction(label='mug', score=0.93, ...)

    Clouds are what a sensor delivers: in any unit, anywhere, of any number of points. `points` is one cloud (N, C), a
    list of clouds of different sizes, or a batch (B, N, C): NumPy arrays, whatever speaks DLPack, arrays on a GPU with
    `__cuda_array_interface__` (copied to the host by cuda-python), nested lists. Any real dtype. The first three
    columns are x, y, z. An encoder of colored clouds reads columns 3 to 5 as red, green, blue in 0..1, 0..255 or
    0..65535, and sees its filler where there are fewer; an encoder of bare clouds leaves all further columns out:
    the intensity of (N, 4), the colors of (N, 6). Points with NaN or infinity are dropped and counted, and so are those
    at (0, 0, 0) far from the others. The order of the points matters only where distances are equal to the last bit, as
    on a grid: then the first point goes first.

    Safe to share between threads. On a CPU none waits for another: the encoder's passes run in parallel (ONNX Runtime
    shares one pool of cores between them), and so does most of the sampling, during which NumPy releases the
    interpreter's lock. On a GPU one batch is there at a time with ONNX Runtime and two with TensorRT, and the others
    wait. A single call is no faster for threads: for throughput give a list. The test-time cache makes them take turns
    for microseconds. `set_classes` and `enable_cache` take effect between calls: a call under way ends with the
    classes that it began with.

    Close it, or use it in `with`: what it holds on a GPU is given back then, and not when it is forgotten.
    """

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        selection: Selection,
        choice: ClassChoice,
        clouds_in: CloudsIn,
        cache: TestTimeCache | None = None,
    ) -> None:
        """Join the parts; see `load`."""
        self._bundle, self._manifest, self._selection = bundle, manifest, selection
        self._choice, self._clouds_in = choice, clouds_in
        self._judge = Judge(choice.own, cache)
        self._swap = threading.Lock()
        self._backend: Backend | None = selection.backend

    @classmethod
    def load(
        cls,
        bundle: str | PathLike[str],
        backend: str = AUTO,
        device: int | None = None,
        threads: int | None = None,
        *,
        up_axis: str = "z",
        color: str | None = None,
        cache: TestTimeCache | None = None,
        rebuild: bool = False,
    ) -> Classifier:
        """Open a bundle; its files are compared with the digests of its manifest first.

        Args:
            bundle: the folder that `crossmost export` wrote.
            backend: `tensorrt`, `tensorrt-rtx`, `onnxruntime-cuda`, `onnxruntime-cpu`, or `auto`: the first of these
                that works; `info()` says why.
            device: index of the GPU; None for the first.
            threads: of one pass on the CPU; None for one a core.
            up_axis: which axis points up in your clouds: x, y, z, -x, -y or -z; they are turned to the encoder's.
            color: auto takes the colors of your clouds where the encoder sees them, none leaves them out; None: as
                those of the clouds were taken that it was trained on.
            cache: a memory of the clouds seen, off by default; see `TestTimeCache`.
            rebuild: where TensorRT is here and no engine of the bundle was built for this GPU, build one, which takes
                minutes, and keep it for the next time.

        Raises:
            InvalidBundle, InvalidVocabulary: no bundle, a newer one, or a file that is missing, changed or unusable.
            InvalidChoice, InvalidCloud: no such backend, device or number of threads; no such axis or color.
            BackendUnavailable: nothing here can run it; says why and what to type.
        """
        wish = Wish(backend, device, threads, rebuild)
        manifest = load_manifest(bundle)
        # What is opened later is still found when the process has gone elsewhere, or a link has been moved.
        folder = Path(bundle).resolve()
        clouds_in = CloudsIn(manifest.encoder, up_axis, manifest.trained_color if color is None else color)
        check_files(
            folder, manifest, {CLASSES, GRAPH, *needed(manifest)}
        )  # whoever opens another compares its digest
        choice = ClassChoice(folder, manifest, threads)
        return cls(folder, manifest, select_backend(folder, manifest, wish), choice, clouds_in, cache)

    def __call__(self, points: Any, *, top_k: int = 5, up_axis: str | None = None) -> list[Prediction]:
        """Classify one cloud (N, C), a list of clouds, or a batch (B, N, C): always a list, in their order.

        Args:
            points: see the class.
            top_k: classes listed a prediction; all of them where there are fewer.
            up_axis: of these clouds; None: as `load` was told.

        Raises:
            InvalidCloud: a cloud without a usable point, or something else; of several it says which, and none is
                answered. An empty list of clouds is answered by an empty list.
            InvalidCall: closed, or a top_k below 1.
            EmbeddingFailed, PassFailed: the encoder answered with NaN, or could not, such as for want of memory.
        """
        top_k = _count("top_k", top_k)
        judge = self._judge
        embedding, counts, timings = self._embed(points, up_axis)
        return judge.predict(embedding, top_k, counts, timings)

    def embed(self, points: Any, *, up_axis: str | None = None) -> NDArray[np.float32]:
        """Embed one cloud, a list of clouds or a batch: (B, D) float32, unit rows.

        Args:
            points: see the class.
            up_axis: of these clouds; None: as `load` was told.

        Raises:
            InvalidCloud, InvalidCall, EmbeddingFailed, PassFailed: as when called.
        """
        return self._embed(points, up_axis)[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names it tells apart."""
        return self._judge.bank.vocabulary.names

    @property
    def cache(self) -> TestTimeCache | None:
        """The test-time cache in use; None where it is off."""
        return self._judge.cache

    def set_classes(self, classes: Classes, *, unknown_similarity: float | None = None) -> None:
        """Tell other classes apart from the next call on; a test-time cache starts anew.

        Args:
            classes: names; a `Vocabulary`; a `ClassBank`; or the path of a `classes.npz`, which holds one or the other.
                Names that all are the bundle's own keep their trained embeddings. For others the bundle needs its text
                encoder (`crossmost export --text-encoder`): they get the bundle's prompts, scale and temperature. A
                vocabulary gets the bundle's scale and temperature too: its own scale is that of its text model, at
                which nearly every score is 0 or 1. A bank is taken as it is, `ClassBank.plain` of a vocabulary as well.
                Names are embedded once and remembered.
            unknown_similarity: a cloud that is less similar to each of these classes is `unknown`; see
                `Prediction.similarity`. None: a bank's own threshold, or the bundle's where the names are the bundle's
                own, all of them: a threshold holds for the classes it was found with. With other classes no cloud is
                `unknown` then, and `info()` says so.

        Raises:
            InvalidVocabulary: names or embeddings that cannot be used, such as those of another text model; the old
                classes stay.
            InvalidTextEncoder: the text encoder is missing or damaged, or the bundle knows no prompts.
        """
        bank = self._choice.bank(classes, unknown_similarity)
        with self._swap:
            cache = self._judge.cache
            self._judge = Judge(bank, cache.fresh() if cache is not None else None)

    def enable_cache(self, cache: TestTimeCache | None = None) -> TestTimeCache:
        """Turn the test-time cache on, empty unless one is given that these same classes have filled."""
        chosen = TestTimeCache() if cache is None else cache
        with self._swap:
            self._judge = Judge(self._judge.bank, chosen)
        return chosen

    def disable_cache(self) -> None:
        """Turn the test-time cache off; calls under way may still add to it."""
        with self._swap:
            self._judge = Judge(self._judge.bank, None)

    def warmup(self, batch: int = 1) -> float:
        """Embed made-up clouds of the encoder's size, so that the first real ones find everything ready.

        Args:
            batch: how many at once: as many as will come.

        Returns:
            Seconds it took.

        Raises:
            InvalidCall: closed, or a batch below 1.
        """
        batch = _count("batch", batch)
        cloud = np.random.default_rng(0).normal(size=(self._manifest.encoder.points, 3))
        began = time.perf_counter()
        self._embed([cloud] * batch, None)
        return time.perf_counter() - began

    def info(self) -> dict[str, Any]:
        """What runs the bundle and why, why nothing better does, versions, classes, bundle: JSON types."""
        judge = self._judge
        bank, cache = judge.bank, judge.cache
        return {
            "backend": self._selection.backend.name,
            "why": self._selection.why,
            "refused": dict(self._selection.refused),
            "device": self._selection.backend.info(),
            "versions": {
                "crossmost": _version(),
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
            "bundle": {
                "path": str(self._bundle),
                "crossmost": self._manifest.crossmost,
                "precision": self._manifest.precision,
                "encoder": asdict(self._manifest.encoder),
                "engines": list(self._manifest.engines),
            },
            "up_axis": self._clouds_in.up_axis,
            "color": self._clouds_in.color,
            "classes": {
                "count": len(bank),
                "text_model": bank.vocabulary.tag,
                "temperature": bank.temperature,
                "unknown_similarity": bank.unknown_similarity,
                "note": self._choice.note(bank),
            },
            "cache": None if cache is None else {**cache.settings(), "size": len(cache)},
        }

    def close(self) -> None:
        """Free the backend: later calls are refused, and one of many clouds that is under way is at its next batch."""
        with self._swap:
            backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise InvalidCall("a classifier is of one process: load the bundle in each that classifies")

    def __repr__(self) -> str:
        name, count = self._selection.backend.name, len(self._judge.bank)
        return f"Classifier({str(self._bundle)!r}, backend={name!r}, classes={count})"

    def _embed(
        self, points: Any, up_axis: str | None
    ) -> tuple[NDArray[np.float32], list[tuple[int, int]], dict[str, float]]:
        """Embeddings (B, D), invalid and usable points of each cloud, and seconds of each stage."""
        backend = self._backend
        if backend is None:
            raise InvalidCall("expected an open classifier, found a closed one: load it again")
        card = self._manifest.encoder
        clouds_in = self._clouds_in if up_axis is None else replace(self._clouds_in, up_axis=up_axis)
        clouds = split_clouds(points)
        rows = [np.empty((0, card.dim), np.float32)]
        counts: list[tuple[int, int]] = []
        timings = {"prepare": 0.0}
        called = time.perf_counter()
        for start in range(0, len(clouds), CLOUDS_AT_ONCE):
            began = time.perf_counter()
            prepared = list(_prepared(clouds, start, clouds_in))
            timings["prepare"] += time.perf_counter() - began
            if self._backend is not backend:
                raise InvalidCall("expected an open classifier, found it closed during the call")
            embedded = backend.embed([cloud.points for cloud in prepared])
            for stage, seconds in embedded.seconds.items():
                timings[stage] = timings.get(stage, 0.0) + seconds
            check_finite(embedded.embedding, backend.name)
            rows.append(embedded.embedding)
            counts += [(cloud.dropped, cloud.usable) for cloud in prepared]
        timings["total"] = time.perf_counter() - called
        return np.concatenate(rows), counts, timings


def _count(name: str, given: Any) -> int:
    """An argument that counts something, as an int."""
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 1:
        raise InvalidCall(f"expected {name} as an integer from 1 on, found {given!r}")
    return int(given)


def _prepared(clouds: Sequence[Any], start: int, clouds_in: CloudsIn) -> Iterator[Prepared]:
    """Prepare the clouds from `start` on that are embedded at once; an error says which one it is."""
    for index, cloud in enumerate(clouds[start : start + CLOUDS_AT_ONCE], start):
        try:
            yield clouds_in.prepare(cloud)
        except InvalidCloud as error:
            which = f"cloud {index} (from 0) of {len(clouds)}: " if len(clouds) > 1 else ""
            raise InvalidCloud(f"{which}{error}") from None


def _version() -> str:
    try:
        return metadata.version("crossmost")
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        return "0+checkout"
