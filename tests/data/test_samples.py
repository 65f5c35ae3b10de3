"""What a step reads: the same sample whenever and wherever it is made, and no bad file without its name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crossmost.data.augment import CLIP_MEAN, CLIP_STD, STRONG, PointAugment, strong_image, weak_image
from crossmost.data.dataset import CloudDataset
from crossmost.data.samples import (
    EpochOrder,
    PlainBatch,
    PlainSamples,
    PointBatch,
    SampleSettings,
    TrainingBatch,
    TrainingSamples,
    ViewBatch,
    load,
    pad,
    plain_batches,
    training_batches,
)
from crossmost.data.scanner import scan
from crossmost.errors import WorkFailed
from crossmost.runtime.preprocess import normalize

SETTINGS = SampleSettings(seed=3, image_size=16, views=2, least=8, teacher_sees=2, strong=STRONG)


@pytest.fixture
def damaged(
    tmp_path: Path, write_shapes: Callable[..., Path], open_shapes: Callable[[Path], CloudDataset]
) -> CloudDataset:
    """Six clouds, the second and the last of them all NaN."""
    return open_shapes(write_shapes(tmp_path / "damaged.npz", 6, bad=(1, 5)))


def flat(batch: TrainingBatch) -> list[torch.Tensor]:
    """Every tensor of a batch."""
    return [
        batch.indices,
        *batch.weak_points,
        batch.weak_views.pixels,
        *batch.strong_points,
        batch.strong_view,
    ]


def one_epoch(
    clouds: CloudDataset, *, epoch: int = 0, start: int = 0, workers: int = 0
) -> list[TrainingBatch]:
    samples = TrainingSamples(clouds, SETTINGS)
    order = EpochOrder(len(clouds), 8, seed=SETTINGS.seed, epoch=epoch, start=start)
    batches = [batch for batch in training_batches(samples, order, workers) if batch is not None]
    assert len(batches) == len(order)
    return batches


def same(one: TrainingBatch, other: TrainingBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


def test_a_batch_is_the_same_whenever_and_wherever_it_is_made(shapes: CloudDataset) -> None:
    first = one_epoch(shapes)
    torch.rand(7)  # global generators play no part
    np.random.seed(5)
    for again in (one_epoch(shapes), one_epoch(shapes, workers=1)):
        assert all(same(a, b) for a, b in zip(first, again, strict=True))
    (last,) = one_epoch(shapes, start=2)
    assert same(first[2], last)


def test_every_epoch_sees_each_cloud_once_and_otherwise(shapes: CloudDataset) -> None:
    epochs = [one_epoch(shapes, epoch=epoch) for epoch in (0, 1)]
    orders = [torch.cat([batch.indices for batch in batches]).tolist() for batches in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] != orders[1]
    weak = {}
    for epoch, batches in enumerate(epochs):
        for batch in batches:
            for index, cloud in zip(batch.indices.tolist(), batch.weak_points.points, strict=True):
                weak[epoch, index] = cloud
    assert not any(torch.equal(weak[0, index], weak[1, index]) for index in range(24))


def test_the_last_incomplete_batch_is_dropped_but_a_small_set_is_one_batch() -> None:
    assert [len(batch) for batch in EpochOrder(20, 8, seed=0, epoch=0)] == [8, 8]
    assert [len(batch) for batch in EpochOrder(5, 8, seed=0, epoch=0)] == [5]
    assert len(EpochOrder(20, 8, seed=0, epoch=0, start=2)) == 0


def test_clouds_of_different_sizes_are_padded_and_their_sizes_kept() -> None:
    clouds = [np.full((count, 3), count, dtype=np.float32) for count in (2, 5, 3)]
    points, sizes = pad(clouds)
    assert points.shape == (3, 5, 3)
    assert sizes.tolist() == [2, 5, 3]
    for row, cloud in zip(points, clouds, strict=True):
        np.testing.assert_array_equal(row[: len(cloud)].numpy(), cloud)
        assert not row[len(cloud) :].any()


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_clouds_are_left_out_and_named_whoever_loads_them(damaged: CloudDataset, workers: int) -> None:
    plain = PlainSamples(damaged, image_size=16, views=1)
    batches = list(plain_batches(plain, 2, workers))
    assert [None if batch is None else batch.indices.tolist() for batch in batches] == [[0], [2, 3], [4]]
    assert set(damaged.bad) == {"shape1", "shape5"}
    assert all("NaN" in reason for reason in damaged.bad.values())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_bad_clouds_alone_is_none(damaged: CloudDataset, workers: int) -> None:
    only = damaged.subset([1, 5, 0, 2])
    batches = list(plain_batches(PlainSamples(only, image_size=16, views=1), 2, workers))
    assert batches[0] is None
    assert batches[1] is not None
    assert batches[1].indices.tolist() == [2, 3]
    assert set(only.bad) == {"shape1", "shape5"}


@pytest.mark.parametrize("workers", [0, 1])
def test_training_batches_shrink_by_the_bad_clouds(damaged: CloudDataset, workers: int) -> None:
    samples = TrainingSamples(damaged, SETTINGS)
    order = EpochOrder(6, 6, seed=0, epoch=0)
    (batch,) = training_batches(samples, order, workers)
    assert batch is not None
    assert sorted(batch.indices.tolist()) == [0, 2, 3, 4]
    assert len(batch.strong_view) == len(batch.weak_views.counts) == 4
    assert set(damaged.bad) == {"shape1", "shape5"}


class Signalled:
    """Samples that send their own process a signal while they are made."""

    def __init__(self, clouds: CloudDataset, number: int):
        self.clouds = clouds
        self.number = number

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), self.number)
        return index


def test_ctrl_c_is_for_the_process_that_trains(shapes: CloudDataset) -> None:
    samples = Signalled(shapes, signal.SIGINT)
    assert list(load(samples, list, 1, torch.device("cpu"), batch_size=1)) == [[0], [1]]


def test_a_process_that_loads_and_is_ended_from_outside_is_one_line(shapes: CloudDataset) -> None:
    samples = Signalled(shapes, signal.SIGKILL)
    with pytest.raises(WorkFailed, match="ended from outside, perhaps for lack of memory: try fewer workers"):
        list(load(samples, list, 1, torch.device("cpu"), batch_size=1))


def test_another_error_of_a_process_that_loads_stays_what_it_is(shapes: CloudDataset) -> None:
    def collate(samples: list[int]) -> None:
        raise RuntimeError("the library's own")

    with pytest.raises(RuntimeError, match="the library's own"):
        list(load(range(2), collate, 1, torch.device("cpu"), batch_size=1))


def test_the_students_cloud_is_scanned_and_normalised_again_where_asked_for(shapes: CloudDataset) -> None:
    plain = replace(SETTINGS, strong=PointAugment())
    before, after = (
        TrainingSamples(shapes, replace(plain, scan_severity=severity))[0, 3] for severity in ("none", "high")
    )
    cloud = shapes.try_load(3)
    assert cloud is not None
    np.testing.assert_array_equal(before[3], cloud)
    np.testing.assert_array_equal(before[1], after[1])  # the teacher sees the cloud
    assert len(after[3]) != len(cloud) or not np.allclose(after[3], cloud)
    np.testing.assert_allclose(after[3], normalize(after[3]), atol=1e-5)
    raw = scan(cloud, severity="high", rng=np.random.default_rng(0))
    assert not np.allclose(raw, normalize(raw), atol=1e-2), (
        "a scan by itself is neither centred nor of unit size"
    )


@pytest.mark.parametrize(("sees", "shown"), [(1, 1), (2, 2)])
def test_the_teacher_sees_one_view_or_all_of_them(shapes: CloudDataset, sees: int, shown: int) -> None:
    settings = SampleSettings(seed=0, image_size=16, views=2, least=8, teacher_sees=sees, strong=STRONG)
    _, _, weak_views, _, strong_view = TrainingSamples(shapes, settings)[0, 0]
    assert weak_views.shape == (shown, 3, 16, 16)
    assert strong_view.shape == (3, 16, 16)


@pytest.mark.parametrize("sees", [1, 2])
def test_where_nothing_looks_at_views_the_clouds_are_the_same(shapes: CloudDataset, sees: int) -> None:
    settings = replace(SETTINGS, teacher_sees=sees)
    for key in ((0, 0), (1, 7)):
        seen = TrainingSamples(shapes, settings)[key]
        unseen = TrainingSamples(shapes, replace(settings, looked_at=False))[key]
        assert seen is not None
        assert unseen is not None
        assert (unseen[2], unseen[4]) == (None, None)
        np.testing.assert_array_equal(unseen[1], seen[1])
        np.testing.assert_array_equal(unseen[3], seen[3])


def test_the_users_own_pictures_are_used_where_there_are_some(
    tmp_path: Path, write_shapes: Callable[..., Path], open_shapes: Callable[[Path], CloudDataset]
) -> None:
    from PIL import Image

    clouds = open_shapes(write_shapes(tmp_path / "shapes.npz", 2))
    folder = tmp_path / "views" / "shape1"
    folder.mkdir(parents=True)
    for number, level in enumerate((0, 120, 255)):
        Image.new("RGB", (20, 20), (level,) * 3).save(folder / f"{number}.png")
    (batch,) = plain_batches(PlainSamples(clouds, image_size=16, views=5), 2, 0)
    assert batch is not None
    assert batch.views is not None
    assert batch.views.counts == (5, 3)
    rendered, own = batch.views.pixels.split(batch.views.counts)
    of_pictures = own.mean(dim=(1, 2, 3))
    assert of_pictures.tolist() == sorted(of_pictures.tolist())
    assert all(float(view.std(dim=(1, 2)).max()) < 1e-5 for view in own)  # flat, as they were drawn
    assert all(float(view.std(dim=(1, 2)).max()) > 0.1 for view in rendered)


@pytest.mark.parametrize("sees", [1, 4])
def test_all_of_a_users_pictures_have_their_turn(
    tmp_path: Path, write_shapes: Callable[..., Path], open_shapes: Callable[[Path], CloudDataset], sees: int
) -> None:
    """Twelve pictures taken in a round, of which four are looked at: those a quarter turn apart."""
    from PIL import Image

    clouds = open_shapes(write_shapes(tmp_path / "shapes.npz", 1))
    folder = tmp_path / "views" / "shape0"
    folder.mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (16, 16), (20 * number,) * 3).save(folder / f"{number + 1}.png")
    (plain,) = plain_batches(PlainSamples(clouds, image_size=16, views=4), 1, 0)
    assert plain is not None
    assert plain.views is not None
    levels = [round(float(view[0].mean() * CLIP_STD[0] + CLIP_MEAN[0]) * 255) for view in plain.views.pixels]
    assert levels == [0, 60, 120, 180]

    samples = TrainingSamples(clouds, replace(SETTINGS, views=4, teacher_sees=sees))
    seen = [samples[epoch, 0] for epoch in range(60)]
    assert all(len(views) == sees for _, _, views, _, _ in seen)
    if sees == 1:  # as published: one of all of them, each time another
        assert len({round(float(views.mean()), 2) for _, _, views, _, _ in seen}) == 12
    assert len({tuple(views.flatten()[:1].tolist()) for _, _, views, _, _ in seen}) == (
        12 if sees == 1 else 1
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_whoever_loads_it(
    tmp_path: Path,
    write_shapes: Callable[..., Path],
    open_shapes: Callable[[Path], CloudDataset],
    workers: int,
) -> None:
    clouds = open_shapes(write_shapes(tmp_path / "shapes.npz", 2))
    (tmp_path / "views" / "shape1").mkdir(parents=True)
    (tmp_path / "views" / "shape1" / "0.png").write_bytes(b"\x89PNG and no more")
    batches = list(plain_batches(PlainSamples(clouds, image_size=16, views=1), 2, workers))
    assert [batch.indices.tolist() for batch in batches if batch is not None] == [
        [0, 1]
    ]  # with rendered views
    assert list(clouds.bad) == ["views/shape1/0.png"]


@pytest.fixture
def pictured(
    tmp_path: Path, write_shapes: Callable[..., Path], open_shapes: Callable[[Path], CloudDataset]
) -> CloudDataset:
    """One cloud with twelve pictures of different greys."""
    from PIL import Image

    folder = tmp_path / "views" / "shape0"
    folder.mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (16, 16), (20 * number,) * 3).save(folder / f"{number}.png")
    return open_shapes(write_shapes(tmp_path / "shapes.npz", 1))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that Pillow opens from now on."""
    from PIL import Image

    names: list[str] = []
    real = Image.open

    def noting(path: Path) -> Image.Image:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(Image, "open", noting)
    return names


