"""What a step of training reads: augmented clouds and views, each drawn from (seed, epoch, index) alone.

A sample is the same whatever worker makes it and whenever it is made, so that an interrupted run continues to
the same weights.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from crossmost.data.augment import (
    WEAK,
    PointAugment,
    augment_points,
    geometric_image,
    strong_image,
    test_image,
    weak_image,
)
from crossmost.data.scanner import scan
from crossmost.data.views import render_views
from crossmost.errors import WorkFailed
from crossmost.runtime.preprocess import fill, normalize

Key = tuple[int, int]  # epoch and index
MOST_WORKERS = 8
WORKER_ENDED = ("exited unexpectedly", "is killed by signal")
"""How torch says that a process that loads is gone."""
CPU = torch.device("cpu")


class Clouds(Protocol):
    """What training may know of a dataset: clouds and views, no labels."""

    @property
    def bad(self) -> dict[str, str]:
        """Why, by name, for each file that could not be read so far."""

    def __len__(self) -> int:
        """Number of clouds."""

    def try_load(self, index: int) -> NDArray[np.float32] | None:
        """The normalised cloud (n, 3 or 6), or None where the file is bad."""

    def views(self, index: int) -> Sequence[Any] | None:
        """The user's own pictures of the cloud, None for a bad one; or None where they are to be rendered."""


class PointBatch(NamedTuple):
    """Clouds of different sizes, padded to the largest."""

    points: Tensor  # (B, N, 3 or 6) float32
    sizes: Tensor  # (B,) int64

    def to(self, device: torch.device) -> PointBatch:
        """Move both tensors."""
        return PointBatch(self.points.to(device, non_blocking=True), self.sizes.to(device, non_blocking=True))


class ViewBatch(NamedTuple):
    """The views of several objects, one object after the other: users' pictures are not equally many of each."""

    pixels: Tensor  # (T, 3, H, W), T the sum of counts
    counts: tuple[int, ...]  # of each of B objects

    @classmethod
    def of(cls, views: Sequence[Tensor] | Tensor) -> ViewBatch:
        """Gather the views (V_i, 3, H, W) of each object."""
        return cls(torch.cat(list(views)), tuple(len(own) for own in views))

    def to(self, device: torch.device) -> ViewBatch:
        """Move the pixels."""
        return ViewBatch(self.pixels.to(device, non_blocking=True), self.counts)


class TrainingBatch(NamedTuple):
    """What teacher and student see of the same objects."""

    indices: Tensor  # (B,) int64, into the dataset
    weak_points: PointBatch
    weak_views: ViewBatch | None  # one an object where the teacher sees one view; None: no image branch
    strong_points: PointBatch
    strong_view: Tensor | None  # (B, 3, H, W)

    def to(self, device: torch.device) -> TrainingBatch:
        """Move every tensor there is."""
        moved: Any = [None if part is None else part.to(device) for part in self]
        return TrainingBatch(*moved)


class PlainBatch(NamedTuple):
    """Clouds and all their views as they are, for evaluation."""

    indices: Tensor  # (B,) int64, into the dataset
    points: PointBatch
    views: ViewBatch | None  # None: no image branch

    def to(self, device: torch.device) -> PlainBatch:
        """Move every tensor there is."""
        moved: Any = [None if part is None else part.to(device) for part in self]
        return PlainBatch(*moved)


@dataclass(frozen=True)
class SampleSettings:
    """How samples are made.

    Attributes:
        seed: of the run.
        image_size: H = W in pixels; None where nothing looks at views: none is read or rendered.
        views: rendered around a cloud that brings none; the most the teacher sees of one that does.
        least: points a cloud is filled up to: the larger of the card's G and K.
        teacher_sees: number of views the teacher sees.
        strong: the student's point augmentation.
        scan_severity: a simulated scan before it, or "none".
        photometric: whether the student's rendered views go through RandAugment too, as published.
        looked_at: whether anything looks at views. Where nothing does, none is read or rendered, and the generator is
            used as if there were: the clouds are those of a run that looks.
    """

    seed: int
    image_size: int | None
    views: int
    least: int
    teacher_sees: int
    strong: PointAugment
    scan_severity: str = "none"
    photometric: bool = False
    looked_at: bool = True


class Loaded(NamedTuple):
    """What a loading process hands over."""

    batch: Any  # None where none of the clouds can be read
    bad: Mapping[str, str]  # the files that this process could not read so far


