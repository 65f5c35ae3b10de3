"""What a step reads: the same sample whenever and wherever it is made, and no bad file without its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crossmost.data.augment import CLIP_MEAN, CLIP_STD, STRONG
from crossmost.data.dataset import CloudDataset
from crossmost.data.samples import (
    EpochOrder,
    PlainSamples,
    SampleSettings,
    TrainingBatch,
    TrainingSamples,
    pad,
    plain_batches,
    training_batches,
)

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


@pytest.mark.parametrize(("sees", "shown"), [(1, 1), (2, 2)])
def test_the_teacher_sees_one_view_or_all_of_them(shapes: CloudDataset, sees: int, shown: int) -> None:
    settings = SampleSettings(seed=0, image_size=16, views=2, least=8, teacher_sees=sees, strong=STRONG)
    _, _, weak_views, _, strong_view = TrainingSamples(shapes, settings)[0, 0]
    assert weak_views.shape == (shown, 3, 16, 16)
    assert strong_view.shape == (3, 16, 16)


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
