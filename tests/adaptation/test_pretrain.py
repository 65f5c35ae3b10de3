"""Making a base: ULIP's objective in float64, what learns, and that a seed gives the same base."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from crossmost.adaptation.pretrain import (
    CaptionedSamples,
    PretrainConfig,
    aligned,
    collate,
    objective,
    pretrain,
)
from crossmost.checkpoints.base import Architecture
from crossmost.data.dataset import CloudDataset
from crossmost.errors import WorkFailed
from crossmost.models.clip import import_open_clip
from crossmost.models.grouping import cut, group
from crossmost.models.image_tower import ImageCard
from crossmost.models.student import DualEncoder
from crossmost.runtime.vocabulary import Vocabulary

Pretrain = Callable[..., tuple[DualEncoder, list[dict[str, Any]]]]


def unit_rows(count: int, width: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=draw), dim=1)


def slow_info_nce(reference: ModuleType, first: Any, second: Any, scale: float) -> float:
    """METHOD 4.2: each row finds its own column, each column its own row, halved."""
    similar = scale * reference.f64(first) @ reference.f64(second).T
    count = len(similar)
    rows = [-reference.log_softmax(similar[i])[i] for i in range(count)]
    columns = [-reference.log_softmax(similar[:, i])[i] for i in range(count)]
    return (math.fsum(rows) / count + math.fsum(columns) / count) / 2


class TestAligned:
    @given(seed=st.integers(0, 10_000), count=st.integers(1, 8), scale=st.floats(1, 100))
    @settings(max_examples=25, deadline=None)
    def test_different_captions_give_ulips_loss(
        self, reference: ModuleType, seed: int, count: int, scale: float
    ) -> None:
        first, second = unit_rows(count, 5, seed), unit_rows(count, 5, seed + 1)
        found = aligned(first, second, torch.tensor(scale), torch.randperm(count))
        expected = slow_info_nce(reference, first, second, scale)
        assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-4)

    def test_objects_with_one_caption_share_the_target(self, reference: ModuleType) -> None:
        first, second = unit_rows(5, 4, 0), unit_rows(5, 4, 1)
        caption = [7, 2, 7, 7, 2]
        similar = 9 * reference.f64(first) @ reference.f64(second).T
        expected = 0.0
        for table in (similar, similar.T):
            for i, row in enumerate(table):
                own = [j for j in range(5) if caption[j] == caption[i]]
                expected -= sum(reference.log_softmax(row)[j] for j in own) / len(own) / 5 / 2
        found = aligned(first, second, torch.tensor(9.0), torch.tensor(caption))
        assert float(found) == pytest.approx(expected, rel=1e-5)

    def test_the_order_of_the_two_sides_does_not_matter(self) -> None:
        first, second, caption = unit_rows(6, 4, 0), unit_rows(6, 4, 1), torch.tensor([0, 1, 2, 1, 0, 3])
        one, other = (
            aligned(a, b, torch.tensor(20.0), caption) for a, b in ((first, second), (second, first))
        )
        torch.testing.assert_close(one, other)

    def test_equal_embeddings_of_one_caption_are_no_mistake(self) -> None:
        rows = unit_rows(2, 4, 0)[[0, 0, 1, 1]]
        shared = aligned(rows, rows, torch.tensor(1000.0), torch.tensor([0, 0, 1, 1]))
        assert float(shared) == pytest.approx(math.log(2), rel=1e-4)  # the least there is: two equal answers
        apart = aligned(rows, rows, torch.tensor(1000.0), torch.arange(4))
        assert float(apart) == pytest.approx(math.log(2), rel=1e-4)


@pytest.fixture
def run(shapes: CloudDataset, tiny_architecture: Architecture, tiny_vocabulary: Vocabulary) -> Pretrain:
    """Pre-train on the 24 shapes: the base and the record of each epoch."""

    def train(
        clouds: CloudDataset = shapes, image: ImageCard = tiny_architecture.image, **options: Any
    ) -> tuple[DualEncoder, list[dict[str, Any]]]:
        short = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "device": "cpu"}
        records: list[dict[str, Any]] = []
        assert clouds.labels is not None
        model = pretrain(
            clouds.unlabelled(), clouds.labels, tiny_vocabulary.embeddings, tiny_architecture.point, image,
            PretrainConfig(**{**short, **options}), records.append,
        )  # fmt: skip
        return model, records

    return train


def same(one: DualEncoder, other: DualEncoder) -> bool:
    weights = other.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())


def test_the_loss_falls(run: Pretrain) -> None:
    _, records = run(epochs=10)
    assert [record["epoch"] for record in records] == list(range(10))
    for term in ("text", "image", "image_text"):
        early, late = (np.mean([record[term] for record in part]) for part in (records[:3], records[-3:]))
        assert late < early, term


def test_the_scale_is_never_above_a_hundred(run: Pretrain) -> None:
    model, records = run(epochs=1, temperature=0.005, learning_rate=1e-5)
    assert records[0]["scale"] == pytest.approx(100, rel=1e-3)
    assert model.logit_scale.exp().item() <= 100.001


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_are_no_numbers_are_no_base(
    run: Pretrain, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    real, taken = torch.optim.AdamW.step, []

    def step(self: torch.optim.AdamW) -> None:
        real(self)
        taken.append(self)
        if len(taken) == steps:
            self.param_groups[0]["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    expected = {1: "the loss is nan in epoch 1", 3: "not all weights are numbers after the last step"}
    with pytest.raises(WorkFailed, match=f"{expected[steps]}: lower --learning-rate; no base was written"):
        run(epochs=1)


def test_clouds_are_cut_as_the_card_says(run: Pretrain, shapes: CloudDataset) -> None:
    model, _ = run(epochs=1)
    samples = CaptionedSamples(
        shapes, np.arange(24), seed=0, image_size=model.images().size, least=model.point_encoder.card.least
    )
    batch, texts = collate([samples[0, index] for index in range(4)]), unit_rows(24, 16, 0)  # type: ignore[misc]
    card = model.point_encoder.card.model_copy(update={"radius": 0.3})
    model.point_encoder.card = card
    with torch.no_grad():
        found = objective(model, batch, texts, train_image=False)["text"]
        points, sizes = batch.points
        groups = group(points, card.groups, card.neighbors, sizes, radius=0.3)
        logits = model.logit_scale.exp() * model.embed_point(model.point_features(groups)) @ texts.T
    assert float(found) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, batch.caption)))


def test_logits_keep_their_precision_where_the_networks_do_not(run: Pretrain, shapes: CloudDataset) -> None:
    model, _ = run(epochs=1)
    samples = CaptionedSamples(
        shapes, np.arange(24), seed=0, image_size=model.images().size, least=model.point_encoder.card.least
    )
    batch, texts = collate([samples[0, index] for index in range(4)]), unit_rows(24, 16, 0)  # type: ignore[misc]
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))
        found = objective(model, batch, texts, train_image=False, precision="bfloat16")
        with torch.autocast("cpu", torch.bfloat16):
            groups = cut(batch.points.points, model.point_encoder.card, batch.points.sizes)
            point = model.embed_point(model.point_features(groups))
        logits = 100 * point.float() @ texts.T
    assert found["text"].dtype == torch.float32
    assert float(found["text"]) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, batch.caption)), rel=1e-5
    )


def test_the_base_is_on_the_cpu_ready_for_use(run: Pretrain) -> None:
    model, _ = run(epochs=1)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def test_a_seed_gives_the_same_base_and_another_seed_another(run: Pretrain) -> None:
    first, records = run(seed=4)
    torch.manual_seed(99)
    again, records_again = run(seed=4)
    assert same(first, again)
    assert records == records_again
    assert not same(first, run(seed=5)[0])


def test_loading_in_a_worker_gives_the_same_base(run: Pretrain) -> None:
    assert same(run(epochs=1)[0], run(epochs=1, workers=1)[0])


def test_the_temperature_starts_as_asked_for_and_ends_within_bounds(run: Pretrain) -> None:
    gentle = run(epochs=1, learning_rate=1e-9, temperature=0.07)[1][0]
    assert gentle["scale"] == pytest.approx(1 / 0.07, rel=1e-4)
    assert "image_text" in gentle
    sharp, _ = run(epochs=2, temperature=0.0101, learning_rate=0.5)
    assert float(sharp.logit_scale.detach()) <= math.log(100) + 1e-6


@pytest.fixture(scope="module")
def tiny_clip_card(tmp_path_factory: pytest.TempPathFactory) -> ImageCard:
    """An image tower with weights: that of a CLIP of open_clip's own making."""
    folder = tmp_path_factory.mktemp("clip")
    open_clip = import_open_clip()
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "crossmost-test-pretrain.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "crossmost-test-pretrain.json")
    torch.manual_seed(3)
    model = open_clip.create_model("crossmost-test-pretrain")
    save_file(model.state_dict(), folder / "clip.safetensors")
    return ImageCard(clip="crossmost-test-pretrain", weights=str(folder / "clip.safetensors"))


