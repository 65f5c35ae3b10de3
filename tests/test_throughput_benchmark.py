"""benchmarks/throughput.py: the plain step computes what the reference recipe computes, and clocks add up."""

from __future__ import annotations

import copy
import json
import math
import sys
import threading
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


networks, samples, step, throughput, worker, tables, runtime = map(
    import_module,
    (
        "plain_networks", "plain_samples", "plain_step", "throughput", "throughput_worker", "throughput_table",
        "runtime_worker",
    ),
)  # fmt: skip


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
    stages = worker.Stages(lambda: None)
    stages.watch(box, "inner", "a")
    stages.watch(box, "outer", "b")
    began = time.perf_counter()
    box.outer()
    took = time.perf_counter() - began
    assert stages.seconds["a"] + stages.seconds["b"] == pytest.approx(took, rel=0.05)
    assert stages.seconds["a"] > stages.seconds["b"] > 0


class Later:
    """A device that takes note at once and works when it is waited for."""

    def __init__(self) -> None:
        self.noted = 0.0

    def note(self) -> None:
        self.noted += 0.02

    def wait(self) -> None:
        time.sleep(self.noted)
        self.noted = 0.0


def test_a_stage_is_what_the_device_works_for_it() -> None:
    device = Later()
    box = SimpleNamespace(one=device.note, other=lambda: (device.note(), device.note()))
    stages = worker.Stages(device.wait)
    stages.watch(box, "one", "one")
    stages.watch(box, "other", "other")
    device.note()  # of no stage
    box.one()
    box.other()
    assert stages.seconds["one"] == pytest.approx(0.02, rel=0.4)
    assert stages.seconds["other"] == pytest.approx(0.04, rel=0.4)

    clock = step.WaitingClock(device.wait)
    device.note()
    clock.stage("one")
    clock.stage("other")
    assert clock.seconds["one"] >= 0.02 > clock.seconds["other"]


def test_a_row_that_comes_again_in_a_batch_is_read_once(student: Student) -> None:
    read: list[int] = []

    def augment(cloud: int, _: None) -> tuple[torch.Tensor, ...]:
        return (torch.full((20, 3), float(cloud)), torch.rand(20, 3), *(torch.zeros(1) for _ in range(3)))

    rows = SimpleNamespace(read=lambda row: (read.append(row), (row, None))[1], augment=augment)
    inputs = step.read_batch(rows, networks.PlainNetwork(student), [3, 1, 3, 1], runtime.Clock())
    assert read == [3, 1]
    assert inputs.weak_groups[1][:, 0, 0].tolist() == [3.0, 1.0, 3.0, 1.0]


@pytest.fixture
def folder(tmp_path: Path, tiny_architecture: Any, tiny_vocabulary: Any, shapes_file: Path) -> Path:
    """What `prepare` makes, for crossmost's ways."""
    card, image, dim, _ = tiny_architecture
    save_base(tmp_path / worker.BASE, DualEncoder(card, image, dim), tiny_architecture, {})
    tiny_vocabulary.save(tmp_path / worker.CLASSES)
    (tmp_path / worker.ARCHIVE).write_bytes(shapes_file.read_bytes())
    return tmp_path


def run(job: Any, count: int) -> list[dict[str, float]]:
    """The stages of so many steps."""
    answers: list[dict[str, float]] = []

    def answer(stages: dict[str, float]) -> None:
        answers.append(dict(stages))
        if len(answers) == count:
            raise SystemExit

    with pytest.raises(SystemExit):
        worker.run_trainer(job, lambda: None, answer)
    return answers


