"""The baselines of benchmarks/baselines.py on small synthetic embeddings, and the table they end in."""

from __future__ import annotations

import copy
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import load_point_card
from crossmost.models.student import Student
from crossmost.runtime.vocabulary import Vocabulary

CLASSES, WIDTH = 4, 16


features, embeddings = import_module("baseline_features"), import_module("baseline_embeddings")
networks, fine_tuning = import_module("baseline_networks"), import_module("baseline_fine_tuning")
tables, baselines = import_module("baseline_table"), import_module("baselines")


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def split(centers: NDArray[np.float32], each: int, noise: float, rng: np.random.Generator) -> Any:
    """Clouds around the centers, `each` of every class, in the order of the classes."""
    labels = np.repeat(np.arange(len(centers)), each)
    rows = [unit(centers[labels] + noise * rng.standard_normal((len(labels), WIDTH))) for _ in range(2)]
    return features.Split(rows[0], rows[1] * np.float32(0.9), labels)


@pytest.fixture
def shifted() -> Any:
    """Text embeddings, and a target whose tight clusters lie off them, all in one direction."""
    rng = np.random.default_rng(0)
    text = np.eye(CLASSES, WIDTH, dtype=np.float32)
    off = np.zeros(WIDTH, np.float32)
    off[0] = 0.85  # towards the first class
    off[CLASSES:] = 0.3
    vocabulary = Vocabulary.create("abcd", text, logit_scale=20.0)
    return features.Frozen(vocabulary, *(split(text + off, 40, 0.1, rng) for _ in range(2)))


def accuracy(found: NDArray[np.float64], frozen: Any) -> float:
    return float((found.argmax(axis=1) == frozen.test.labels).mean())


LABEL_FREE = [
    name for name, each in baselines.BASELINES.items() if each.on_embeddings and not each.supervised
]


@pytest.mark.parametrize("name", [*LABEL_FREE, "probe"])
def test_a_baseline_on_embeddings_gives_posteriors_in_the_order_of_the_clouds(
    name: str, shifted: Any
) -> None:
    for branch in features.BRANCHES:
        found = baselines.BASELINES[name].on_embeddings(shifted, branch, 0)
        assert found.shape == (4 * 40, CLASSES)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
        assert accuracy(found, shifted) > 0.6  # chance is 0.25; a wrong order would give about that


@pytest.mark.parametrize("name", LABEL_FREE)
def test_a_label_free_baseline_is_blind_to_labels(name: str, shifted: Any) -> None:
    blind = copy.deepcopy(shifted)
    for part in (blind.train, blind.test):
        part.labels[:] = 0
    run = baselines.BASELINES[name].on_embeddings
    np.testing.assert_array_equal(run(shifted, "point", 0), run(blind, "point", 0))


def test_image_logits_are_the_mean_over_the_views(shifted: Any) -> None:
    found = embeddings.zero_shot(shifted, "image", 0)
    logits = shifted.vocabulary.logit_scale * shifted.test.image @ shifted.vocabulary.embeddings.T
    np.testing.assert_allclose(np.log(found[0] / found[0, 0]), logits[0] - logits[0, 0], atol=1e-4)


def test_class_means_find_the_clusters_that_lie_off_the_text(shifted: Any) -> None:
    zero_shot = accuracy(embeddings.zero_shot(shifted, "point", 0), shifted)
    assert zero_shot < 0.92
    assert accuracy(embeddings.class_means(shifted, "point", 0), shifted) > zero_shot + 0.03


def test_subtracting_the_mean_undoes_a_shift_that_all_clouds_share(shifted: Any) -> None:
    zero_shot, half, whole = (
        accuracy(run(shifted, "point", 0), shifted)
        for run in (embeddings.zero_shot, embeddings.normalized, embeddings.centered)
    )
    assert zero_shot < half <= whole
    assert whole > 0.98