@pytest.mark.parametrize("sees", [1, 4])
def test_the_choice_among_pictures_is_the_first_draw_and_the_others_stay_closed(
    pictured: CloudDataset, opened: list[str], sees: int
) -> None:
    from PIL import Image

    samples = TrainingSamples(pictured, replace(SETTINGS, views=4, teacher_sees=sees))
    for epoch in range(12):
        rng = np.random.default_rng([SETTINGS.seed, epoch, 0])
        chosen, seeds = int(rng.integers(12)), rng.integers(2**31, size=2)
        opened.clear()
        _, _, weak, _, strong = samples[epoch, 0]
        shown = [chosen] if sees == 1 else [0, 3, 6, 9]
        assert sorted(opened) == sorted(f"{number}.png" for number in {chosen, *shown})
        greys = [Image.new("RGB", (16, 16), (20 * number,) * 3) for number in range(12)]
        expected = torch.stack([weak_image(greys[number], 16, int(seeds[0])) for number in shown])
        assert torch.equal(weak, expected)
        assert torch.equal(strong, strong_image(greys[chosen], 16, int(seeds[1])))


def test_evaluation_opens_only_the_pictures_that_it_shows(pictured: CloudDataset, opened: list[str]) -> None:
    PlainSamples(pictured, image_size=16, views=4)[0]
    assert opened == ["0.png", "3.png", "6.png", "9.png"]