def pad(clouds: Sequence[NDArray[np.float32]]) -> PointBatch:
    """Stack clouds (n_i, C) into one batch, zeros behind the shorter ones."""
    sizes = torch.tensor([len(cloud) for cloud in clouds])
    points = torch.zeros(len(clouds), int(sizes.max()), clouds[0].shape[1])
    for row, cloud in zip(points, clouds, strict=True):
        row[: len(cloud)] = torch.from_numpy(cloud)
    return PointBatch(points, sizes)


def views_of(
    clouds: Clouds,
    index: int,
    cloud: NDArray[np.float32],
    choose: Callable[[int], Sequence[int]],
    *,
    count: int,
    size: int,
) -> list[Any]:
    """Some views of a cloud: of the user's pictures, or of rendered ones.

    Pictures that are not chosen are not opened: there may be many, and large ones. Only where a chosen one cannot be
    read are all of them, and the choice is made again among those that can.

    Args:
        clouds: what the cloud is of.
        index: of the cloud.
        cloud: (n, 3 or 6) itself.
        choose: given how many there are, the numbers of those that are wanted.
        count: rendered where there are no pictures.
        size: H = W of rendered ones in pixels.
    """
    pictures = clouds.views(index)
    while pictures:
        numbers = choose(len(pictures))
        opened = {number: pictures[number] for number in dict.fromkeys(numbers)}
        if all(picture is not None for picture in opened.values()):
            return [opened[number] for number in numbers]
        pictures = [picture for picture in pictures if picture is not None]
    rendered = render_views(cloud[:, :3], count=count, size=size)
    return [rendered[number] for number in choose(count)]