def test_the_first_cloud_of_a_centered_stream_says_nothing_and_the_last_knows_all(shifted: Any) -> None:
    found = embeddings.centered_stream(shifted, "point", 0)
    order = embeddings.stream_order(len(found), 0)
    np.testing.assert_allclose(found[order[0]], 1 / CLASSES)
    known = features.Frozen(shifted.vocabulary, shifted.test, shifted.test)
    np.testing.assert_allclose(found[order[-1]], embeddings.centered(known, "point", 0)[order[-1]])


def test_means_come_from_the_surest_half_and_a_class_without_clouds_keeps_its_text() -> None:
    rng = np.random.default_rng(1)
    text = np.eye(3, WIDTH, dtype=np.float32)
    rows = unit(text[[0] * 20 + [1] * 20] + 0.1 * rng.standard_normal((40, WIDTH)))
    means = embeddings.fit_means(rows, text, 3.0, with_text=False)
    assert means.kept[0].sum() == 20
    np.testing.assert_array_equal(means.vectors[2], text[2])
    np.testing.assert_allclose(np.linalg.norm(means.vectors, axis=1), 1, atol=1e-6)
    with_text = embeddings.fit_means(rows, text, 3.0, with_text=True)
    assert (with_text.vectors[:2] * text[:2]).sum() > (means.vectors[:2] * text[:2]).sum()


def test_the_published_cache_holds_the_three_of_least_entropy_and_answers_after_entering(
    shifted: Any,
) -> None:
    alone = features.Frozen(shifted.vocabulary, shifted.train, features.Split(
        shifted.test.point[:1], shifted.test.image[:1], shifted.test.labels[:1]))  # fmt: skip
    before, after = (run(alone, "point", 0)[0] for run in (embeddings.zero_shot, embeddings.published_cache))
    gain = np.log(after / after[1]) - np.log(before / before[1])
    label = before.argmax()
    assert label != 1
    assert gain[label] == pytest.approx(embeddings.PUBLISHED_ALPHA, abs=1e-5)  # affinity 1, to itself


def test_a_stream_is_shuffled_the_same_for_the_same_seed() -> None:
    first, again, other = (embeddings.stream_order(50, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(np.sort(first), np.arange(50))


def test_kept_accuracy_counts_the_surest_of_each_class() -> None:
    posterior = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 0])
    assert embeddings.kept_accuracy(labels, posterior, 1.0) == 0.5
    assert embeddings.kept_accuracy(labels, posterior, 0.5) == 1.0


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    image = ImageCard(image_size=16, patch_size=8, width=16, layers=1, heads=2, output_dim=WIDTH)
    return Student(
        load_point_card("point-tiny"), image, torch.eye(3, WIDTH), renormalize_classifier=True
    ).eval()


class FewClouds:
    """Three classes of made-up shapes, as a `CloudDataset` would hand them over."""

    def __init__(self, order: NDArray[np.int64] | None = None):
        self.order = np.arange(12) if order is None else order
        self.bad: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.order)

    def try_load(self, index: int) -> NDArray[np.float32]:
        which = int(self.order[index])
        points = np.random.default_rng(which).standard_normal((64, 3)).astype(np.float32)
        points[:, which % 3] *= 0.1
        return points / np.linalg.norm(points, axis=1).max()

    def views(self, index: int) -> None:
        return None

    def subset(self, indices: NDArray[np.int64]) -> FewClouds:
        return FewClouds(self.order[indices])

    def unlabelled(self) -> FewClouds:
        return self

    def label_indices(self, names: tuple[str, ...]) -> NDArray[np.int64]:
        return self.order % 3


def test_entropy_is_that_of_the_predictions() -> None:
    assert networks.entropy(torch.zeros(5, 8)).item() == pytest.approx(np.log(8))
    assert networks.entropy(torch.tensor([[50.0, 0.0]])).item() == pytest.approx(0.0, abs=1e-6)


