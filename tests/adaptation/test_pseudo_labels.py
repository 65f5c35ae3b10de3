"""Pseudo-labels: METHOD 1.6 sample by sample, and the label-free dials of METHOD 7."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmost.adaptation.diagnosis import Diagnosis
from crossmost.adaptation.pseudo_labels import (
    Labeler,
    Labels,
    agreed,
    average,
    class_thresholds,
    most_likely,
    winner,
)
from crossmost.config import TrainConfig

FEW = settings(max_examples=25, deadline=None)

Published = Callable[..., TrainConfig]


def posteriors(seed: int, count: int = 40, classes: int = 6, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, classes, generator=draw)
    point, image = (shared + torch.randn(count, classes, generator=draw) for _ in range(2))
    return (sharpness * point).softmax(1), (sharpness * image).softmax(1)


def as_logits(*rows: list[float]) -> Tensor:
    """Logits whose softmax is these rows."""
    return torch.tensor(rows).log()


def a_diagnosis(seed: int, count: int = 300, classes: int = 5) -> Diagnosis:
    point, image = posteriors(seed, count, classes)
    return Diagnosis(torch.arange(count), point.log(), image.log())


@given(seed=st.integers(0, 10_000), beta=st.sampled_from([0.9, 1.0]))
@FEW
def test_the_more_confident_branch_names_the_class(reference: ModuleType, seed: int, beta: float) -> None:
    point, image = posteriors(seed)
    found = winner(point, image, beta)
    for row, (label, confidence, tie) in enumerate(
        reference.winner(reference.f64(point), reference.f64(image), beta)
    ):
        assert float(found.confidence[row]) == pytest.approx(confidence, rel=1e-6)
        if not tie:
            assert int(found.label[row]) == label


def test_beta_holds_the_point_branch_back() -> None:
    point, image = torch.tensor([[0.95, 0.05]]), torch.tensor([[0.1, 0.9]])
    assert winner(point, image, 1.0).label.tolist() == [0]
    assert winner(point, image, 0.9).label.tolist() == [1]  # .855 < .9
    certain = torch.tensor([[1.0, 0.0]])
    assert winner(certain, torch.tensor([[0.0999, 0.9001]]), 0.9).label.tolist() == [1]


@pytest.mark.parametrize(("point_class", "image_class"), [(2, 3), (4, 4), (0, 1)])
def test_a_tie_gives_one_branchs_class_and_never_their_sum(point_class: int, image_class: int) -> None:
    """Both softmaxes saturated to 1.0: the published code adds the two indices."""
    point, image = torch.eye(5)[[point_class]], torch.eye(5)[[image_class]]
    found = winner(point, image, 1.0)
    assert found.label.tolist() == [point_class]
    assert found.confidence.tolist() == [1.0]


def test_a_tie_of_saturated_logits_through_the_labeler(published: Published) -> None:
    labels = Labeler(published(point_confidence=1.0), 4)(100 * torch.eye(4)[[2]], 100 * torch.eye(4)[[3]])
    assert labels.point.label.tolist() == labels.image.label.tolist() == [2]
    assert labels.point.kept.tolist() == [True]


def test_the_threshold_is_strict(published: Published) -> None:
    labeler = Labeler(published(threshold_joint=0.5, joint_label="winner"), 2)
    even, more = as_logits([0.5, 0.5]), as_logits([0.5001, 0.4999])
    assert labeler(even, even).point.kept.tolist() == [False]
    assert labeler(more, even).point.kept.tolist() == [True]


def test_a_point_prediction_has_to_exceed_the_threshold_over_beta(published: Published) -> None:
    labeler = Labeler(published(threshold_joint=0.84, point_confidence=0.9), 2)
    unsure = as_logits([0.5, 0.5], [0.5, 0.5])
    kept = labeler(as_logits([0.93, 0.07], [0.935, 0.065]), unsure).point.kept
    assert kept.tolist() == [False, True]  # raw confidence above .9333
    assert labeler(unsure, as_logits([0.93, 0.07], [0.935, 0.065])).image.kept.tolist() == [True, True]


@pytest.mark.parametrize("joint_label", ["winner", "average"])
def test_joint_labels_are_the_same_target_for_both_branches(published: Published, joint_label: str) -> None:
    point, image = posteriors(0)
    labels = Labeler(published(joint_label=joint_label), 6)(point.log(), image.log())
    assert torch.equal(labels.point.label, labels.image.label)
    assert torch.equal(labels.point.kept, labels.image.kept)


@given(seed=st.integers(0, 10_000))
@FEW
def test_the_published_joint_label_end_to_end(reference: ModuleType, published: Published, seed: int) -> None:
    point, image = posteriors(seed)
    labeler = Labeler(published(threshold_joint=0.84, point_confidence=0.9), 6)
    found = labeler(point.log(), image.log()).image
    answers = reference.winner(reference.f64(point), reference.f64(image), 0.9)
    for row, (label, confidence, tie) in enumerate(answers):
        if abs(confidence - 0.84) > 1e-5:
            assert bool(found.kept[row]) == (confidence > 0.84)
        if not tie:
            assert int(found.label[row]) == label


@given(seed=st.integers(0, 10_000))
@FEW
def test_average_is_the_label_of_the_mean_posterior(reference: ModuleType, seed: int) -> None:
    point, image = posteriors(seed)
    mean = (reference.f64(point) + reference.f64(image)) / 2
    found = average(point, image)
    assert found.label.tolist() == mean.argmax(axis=1).tolist()
    np.testing.assert_allclose(found.confidence.numpy(), mean.max(axis=1), rtol=1e-6)


def test_the_average_can_name_a_class_that_neither_branch_prefers() -> None:
    point, image = torch.tensor([[0.5, 0.45, 0.05]]), torch.tensor([[0.05, 0.45, 0.5]])
    assert average(point, image).label.tolist() == [1]


@given(seed=st.integers(0, 10_000))
@FEW
def test_agreement_keeps_equal_labels_of_at_least_little_confidence(reference: ModuleType, seed: int) -> None:
    point, image = posteriors(seed, classes=8, sharpness=0.3)
    assert not agreed(point, image, point_confidence=1e-3).point.kept.any()
    found = agreed(point, image)
    for row, (label, kept) in enumerate(reference.agreement(reference.f64(point), reference.f64(image))):
        assert bool(found.point.kept[row]) == bool(found.image.kept[row]) == kept
        assert int(found.point.label[row]) == label
        assert not kept or int(found.image.label[row]) == label


def test_agreement_mode_has_no_threshold(published: Published) -> None:
    labeler = Labeler(
        published(mode="agreement", threshold_joint=1.0, threshold_point=1.0, threshold_image=1.0), 3
    )
    sure, other = as_logits([0.5, 0.25, 0.25]), as_logits([0.25, 0.5, 0.25])
    assert labeler(sure, sure).point.kept.tolist() == [True]
    assert labeler(sure, other).point.kept.tolist() == [False]


@pytest.mark.parametrize("mode", ["separate", "point-only", "image-only"])
def test_without_joint_labels_each_branch_learns_its_own_at_its_own_threshold(
    published: Published, mode: str
) -> None:
    config = published(
        mode=mode, threshold_point=0.7, threshold_image=0.9, threshold_joint=0.0, point_confidence=0.5
    )
    point, image = posteriors(3)
    labels = Labeler(config, 6)(point.log(), image.log())
    for targets, own, level in ((labels.point, point, 0.7), (labels.image, image, 0.9)):
        assert torch.equal(targets.label, own.argmax(dim=1))
        assert torch.equal(targets.kept, own.amax(dim=1) > level)
        assert targets.kept.any()


@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 1.0))
@FEW
def test_class_thresholds_keep_the_surest_share_of_each_class(seed: int, share: float) -> None:
    labels = most_likely(posteriors(seed, count=120)[0])
    levels = class_thresholds(labels, 6, share)
    assert levels.shape == (6,)
    for index in range(6):
        own = labels.confidence[labels.label == index]
        kept = own[own > levels[index]]
        if len(own) == 0:
            assert float(levels[index]) == 0
            continue
        assert len(kept) >= 1
        assert abs(len(kept) - share * len(own)) <= max(1.0, 1 - share * len(own))
        rest = own[own <= levels[index]]
        assert len(rest) == 0 or float(kept.min()) > float(rest.max())


def test_a_hard_class_keeps_its_share_where_one_number_would_starve_it() -> None:
    easy, hard = torch.linspace(0.9, 0.99, 10), torch.linspace(0.3, 0.4, 10)
    labels = Labels(torch.tensor([0] * 10 + [1] * 10), torch.cat([easy, hard]))
    kept = labels.confidence > class_thresholds(labels, 2, 0.5)[labels.label]
    assert kept[:10].sum() == kept[10:].sum() == 5


def test_equally_sure_predictions_are_kept_together() -> None:
    labels = Labels(torch.zeros(8, dtype=torch.int64), torch.ones(8))
    assert bool((labels.confidence > class_thresholds(labels, 1, 0.5)[0]).all())


@pytest.mark.parametrize("mode", ["joint", "separate"])
def test_refit_sets_thresholds_that_keep_the_share_it_was_asked_for(published: Published, mode: str) -> None:
    config = published(mode=mode, joint_label="average", threshold="adaptive", kept_share=0.6)
    labeler, diagnosis = Labeler(config, 5), a_diagnosis(0)
    labeler.refit(diagnosis)
    for targets in labeler(diagnosis.point, diagnosis.image):
        assert float(targets.kept.double().mean()) == pytest.approx(0.6, abs=0.02)
        for index in range(5):
            own = targets.kept[targets.label == index]
            assert float(own.double().mean()) == pytest.approx(0.6, abs=0.5 / len(own) + 1e-6)


def agreeing(share: float, count: int = 80, classes: int = 5) -> Diagnosis:
    """Branches that call this share of the clouds the same; they are never equally sure."""
    point = torch.nn.functional.one_hot(torch.arange(count) % classes, classes)
    image = torch.where(torch.arange(count)[:, None] < round(share * count), point, point.roll(1, dims=1))
    sure = torch.linspace(1, 3, count)[:, None]
    return Diagnosis(torch.arange(count), sure * point, sure * image)


@pytest.mark.parametrize(
    ("options", "agreement", "share"),
    [
        ({}, 0.7625, 1.0),  # of five classes, as frequent: a fifth of it is chance, kappa is 0.703
        ({}, 0.75, 0.8),  # 0.6875
        ({}, 1.0, 1.0),
        ({"kept_share": 0.6}, 1.0, 0.6),
        ({"kept_share": 1.0}, 0.1, 1.0),
        ({"mode": "separate"}, 1.0, 0.8),
    ],
)
def test_every_joint_label_is_kept_where_the_branches_agree_well(
    published: Published, options: dict[str, Any], agreement: float, share: float
) -> None:
    config = published(**{"mode": "joint", "joint_label": "average", "threshold": "adaptive", **options})
    labeler, diagnosis = Labeler(config, 5), agreeing(agreement)
    labeler.settle_kept_share(diagnosis)
    assert labeler.kept_share == share
    labeler.refit(diagnosis)
    targets = labeler(diagnosis.point, diagnosis.image).point
    assert float(targets.kept.double().mean()) == pytest.approx(share, abs=0.04)


def test_branches_that_share_a_favourite_class_are_not_trusted_for_it(published: Published) -> None:
    """Nine of ten clouds are called 0 by both, each the rest by itself: they agree on most, and know nothing."""
    said = torch.zeros(2, 100, dtype=torch.int64)
    said[0, :10], said[1, 10:20] = 1, 1
    point, image = torch.nn.functional.one_hot(said, 5).float()
    labeler = Labeler(published(mode="joint", threshold="adaptive"), 5)
    labeler.settle_kept_share(Diagnosis(torch.arange(100), point, image))
    assert labeler.kept_share == 0.8


def test_few_clouds_do_not_tell_how_well_the_branches_agree(published: Published) -> None:
    labeler = Labeler(published(mode="joint", threshold="adaptive"), 5)
    for count, share in ((63, 0.8), (64, 1.0)):
        labeler.settle_kept_share(agreeing(1.0, count))
        assert labeler.kept_share == share


def test_a_branch_alone_agrees_with_nobody(published: Published) -> None:
    labeler = Labeler(published(mode="joint", threshold="adaptive"), 5)
    labeler.settle_kept_share(agreeing(1.0)._replace(image=None))
    assert labeler.kept_share == 0.8


def test_a_state_from_before_shares_were_chosen_keeps_the_runs_own(published: Published) -> None:
    labeler = Labeler(published(mode="joint", threshold="adaptive", kept_share=0.5), 5)
    older = {name: value for name, value in labeler.state().items() if name != "kept_share"}
    labeler.load_state(older)
    assert labeler.kept_share == 0.5


def test_refit_looks_at_logits_only(published: Published) -> None:
    """Nothing but predictions is handed over, and which cloud they came from does not matter."""
    assert Diagnosis._fields == ("indices", "point", "image")
    config = published(joint_label="average", threshold="adaptive")
    one, other, diagnosis = Labeler(config, 5), Labeler(config, 5), a_diagnosis(1)
    one.refit(diagnosis)
    other.refit(diagnosis._replace(indices=torch.zeros(300, dtype=torch.int64)))
    assert one.temperatures == other.temperatures
    assert all(torch.equal(one.thresholds[name], other.thresholds[name]) for name in one.thresholds)


def test_refit_leaves_the_published_dials_alone(published: Published) -> None:
    labeler, diagnosis = Labeler(published(), 5), a_diagnosis(2)
    before = labeler(diagnosis.point, diagnosis.image)
    labeler.refit(diagnosis)
    after = labeler(diagnosis.point, diagnosis.image)
    assert torch.equal(before.point.label, after.point.label)
    assert torch.equal(before.point.kept, after.point.kept)


def test_a_branch_five_times_as_loud_gets_five_times_the_temperature(published: Published) -> None:
    config, diagnosis = published(joint_label="average", threshold="adaptive"), a_diagnosis(3)
    plain, loud = Labeler(config, 5), Labeler(config, 5)
    shouting = diagnosis._replace(image=5 * diagnosis.image)
    plain.refit(diagnosis)
    loud.refit(shouting)
    assert loud.temperatures[1] == pytest.approx(5 * plain.temperatures[1], rel=0.13)
    assert loud.temperatures[0] == pytest.approx(plain.temperatures[0], rel=1e-9)
    calm = plain.posteriors(diagnosis.point, diagnosis.image)[1]
    calmed = loud.posteriors(shouting.point, shouting.image)[1]
    np.testing.assert_allclose(calmed.numpy(), calm.numpy(), atol=0.05)


def test_the_dials_travel_with_the_state(published: Published) -> None:
    config, diagnosis = published(joint_label="average", threshold="adaptive"), a_diagnosis(4)
    fitted, resumed = Labeler(config, 5), Labeler(config, 5)
    fitted.settle_kept_share(agreeing(1.0))
    fitted.refit(diagnosis)
    resumed.load_state(fitted.state())
    assert resumed.kept_share == 1
    for one, other in zip(
        fitted(diagnosis.point, diagnosis.image), resumed(diagnosis.point, diagnosis.image), strict=True
    ):
        assert torch.equal(one.label, other.label)
        assert torch.equal(one.kept, other.kept)


@pytest.mark.parametrize(("switch", "value"), [("joint_label", "average"), ("threshold", "adaptive")])
def test_each_switch_changes_what_it_says_and_nothing_else(
    published: Published, switch: str, value: str
) -> None:
    diagnosis = a_diagnosis(5)
    published_labels, changed = Labeler(published(), 5), Labeler(published(**{switch: value}), 5)
    for labeler in (published_labels, changed):
        labeler.refit(diagnosis)
    was, now = (labeler(diagnosis.point, diagnosis.image).point for labeler in (published_labels, changed))
    assert torch.equal(was.label, now.label) == (switch == "threshold")
    assert not torch.equal(was.kept, now.kept)
    same_dials = all(
        torch.equal(published_labels.thresholds[name], changed.thresholds[name])
        for name in changed.thresholds
    )
    assert same_dials == (switch == "joint_label")
    assert (changed.temperatures == published_labels.temperatures) == (switch == "threshold")
