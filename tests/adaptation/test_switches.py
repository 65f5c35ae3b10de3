"""Every switch of METHOD 7, flipped alone from the published recipe: what changes in a run, and what must not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from crossmost.adaptation import trainer as module
from crossmost.adaptation.diagnosis import Diagnosis
from crossmost.adaptation.pseudo_labels import PseudoLabels
from crossmost.adaptation.step import weight
from crossmost.adaptation.trainer import Record, Trainer
from crossmost.checkpoints.run import Run
from crossmost.config import SWITCHES, TrainConfig, recipe_values
from crossmost.data.dataset import CloudDataset
from crossmost.data.samples import TrainingBatch
from crossmost.models.student import Student

Start = Callable[..., Trainer]
Facts = dict[str, Any]
Flip = Callable[[str | None], Facts]
TERMS = ("self_training", "fairness", "reconstruction", "global_local")
POINT, IMAGE = ({f"terms/{term}/{branch}" for term in TERMS} for branch in ("point", "image"))
SELF_TRAINING = {"terms/self_training/point", "terms/self_training/image"}
BEGINNING = {
    "recipe": "reference", "warmup_epochs": 1.0, "threshold_joint": 0.6, "epochs": 3, "batch_size": 12, "seed": 1,
}  # fmt: skip

EXPECTED: dict[str, set[str]] = {
    "point_target": {"terms/reconstruction/point"},
    "image_divisor": {"terms/reconstruction/image"},
    "alignment": {"terms/alignment"},
    "joint_label": {"temperatures", "posteriors"},
    "center": {"centers", "posteriors", "terms/alignment", "terms/fairness/point", "terms/fairness/image",
               "second batch/fairness/point", "second batch/fairness/image"},
    "anchor": {"held to the base"},
    "threshold": {"thresholds", "kept", *SELF_TRAINING},
    "teacher_views": {"samples/weak_views", "posteriors"},
    "batch_norm": {"statistics", "terms/alignment", *POINT, "second batch/fairness/point"},
    "classifier": {"weight decay", "class weights"},
    "ema_ramp": {"decay"},
    "fairness": {"second batch/fairness/point", "second batch/fairness/image"},
    "selection": {"chosen"},
    "rendered_views": {"samples/strong_view", "terms/alignment", *IMAGE, "second batch/fairness/image"},
    "dropped_points": {"samples/strong_points", "terms/alignment", *POINT, "second batch/fairness/point"},
    "exported": {"exported"},
    "collapse": {"ends after"},
}  # fmt: skip
"""What of `observe` each switch changes."""

LABELS = {"labels", "kept", *SELF_TRAINING}
"""What may follow from other posteriors."""

ROUNDED = {"classifier", "fairness"}
"""Where the repair is the published value at the start but for its last bit: a unit column divided by its length,
the average of a batch's mean with itself."""


class EnoughError(Exception):
    """Two batches are all there is to see."""


