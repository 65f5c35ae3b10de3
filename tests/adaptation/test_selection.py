"""Choosing a checkpoint and noticing collapse from predictions alone."""

import inspect

import pytest
import torch

from crossmost.adaptation.diagnosis import Diagnosis, agreement, mutual_information
from crossmost.adaptation.selection import collapsed, effective_classes, histogram, score
from crossmost.config import Mode


def test_histogram_counts_every_class_even_the_unused() -> None:
    counts = histogram(torch.tensor([3, 1, 3, 3]), 5)
    assert counts.tolist() == [0, 1, 0, 3, 0]
    assert counts.dtype == torch.int64
    assert histogram(torch.zeros(0, dtype=torch.int64), 2).tolist() == [0, 0]


@pytest.mark.parametrize("classes", [1, 2, 10, 42])
def test_effective_classes_of_an_even_use_is_their_number(classes: int) -> None:
    assert effective_classes(torch.full((classes,), 7)) == pytest.approx(classes)


def test_effective_classes_ignores_unused_classes_and_discounts_rare_ones() -> None:
    assert effective_classes(torch.tensor([5, 0, 0, 0])) == pytest.approx(1)
    assert effective_classes(torch.tensor([5, 5, 0, 0])) == pytest.approx(2)
    assert 1 < effective_classes(torch.tensor([99, 1])) < 1.1


def test_collapse_is_measured_against_what_zero_shot_used() -> None:
    even = torch.full((10,), 20)
    assert collapsed(torch.tensor([200] + [0] * 9), even)
    assert not collapsed(even, even)
    assert not collapsed(torch.tensor([50] * 4 + [0] * 6), torch.tensor([50] * 5 + [0] * 5))
    one_class = torch.tensor([200] + [0] * 9)
    assert not collapsed(one_class, one_class)  # a set of one class is no collapse


def test_the_score_rises_with_agreement_and_with_information() -> None:
    sure, index = 20 * torch.eye(6), torch.arange(6)
    apart = sure.roll(1, dims=0)
    p, flat = sure.softmax(1), torch.full((6, 6), 1 / 6)
    good = score(Diagnosis(index, sure, sure), p, p, "joint")
    assert good == pytest.approx(2, abs=1e-3)
    assert score(Diagnosis(index, sure, apart), p, apart.softmax(1), "joint") < good
    assert score(Diagnosis(index, sure, sure), flat, flat, "joint") < good
    one = sure[[0] * 6]
    assert score(Diagnosis(index, one, one), one.softmax(1), one.softmax(1), "joint") < good  # collapsed
    half = Diagnosis(index, sure, torch.cat([sure[:3], apart[3:]]))
    expected = agreement(half.point, half.image).share + mutual_information((p + half.image.softmax(1)) / 2)
    assert score(half, p, half.image.softmax(1), "separate") == pytest.approx(expected)


UNEVEN = torch.tensor([0.91] + [0.01] * 9)


@pytest.mark.parametrize("mode", ["joint", "point-only", "image-only"])
def test_expected_shares_make_the_teacher_that_is_right_the_better_one(mode: Mode) -> None:
    truth = torch.tensor([0] * 91 + list(range(1, 10)))
    halfway = truth.clone()
    halfway[:40] = torch.arange(40) % 9 + 1  # as even as a wrong zero-shot is
    right, wrong = (20 * torch.eye(10)[labels] for labels in (truth, halfway))

    def looks(logits: torch.Tensor, prior: torch.Tensor | None) -> float:
        posterior = logits.softmax(1)
        return score(Diagnosis(torch.arange(100), logits, logits), posterior, posterior, mode, prior)

    assert looks(right, UNEVEN) > looks(wrong, UNEVEN)
    assert looks(right, None) < looks(wrong, None)
    even = torch.full((10,), 0.1)
    assert looks(wrong, even) == pytest.approx(looks(wrong, None), abs=1e-6)


def test_what_was_expected_is_no_collapse() -> None:
    at_first, truth = torch.tensor([51] + [5] * 9), torch.tensor([91] + [1] * 9)
    assert collapsed(truth, at_first)
    assert not collapsed(truth, at_first, UNEVEN)
    assert collapsed(torch.tensor([100] + [0] * 9), at_first, torch.full((10,), 0.1))


@pytest.mark.parametrize(("mode", "own"), [("point-only", 0), ("image-only", 1)])
def test_a_branch_that_is_not_trained_does_not_count(mode: Mode, own: int) -> None:
    sure, index = 20 * torch.eye(6), torch.arange(6)
    flat = torch.full((6, 6), 1 / 6)
    posteriors = [flat, flat]
    posteriors[own] = sure.softmax(1)
    assert score(Diagnosis(index, sure, sure), *posteriors, mode) == pytest.approx(1, abs=1e-3)


def test_the_score_takes_predictions_and_nothing_else() -> None:
    assert list(inspect.signature(score).parameters) == ["diagnosis", "point", "image", "mode", "prior"]