def test_an_image_tower_with_weights_is_left_alone(run: Pretrain, tiny_clip_card: ImageCard) -> None:
    models, records = zip(*(run(image=tiny_clip_card, epochs=epochs) for epochs in (1, 3)), strict=True)
    weights = load_file(str(tiny_clip_card.weights))
    for model in models:
        visual = model.image_tower.visual.state_dict()
        assert all(torch.equal(value, weights[f"visual.{name}"]) for name, value in visual.items())
        assert torch.equal(model.image_tower.projection, weights["visual.proj"])
    assert not torch.equal(models[0].point_projection, models[1].point_projection)
    assert all("image_text" not in record for each in records for record in each)


def test_an_image_tower_without_weights_learns(run: Pretrain) -> None:
    one, other = run(epochs=1)[0], run(epochs=3)[0]
    assert not torch.equal(one.image_tower.projection, other.image_tower.projection)


class TestSamples:
    def samples(self, clouds: CloudDataset) -> CaptionedSamples:
        assert clouds.labels is not None
        return CaptionedSamples(clouds.unlabelled(), clouds.labels, seed=0, image_size=16, least=8)

    def test_a_cloud_keeps_its_caption(self, shapes: CloudDataset) -> None:
        samples = self.samples(shapes)
        batch = collate([samples[0, index] for index in (5, 2, 11)])
        assert batch is not None
        assert shapes.labels is not None
        assert batch.caption.tolist() == shapes.labels[[5, 2, 11]].tolist()
        assert batch.images.shape == (3, 3, 16, 16)

    def test_every_epoch_shows_it_from_elsewhere(self, shapes: CloudDataset) -> None:
        samples = self.samples(shapes)
        first, again, later = samples[0, 3], samples[0, 3], samples[1, 3]
        assert torch.equal(first[1], again[1])
        assert np.array_equal(first[0], again[0])
        assert not torch.equal(first[1], later[1])

    @pytest.mark.parametrize("workers", [0, 1])
    def test_bad_clouds_are_skipped_and_named(
        self,
        tmp_path: Path,
        run: Pretrain,
        write_shapes: Callable[..., Path],
        open_shapes: Callable[[Path], CloudDataset],
        workers: int,
    ) -> None:
        clouds = open_shapes(write_shapes(tmp_path / "damaged.npz", bad=(4, 17)))
        _, records = run(clouds, epochs=1, workers=workers)
        assert all(math.isfinite(records[0][term]) for term in ("text", "image", "image_text"))
        assert set(clouds.bad) == {"shape4", "shape17"}