def test_tent_trains_norm_layers_alone_and_leaves_the_base_as_it_was(student: Student) -> None:
    trained = copy.deepcopy(student)
    first = networks.tent_pass(trained, FewClouds(), 0)
    norms = {f"{name}." for name, module in student.named_modules() if isinstance(module, networks.NORMS)}
    before = dict(student.named_parameters())
    changed = {name for name, value in trained.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all(any(name.startswith(norm) for norm in norms) for name in changed)
    target = networks.Target(student, FewClouds(), FewClouds(), ("a", "b", "c"))
    again = networks.tent_stream(target, 0)
    np.testing.assert_allclose(again["point"], first["point"], atol=1e-5)
    np.testing.assert_allclose(first["image"].sum(axis=1), 1, atol=1e-6)


def test_tent_answers_in_the_clouds_own_order(student: Student) -> None:
    # The image tower has no BatchNorm: what it says of one batch before any step is what it says of each cloud.
    found = networks.tent_pass(copy.deepcopy(student), FewClouds(), 3)
    np.testing.assert_allclose(found["image"], networks.classify(student, FewClouds())["image"], atol=1e-5)


def test_fine_tuning_learns_the_labels_and_goes_on_where_it_stopped(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning, "SAVED_EVERY", 4)
    target = networks.Target(student, FewClouds(), FewClouds(), ("a", "b", "c"))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    losses: list[float] = []

    def noted(student: Student, batch: Any, loss: Any = fine_tuning.supervised_loss) -> torch.Tensor:
        found: torch.Tensor = loss(student, batch)
        losses.append(found.item())
        return found

    monkeypatch.setattr(fine_tuning, "supervised_loss", noted)
    whole = fine_tuning.fine_tuned(target, 0, steps=8)
    assert len(losses) == 8
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())

    saved = tmp_path / "saved.pt"
    monkeypatch.setattr(fine_tuning, "rate_at", lambda step, _, rate=fine_tuning.rate_at: rate(step, 8))
    fine_tuning.fine_tuned(target, 0, steps=4, saved=saved)
    resumed = fine_tuning.fine_tuned(target, 0, steps=8, saved=saved)
    np.testing.assert_allclose(resumed["point"], whole["point"], atol=1e-5)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [fine_tuning.rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == 1.0
    assert rates[-1] < 0.01


def result(name: str, seed: int, share: float, **more: Any) -> dict[str, Any]:
    top1 = {"point": share, "image": share - 0.1, "both": share + 0.1}
    facts = {"pair": "p2", "baseline": name, "seed": seed, "n": 907, "machine": "CPU", "sees": "something"}
    return {**facts, "top1": top1, "ece": dict.fromkeys(top1, 0.1), "supervised": False, **more}


def test_the_table_says_which_baseline_beats_joint_and_how_much_of_the_gap_is_closed(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "baselines", tmp_path / "adaptation"
    for folder in (theirs, ours):
        folder.mkdir()
    for seed in (0, 1):
        shares = {"zero-shot": 0.4, "means": 0.55, "tent-stream": 0.45, "fine-tuned": 0.8}
        for name, share in shares.items():
            row = result(name, seed, share, supervised=name == "fine-tuned")
            (theirs / f"p2_{name}_{seed}.json").write_text(json.dumps(row))
    adapted = {"mode": "joint", "pair": "p2", "seed": 0, "n": 907, "machine": "CPU"}
    adapted["adapted"] = {"point": 0.5, "image": 0.45, "both": 0.6}
    (ours / "p2_joint_0.json").write_text(json.dumps(adapted))
    (ours / "p2_joint-reference_0.json").write_text(json.dumps({**adapted, "row": "joint-reference"}))
    text = tables.table(theirs, ours)
    assert text.count("**ours**: joint |") == 1
    assert "class means (points, +5.0)" in text
    assert "TENT, online (points" not in text
    assert "points 25.0 %" in text
    assert "| 55.0 ± 0.0 |" in text  # two seeds
    assert "| 50.0 | 45.0 | 60.0 |" in text  # one
    assert text.index("zero-shot") < text.index("class means") < text.index("fine-tuned")
