"""The loop end to end on a tiny base: what learns, what stays, what is chosen and what ends a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crossmost.adaptation import pseudo_labels
from crossmost.adaptation import trainer as module
from crossmost.adaptation.diagnosis import NOT_READ, Diagnosis
from crossmost.adaptation.sampling import WatchedClouds
from crossmost.adaptation.schedules import ema_decay
from crossmost.adaptation.trainer import Record, Trainer
from crossmost.data.dataset import CloudDataset
from crossmost.errors import InputError, WorkFailed
from crossmost.models.student import Student

Start = Callable[..., Trainer]
State = dict[str, Tensor]
MODES = ("joint", "separate", "point-only", "image-only", "agreement")
TERMS = ("self_training", "fairness", "reconstruction", "global_local")
PATCH_ENCODER = "point_encoder.encoder."


def state_of(student: Student) -> State:
    return {name: value.clone() for name, value in student.state_dict().items()}


def changed(before: State, after: State) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def starting(names: set[str], *prefixes: str) -> set[str]:
    return {name for name in names if name.startswith(prefixes)}


def fit(trainer: Trainer) -> list[Record]:
    """Train to the end; the figures of every batch."""
    batches: list[Record] = []
    trainer.fit(batches.append, lambda _: None)
    return batches


@pytest.mark.parametrize("recipe", ["crossmost", "reference"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_trains_its_branches_and_leaves_the_rest_alone(start: Start, mode: str, recipe: str) -> None:
    trainer = start(mode=mode, recipe=recipe)
    before = state_of(trainer.student)
    batches = fit(trainer)
    moved = changed(before, state_of(trainer.student))
    branches = {"point-only": ["point"], "image-only": ["image"]}.get(mode, ["point", "image"])
    assert {"classifier", "logit_scale"} <= moved
    for branch, parts in {
        "point": ("point_encoder.blocks.", "point_projection", "point_encoder.mask_token"),
        "image": ("image_tower.visual.transformer.", "image_tower.projection", "image_tower.mask_token"),
    }.items():
        for part in parts:
            assert bool(starting(moved, part)) == (branch in branches), part
    if "image" not in branches:
        assert not starting(moved, "image_tower.")
    if "point" not in branches:
        assert not starting(moved, "point_")
    expected = {f"{term}/{branch}" for term in TERMS for branch in branches}
    expected |= {"alignment"} if mode == "joint" else set()
    for figures in batches:
        assert {name.removeprefix("loss/") for name in figures if "/" in name} == expected
        assert all(math.isfinite(value) for value in figures.values())
    records = trainer.progress.records
    assert [record["epoch"] for record in records] == [-1, 0, 1]
    assert [record["step"] for record in records] == [0, 3, 6]


def test_the_patch_encoder_learns_only_where_the_published_code_lets_it_go(start: Start) -> None:
    learned = {}
    for recipe, mode in [("crossmost", "joint"), ("reference", "joint"), ("reference", "point-only")]:
        trainer = start(recipe=recipe, mode=mode, epochs=1)
        before = state_of(trainer.student)
        fit(trainer)
        learned[recipe, mode] = starting(changed(before, state_of(trainer.student)), PATCH_ENCODER)
    assert not learned["crossmost", "joint"]
    statistics = {name for name in learned["reference", "joint"] if "running" in name or "tracked" in name}
    assert learned["reference", "joint"] == statistics
    assert statistics  # its weights are frozen, its BatchNorm is not
    assert any(name.endswith("weight") for name in learned["reference", "point-only"])


def test_the_loss_falls(start: Start) -> None:
    trainer = start(epochs=8, batch_size=12)
    fit(trainer)
    records = trainer.progress.records[1:]
    for name in ("loss", "loss/reconstruction/point"):
        early, late = (np.mean([record[name] for record in part]) for part in (records[:2], records[-2:]))
        assert late < early, name


def test_after_a_step_the_teacher_is_the_average_of_itself_and_the_student(start: Start) -> None:
    trainer = start(epochs=1, batch_size=24, center="none")
    before = state_of(trainer.teacher)
    fit(trainer)
    assert trainer.progress.step == 1
    decay = ema_decay(0, 1, trainer.config)
    assert decay < 1
    student, teacher = state_of(trainer.student), state_of(trainer.teacher)
    for name, value in before.items():
        if value.is_floating_point():
            held = (value.double() + student[name].double()) / 2  # half way from the base, which it still is
            expected = decay * value.double() + (1 - decay) * held
            torch.testing.assert_close(teacher[name].double(), expected, rtol=1e-5, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in trainer.teacher.parameters())
    assert not trainer.teacher.training


def test_a_seed_gives_the_same_run_and_another_seed_another(start: Start) -> None:
    runs = [start(seed=seed) for seed in (0, 0, 1)]
    for index, trainer in enumerate(runs):
        torch.manual_seed(100 + index)  # what happened before in the process plays no part
        fit(trainer)
    first, again, other = runs
    assert not changed(state_of(first.student), state_of(again.student))
    assert not changed(state_of(first.teacher), state_of(again.teacher))
    assert first.progress.records == again.progress.records
    assert changed(state_of(first.student), state_of(other.student))


class TestAccumulation:
    def test_the_optimiser_steps_when_enough_batches_are_gathered(self, start: Start) -> None:
        trainer = start(epochs=1, batch_size=6, accumulate=2, center="none")
        seen = [state_of(trainer.student)]
        trainer.fit(lambda _: seen.append(state_of(trainer.student)), lambda _: None)
        assert [bool(changed(one, other)) for one, other in pairwise(seen)] == [
            False, True, False, True,
        ]  # fmt: skip
        assert trainer.progress.step == 2

    def test_gradients_are_the_mean_over_the_batches(self, start: Start) -> None:
        def gradients(accumulate: int, batches: int) -> State:
            """After some batches, none of which completes a step."""
            trainer, found = start(epochs=1, batch_size=4, accumulate=accumulate), {}

            def note(_: Record) -> None:
                if trainer.progress.batch == batches:
                    parameters = trainer.student.named_parameters()
                    found.update({name: p.grad.clone() for name, p in parameters if p.grad is not None})

            trainer.fit(note, lambda _: None)
            return found

        halves, quarters = gradients(2, 1), gradients(4, 1)
        assert halves.keys() == quarters.keys()
        assert all(torch.equal(halves[name] / 2, quarters[name]) for name in halves)
        sums = gradients(4, 2)
        assert any(not torch.equal(sums[name], quarters[name]) for name in sums)

    def test_batches_that_do_not_fill_a_step_are_not_carried_into_the_next_epoch(self, start: Start) -> None:
        trainer = start(epochs=2, batch_size=8, accumulate=2)
        fit(trainer)
        assert [record["step"] for record in trainer.progress.records] == [0, 1, 2]
        assert all(parameter.grad is None for parameter in trainer.student.parameters())

    def test_a_batch_that_cannot_be_read_delays_no_step(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = start(epochs=1, batch_size=6, accumulate=2)
        load = module.training_batches
        monkeypatch.setattr(
            module,
            "training_batches",
            lambda *given: (None if row == 1 else batch for row, batch in enumerate(load(*given))),
        )
        seen = [state_of(trainer.student)["classifier"]]
        steps = []
        trainer.fit(
            lambda _: (
                steps.append(trainer.progress.step),
                seen.append(state_of(trainer.student)["classifier"]),
            ),
            lambda _: None,
        )
        assert steps == [0, 1, 2]  # after the first batch, the third and the fourth

    def test_an_epoch_with_too_few_batches_for_one_step_is_refused(self, start: Start) -> None:
        with pytest.raises(InputError, match="accumulate"):
            start(batch_size=8, accumulate=4)


@pytest.mark.parametrize("seed", [20260101, 2**32 - 1])
def test_a_date_or_any_other_32_bits_are_a_seed(start: Start, seed: int) -> None:
    trainer = start(epochs=1, seed=seed)
    assert len(fit(trainer)) == 3


def test_one_class_is_nothing_to_adapt_to(
    make_student: Callable[..., Student], shapes: CloudDataset, tiny_config: Any
) -> None:
    student = make_student(embeddings=torch.ones(1, 8) / math.sqrt(8))
    with pytest.raises(InputError, match="at least two classes"):
        Trainer(student, shapes.unlabelled(), tiny_config())


def test_a_loss_that_is_no_number_ends_the_run_in_one_line(start: Start) -> None:
    trainer, saved = start(), []

    def spoil_zero_shot(_: Trainer) -> None:
        saved.append(trainer.progress.epoch)
        trainer.student.classifier.data.fill_(float("nan"))

    with pytest.raises(WorkFailed, match=r"nan in epoch 1: lower learning_rate") as caught:
        trainer.fit(lambda _: None, spoil_zero_shot)
    assert "\n" not in str(caught.value)
    assert saved == [0]  # zero-shot
    assert bool(torch.isfinite(trainer.chosen["teacher"]["classifier"]).all())


def test_an_epoch_that_ends_with_weights_that_are_no_numbers_is_not_saved(start: Start) -> None:
    trainer, saved = start(), []
    last = trainer.steps_per_epoch

    def spoil_last_batch(_: Record) -> None:
        if trainer.progress.batch == last:
            trainer.teacher.classifier.data.fill_(float("nan"))

    with pytest.raises(
        WorkFailed, match="no numbers after epoch 1: lower learning_rate; the last epoch is saved"
    ):
        trainer.fit(spoil_last_batch, lambda t: saved.append(t.progress.epoch))
    assert saved == [0]
    assert bool(torch.isfinite(trainer.chosen["teacher"]["classifier"]).all())


def scripted(monkeypatch: pytest.MonkeyPatch, *reviews: list[int]) -> None:
    """Have each review find that both branches, surely, name these classes (of 4) on the watched clouds."""
    waiting = iter(reviews)

    def classified(*_: Any) -> Diagnosis:
        logits = 10 * torch.nn.functional.one_hot(torch.tensor(next(waiting)), 4).float()
        return Diagnosis(torch.arange(len(logits)), logits, logits)

    monkeypatch.setattr(module, "classified", classified)


EVEN, ONE = [0, 1, 2, 3] * 6, [2] * 24


class TestCollapse:
    def test_it_ends_the_run_where_asked_for(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted(monkeypatch, EVEN, EVEN, ONE, EVEN)
        trainer = start(epochs=3, center="none")
        fit(trainer)
        records = trainer.progress.records
        assert [record["epoch"] for record in records] == [-1, 0, 1]
        assert "collapsed" in records[-1]["stopped"]
        assert trainer.progress.stopped == records[-1]["stopped"]
        assert not any("stopped" in record for record in records[:-1])

    def test_it_is_ignored_where_asked_for(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted(monkeypatch, EVEN, ONE, ONE, EVEN)
        trainer = start(epochs=3, collapse="ignore", center="none")
        fit(trainer)
        assert [record["epoch"] for record in trainer.progress.records] == [-1, 0, 1, 2]
        assert trainer.progress.stopped is None

    def test_half_of_the_classes_is_no_collapse(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted(monkeypatch, EVEN, [0, 1] * 12, EVEN)
        trainer = start(epochs=2, center="none")
        fit(trainer)
        assert trainer.progress.stopped is None

    def test_a_stopped_run_does_not_go_on(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted(monkeypatch, EVEN, ONE)
        trainer = start(epochs=3, center="none")
        fit(trainer)
        assert not fit(trainer)

    @pytest.mark.parametrize("selection", ["label-free", "last"])
    def test_collapsed_weights_are_not_chosen(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, selection: str
    ) -> None:
        # The two branches of a collapsed teacher agree on everything: its score may well be the highest.
        waiting = iter([0.7, 0.8, 1.0])
        monkeypatch.setattr(module, "score", lambda *_: next(waiting))
        scripted(monkeypatch, EVEN, EVEN, ONE)
        trainer = start(epochs=3, selection=selection, center="none")
        fit(trainer)
        assert trainer.progress.stopped is not None
        assert trainer.progress.best_epoch == 0
        assert trainer.progress.records[-1]["chosen_epoch"] == 0


@pytest.mark.parametrize(
    ("selection", "scores", "chosen"),
    [
        ("label-free", [0.1, 0.5, 0.9, 0.7], 1),
        ("label-free", [0.9, 0.5, 0.1, 0.7], -1),
        ("label-free", [0.1, 0.5, 0.5, 0.2], 1),  # of equals the later
        ("last", [0.1, 0.5, 0.9, 0.7], 2),
        ("last", [0.9, 0.1, 0.1, 0.1], 2),
    ],
)
def test_the_chosen_weights_are_those_of_the_chosen_epoch(
    start: Start, monkeypatch: pytest.MonkeyPatch, selection: str, scores: list[float], chosen: int
) -> None:
    waiting = iter(scores)
    monkeypatch.setattr(module, "score", lambda *_: next(waiting))
    trainer = start(epochs=3, selection=selection, collapse="ignore")
    seen: dict[int, tuple[State, State]] = {}

    def note(_: Trainer) -> None:
        epoch = trainer.progress.records[-1]["epoch"]
        seen[epoch] = state_of(trainer.student), state_of(trainer.teacher)

    trainer.fit(lambda _: None, note)
    assert trainer.progress.records[-1]["chosen_epoch"] == chosen
    student, teacher = seen[chosen]
    assert not changed(trainer.chosen["student"], student)
    assert not changed(trainer.chosen["teacher"], teacher)
    assert len({float(states[0]["logit_scale"]) for states in seen.values()}) == 4  # four different moments


def test_every_epoch_is_judged_on_the_same_watched_clouds(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = module.classified

    def note(*arguments: Any) -> Diagnosis:
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(module, "classified", note)
    trainer = start(epochs=1, watched=6)
    fit(trainer)
    assert [len(found.indices) for found in seen] == [6, 6, 6]  # the base first, then about its center
    watched = WatchedClouds(trainer.clouds, 6)
    assert watched.indices == [0, 4, 8, 12, 16, 20]
    assert all(len(labels) == 6 for labels in trainer.progress.watched)


@pytest.mark.parametrize(
    ("options", "agreements", "share"),
    [
        ({"center": "none"}, [1.0, 0.5, 0.5], 1.0),
        ({"center": "none"}, [0.5, 1.0, 1.0], 0.8),
        ({}, [0.5, 1.0, 0.5, 0.5], 1.0),  # the base first, then about its center
        ({}, [1.0, 0.5, 1.0, 1.0], 0.8),
    ],
)
def test_how_many_labels_are_kept_is_decided_once_about_the_center_before_training(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    agreements: list[float],
    share: float,
) -> None:
    monkeypatch.setattr(pseudo_labels, "ENOUGH", 24)
    waiting = iter(agreements)

    def classified(*_: Any) -> Diagnosis:
        named = torch.arange(24) % 4
        other = torch.where(torch.arange(24) < 24 * next(waiting), named, (named + 1) % 4)
        point, image = (torch.nn.functional.one_hot(each, 4).float() for each in (named, other))
        return Diagnosis(torch.arange(24), point, image)

    monkeypatch.setattr(module, "classified", classified)
    trainer = start(epochs=2, collapse="ignore", **options)
    fit(trainer)
    assert [record["kept_share"] for record in trainer.progress.records] == [share] * 3
    assert not list(waiting)


@pytest.mark.parametrize("options", [{"threshold": "fixed"}, {"mode": "agreement"}])
def test_a_share_that_has_no_effect_is_not_noted(start: Start, options: dict[str, Any]) -> None:
    trainer = start(epochs=0, **options)
    fit(trainer)
    assert [record["kept_share"] for record in trainer.progress.records] == [None]


def test_agreement_is_between_what_the_two_branches_say(start: Start) -> None:
    """In joint mode too, where both learn the same label."""
    trainer = start(epochs=1)
    batches = fit(trainer)
    on_watched = trainer.progress.records[0]["watched/agreement"]
    assert 0 < on_watched < 1
    assert 0 < np.mean([figures["agreement"] for figures in batches]) < 1


def test_bfloat16_trains_float32_weights(start: Start) -> None:
    half, full = start(precision="bfloat16", epochs=1), start(epochs=1)
    figures, exact = fit(half), fit(full)
    assert all(math.isfinite(value) for batch in figures for value in batch.values())
    assert all(value.dtype != torch.bfloat16 for value in half.student.state_dict().values())
    assert changed(state_of(half.student), state_of(full.student))
    assert figures[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)


def test_float16_on_a_cpu_is_refused_before_anything_is_done(start: Start) -> None:
    with pytest.raises(InputError, match="float16"):
        start(precision="float16")


def test_a_class_prior_of_another_length_is_refused(start: Start) -> None:
    with pytest.raises(InputError, match="4 shares, found 3"):
        start(class_prior=(0.5, 0.25, 0.25))


@pytest.fixture
def partly_bad(
    tmp_path: Path, write_shapes: Callable[..., Path], open_shapes: Callable[[Path], CloudDataset]
) -> CloudDataset:
    """24 clouds, two of them all NaN."""
    return open_shapes(write_shapes(tmp_path / "damaged.npz", bad=(4, 17)))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_skipped_named_and_end_nothing(
    start: Start, partly_bad: CloudDataset, workers: int
) -> None:
    trainer = start(partly_bad, epochs=1, workers=workers)
    fit(trainer)
    assert trainer.progress.step == 3
    assert set(partly_bad.bad) == {"shape4", "shape17"}
    for labels in trainer.progress.watched:
        assert (labels == NOT_READ).nonzero().flatten().tolist() == [4, 17]


def test_a_file_that_is_unreadable_for_a_while_ends_nothing(
    start: Start, shapes: CloudDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(shapes, epochs=3, workers=0)
    real, reviews = trainer.watched.try_load, []

    def unsteady(index: int) -> np.ndarray | None:
        reviews.append(index)
        return None if index == 5 and reviews.count(5) == 3 else real(index)

    monkeypatch.setattr(trainer.watched, "try_load", unsteady)
    fit(trainer)
    assert [int((labels == NOT_READ).sum()) for labels in trainer.progress.watched] == [0, 0, 1, 0]
    assert all(0 <= record["churn"] <= 1 for record in trainer.progress.records[1:])


def test_a_batch_without_a_readable_cloud_is_passed_over(
    start: Start, partly_bad: CloudDataset, shapes: CloudDataset
) -> None:
    bad = partly_bad.subset([4, 17, 0, 1, 2, 3])
    seeds = (seed for seed in range(50) if [0, 1] in batches_of(seed))
    trainer = start(bad, epochs=1, batch_size=2, seed=next(seeds))
    figures = fit(trainer)
    assert len(figures) == 2
    assert trainer.progress.step == 2
    assert trainer.progress.records[-1]["loss"] == pytest.approx(np.mean([one["loss"] for one in figures]))


def batches_of(seed: int) -> list[list[int]]:
    """The indices in the batches of two of the first epoch, each sorted."""
    return [sorted(index for _, index in batch) for batch in module.EpochOrder(6, 2, seed=seed, epoch=0)]


def test_no_readable_cloud_at_all_is_a_failure_in_one_line(start: Start, partly_bad: CloudDataset) -> None:
    with pytest.raises(WorkFailed, match="none of the clouds"):
        fit(start(partly_bad.subset([4, 17])))
