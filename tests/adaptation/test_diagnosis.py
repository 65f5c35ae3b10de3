"""What is read off unlabelled predictions: temperatures, agreement, churn, mutual information."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from crossmost.adaptation.diagnosis import (
    Diagnosis,
    agreement,
    calibrate,
    churn,
    diagnose,
    fit_temperature,
    image_logits,
    mutual_information,
    point_logits,
)
from crossmost.data.samples import PlainBatch, PointBatch, ViewBatch
from crossmost.models.grouping import group
from crossmost.models.student import Student

FEW = settings(max_examples=25, deadline=None)

CPU = torch.device("cpu")


def two_branches(seed: int, count: int = 400, classes: int = 5) -> Diagnosis:
    draw = torch.Generator().manual_seed(seed)
    shared = 2 * torch.randn(count, classes, generator=draw)
    point, image = (shared + torch.randn(count, classes, generator=draw) for _ in range(2))
    return Diagnosis(torch.arange(count), point, image)


@given(seed=st.integers(0, 10_000), count=st.integers(20, 90))
@FEW
def test_agreement_beyond_chance_is_cohens_kappa(seed: int, count: int) -> None:
    found = two_branches(seed, count)
    said = found.point.argmax(1).numpy(), found.image.argmax(1).numpy()
    assert agreement(found.point, found.image).beyond_chance == pytest.approx(cohen_kappa_score(*said))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 10.0])
def test_the_temperature_behind_a_target_is_found(temperature: float) -> None:
    logits = 5 * torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    found = fit_temperature(logits, (logits / temperature).softmax(dim=1))
    assert found == pytest.approx(temperature, rel=0.08)


@pytest.mark.parametrize("seed", range(5))
def test_a_branch_five_times_as_loud_gets_five_times_the_temperature(seed: int) -> None:
    plain = two_branches(seed)
    point, image = calibrate(plain)
    assert calibrate(plain._replace(point=5 * plain.point)) == pytest.approx((5 * point, image), rel=0.13)
    assert calibrate(plain._replace(image=5 * plain.image)) == pytest.approx((point, 5 * image), rel=0.13)


def test_the_branch_that_is_sure_and_wrong_is_softened_more() -> None:
    draw = torch.Generator().manual_seed(0)
    truth = torch.randint(5, (600,), generator=draw)
    point = 8 * torch.nn.functional.one_hot(truth, 5).float()
    wrong = torch.rand(600, generator=draw) < 0.4
    guess = torch.where(wrong, torch.randint(5, (600,), generator=draw), truth)
    sure_and_wrong = 40 * torch.nn.functional.one_hot(guess, 5).float()
    of_point, of_image = calibrate(Diagnosis(torch.arange(600), point, sure_and_wrong))
    assert of_image > 2 * of_point


def test_agreement_and_churn_are_shares() -> None:
    point, image = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    assert agreement(point, image).share == 0.5
    assert agreement(point, image).beyond_chance == pytest.approx(1 / 3)
    assert agreement(point[[0] * 4], point[[0] * 4]) == (1.0, 0.0)  # always one class: it tells nothing
    assert churn(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0])) == 0.25
    assert churn(torch.arange(5), torch.arange(5)) == 0.0


def slow_mutual_information(rows: Tensor) -> float:
    table = rows.double().tolist()
    count, classes = len(table), len(table[0])
    mean = [sum(row[c] for row in table) / count for c in range(classes)]

    def entropy(shares: list[float]) -> float:
        return -sum(share * math.log(share) for share in shares if share > 0)

    return (entropy(mean) - sum(entropy(row) for row in table) / count) / math.log(classes)


@given(seed=st.integers(0, 1000), sharpness=st.floats(0, 30))
@FEW
def test_mutual_information(seed: int, sharpness: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    probabilities = (sharpness * torch.randn(20, 4, generator=draw)).softmax(dim=1)
    found = mutual_information(probabilities)
    assert found == pytest.approx(slow_mutual_information(probabilities), abs=1e-6)
    assert -1e-6 <= found <= 1 + 1e-6


def test_mutual_information_wants_sure_predictions_of_every_class() -> None:
    assert mutual_information(torch.eye(4)) == pytest.approx(1, abs=1e-6)
    assert mutual_information(torch.full((4, 4), 0.25)) == pytest.approx(0, abs=1e-6)
    assert mutual_information(torch.eye(4)[[2, 2, 2]]) == pytest.approx(0, abs=1e-6)


def a_batch(count: int, views: int, seed: int) -> PlainBatch:
    draw = torch.Generator().manual_seed(seed)
    points = PointBatch(
        torch.randn(count, 40, 3, generator=draw), torch.randint(20, 41, (count,), generator=draw)
    )
    pixels = torch.randn(count, views, 3, 28, 28, generator=draw)
    return PlainBatch(torch.arange(count) + 100 * seed, points, ViewBatch.of(pixels))


def test_the_logits_of_the_views_are_averaged_not_their_embeddings(
    make_student: Callable[..., Student],
) -> None:
    student = make_student().eval()
    views = a_batch(2, 3, 0).views
    assert views is not None
    with torch.no_grad():
        each = student.classify(student.embed_image(student.image_features(views.pixels)))
        found = image_logits(student, views)
    expected = torch.stack([each[0] + each[1] + each[2], each[3] + each[4] + each[5]]) / 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_object_is_classified_alike_beside_one_with_more_views(
    make_student: Callable[..., Student],
) -> None:
    student = make_student().eval()
    many, few = torch.randn(2, 3, 3, 28, 28, generator=torch.Generator().manual_seed(0)).unbind()
    points = a_batch(2, 1, 0).points
    alone = PlainBatch(torch.arange(1), PointBatch(*(part[1:] for part in points)), ViewBatch.of([few[:2]]))
    beside = PlainBatch(torch.arange(2), points, ViewBatch.of([many, few[:2]]))
    found = [diagnose(student, [batch], torch.device("cpu")).image for batch in (alone, beside)]
    assert found[0] is not None
    assert found[1] is not None
    torch.testing.assert_close(found[0][0], found[1][1], rtol=1e-4, atol=1e-4)


def test_clouds_are_cut_as_the_card_says(make_student: Callable[..., Student]) -> None:
    student, (points, sizes) = make_student().eval(), a_batch(3, 1, 1).points
    card = student.point_encoder.card.model_copy(update={"radius": 0.5})
    student.point_encoder.card = card
    with torch.no_grad():
        groups = group(points, card.groups, card.neighbors, sizes, radius=0.5)
        expected = student.classify(student.embed_point(student.point_features(groups)))
        found = point_logits(student, (points, sizes))
    torch.testing.assert_close(found, expected)


def test_diagnose_sees_every_usable_batch_in_order_and_takes_no_gradient(
    make_student: Callable[..., Student],
) -> None:
    student = make_student().eval()
    first, second = a_batch(3, 2, 1), a_batch(2, 2, 2)
    found = diagnose(student, [first, None, second], CPU)
    assert found.indices.tolist() == [100, 101, 102, 200, 201]
    assert found.point.shape == found.image.shape == (5, 5)
    assert not found.point.requires_grad
    assert not found.image.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(found.point[3:], point_logits(student, second.points))


def test_a_clouds_logits_do_not_depend_on_its_neighbours_in_the_batch(
    make_student: Callable[..., Student],
) -> None:
    student, batch = make_student().eval(), a_batch(4, 1, 3)
    with torch.no_grad():
        together = point_logits(student, batch.points)
        for row, size in enumerate(batch.points.sizes.tolist()):
            alone = PointBatch(batch.points.points[row : row + 1, :size], torch.tensor([size]))
            torch.testing.assert_close(point_logits(student, alone)[0], together[row], rtol=1e-4, atol=1e-3)
