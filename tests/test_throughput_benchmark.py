"""benchmarks/throughput.py: the plain step computes what the reference recipe computes, and clocks add up."""

from __future__ import annotations

import copy
import json
import math
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crossmost.adaptation.masking import image_mask, point_mask
from crossmost.adaptation.optimizer import freeze, make_optimizer, training_mode
from crossmost.adaptation.pseudo_labels import PseudoLabels, Targets
from crossmost.adaptation.step import Fairness, loss_terms, total
from crossmost.adaptation.teacher import make_teacher, update_teacher
from crossmost.checkpoints.base import save_base
from crossmost.config import make_config
from crossmost.data import augment
from crossmost.data.samples import PointBatch, TrainingBatch, ViewBatch
from crossmost.models.grouping import cut
from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import PointBertCard
from crossmost.models.student import DualEncoder, Student

BATCH = 6
REFERENCE = make_config({"recipe": "reference", "batch_size": BATCH, "views": 1})


networks, samples, step, throughput, worker, tables = map(
    import_module,
    ("plain_networks", "plain_samples", "plain_step", "throughput", "throughput_worker", "throughput_table"),
)


@pytest.fixture(scope="module")
def student() -> Student:
    card = PointBertCard(
        name="test", points=64, groups=12, neighbors=5, channels=3, token_widths=(8, 12, 16, 8), width=16, depth=2,
        heads=2, drop_path=0.0,
    )  # fmt: skip
    image = ImageCard(image_size=56, patch_size=8, width=16, layers=2, heads=2, output_dim=10)
    torch.manual_seed(0)
    made = Student(
        card, image, torch.nn.functional.normalize(torch.randn(4, 10)), renormalize_classifier=False
    )
    # Random weights are unsure of everything; some labels have to be kept.
    made.logit_scale.data.fill_(3.0)
    return made


@pytest.fixture(scope="module")
def batch() -> TrainingBatch:
    draw = torch.Generator().manual_seed(1)
    clouds = [
        PointBatch(0.4 * torch.randn(BATCH, 50, 3, generator=draw), torch.full((BATCH,), 50)) for _ in "ws"
    ]
    views = [torch.randn(BATCH, 3, 56, 56, generator=draw) for _ in "ws"]
    return TrainingBatch(torch.arange(BATCH), clouds[0], ViewBatch.of(views[0][:, None]), clouds[1], views[1])


def plain_inputs(student: Student, batch: TrainingBatch) -> tuple[Any, torch.Tensor]:
    """The batch as the plain step takes it, with the masks that the trainer draws from a seed of 2."""
    card, draw = student.point_encoder.card, torch.Generator().manual_seed(2)
    weak, strong = (tuple(cut(cloud.points, card)) for cloud in (batch.weak_points, batch.strong_points))
    hidden = point_mask(strong[1], draw).float()[..., None]
    masks = image_mask(BATCH, 7, draw).float()
    return step.Inputs(weak, batch.weak_views.pixels, strong, batch.strong_view, masks), hidden


def test_a_plain_step_ends_at_the_weights_of_the_reference_recipe(
    student: Student, batch: TrainingBatch
) -> None:
    ours = copy.deepcopy(student)
    teacher = make_teacher(ours)
    plain = networks.PlainNetwork(copy.deepcopy(student))
    plain_teacher = copy.deepcopy(plain).eval()
    label, keep = torch.arange(BATCH) % 4, torch.arange(BATCH) % 3 > 0
    inputs, hidden = plain_inputs(student, batch)

    freeze(ours, REFERENCE)
    training_mode(ours, REFERENCE)
    labels = PseudoLabels(Targets(label, keep), Targets(label, keep))
    draw = torch.Generator().manual_seed(2)
    loss = total(loss_terms(ours, batch, labels, Fairness(REFERENCE, 4), REFERENCE, draw), REFERENCE)
    optimizer = make_optimizer(ours, REFERENCE)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["multiplier"]
    loss.backward()
    optimizer.step()
    update_teacher(teacher, ours, 0.99)

    plain_optimizer = step.make_optimizer(plain.train(), 0.01)
    plain_loss = step.student_loss(plain, inputs, hidden, label, keep.float())
    assert plain_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    plain_loss.backward()
    plain_optimizer.step()
    step.move_teacher(plain_teacher, plain, 0)

    for one, other in ((ours, plain), (teacher, plain_teacher)):
        torch.testing.assert_close(other.classifier, one.classifier)
        torch.testing.assert_close(other.visual.conv1.weight, one.images().visual.conv1.weight)
        norms = [
            other.point_encoder.tokens.first[1].running_mean,
            one.point_encoder.encoder.first_conv[1].running_mean,
        ]
        torch.testing.assert_close(*norms)
        mine = one.point_encoder.blocks.blocks[0].mlp.fc1.weight
        torch.testing.assert_close(other.point_encoder.blocks[0].mlp[0].weight, mine, rtol=1e-4, atol=1e-4)
    assert not torch.equal(plain.classifier, student.classifier)


