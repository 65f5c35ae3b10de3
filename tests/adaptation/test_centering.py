"""Where a target lies: the mean of what each branch projects, and what it does to the answers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from crossmost.adaptation import centering
from crossmost.adaptation.centering import (
    Center,
    Seen,
    balanced_similarities,
    center_at,
    choose,
    find_centers,
)
from crossmost.adaptation.diagnosis import Projected, agreement, classified, diagnose, project
from crossmost.adaptation.trainer import MOVED, Trainer
from crossmost.data.samples import PlainBatch, PlainSamples, PointBatch, ViewBatch, plain_batches
from crossmost.errors import WorkFailed
from crossmost.models.grouping import cut
from crossmost.models.student import Student

CPU = torch.device("cpu")
MakeStudent = Callable[..., Student]


def a_batch(count: int, views: int, seed: int) -> PlainBatch:
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(20, 41, (count,), generator=draw)
    points = PointBatch(torch.randn(count, 40, 3, generator=draw), sizes)
    pixels = torch.randn(count, views, 3, 28, 28, generator=draw)
    return PlainBatch(torch.arange(count), points, ViewBatch.of(pixels))


def views_of_each(batch: PlainBatch) -> tuple[torch.Tensor, ...]:
    assert batch.views is not None
    return batch.views.pixels.split(batch.views.counts)


@torch.no_grad()
def slow_means(student: Student, batches: list[PlainBatch]) -> dict[str, np.ndarray]:
    """One cloud and one view at a time, in float64."""
    rows: dict[str, list[np.ndarray]] = {"point": [], "image": []}
    for batch in batches:
        for cloud, size, views in zip(*batch.points, views_of_each(batch), strict=True):
            groups = cut(cloud[None, :size], student.point_encoder.card)
            feature = student.point_features(groups).feature[0].double()
            rows["point"].append((feature @ student.point_projection.double()).numpy())
            for view in views:
                cls = student.image_features(view[None]).cls[0].double()
                rows["image"].append((cls @ student.images().projection.double()).numpy())
    return {branch: np.mean(found, axis=0) for branch, found in rows.items()}


def projected(student: Student, *batches: PlainBatch | None) -> list[Projected]:
    return list(project(student, batches, CPU))


def mean_centers(student: Student, rows: list[Projected], *branches: str) -> dict[str, Center]:
    way, found = find_centers(student, rows, branches, "mean")
    assert way == "mean"
    return found


def test_the_centers_are_the_means_over_clouds_and_over_their_views(make_student: MakeStudent) -> None:
    student = make_student().eval()
    batches = [a_batch(3, 2, 1), a_batch(2, 2, 2)]
    found = mean_centers(student, projected(student, batches[0], None, batches[1]), "point", "image")
    for branch, expected in slow_means(student, batches).items():
        np.testing.assert_allclose(found[branch].place.numpy(), expected, rtol=1e-4, atol=1e-4)
        assert not found[branch].place.requires_grad


def test_batches_with_other_numbers_of_views_go_together(make_student: MakeStudent) -> None:
    student = make_student().eval()
    batches = [a_batch(3, 1, 1), a_batch(2, 4, 2)]
    found = mean_centers(student, projected(student, *batches), "image")
    expected = slow_means(student, batches)["image"]
    np.testing.assert_allclose(found["image"].place.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_only_what_is_asked_for_is_looked_at(make_student: MakeStudent) -> None:
    student = make_student().eval()
    without = projected(student, a_batch(3, 1, 1)._replace(views=None))
    assert mean_centers(student, without, "point").keys() == {"point"}
    assert mean_centers(student, projected(student, a_batch(3, 1, 1)), "image").keys() == {"image"}
    with pytest.raises(WorkFailed, match="could be read"):
        projected(student, None)


def test_clouds_that_are_all_but_equal_have_no_center(make_student: MakeStudent) -> None:
    student, batch = make_student().eval(), a_batch(1, 1, 1)
    alone = projected(student, batch, batch, batch)
    for way in ("mean", "balanced"):
        assert find_centers(student, alone, ("point", "image"), way) == (way, {})


def test_what_is_left_is_a_share_of_the_length() -> None:
    rows = torch.tensor([[3.0, 4.0], [3.0, -4.0]])
    assert center_at(rows, torch.tensor([3.0, 0.0])).left == pytest.approx(4 / 5)
    assert center_at(rows[:1], rows[0]).left == 0.0


@torch.no_grad()
def test_a_shift_of_all_embeddings_changes_no_answer_about_the_center(make_student: MakeStudent) -> None:
    """What a new sensor does to the joint space: the same vector on every cloud."""
    student, batch = make_student().eval(), a_batch(6, 1, 3)
    groups = cut(batch.points.points, student.point_encoder.card, batch.points.sizes)
    features = student.point_features(groups)

    def answers(center: bool) -> torch.Tensor:
        mean = student.project_point(features).mean(dim=0)
        student.point_center.copy_(mean if center else torch.zeros_like(mean))
        return student.classify(student.embed_point(features))

    plain, about = answers(center=False), answers(center=True)
    features = features._replace(feature=features.feature + 5 * torch.randn(features.feature.shape[1]))
    torch.testing.assert_close(answers(center=True), about, rtol=1e-3, atol=1e-2)
    assert float((answers(center=False) - plain).abs().max()) > 1.0


def test_both_networks_and_the_anchor_move_and_only_where_trained(start: Callable[..., Trainer]) -> None:
    for mode, branches in (
        ("joint", ["point", "image"]),
        ("point-only", ["point"]),
        ("image-only", ["image"]),
    ):
        trainer = start(mode=mode, epochs=1, center="mean")
        trainer._review(epoch=-1)
        for branch in ("point", "image"):
            center = getattr(trainer.teacher, f"{branch}_center")
            assert bool(center.any()) == (branch in branches)
        for name in MOVED:
            theirs, ours = trainer.teacher.state_dict()[name], trainer.student.state_dict()[name]
            assert torch.equal(theirs, ours)
            assert trainer.base is not None
            assert torch.equal(theirs, trainer.base[name])


def test_logits_are_as_sharp_about_the_center_as_before(start: Callable[..., Trainer]) -> None:
    trainer = start(epochs=1, center="mean")
    before = float(trainer.student.logit_scale.detach().exp())
    rows = projected(trainer.teacher, *trainer._plain_batches())
    found = mean_centers(trainer.teacher, rows, "point", "image")
    trainer._review(epoch=-1)
    left = (found["point"].left + found["image"].left) / 2
    assert float(trainer.student.logit_scale.detach().exp()) == pytest.approx(before * left, rel=1e-4)
    trainer._review(epoch=0)  # once: training may sharpen them again
    assert float(trainer.student.logit_scale.detach().exp()) == pytest.approx(before * left, rel=1e-4)


@pytest.mark.parametrize(("mode", "untrained"), [("point-only", "image"), ("image-only", "point")])
def test_a_branch_that_is_not_trained_answers_as_before(
    start: Callable[..., Trainer], mode: str, untrained: str
) -> None:
    trainer = start(mode=mode, epochs=1)
    samples = PlainSamples(trainer.watched, image_size=trainer.student.image_size, views=trainer.config.views)
    before = diagnose(trainer.teacher, plain_batches(samples, 8, 0), CPU)
    trainer._review(epoch=-1)
    after = diagnose(trainer.teacher, plain_batches(samples, 8, 0), CPU)
    posteriors = dict(zip(("point", "image"), trainer.labeler.posteriors(*after[1:]), strict=True))
    expected = getattr(before, untrained).softmax(dim=1)
    torch.testing.assert_close(posteriors[untrained], expected, rtol=1e-4, atol=1e-6)


def test_diagnosing_is_projecting_and_classifying(make_student: MakeStudent) -> None:
    student = make_student().eval()
    batches = [a_batch(3, 2, 1), a_batch(2, 2, 2)]
    with torch.no_grad():
        student.point_center.normal_()
        student.image_center.normal_()
    whole, parts = diagnose(student, batches, CPU), classified(student, projected(student, *batches))
    assert torch.equal(whole.point, parts.point)
    assert torch.equal(whole.image, parts.image)


def a_target(
    student: Student, there: Sequence[int], shift: float, seed: int = 0
) -> tuple[Projected, torch.Tensor]:
    """Clouds of some classes, as a sensor that moves all of them the same way shows them to both branches."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.tensor(there)[torch.randint(len(there), (400,), generator=draw)]
    names = student.class_weights().T
    rows = {}
    for branch in ("point", "image"):
        moved = shift * names.T @ torch.randn(len(names), generator=draw) / len(names) ** 0.5
        noise = 0.25 * torch.randn(len(labels), names.shape[1], generator=draw)
        rows[branch] = 20 * (names[labels] + moved + noise)
    return Projected(torch.arange(len(labels)), rows["point"], rows["image"], (1,) * len(labels)), labels


