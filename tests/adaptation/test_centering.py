"""Where a target lies: the mean of what each branch projects, and what it does to the answers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from crossmost.adaptation.centering import center_of, find_centers
from crossmost.adaptation.diagnosis import Projected, classified, diagnose, project
from crossmost.adaptation.trainer import MOVED, Trainer
from crossmost.data.samples import PlainBatch, PointBatch, ViewBatch
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


def test_the_centers_are_the_means_over_clouds_and_over_their_views(make_student: MakeStudent) -> None:
    student = make_student().eval()
    batches = [a_batch(3, 2, 1), a_batch(2, 2, 2)]
    found = find_centers(projected(student, batches[0], None, batches[1]), ("point", "image"))
    for branch, expected in slow_means(student, batches).items():
        np.testing.assert_allclose(found[branch].mean.numpy(), expected, rtol=1e-4, atol=1e-4)
        assert not found[branch].mean.requires_grad


def test_batches_with_other_numbers_of_views_go_together(make_student: MakeStudent) -> None:
    student = make_student().eval()
    batches = [a_batch(3, 1, 1), a_batch(2, 4, 2)]
    found = find_centers(projected(student, *batches), ("image",))
    expected = slow_means(student, batches)["image"]
    np.testing.assert_allclose(found["image"].mean.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_only_what_is_asked_for_is_looked_at(make_student: MakeStudent) -> None:
    student = make_student().eval()
    without = projected(student, a_batch(3, 1, 1)._replace(views=None))
    assert find_centers(without, ("point",)).keys() == {"point"}
    assert find_centers(projected(student, a_batch(3, 1, 1)), ("image",)).keys() == {"image"}
    with pytest.raises(WorkFailed, match="could be read"):
        projected(student, None)


def test_clouds_that_are_all_but_equal_have_no_center(make_student: MakeStudent) -> None:
    student, batch = make_student().eval(), a_batch(1, 1, 1)
    alone = projected(student, batch, batch, batch)
    assert not find_centers(alone, ("point", "image"))


def test_what_is_left_is_a_share_of_the_length() -> None:
    rows = torch.tensor([[3.0, 4.0], [3.0, -4.0]])
    found = center_of(rows)
    assert found.mean.tolist() == [3.0, 0.0]
    assert found.left == pytest.approx(4 / 5)
    assert center_of(rows[:1]).left == 0.0


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
        trainer = start(mode=mode, epochs=1)
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
    trainer = start(epochs=1)
    before = float(trainer.student.logit_scale.detach().exp())
    found = find_centers(projected(trainer.teacher, *trainer._plain_batches()), ("point", "image"))
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
    before = diagnose(trainer.teacher, trainer._plain_batches(), CPU)
    trainer._review(epoch=-1)
    after = diagnose(trainer.teacher, trainer._plain_batches(), CPU)
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