def test_a_broken_picture_is_never_chosen_and_all_broken_ones_are_as_none(
    tmp_path: Path, pictured: CloudDataset
) -> None:
    folder = tmp_path / "views" / "shape0"
    samples = TrainingSamples(pictured, replace(SETTINGS, views=4, teacher_sees=1))
    for number in range(11):
        (folder / f"{number}.png").write_bytes(b"\x89PNG and no more")
    for epoch in range(5):
        assert float(samples[epoch, 0][2].std(dim=(2, 3)).max()) < 1e-5  # the flat one that is left
    assert len(pictured.bad) == 11
    (folder / "11.png").write_bytes(b"")
    assert float(samples[0, 0][2].std(dim=(2, 3)).max()) > 0.1  # a rendered one


@pytest.mark.parametrize(("cores", "expected"), [(1, 0), (4, 3), (64, 8)])
def test_a_gpu_is_fed_by_workers_and_from_pinned_memory(
    monkeypatch: pytest.MonkeyPatch, cores: int, expected: int
) -> None:
    asked: dict[str, Any] = {}

    def loader(samples: Any, **options: Any) -> list[Any]:
        asked.update(options)
        return []

    monkeypatch.setattr("crossmost.data.samples.DataLoader", loader)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    list(load(None, lambda found: found, None, torch.device("cpu")))
    assert (asked["num_workers"], asked["pin_memory"]) == (
        0,
        False,
    )  # the CPU trains, and has the cores for it
    list(load(None, lambda found: found, None, torch.device("cuda:1")))
    assert (asked["num_workers"], asked["pin_memory"]) == (expected, True)
    list(load(None, lambda found: found, 2, torch.device("cuda")))
    assert asked["num_workers"] == 2


def test_batches_survive_what_pins_memory() -> None:
    """torch rebuilds tuples with names from their parts; a batch has to come out as one."""
    batch = PlainBatch(
        torch.arange(2),
        PointBatch(torch.zeros(2, 4, 3), torch.tensor([4, 3])),
        ViewBatch.of([torch.zeros(1, 3, 2, 2)] * 2),
    )
    seen = []
    rebuilt = _rebuilt(batch, seen)
    assert type(rebuilt) is PlainBatch
    assert rebuilt.views is not None
    assert (type(rebuilt.points), rebuilt.views.counts) == (PointBatch, (1, 1))


def _rebuilt(part: Any, seen: list[Any]) -> Any:
    """As torch.utils.data pins: tensors one by one, tuples with names by their own type, the rest as it is."""
    from torch.utils.data._utils.pin_memory import pin_memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: seen.append(tensor) or tensor)
        return pin_memory(part)
