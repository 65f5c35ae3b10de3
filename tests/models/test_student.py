"""The joint space and the shared classifier of METHOD 1.4."""

import math

import numpy as np
import pytest
import torch

from crossmost.errors import InputError
from crossmost.models.grouping import Groups, group
from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import PointBertCard
from crossmost.models.student import DualEncoder, Student, embed_points, unit

POINT = PointBertCard(
    name="test", points=64, groups=8, neighbors=4, channels=3, token_widths=(8, 12, 16, 12),
    width=16, depth=2, heads=2, drop_path=0.0, learning_rate=1e-3,
)  # fmt: skip
IMAGE = ImageCard(image_size=16, patch_size=4, width=12, layers=2, heads=2, output_dim=6)


def make_student(*, renormalize: bool = False, classes: int = 5) -> Student:
    torch.manual_seed(0)
    embeddings = unit(torch.randn(classes, 6))
    return Student(POINT, IMAGE, embeddings, renormalize_classifier=renormalize).eval()


def some_groups(batch: int = 3) -> Groups:
    return group(torch.randn(batch, 30, 3, generator=torch.Generator().manual_seed(1)), 8, 4)


def rows(x: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return x.detach().numpy().astype(np.float64)


def test_theta_starts_as_the_text_embeddings_in_columns() -> None:
    torch.manual_seed(0)
    embeddings = unit(torch.randn(5, 6))
    student = Student(POINT, IMAGE, embeddings, renormalize_classifier=False)
    assert student.classifier.shape == (6, 5)
    assert torch.equal(student.classifier.T, embeddings)
    with torch.no_grad():
        student.classifier.zero_()
    assert embeddings.any()  # Theta is its own


def test_the_temperature_starts_at_100_and_is_a_scalar_that_trains() -> None:
    student = make_student()
    assert student.logit_scale.shape == ()
    assert student.logit_scale.requires_grad
    assert student.logit_scale.exp().item() == pytest.approx(100, rel=1e-4)
    assert student.logit_scale.item() == pytest.approx(math.log(100), abs=1e-4)


@pytest.mark.parametrize("renormalize", [False, True])
def test_logits_and_embeddings_of_both_branches(renormalize: bool) -> None:
    student, images = make_student(renormalize=renormalize), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        student.classifier.mul_(torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]))
        student.logit_scale.fill_(math.log(7))
        points, views = student.point_features(some_groups()), student.image_features(images)
        found = [student.embed_point(points), student.embed_image(views)]
        logits = [student.classify(embedding) for embedding in found]
    projected = [
        rows(points.feature) @ rows(student.point_projection),
        rows(views.cls) @ rows(student.image_tower.projection),
    ]
    theta = rows(student.classifier)
    if renormalize:
        theta = theta / np.sqrt((theta**2).sum(axis=0))
    for embedding, logit, raw in zip(found, logits, projected, strict=True):
        expected = raw / np.sqrt((raw**2).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(rows(embedding), expected, atol=1e-6)
        np.testing.assert_allclose(rows(logit), 7 * expected @ theta, rtol=1e-4, atol=1e-5)


def test_a_renormalized_classifier_knows_directions_only() -> None:
    for renormalize in (True, False):
        student, embedding = make_student(renormalize=renormalize), unit(torch.randn(4, 6))
        before = student.classify(embedding)
        with torch.no_grad():
            student.classifier.mul_(3)
        torch.testing.assert_close(student.classify(embedding), before if renormalize else 3 * before)


def test_both_branches_teach_one_classifier_and_one_temperature() -> None:
    student = make_student()
    logits = [
        student.classify(student.embed_point(student.point_features(some_groups()))),
        student.classify(student.embed_image(student.image_features(torch.randn(3, 3, 16, 16)))),
    ]
    for branch in logits:
        for shared in (student.classifier, student.logit_scale):
            (gradient,) = torch.autograd.grad(branch.square().sum(), shared, retain_graph=True)
            assert gradient.any()


def test_q_starts_with_a_deviation_of_one_and_belongs_to_the_student_alone() -> None:
    torch.manual_seed(0)
    wide = POINT.model_copy(update={"width": 128})
    q = Student(wide, IMAGE, unit(torch.randn(5, 6)), renormalize_classifier=False).point_local_projection
    assert q.shape == (128, 6)
    assert q.std().item() == pytest.approx(1, abs=0.1)
    base, student = DualEncoder(POINT, IMAGE, 6), make_student()
    names = {name for name, _ in student.named_parameters()} - {name for name, _ in base.named_parameters()}
    assert names == {"classifier", "point_local_projection"}


def test_a_base_of_another_width_is_refused() -> None:
    with pytest.raises(InputError, match=r"7.*6"):
        DualEncoder(POINT, IMAGE, 7)


def test_the_projections_have_the_sizes_the_method_counts() -> None:
    base = DualEncoder(POINT, IMAGE, 6)
    assert base.point_projection.shape == (2 * 16, 6)  # [CLS; max]
    assert base.image_tower.projection.shape == (12, 6)
    assert base.dim == 6


def test_unit_is_float32_and_safe_for_zeros() -> None:
    found = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    assert found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]


def test_masks_reach_both_branches() -> None:
    student, images = make_student(), torch.randn(3, 3, 16, 16)
    hidden = torch.ones(3, 4, 4, dtype=torch.bool)
    with torch.no_grad():
        blind = student.embed_image(student.image_features(images, hidden))
        torch.testing.assert_close(blind[0], blind[1])
        groups, every = some_groups(), torch.ones(3, 8, dtype=torch.bool)
        one = student.embed_point(student.point_features(groups, every))
        other = student.embed_point(student.point_features(Groups(2 * groups.patches, groups.centers), every))
    assert torch.equal(one, other)


@pytest.mark.parametrize("radius", [None, 0.6])
def test_clouds_are_cut_as_the_card_says(radius: float | None) -> None:
    student = make_student()
    student.point_encoder.card = POINT.model_copy(update={"radius": radius})
    cloud = torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(1))
    groups = group(cloud, 8, 4, radius=radius)
    with torch.no_grad():
        expected = student.embed_point(student.point_features(groups))
    found = embed_points(student.point_encoder, student.point_head(), [cloud[0].numpy()])
    np.testing.assert_allclose(found, rows(expected), atol=1e-6)


def test_clouds_of_different_sizes_are_embedded_together_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    student = make_student()
    encoder, head = student.point_encoder, student.point_head()
    generator = torch.Generator().manual_seed(1)
    clouds = [torch.randn(20 + 9 * i, 3, generator=generator).numpy() for i in range(5)]
    alone = np.concatenate([embed_points(encoder, head, [cloud]) for cloud in clouds])
    passes: list[int] = []
    encoder.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    monkeypatch.setattr("crossmost.models.student.POINTS_AT_ONCE", 3 * POINT.groups * POINT.neighbors)
    np.testing.assert_allclose(embed_points(encoder, head, iter(clouds)), alone, atol=1e-6)
    assert passes == [3, 2]
    monkeypatch.setattr("crossmost.models.student.POINTS_AT_ONCE", 1)
    np.testing.assert_array_equal(embed_points(encoder, head, clouds), alone)


def test_logits_are_float32_inside_mixed_precision() -> None:
    student, embedding = make_student(), unit(torch.randn(8, 6))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = student.classify(embedding)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, student.classify(embedding).detach(), rtol=1e-5, atol=1e-4)