def observe(start: Start, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Facts:
    """The beginning of a run of the reference recipe, some of its options changed.

    The learning rate of the first step is zero: both batches meet the same student.
    """
    settings = BEGINNING | options
    trainer = start(**settings)
    class_weights = stretched_class_weights(trainer.student)
    statistics = trainer.student.point_encoder.encoder.first_conv[1].running_mean.clone()
    (batch, labels, logits), batches, decays, shares = two_batches(trainer, monkeypatch)
    samples = {
        "samples/weak_points": torch.cat([part.flatten() for part in batch.weak_points]),
        "samples/weak_views": batch.weak_views.pixels,
        "samples/strong_points": torch.cat([part.flatten() for part in batch.strong_points]),
        "samples/strong_view": batch.strong_view,
    }
    terms = {name: value for name, value in batches[0].items() if name.startswith("loss/")}
    fairness = {name: value for name, value in batches[1].items() if name.startswith("loss/fairness")}
    encoder = trainer.student.point_encoder.encoder
    return {
        **samples,
        **{name.replace("loss/", "terms/"): value for name, value in terms.items()},
        **{name.replace("loss/", "second batch/"): value for name, value in fairness.items()},
        "posteriors": torch.cat(trainer.labeler.posteriors(*logits)),
        "temperatures": trainer.labeler.temperatures,
        "thresholds": torch.cat(list(trainer.labeler.thresholds.values())),
        "labels": labels.point.label,
        "kept": labels.point.kept,
        "same label for both": torch.equal(labels.point.label, labels.image.label),
        "weights": {name: weight(name.removeprefix("loss/"), trainer.config) for name in terms},
        "multipliers": grouped(trainer, "multiplier"),
        "weight decay": grouped(trainer, "weight_decay"),
        "rates": [group["lr"] for group in trainer.optimizer.param_groups],
        "class weights": class_weights,
        "statistics": not torch.equal(statistics, encoder.first_conv[1].running_mean),
        "decay": decays,
        "held to the base": shares,
        "centers": torch.stack([trainer.student.point_center, trainer.teacher.image_center]),
        "chosen": chosen_epoch(start, monkeypatch, settings),
        "ends after": last_epoch(start, monkeypatch, settings),
        "exported": exported(trainer),
    }


First = tuple[TrainingBatch, PseudoLabels, tuple[Tensor, Tensor]]


def two_batches(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> tuple[First, list[Record], list[float], list[float]]:
    """What the first step gets (with the teacher's logits), what two steps report, how the teacher follows.

    How it follows: its decay, and which share of the student's way from the base counts.
    """
    steps: list[First] = []
    batches: list[Record] = []
    decays: list[float] = []
    shares: list[float] = []
    terms, update = module.loss_terms, module.update_teacher

    def loss_terms(student: Student, batch: TrainingBatch, labels: PseudoLabels, *rest: Any) -> Any:
        steps.append((batch, labels, logits_of(trainer.teacher, batch)))
        return terms(student, batch, labels, *rest)

    def update_teacher(
        teacher: Student, student: Student, decay: float, base: dict[str, Tensor] | None, share: float
    ) -> None:
        decays.append(decay)
        shares.append(1.0 if base is None else share)
        update(teacher, student, decay, base, share)

    def note(figures: Record) -> None:
        batches.append(figures)
        if len(batches) == 2:
            raise EnoughError

    with monkeypatch.context() as patch:
        patch.setattr(module, "loss_terms", loss_terms)
        patch.setattr(module, "update_teacher", update_teacher)
        with pytest.raises(EnoughError):
            trainer.fit(note, lambda _: None)
    return steps[0], batches, decays, shares


@torch.no_grad()
def logits_of(teacher: Student, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    return module.point_logits(teacher, batch.weak_points), module.image_logits(teacher, batch.weak_views)


def grouped(trainer: Trainer, entry: str) -> dict[str, float]:
    """An entry of each parameter's group, by the parameter's name."""
    names = {id(parameter): name for name, parameter in trainer.student.named_parameters()}
    return {
        names[id(parameter)]: group[entry]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }


@torch.no_grad()
def stretched_class_weights(student: Student) -> Tensor:
    """Theta as the logits use it, after training has stretched its first column by half."""
    before = student.classifier.clone()
    student.classifier[:, 0] *= 1.5
    stretched = student.class_weights().clone()
    student.classifier.copy_(before)
    return stretched


def scripted_run(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    reviews: list[tuple[Tensor, Tensor]],
) -> Trainer:
    """A run of epochs without batches whose reviews find the given logits of both branches."""
    waiting = iter(reviews)
    with monkeypatch.context() as patch:
        patch.setattr(module, "classified", lambda *_: Diagnosis(torch.arange(24), *next(waiting)))
        patch.setattr(module, "training_batches", lambda *_: iter(()))
        trainer = start(**{**settings, "epochs": len(reviews) - 1, "center": "none"})
        trainer.fit(lambda _: None, lambda _: None)
    return trainer


def sure_of(classes: list[int]) -> Tensor:
    return 10 * torch.nn.functional.one_hot(torch.tensor(classes), 4).float()


EVEN = sure_of([0, 1, 2, 3] * 6)


def chosen_epoch(start: Start, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> int:
    """Which epoch is chosen where the branches agree best after the second of three."""
    partly, hardly = sure_of([0, 1, 2, 0] * 6), EVEN.roll(1, dims=1)
    reviews = [(EVEN, hardly), (EVEN, partly), (EVEN, EVEN), (EVEN, partly)]
    return scripted_run(start, monkeypatch, settings, reviews).progress.best_epoch


def last_epoch(start: Start, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> int:
    """How long a run goes on whose labels collapse in the first of three epochs."""
    one = sure_of([2] * 24)
    reviews = [(EVEN, EVEN), (one, one), (one, one), (EVEN, EVEN)]
    return int(scripted_run(start, monkeypatch, settings, reviews).progress.records[-1]["epoch"])


def exported(trainer: Trainer) -> str:
    run = object.__new__(Run)
    for name in ("config", "student", "teacher"):
        object.__setattr__(run, name, getattr(trainer, name))
    return "student" if run.adapted is trainer.student else "teacher"


def differ(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return not torch.equal(one, other)
    return bool(one != other)


def repaired(switch: str) -> Any:
    return TrainConfig.model_fields[switch].default


@pytest.fixture(scope="module")
def observed() -> dict[str | None, Facts]:
    """What was observed so far, by the switch that was flipped."""
    return {}


@pytest.fixture
def flip(start: Start, monkeypatch: pytest.MonkeyPatch, observed: dict[str | None, Facts]) -> Flip:
    """The beginning of a run of the reference recipe with one switch flipped, or none."""

    def find(switch: str | None) -> Facts:
        if switch not in observed:
            options = {} if switch is None else {switch: repaired(switch)}
            observed[switch] = observe(start, monkeypatch, **options)
        return observed[switch]

    return find


@pytest.fixture
def published_facts(flip: Flip) -> Facts:
    return flip(None)


def test_every_switch_is_tested_here_and_is_a_switch() -> None:
    assert EXPECTED.keys() == SWITCHES.keys()
    for name, value in SWITCHES.items():
        assert repaired(name) != value
        assert recipe_values("reference")[name] == value


def test_what_is_observed_is_the_same_twice(
    start: Start, monkeypatch: pytest.MonkeyPatch, published_facts: Facts
) -> None:
    again = observe(start, monkeypatch)
    assert not {name for name in again if differ(published_facts[name], again[name])}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_what_it_says_and_nothing_else(
    flip: Flip, published_facts: Facts, switch: str
) -> None:
    before, after = published_facts, flip(switch)
    assert before.keys() == after.keys()
    changed = {name for name in before if differ(before[name], after[name])}
    if switch in ROUNDED:
        for name in sorted(changed - EXPECTED[switch]):
            torch.testing.assert_close(torch.as_tensor(after[name]), torch.as_tensor(before[name]))
        changed &= EXPECTED[switch]
    followed = LABELS if "posteriors" in EXPECTED[switch] else set()
    assert EXPECTED[switch] <= changed <= EXPECTED[switch] | followed


def test_image_divisor_is_the_channels_and_no_longer_the_sequence(flip: Flip, published_facts: Facts) -> None:
    before, after = (
        facts["terms/reconstruction/image"] for facts in (published_facts, flip("image_divisor"))
    )
    assert after / before == pytest.approx((1 + 4) / 3)  # 2 x 2 patches and the class token


def test_joint_label_averages_calibrated_posteriors(flip: Flip, published_facts: Facts) -> None:
    after = flip("joint_label")
    assert after["temperatures"] != (1.0, 1.0)
    point, image = after["posteriors"].chunk(2)
    assert torch.equal(after["labels"], (point + image).argmax(dim=1))
    assert not torch.equal(after["labels"], published_facts["labels"])


def test_the_published_joint_label_is_the_surer_branchs(published_facts: Facts) -> None:
    assert published_facts["temperatures"] == (1.0, 1.0)
    point, image = (part.max(dim=1) for part in published_facts["posteriors"].chunk(2))
    surer = torch.where(point.values >= image.values, point.indices, image.indices)
    assert torch.equal(published_facts["labels"], surer)
    assert torch.equal(published_facts["kept"], torch.maximum(point.values, image.values) > 0.6)


def test_threshold_keeps_the_same_share_of_every_class(start: Start, flip: Flip) -> None:
    after = flip("threshold")
    assert len(after["thresholds"].unique()) > 3
    trainer = start(recipe="reference", threshold="adaptive", kept_share=0.5, epochs=1)
    trainer.fit(lambda _: None, lambda _: None)
    first = trainer.progress.watched[0]
    predicted = first.where(first >= 0, -1 - first)
    for label in predicted.unique().tolist():
        of_class = first[predicted == label]
        assert int((of_class >= 0).sum()) == max(1, round(0.5 * len(of_class)))


def test_center_is_the_mean_of_what_the_branches_project(flip: Flip, published_facts: Facts) -> None:
    assert not published_facts["centers"].any()
    assert flip("center")["centers"].any(dim=1).all()


def test_anchor_holds_the_teacher_half_way_to_the_base(flip: Flip, published_facts: Facts) -> None:
    assert published_facts["held to the base"] == [1.0, 1.0]
    assert flip("anchor")["held to the base"] == [0.5, 0.5]


def test_teacher_views_are_all_of_them(flip: Flip, published_facts: Facts) -> None:
    after = flip("teacher_views")
    assert published_facts["samples/weak_views"].shape == (12, 3, 16, 16)
    assert after["samples/weak_views"].shape == (24, 3, 16, 16)


def test_batch_norm_stands_still(flip: Flip, published_facts: Facts) -> None:
    assert published_facts["statistics"]
    assert not flip("batch_norm")["statistics"]


def test_classifier_spares_the_temperature_and_keeps_its_columns_at_unit_length(
    flip: Flip, published_facts: Facts
) -> None:
    after = flip("classifier")
    decay, spared = published_facts["weight decay"], after["weight decay"]
    assert {name for name in decay if decay[name] != spared[name]} == {"logit_scale"}
    assert (decay["logit_scale"], spared["logit_scale"]) == (0.05, 0.0)
    lengths = published_facts["class weights"].norm(dim=0)
    torch.testing.assert_close(lengths, torch.tensor([1.5, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(after["class weights"].norm(dim=0), torch.ones(4))


def test_ema_ramp_follows_the_size_of_the_data(flip: Flip, published_facts: Facts) -> None:
    assert published_facts["decay"] == pytest.approx([0.99, 0.99 + 0.0098 / 400])
    # 2 steps an epoch: a teacher that remembers two epochs forgets a quarter of itself each step
    assert flip("ema_ramp")["decay"] == pytest.approx([3 / 4, 3 / 4])


def test_selection_takes_the_best_and_no_longer_the_last(flip: Flip, published_facts: Facts) -> None:
    assert published_facts["chosen"] == 2
    assert flip("selection")["chosen"] == 1


def test_collapse_ends_the_run(flip: Flip, published_facts: Facts) -> None:
    assert published_facts["ends after"] == 2
    assert flip("collapse")["ends after"] == 0


def test_the_teacher_is_exported(flip: Flip, published_facts: Facts) -> None:
    assert published_facts["exported"] == "student"
    assert flip("exported")["exported"] == "teacher"


def test_the_two_recipes_differ_in_the_switches_and_in_the_strong_clouds() -> None:
    crossmost = TrainConfig().model_dump()
    reference = TrainConfig(**recipe_values("reference")).model_dump()
    differing = {name for name in crossmost if crossmost[name] != reference[name]}
    published_clouds = {"strong_scale", "strong_translation", "strong_dropout"}
    assert differing == {"recipe", *SWITCHES, *published_clouds}


@pytest.mark.parametrize(
    "option",
    [{"strong_scale": (0.9, 1.0)}, {"strong_translation": 0.0}, {"strong_dropout": 0.1}],
    ids=lambda option: next(iter(option)),
)
@pytest.mark.parametrize("recipe", ["crossmost", "reference"])
def test_the_strength_of_augmentation_can_be_chosen_in_both_recipes(
    start: Start, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any], recipe: str
) -> None:
    plain, chosen = (two_batches(start(recipe=recipe, **o), monkeypatch)[0][0] for o in ({}, option))
    ignored = torch.equal(plain.strong_points.points, chosen.strong_points.points)
    assert not ignored


class TestStart:
    """METHOD 6.2, through the loop."""

    @pytest.fixture
    def student(self, make_student: Callable[..., Student]) -> Student:
        """Its classifier cannot tell the classes apart; 14 x 14 image patches."""
        one_name = torch.nn.functional.normalize(torch.randn(1, 8), dim=1).expand(5, 8)
        return make_student(embeddings=one_name)

    @pytest.fixture
    def trainer(
        self, student: Student, shapes: CloudDataset, tiny_config: Callable[..., TrainConfig]
    ) -> Trainer:
        return Trainer(student, shapes.unlabelled(), tiny_config(recipe="reference", warmup_epochs=1.0))

    def test_the_terms(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        assert float(trainer.student.logit_scale.detach().exp()) == pytest.approx(100, rel=1e-4)
        _, batches, decays, _ = two_batches(trainer, monkeypatch)
        for figures in batches:
            for branch in ("point", "image"):
                assert figures[f"loss/fairness/{branch}"] == pytest.approx(math.log(5), abs=1e-3)
                assert 0 <= figures[f"loss/global_local/{branch}"] <= 4
                assert figures[f"loss/self_training/{branch}"] == 0  # no class is sure enough
            assert figures["kept"] == 0
            least = math.log(1 + 7 * math.exp(-2))  # of 8 in a batch, all negatives at -1
            assert least <= figures["loss/alignment"] / 2 <= math.log(8) + 2
        assert decays[0] == pytest.approx(0.99)

    def test_the_masks(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        hidden: dict[str, list[int]] = {"image": [], "point": []}
        student = trainer.student
        student.image_tower.register_forward_pre_hook(
            lambda _, inputs: hidden["image"].extend(inputs[1].flatten(1).sum(dim=1).tolist())
        )
        student.point_encoder.register_forward_pre_hook(
            lambda _, inputs: hidden["point"].extend(inputs[2].sum(dim=1).tolist())
        )
        two_batches(trainer, monkeypatch)
        assert hidden["image"] == [60] * 16  # of 196
        assert len(hidden["point"]) == 16
        assert set(hidden["point"]) <= {3, 4}  # int(10 r), r in [.3, .4)

    def test_the_teacher_sees_everything(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        masks = []
        for tower in (trainer.teacher.image_tower, trainer.teacher.point_encoder):
            tower.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[-1]))
        two_batches(trainer, monkeypatch)
        assert masks
        assert all(mask is None for mask in masks)
