"""Training a base without an image branch: what a point-only run does, with no view read or rendered."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crossmost.adaptation import run as runs
from crossmost.adaptation.diagnosis import Diagnosis, agreement_of, calibrate, mutual_information
from crossmost.adaptation.pseudo_labels import Labeler
from crossmost.adaptation.selection import score
from crossmost.adaptation.trainer import Trainer
from crossmost.checkpoints.base import load_base
from crossmost.checkpoints.run import NAMES, build_student, load_run
from crossmost.config import TrainConfig, fit_to_base, make_config
from crossmost.data.dataset import CloudDataset
from crossmost.data.samples import PlainSamples, TrainingSamples, plain_batches
from crossmost.errors import InputError
from crossmost.models.student import DualEncoder
from crossmost.runtime.vocabulary import Vocabulary

MakeConfig = Callable[..., TrainConfig]
OTHER_MODES = ("joint", "separate", "image-only", "agreement")


@pytest.fixture
def train(points_base: Path, tiny_vocabulary: Vocabulary, shapes: CloudDataset, tmp_path: Path) -> Any:
    """Train the base of points into the folder `run`; the figures of every batch."""

    def run(config: TrainConfig, on_batch: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        batches: list[dict[str, Any]] = []

        def note(figures: dict[str, Any]) -> None:
            batches.append(figures)
            on_batch()

        runs.train(
            shapes,
            points_base,
            tiny_vocabulary,
            config,
            tmp_path / "run",
            on_batch=note,
            on_epoch=lambda _: None,
        )
        return batches

    return run


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads or renders a view."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a view was asked for")

    monkeypatch.setattr("crossmost.data.samples.render_views", refuse)
    monkeypatch.setattr(CloudDataset, "views", refuse)


class TestMode:
    def test_without_a_mode_it_is_what_there_is(self) -> None:
        assert fit_to_base(make_config({}), images=True).mode == "joint"
        assert fit_to_base(make_config({}), images=False).mode == "point-only"
        assert fit_to_base(make_config({"recipe": "reference"}), images=False).mode == "point-only"
        assert fit_to_base(make_config({"mode": "point-only"}), images=False).mode == "point-only"

    def test_nothing_else_changes(self) -> None:
        config = make_config({"epochs": 3, "seed": 5})
        assert fit_to_base(config, images=False) == make_config(
            {"epochs": 3, "seed": 5, "mode": "point-only"}
        )

    @pytest.mark.parametrize("mode", OTHER_MODES)
    def test_a_mode_that_needs_images_is_refused(self, mode: str) -> None:
        config = make_config({"mode": mode})
        assert fit_to_base(config, images=True) is config
        with pytest.raises(
            InputError, match="this base has no image branch; convert it again with --image"
        ) as found:
            fit_to_base(config, images=False)
        assert "\n" not in str(found.value)
        assert "--set mode=point-only" in str(found.value)

    @pytest.mark.parametrize("mode", OTHER_MODES)
    def test_it_is_refused_before_a_cloud_is_read(
        self, train: Any, tiny_config: MakeConfig, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> None:
            raise AssertionError("a cloud was read")

        monkeypatch.setattr(CloudDataset, "try_load", refuse)
        with pytest.raises(InputError, match="no image branch"):
            train(tiny_config(mode=mode))
        assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("blind")
class TestRun:
    def test_the_points_learn_and_nothing_is_seen(
        self, train: Any, tiny_config: MakeConfig, tmp_path: Path
    ) -> None:
        batches = train(tiny_config())
        terms = {
            f"loss/{term}/point" for term in ("self_training", "fairness", "reconstruction", "global_local")
        }
        for figures in batches:
            assert figures.keys() == {"loss", "kept"} | terms
            assert all(math.isfinite(value) for value in figures.values())
        run = load_run(tmp_path / "run")
        assert run.config.mode == "point-only"
        assert run.architecture.image is None
        before, after = run.zero_shot.state_dict(), run.student.state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert {"classifier", "logit_scale", "point_projection", "point_encoder.mask_token"} <= moved
        assert not any(name.startswith("image_tower") for name in after)

    def test_records_have_no_agreement(self, train: Any, tiny_config: MakeConfig, tmp_path: Path) -> None:
        train(tiny_config())
        progress = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["progress"]
        assert [record["epoch"] for record in progress["records"]] == [-1, 0, 1]
        for record in progress["records"]:
            assert record["watched/agreement"] is None
            assert math.isfinite(record["selection_score"])
            assert record["temperature/point"] == 1.0

    def test_an_interrupted_run_resumes_to_the_same_weights(
        self, train: Any, tiny_config: MakeConfig, tmp_path: Path, shapes: CloudDataset
    ) -> None:
        import signal

        train(tiny_config())
        whole = (tmp_path / "run").rename(tmp_path / "whole")
        done: list[int] = []

        def press() -> None:
            done.append(1)
            if len(done) == 4:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(), press)
        runs.resume(
            shapes,
            tmp_path / "run",
            runs.check_resumable(tmp_path / "run"),
            on_batch=lambda _: None,
            on_epoch=lambda _: None,
        )
        for name in (*(f"{name}.safetensors" for name in NAMES), "metrics.jsonl", "config.yaml"):
            assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()

    @pytest.mark.parametrize("recipe", ["crossmost", "reference"])
    def test_every_recipe(self, train: Any, tiny_config: MakeConfig, recipe: str) -> None:
        assert len(train(tiny_config(recipe=recipe, epochs=1))) == 3

    def test_samples_hold_clouds_alone(self, shapes: CloudDataset) -> None:
        (batch,) = plain_batches(PlainSamples(shapes, image_size=None, views=2), 24, 0)
        assert batch is not None
        assert batch.views is None
        assert batch.to(torch.device("cpu")).views is None
        assert len(batch.points.points) == 24


def test_it_is_the_run_of_a_base_with_images_in_the_same_mode(
    tiny_base: Path,
    points_base: Path,
    tiny_vocabulary: Vocabulary,
    tiny_config: MakeConfig,
    shapes: CloudDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit, where both draw alike: the choice of the checkpoint and of the labels included."""
    drawn = TrainingSamples._views

    def apart(samples: TrainingSamples, index: int, cloud: Any, rng: np.random.Generator) -> Any:
        return drawn(samples, index, cloud, copy.deepcopy(rng))  # views draw first, from the same generator

    monkeypatch.setattr(TrainingSamples, "_views", apart)
    config = tiny_config(mode="point-only", epochs=3)
    students = [build_student(*load_base(path), tiny_vocabulary, config) for path in (tiny_base, points_base)]
    with_images, points = students
    points.point_local_projection.data.copy_(with_images.point_local_projection)
    trainers = [Trainer(student, shapes.unlabelled(), config) for student in students]
    for trainer in trainers:
        trainer.fit(lambda _: None, lambda _: None)
    for name in NAMES:
        more, less = (trainer.chosen[name] for trainer in trainers)
        assert {key for key in more if not key.startswith("image_tower.")} == less.keys()
        assert not more["image_center"].any()
        assert all(torch.equal(more[key], value) for key, value in less.items())
    more, less = (trainer.progress.records for trainer in trainers)
    assert more == less
    assert all(record["watched/agreement"] is None for record in more)