def test_the_plain_teacher_says_what_the_reference_recipe_says(
    student: Student, batch: TrainingBatch
) -> None:
    from crossmost.adaptation.diagnosis import image_logits, point_logits
    from crossmost.adaptation.pseudo_labels import Labeler

    # Sure of some and not of others.
    student = copy.deepcopy(student).eval()
    student.logit_scale.data.fill_(math.log(8))
    inputs, _ = plain_inputs(student, batch)
    label, keep = step.joint_labels(networks.PlainNetwork(copy.deepcopy(student)).eval(), inputs)
    with torch.no_grad():
        points, images = point_logits(student, batch.weak_points), image_logits(student, batch.weak_views)
    expected = Labeler(REFERENCE, 4)(points, images).point
    assert label.tolist() == expected.label.tolist()
    assert keep.bool().tolist() == expected.kept.tolist()
    assert 0 < keep.sum() < BATCH


def test_points_that_are_added_are_means_of_neighbours() -> None:
    points = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    filled = samples.filled(points, np.random.default_rng(1))
    assert filled.shape == (samples.FILLED, 3)
    np.testing.assert_array_equal(filled[:40], points)
    settings = augment.PointAugment(upsample_to=samples.FILLED)
    ours = augment.augment_points(points, settings, np.random.default_rng(1))[40:]
    # Either draws which points get a mean; the means there are, are the same.
    np.testing.assert_allclose(
        np.unique(filled[40:].round(4), axis=0), np.unique(ours.round(4), axis=0), atol=2e-4
    )


def test_a_cloud_that_is_full_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "FILLED", 20)
    points = np.random.default_rng(0).standard_normal((30, 3)).astype(np.float32)
    np.testing.assert_array_equal(samples.filled(points, np.random.default_rng(1)), points)


def test_plain_sampling_starts_anywhere_and_goes_to_the_farthest() -> None:
    torch.manual_seed(0)
    line = torch.tensor([0.0, 1.0, 2.0, 10.0])[None, :, None].expand(1, 4, 3)
    found = {tuple(networks.farthest_points(line, 3)[0].tolist()) for _ in range(60)}
    assert found == {(0, 3, 2), (1, 3, 0), (2, 3, 0), (3, 0, 2)}


def test_as_many_patches_and_cells_are_hidden_as_published() -> None:
    torch.manual_seed(0)
    hidden = step.block_mask(torch.randn(200, 64, 3)).sum(dim=(1, 2))
    assert set(hidden.tolist()) == set(range(19, 26))
    assert samples.image_mask(14, np.random.default_rng(0)).sum() == 60


def test_inner_time_is_not_the_outer_stages() -> None:
    box = SimpleNamespace(inner=lambda: time.sleep(0.02))
    box.outer = lambda: (box.inner(), time.sleep(0.01), box.inner())
    stages = worker.Stages()
    stages.watch(box, "inner", "a")
    stages.watch(box, "outer", "b")
    began = time.perf_counter()
    box.outer()
    took = time.perf_counter() - began
    assert stages.seconds["a"] + stages.seconds["b"] == pytest.approx(took, rel=0.05)
    assert stages.seconds["a"] > stages.seconds["b"] > 0


def test_every_stage_of_the_trainer_is_seen(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_architecture: Any,
    tiny_vocabulary: Any,
    shapes_file: Path,
) -> None:
    from crossmost.adaptation import diagnosis, trainer
    from crossmost.adaptation import step as trainer_step
    from crossmost.data import dataset
    from crossmost.data import samples as trainer_samples

    for owner, names in {
        dataset.CloudDataset: ["try_load"], trainer_samples: ["render_views", "collate_training"],
        trainer_samples.TrainingSamples: ["__getitem__"], diagnosis: ["cut"], trainer_step: ["cut"],
        trainer.Trainer: ["_label", "_train_batch", "_optimizer_step"],
    }.items():  # fmt: skip
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))  # put back after the test
    card, image, dim, _ = tiny_architecture
    save_base(tmp_path / worker.BASE, DualEncoder(card, image, dim), tiny_architecture, {})
    tiny_vocabulary.save(tmp_path / worker.CLASSES)
    (tmp_path / worker.ARCHIVE).write_bytes(shapes_file.read_bytes())
    answers: list[dict[str, float]] = []

    def answer(stages: dict[str, float]) -> None:
        answers.append(dict(stages))
        if len(answers) == 2:
            raise SystemExit

    with pytest.raises(SystemExit):
        worker.run_trainer("crossmost", tmp_path, 8, answer)
    assert set(answers[1]) == set(tables.STAGES) - {"total"}
    assert min(answers[1].values()) > 0


def test_ratios_are_turn_by_turn_and_the_table_reads(tmp_path: Path) -> None:
    answers = {
        way: [
            {"seconds": {"read": 0.01, "student": turn * each, "total": turn * each}, "peak_bytes": 3e9}
            for turn in (1.0, 2.0, 4.0)
        ]
        for way, each in (("plain", 8.0), ("reference", 4.0), ("crossmost", 2.0))
    }
    row = throughput.summary(answers)
    assert row["faster"]["reference"]["total"] == [2.0, 2.0, 2.0]
    assert row["seconds"]["plain"]["student"][1] == 16.0
    (tmp_path / "tiny.json").write_text(
        json.dumps(
            row | throughput.SETTINGS[0]._asdict() | {"turns": 3, "threads": 2, "machine": "A machine"}
        )
    )
    lines = tables.table(tmp_path).splitlines()
    assert (
        "| crossmost, its own recipe, over plain | 1.00x |  |  |  |  | 4.00x | 4.00x [4.00, 4.00] | |"
        in lines
    )
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