@pytest.fixture
def named(make_student: MakeStudent) -> Student:
    """A student whose class embeddings are all as far from each other."""
    student = make_student().eval()
    with torch.no_grad():
        student.classifier.copy_(torch.eye(*student.classifier.shape))
    return student


@torch.no_grad()
def right_about(student: Student, target: Projected, labels: torch.Tensor, way: Any) -> tuple[str, float]:
    """Which way was taken, and how often both branches together are right about its centers."""
    taken, centers = find_centers(student, [target], ("point", "image"), way)
    said = torch.zeros(len(labels), student.classifier.shape[1])
    for branch in ("point", "image"):
        place = centers[branch].place if centers else 0
        said += (getattr(target, branch) - place) @ student.class_weights()
    return taken, float((said.argmax(dim=1) == labels).float().mean())


def slow_balanced(similarities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean over classes of what each class's clouds would be, one number at a time."""
    classes = similarities.shape[1]
    found, gaps = np.zeros(classes), {}
    for k in range(classes):
        inside = [row[k] for row, label in zip(similarities, labels, strict=True) if label == k]
        outside = [row[k] for row, label in zip(similarities, labels, strict=True) if label != k]
        found[k] = np.mean(outside)
        if inside:
            gaps[k] = np.mean(inside) - np.mean(outside)
    return np.array([found[k] + gaps.get(k, np.mean(list(gaps.values()))) / classes for k in range(classes)])


def test_a_balanced_center_is_what_equal_shares_would_have(named: Student) -> None:
    target, labels = a_target(named, [0, 1, 1, 2], shift=0.0)
    rows = [
        getattr(target, branch).double() @ named.class_weights().double() for branch in ("point", "image")
    ]
    found = balanced_similarities([each.detach() for each in rows], [1.0, 1.0])
    for similarities, balanced in zip(rows, found, strict=True):
        expected = slow_balanced(similarities.detach().numpy(), labels.numpy())  # all are labelled rightly
        np.testing.assert_allclose(balanced.numpy(), expected, rtol=1e-6)


def test_where_every_class_has_its_share_the_balanced_center_is_the_mean() -> None:
    similarities = torch.randn(10, 5, dtype=torch.float64) + 50 * torch.eye(5, dtype=torch.float64).repeat(
        2, 1
    )
    (found,) = balanced_similarities([similarities], [1.0])
    torch.testing.assert_close(found, similarities.mean(dim=0))


def test_clouds_of_one_class_leave_the_mean() -> None:
    """Equal clouds are labelled alike, so that nothing tells what another class would look like."""
    similarities = torch.tensor([[5.0, 1.0]], dtype=torch.float64).expand(3, 2)
    (found,) = balanced_similarities([similarities], [1.0])
    torch.testing.assert_close(found, similarities[0])


@pytest.mark.parametrize("seed", range(5))
def test_clouds_of_few_classes_are_named_about_the_balanced_center(named: Student, seed: int) -> None:
    few = a_target(named, [0, 1], shift=1.0, seed=seed)
    assert right_about(named, *few, "balanced")[1] > right_about(named, *few, "mean")[1]
    taken, right = right_about(named, *few, "target")
    assert taken == "balanced"
    assert right > right_about(named, *few, "none")[1] - 0.01


@pytest.mark.parametrize("seed", range(5))
def test_clouds_of_all_classes_are_named_about_the_mean(named: Student, seed: int) -> None:
    every = a_target(named, range(named.classifier.shape[1]), shift=1.0, seed=seed)
    taken, right = right_about(named, *every, "target")
    assert (taken, right) == right_about(named, *every, "mean")
    assert right > right_about(named, *every, "none")[1]


def test_where_the_branches_agree_as_they_are_nothing_is_subtracted(named: Student) -> None:
    few = a_target(named, [3], shift=0.0)
    assert right_about(named, *few, "target") == ("none", 1.0)


def test_a_few_clouds_take_the_mean(named: Student) -> None:
    target, labels = a_target(named, [0, 1], shift=1.0)
    few = Projected(*(part[:63] for part in target))
    assert right_about(named, few, labels[:63], "target")[0] == "mean"
    assert right_about(named, target, labels, "target")[0] == "balanced"


def test_branches_that_agree_by_chance_alone_do_not_speak_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both branches name one class nearly always, each at random: they agree often, and say nothing."""
    draw = torch.Generator().manual_seed(0)

    def told(share: float) -> Seen:
        names = (torch.rand(2000, generator=draw) > share).long()
        similarities = torch.nn.functional.one_hot(names, 2).double()
        return Seen(similarities.float(), similarities, 1.0)

    often, evenly = ([told(share), told(share)] for share in (0.95, 0.5))
    found = [agreement(*(of.similarities for of in pair)) for pair in (evenly, often)]
    assert found[1].share > found[0].share + 0.3
    assert abs(found[0].beyond_chance) < 0.05
    assert abs(found[1].beyond_chance) < 0.05
    monkeypatch.setattr(centering, "agreement", lambda point, image: agreements.pop(0))
    seen = {"point": often[0], "image": often[1]}
    places = {way: {branch: torch.zeros(2) for branch in seen} for way in ("mean", "balanced")}
    agreements = [found[0], found[0], found[1]._replace(beyond_chance=found[0].beyond_chance - 0.01)]
    assert choose(seen, places, torch.eye(2, dtype=torch.float64)) == "mean"
    agreements = [found[0], found[0], found[1]._replace(beyond_chance=0.5)]
    assert choose(seen, places, torch.eye(2, dtype=torch.float64)) == "balanced"


def test_a_branch_alone_takes_the_mean(named: Student) -> None:
    target, _ = a_target(named, [0, 1], shift=1.0)
    alone = target._replace(image=None, counts=())
    assert find_centers(named, [alone], ("point",), "target")[0] == "mean"
    assert find_centers(named, [alone], ("point",), "balanced")[0] == "balanced"


def test_more_names_than_numbers_have_a_balanced_center(make_student: MakeStudent) -> None:
    student = make_student().eval()
    names = torch.nn.functional.normalize(torch.randn(student.dim, 3 * student.dim), dim=0)
    student.classifier = torch.nn.Parameter(names)
    target, _ = a_target(student, [0, 1, 2], shift=0.5)
    _, found = find_centers(student, [target], ("point", "image"), "balanced")
    for branch, center in found.items():
        rows = getattr(target, branch)
        assert center.place.norm() < 3 * rows.norm(dim=1).mean()


def test_the_first_review_decides_for_all(
    start: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(epochs=1, center="target")
    monkeypatch.setattr("crossmost.adaptation.centering.choose", lambda *_: "balanced")
    trainer._review(epoch=-1)
    monkeypatch.setattr("crossmost.adaptation.centering.choose", lambda *_: pytest.fail("asked again"))
    before = trainer.teacher.point_center.clone()
    with torch.no_grad():
        trainer.teacher.point_projection.mul_(2.0)
    trainer._review(epoch=0)
    assert [record["center"] for record in trainer.progress.records] == ["balanced", "balanced"]
    assert not torch.equal(trainer.teacher.point_center, before)