def test_an_image_tower_that_is_there_is_left_alone(
    tiny_base: Path,
    tiny_vocabulary: Vocabulary,
    tiny_config: MakeConfig,
    shapes: CloudDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(mode="point-only", epochs=1)
    trainer = Trainer(
        build_student(*load_base(tiny_base), tiny_vocabulary, config), shapes.unlabelled(), config
    )
    assert trainer.student.image_size is not None
    monkeypatch.setattr(DualEncoder, "image_features", lambda *_: pytest.fail("looked at a view"))
    trainer.fit(lambda _: None, lambda _: None)
    assert trainer.progress.epoch == 1


class TestLabels:
    LOGITS = 3 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))

    def diagnosis(self) -> Diagnosis:
        return Diagnosis(torch.arange(40), self.LOGITS, None)

    def test_one_branch_is_not_calibrated_and_agrees_with_nobody(self) -> None:
        assert calibrate(self.diagnosis()) == (1.0, 1.0)
        assert agreement_of(self.diagnosis()) is None

    def test_the_score_is_that_of_the_points(self) -> None:
        posterior = self.LOGITS.softmax(dim=1)
        assert score(self.diagnosis(), posterior, None, "point-only") == mutual_information(posterior)

    @pytest.mark.parametrize("threshold", ["fixed", "adaptive"])
    def test_labels_and_thresholds_are_those_beside_images(self, threshold: str) -> None:
        config = make_config({"mode": "point-only", "threshold": threshold})
        alone, beside = Labeler(config, 4), Labeler(config, 4)
        alone.refit(self.diagnosis())
        beside.refit(self.diagnosis()._replace(image=self.LOGITS.flip(0)))
        found, expected = alone(self.LOGITS, None), beside(self.LOGITS, self.LOGITS.flip(0))
        for mine, theirs in zip(found.point, expected.point, strict=True):
            assert torch.equal(mine, theirs)
        assert found.image is found.point
        again = Labeler(config, 4)
        again.load_state(alone.state())
        assert torch.equal(again(self.LOGITS, None).point.kept, found.point.kept)