def spread(total: int, most: int) -> list[int]:
    """Numbers of at most `most` of `total` pictures, evenly spaced: they are often taken in a round."""
    count = min(most, total)
    return [number * total // count for number in range(count)]


class TrainingSamples(Dataset[tuple[Any, ...] | None]):
    """Weak and strong versions of each cloud (METHOD 1.1)."""

    def __init__(self, clouds: Clouds, settings: SampleSettings):
        self.clouds = clouds
        self.settings = settings

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, key: Key) -> tuple[Any, ...] | None:
        """Make the sample of (epoch, index); None where the file is bad."""
        epoch, index = key
        settings = self.settings
        cloud = self.clouds.try_load(index)
        if cloud is None:
            return None
        rng = np.random.default_rng([settings.seed, epoch, index])
        weak_views, strong_view = self._views(index, cloud, rng)
        return (
            index,
            fill(augment_points(cloud, WEAK, rng), settings.least),
            weak_views,
            fill(self._strong(cloud, rng), settings.least),
            strong_view,
        )

    def _views(
        self, index: int, cloud: NDArray[np.float32], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """What the teacher and what the student sees: (V, 3, H, W) and (3, H, W)."""
        settings = self.settings
        size = settings.image_size
        if size is None:
            return None, None

        def choose(total: int) -> list[int]:
            """The student's view, and behind it those of a teacher that sees several."""
            one = int(rng.integers(total))
            return [one] if settings.teacher_sees == 1 else [one, *spread(total, settings.views)]

        if not settings.looked_at:
            choose(len(self.clouds.views(index) or range(settings.views)))
            rng.integers(2**31, size=2)
            return None, None
        chosen, *several = views_of(self.clouds, index, cloud, choose, count=settings.views, size=size)
        shown = several or [chosen]  # one view, the same for teacher and student, as published
        seeds = rng.integers(2**31, size=2)
        weak_views = torch.stack([weak_image(picture, size, int(seeds[0])) for picture in shown])
        rendered = isinstance(chosen, np.ndarray)
        strong = geometric_image if rendered and not settings.photometric else strong_image
        return weak_views, strong(chosen, size, int(seeds[1]))

    def _strong(self, cloud: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """The student's cloud: scanned where asked for, then strongly augmented."""
        if self.settings.scan_severity != "none":
            cloud = scan(cloud, severity=self.settings.scan_severity, rng=rng)
            cloud[:, :3] = normalize(cloud[:, :3])
        return augment_points(cloud, self.settings.strong, rng)


class PlainSamples(Dataset[tuple[Any, ...] | None]):
    """Each cloud as it is, with at most `views` views; without any where `image_size` is None."""

    def __init__(self, clouds: Clouds, *, image_size: int | None, views: int):
        self.clouds = clouds
        self.image_size = image_size
        self.view_count = views

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> tuple[Any, ...] | None:
        """Load one cloud; None where the file is bad."""
        cloud = self.clouds.try_load(index)
        if cloud is None:
            return None
        size = self.image_size
        if size is None:
            return index, cloud, None
        most = self.view_count
        shown = views_of(self.clouds, index, cloud, partial(spread, most=most), count=most, size=size)
        return index, cloud, torch.stack([test_image(picture, size) for picture in shown])


def collate_training(samples: Sequence[tuple[Any, ...]]) -> TrainingBatch:
    """Stack samples."""
    index, weak, weak_views, strong, strong_view = zip(*samples, strict=True)
    return TrainingBatch(
        torch.tensor(index),
        pad(weak),
        None if weak_views[0] is None else ViewBatch.of(weak_views),
        pad(strong),
        None if strong_view[0] is None else torch.stack(strong_view),
    )


def collate_plain(samples: Sequence[tuple[Any, ...]]) -> PlainBatch:
    """Stack samples."""
    index, clouds, views = zip(*samples, strict=True)
    return PlainBatch(torch.tensor(index), pad(clouds), None if views[0] is None else ViewBatch.of(views))


class EpochOrder(Sampler[list[Key]]):
    """The batches of one epoch in a seeded order, from the `start`-th on; the incomplete last one is dropped."""

    def __init__(self, count: int, batch_size: int, *, seed: int, epoch: int, start: int = 0):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(count, generator=generator).tolist()
        whole = max(1, count // batch_size)
        self.batches = [
            [(epoch, index) for index in order[first * batch_size : (first + 1) * batch_size]]
            for first in range(start, whole)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)


def training_batches(
    samples: TrainingSamples, order: EpochOrder, workers: int | None, device: torch.device = CPU
) -> Iterator[TrainingBatch | None]:
    """Load the batches of one epoch; None for one without a readable cloud. See `load`."""
    return load(samples, collate_training, workers, device, batch_sampler=order)


def plain_batches(
    samples: PlainSamples, batch_size: int, workers: int | None, device: torch.device = CPU
) -> Iterator[PlainBatch | None]:
    """Load a dataset in its own order; None for a batch without a readable cloud. See `load`."""
    return load(samples, collate_plain, workers, device, batch_size=batch_size)


def load(
    samples: Any,
    collate: Callable[[list[Any]], Any],
    workers: int | None,
    device: torch.device,
    **batching: Any,
) -> Iterator[Any]:
    """Load batches, leaving out the clouds that cannot be read.

    A worker process names a bad file in its own copy of the dataset, which ends with it. So the clouds are
    told here what was bad, in the process that reports it.

    Args:
        samples: with the clouds they are made of as `clouds`.
        collate: makes a batch of at least one sample.
        workers: processes that load; 0 loads in this one, None takes what `usual_workers` says.
        device: where the batches go: a GPU takes pinned memory while it computes.
        batching: how the DataLoader forms batches.

    Raises:
        WorkFailed: a process that loads was ended from outside.
    """
    loader = DataLoader(
        samples,
        num_workers=usual_workers(device) if workers is None else workers,
        pin_memory=device.type == "cuda",
        collate_fn=partial(_collate, collate),
        worker_init_fn=_leave_interrupts,
        **batching,
    )
    batches = iter(loader)
    while True:
        try:
            batch, bad = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if any(words in str(error) for words in WORKER_ENDED):
                raise WorkFailed(
                    "a process that loads clouds was ended from outside, perhaps for lack of memory: "
                    "try fewer workers"
                ) from error
            raise
        samples.clouds.bad.update(bad)
        yield batch


def _leave_interrupts(_: int) -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the one that trains: it saves, and ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def usual_workers(device: torch.device) -> int:
    """Processes that load where nobody says how many: none where the CPU trains, enough to keep a GPU at work."""
    return min(MOST_WORKERS, max(0, (os.cpu_count() or 1) - 1)) if device.type == "cuda" else 0


def _collate(collate: Callable[[list[Any]], Any], samples: Sequence[Any]) -> Loaded:
    """Make a batch of the samples that there are."""
    readable = [sample for sample in samples if sample is not None]
    worker: Any = get_worker_info()
    return Loaded(collate(readable) if readable else None, worker.dataset.clouds.bad if worker else {})