def test_every_stage_of_the_trainer_is_seen(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
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
    # More steps than an epoch of these clouds has.
    job = worker.Job("crossmost", str(folder), batch=8, turns=4, threads=2)
    answers = run(job, job.batches)
    for each in answers[1:]:
        assert set(each) == set(tables.STAGES) - {"total"}
        assert min(each.values()) > 0


def test_with_loading_processes_nothing_is_watched(folder: Path) -> None:
    job = worker.Job("reference", str(folder), 8, turns=1, threads=2, precision="bfloat16", workers=1)
    assert job.name == "reference-bfloat16-loading"
    # Those of the warm-up and the one that the first turn begins at, and its only one.
    assert run(job, job.batches - worker.QUEUED) == [{}] * (worker.WARM_UP + 2)


def test_what_was_loaded_ahead_is_not_trained_by() -> None:
    trained: list[int] = []
    trainer = SimpleNamespace(_train_batch=trained.append)
    job = worker.Job("reference", "", 8, turns=2, threads=2, workers=3)
    worker.throw_away(trainer, job.thrown_away)
    for batch in range(job.batches):
        trainer._train_batch(batch)
    assert trained == [0, 1, *range(8, 15)]


def test_a_run_answers_of_as_many_steps_as_there_are_processes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = worker.Job("reference", "", 8, turns=2, threads=2, workers=3)
    answers = worker.RunAnswers(job)
    said = []
    for made in range(1, job.batches - worker.QUEUED * 3):
        answers({})
        said += [made] * len(capsys.readouterr().out.splitlines())
    assert said == [3, 6]

    def nobody() -> None:
        raise SystemExit

    monkeypatch.setattr(answers, "next_line", nobody)
    with pytest.raises(SystemExit):
        answers({})
    assert set(json.loads(capsys.readouterr().out)["seconds"]) == {"total"}


FAKE = """
import json, sys
job = json.loads(sys.argv[1])
if job["recipe"] == "plain" and job["threads"] == 1:
    sys.exit(3)
for line in ("here", "ready"):
    print(line, flush=True)
    sys.stdin.readline()
for turn in range(job["turns"]):
    if job["precision"] == "bfloat16" and turn == 1:
        sys.exit(3)
    print(json.dumps({"seconds": {"student": 1, "total": 2}, "peak_bytes": 8, "peak_gpu_bytes": 9}), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_what_fails_is_named_and_the_rest_is_written(
    threads: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(throughput, "WORKER", tmp_path / "fake.py")
    monkeypatch.setattr(throughput, "PAUSE", 0)

    def make(recipe: str, **named: Any) -> Any:
        return worker.Job(recipe, "", 64, turns=2, threads=threads, **named)

    groups = throughput.gpu_groups(make, workers=8)
    names = [job.name for group in groups for job in group]
    assert len(set(names)) == len(names) == 9
    facts = {"gpu": "NVIDIA H100 80GB HBM3", "workers": 8}
    path = tmp_path / "results" / throughput.result_name(throughput.GPU_SETTING, facts["gpu"])
    assert path.name == "published-64-nvidia-h100-80gb-hbm3.json"
    failed = throughput.write_each(throughput.measure(throughput.GPU_SETTING, groups, facts), path)
    halves = [name for name in names if "bfloat16" in name]
    assert failed == (["plain", *halves] if threads == 1 else halves)
    text = tables.table(path.parent)
    assert "Failed: " in text
    assert "crossmost, its own recipe, bfloat16, loading processes: 1" in text  # turns
    assert ("over plain" in text) == (threads == 2)
    assert "loading processes, over plain" not in text


def test_a_way_that_has_had_its_time_takes_no_further_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(throughput, "WORKER", tmp_path / "fake.py")
    monkeypatch.setitem(throughput.SHARE, "cpu", 0.0)
    job = worker.Job("reference", "", 64, turns=3, threads=2)
    ((answers, failed),) = throughput.take_turns([[job]])
    assert not failed
    assert len(answers["reference"]) == 1


def test_an_interrupted_measurement_does_not_wait_for_its_patience() -> None:
    """A timer that nobody stops would keep the process alive until it kills what is long dead."""

    def interrupt() -> str:
        raise KeyboardInterrupt

    process = SimpleNamespace(stdout=SimpleNamespace(readline=interrupt), kill=lambda: None)
    with pytest.raises(KeyboardInterrupt):
        throughput.Trainee.hear(SimpleNamespace(job=SimpleNamespace(device="cpu"), process=process))
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_none_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["throughput.py", "--data", str(tmp_path), "--work", str(tmp_path), "--device", "cuda"]
    monkeypatch.setattr(sys, "argv", words)
    assert throughput.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("device 'cuda' cannot be used here: ")


def answers_of(**each: float) -> dict[str, list[dict[str, Any]]]:
    """Three turns of some ways, ever slower, by what a way takes."""
    return {
        way: [
            {
                "seconds": {"read": 0.01, "student": turn * seconds, "total": turn * seconds},
                "peak_bytes": 3e9,
                "peak_gpu_bytes": 17e9,
            }
            for turn in (1.0, 2.0, 4.0)
        ]
        for way, seconds in each.items()
    }


def test_ratios_are_turn_by_turn_and_the_table_reads(tmp_path: Path) -> None:
    row = throughput.summary(answers_of(plain=8.0, reference=4.0, crossmost=2.0))
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


def test_gpus_have_tables_behind_those_of_the_cpu(tmp_path: Path) -> None:
    about = {"turns": 3, "threads": 16, "machine": "A machine, torch 2.11.0+cu130, Python 3.12.3"}
    setting = throughput.SETTINGS[0]._asdict() | about
    answers = answers_of(plain=8.0, reference=4.0)
    (tmp_path / "tiny.json").write_text(json.dumps(throughput.summary(answers) | setting))
    alone = tables.table(tmp_path)

    answers |= {"reference-bfloat16-loading": answers_of(loading=1.0)["loading"]}
    answers["plain"].pop()
    row = throughput.summary(answers) | throughput.GPU_SETTING._asdict() | about
    row |= {"gpu": "NVIDIA H100", "workers": 8, "failed": []}
    assert row["faster"] == {
        "reference": {stage: [2.0] * 3 for stage in ("student", "total")} | {"read": [1.0] * 3}
    }
    (tmp_path / "a-gpu.json").write_text(json.dumps(row))  # before tiny.json
    both = tables.table(tmp_path)
    assert both.startswith(alone + "\n\nNVIDIA H100; A machine, torch 2.11.0+cu130, Python 3.12.3; ")
    behind = both.removeprefix(alone).splitlines()
    assert any(line.endswith("batch 64** (3 turns; plain, as published: 2)") for line in behind)
    assert (
        "| crossmost, reference recipe, bfloat16, loading processes | 6,400 |  |  |  |  | 32 | 32 | 17.0 GB |"
        in behind
    )
    assert not any(line.startswith("Failed") for line in behind)
