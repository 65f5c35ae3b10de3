"""A whole student step against METHOD 1.7 to 1.11 in float64, and the state of METHOD 6.2 it starts in."""

import copy
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crossmost.adaptation.masking import image_mask, point_mask
from crossmost.adaptation.optimizer import training_mode
from crossmost.adaptation.pseudo_labels import PseudoLabels, Targets
from crossmost.adaptation.step import Fairness, loss_terms, total, weight
from crossmost.config import TrainConfig
from crossmost.data.samples import PointBatch, TrainingBatch, ViewBatch
from crossmost.models.grouping import group
from crossmost.models.student import Student

MakeStudent = Callable[..., Student]
Published = Callable[..., TrainConfig]
BATCH, CLASSES = 6, 5
BRANCH_TERMS = ("self_training", "fairness", "reconstruction", "global_local")


def a_batch(seed: int = 0, count: int = BATCH) -> TrainingBatch:
    draw = torch.Generator().manual_seed(seed)
    clouds = PointBatch(
        0.4 * torch.randn(count, 50, 3, generator=draw), torch.randint(30, 51, (count,), generator=draw)
    )
    view = torch.randn(count, 3, 28, 28, generator=draw)
    return TrainingBatch(torch.arange(count), clouds, ViewBatch.of(view[:, None]), clouds, view)


def some_labels(seed: int = 0, *, joint: bool = True) -> PseudoLabels:
    draw = torch.Generator().manual_seed(seed)
    point, image = (
        Targets(torch.randint(3, (BATCH,), generator=draw), torch.rand(BATCH, generator=draw) < 0.7)
        for _ in range(2)
    )
    return PseudoLabels(point, point if joint else image)


def fixed_masks(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Have every step hide the same patches: (B, G) of the clouds, (B, 14, 14) of the views."""
    draw = torch.Generator().manual_seed(9)
    of_points, of_image = point_mask(torch.randn(BATCH, 10, 3), draw), image_mask(BATCH, 14, draw)
    monkeypatch.setattr("crossmost.adaptation.step.point_mask", lambda *_: of_points)
    monkeypatch.setattr("crossmost.adaptation.step.image_mask", lambda *_: of_image)
    return of_points, of_image


def terms_of(
    student: Student,
    config: TrainConfig,
    labels: PseudoLabels | None = None,
    batch: TrainingBatch | None = None,
) -> dict[str, Tensor]:
    student = copy.deepcopy(student)
    training_mode(student, config)
    draw = torch.Generator().manual_seed(1)
    return loss_terms(
        student, batch or a_batch(), labels or some_labels(), Fairness(config, CLASSES), config, draw
    )


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in terms.items()}


def exact_terms(
    reference: ModuleType,
    student: Student,
    labels: PseudoLabels,
    masks: tuple[Tensor, Tensor],
    config: TrainConfig,
) -> dict[str, float]:
    """The terms of METHOD 1.7 to 1.10 from a float64 copy's encoders; the rest is the reference's."""
    exact, batch = copy.deepcopy(student).double(), a_batch()
    training_mode(exact, config)
    radius = student.point_encoder.card.radius
    groups = group(batch.strong_points.points, 10, 6, batch.strong_points.sizes, radius=radius)
    with torch.no_grad():
        points = exact.point_encoder(groups.patches.double(), groups.centers.double(), masks[0])
        images = exact.image_tower(batch.strong_view.double(), masks[1])
        normed, pixels = (
            exact.image_tower.ln_patch(images.patches),
            exact.image_tower.reconstruct(images.patches),
        )
        predicted = exact.point_encoder.lm_head(points.patches)
        guessed = exact.point_encoder.patch_head(points.patches)
    f64, p_mask, i_mask = reference.f64, masks[0].numpy(), masks[1].numpy()
    theta, tau = f64(exact.classifier), math.exp(exact.logit_scale.item())
    f_point = np.array([reference.unit(row) for row in f64(points.feature) @ f64(exact.point_projection)])
    f_image = np.array([reference.unit(row) for row in f64(images.cls) @ f64(exact.image_tower.projection)])
    q, w = f64(exact.point_local_projection), f64(exact.image_tower.projection)
    token = f64(exact.point_encoder.mask_token)[0, 0]
    divisor = {"sequence": 197, "channels": 3}[config.image_divisor]
    reconstructed = {
        "mask-token": lambda: reference.mask_token_regression(f64(predicted), token, p_mask),
        "token": lambda: reference.token_regression(f64(predicted), f64(points.tokens), p_mask),
        "patch": lambda: reference.patch_reconstruction(f64(guessed), f64(groups.patches), p_mask),
    }
    return {
        "self_training/point": reference.self_training(tau * f_point @ theta, *map(list, labels.point)),
        "fairness/point": reference.fairness(tau * f_point @ theta),
        "reconstruction/point": reconstructed[config.point_target](),
        "global_local/point": reference.global_local(f64(points.patches) @ q, f64(points.cls) @ q, p_mask),
        "self_training/image": reference.self_training(tau * f_image @ theta, *map(list, labels.image)),
        "fairness/image": reference.fairness(tau * f_image @ theta),
        "reconstruction/image": reference.image_reconstruction(
            f64(pixels), f64(batch.strong_view), i_mask, divisor
        ),
        "global_local/image": reference.global_local(f64(normed) @ w, f_image, i_mask.reshape(BATCH, -1)),
        "alignment": reference.cross_modal(f_point, f_image),
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_every_term_of_the_published_step(
    monkeypatch: pytest.MonkeyPatch,
    make_student: MakeStudent,
    published: Published,
    reference: ModuleType,
    seed: int,
) -> None:
    # tau of 3: at 100 an untrained student gives some classes less than the epsilon of test_losses
    student, labels, config = make_student(seed=seed, tau=3.0), some_labels(seed), published()
    masks = fixed_masks(monkeypatch)
    found = values(terms_of(student, config, labels))
    expected = exact_terms(reference, student, labels, masks, config)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=2e-4)
    brackets = {
        branch: {
            short: expected[f"{name}/{branch}"]
            for short, name in zip(("st", "fair", "mim", "gl"), BRANCH_TERMS, strict=True)
        }
        for branch in ("point", "image")
    }
    whole = reference.total(brackets, expected["alignment"], 1.0, 1.0)
    assert float(total(terms_of(student, config, labels), config).detach()) == pytest.approx(whole, rel=2e-4)


def test_clouds_are_cut_as_the_card_says(
    monkeypatch: pytest.MonkeyPatch, make_student: MakeStudent, published: Published, reference: ModuleType
) -> None:
    student, masks, config = make_student(tau=3.0), fixed_masks(monkeypatch), published()
    nearest = values(terms_of(student, config))
    student.point_encoder.card = student.point_encoder.card.model_copy(update={"radius": 0.3})
    found = values(terms_of(student, config))
    assert found == pytest.approx(exact_terms(reference, student, some_labels(), masks, config), rel=2e-4)
    assert found["global_local/point"] != pytest.approx(nearest["global_local/point"], rel=1e-2)


@pytest.mark.parametrize("target", ["token", "patch"])
def test_the_repaired_point_targets(
    monkeypatch: pytest.MonkeyPatch,
    make_student: MakeStudent,
    published: Published,
    reference: ModuleType,
    target: str,
) -> None:
    student, masks, config = make_student(tau=3.0), fixed_masks(monkeypatch), published(point_target=target)
    found = values(terms_of(student, config))
    assert found == pytest.approx(exact_terms(reference, student, some_labels(), masks, config), rel=2e-4)


def test_each_branch_learns_its_own_labels_where_they_are_separate(
    monkeypatch: pytest.MonkeyPatch, make_student: MakeStudent, published: Published, reference: ModuleType
) -> None:
    student, masks, config = make_student(tau=3.0), fixed_masks(monkeypatch), published(mode="separate")
    labels = some_labels(3, joint=False)
    found = values(terms_of(student, config, labels))
    expected = exact_terms(reference, student, labels, masks, config)
    del expected["alignment"]  # lambda_x is 0 for the baseline
    assert found == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize(("mode", "branch"), [("point-only", "point"), ("image-only", "image")])
def test_one_modality_keeps_one_bracket(
    make_student: MakeStudent, published: Published, mode: str, branch: str
) -> None:
    assert set(terms_of(make_student(), published(mode=mode))) == {
        f"{term}/{branch}" for term in BRANCH_TERMS
    }


@pytest.mark.parametrize(("lambda_point", "lambda_cross"), [(1.0, 1.0), (0.3, 0.0), (2.0, 0.5)])
def test_the_weights_of_the_total(
    published: Published, reference: ModuleType, lambda_point: float, lambda_cross: float
) -> None:
    config = published(point_weight=lambda_point, alignment_weight=lambda_cross)
    draw = np.random.default_rng(0)
    brackets = {
        b: dict(zip(("st", "fair", "mim", "gl"), draw.random(4), strict=True)) for b in ("point", "image")
    }
    terms = {
        f"{name}/{branch}": torch.tensor(brackets[branch][short])
        for branch in brackets
        for short, name in zip(("st", "fair", "mim", "gl"), BRANCH_TERMS, strict=True)
    }
    found = total(terms | {"alignment": torch.tensor(draw.random())}, config)
    cross = (float(found) - reference.total(brackets, 0.0, lambda_point, 0.0)) / (lambda_cross or 1.0)
    assert cross == pytest.approx(np.random.default_rng(0).random(9)[8] if lambda_cross else 0.0, abs=1e-6)
    assert weight("alignment", published()) == 1.0
    assert weight("global_local/point", published()) == weight("global_local/image", published()) == 0.2


def test_a_uniform_classifier_starts_at_ln_c_and_equal_embeddings_at_ln_b(
    make_student: MakeStudent, published: Published
) -> None:
    one_name = torch.nn.functional.normalize(torch.randn(1, 8), dim=1).expand(CLASSES, 8)
    found = values(terms_of(make_student(embeddings=one_name), published()))
    for branch in ("point", "image"):
        assert found[f"self_training/{branch}"] == pytest.approx(math.log(CLASSES), abs=1e-4)
        assert found[f"fairness/{branch}"] == pytest.approx(math.log(CLASSES), abs=1e-4)
    student = make_student()
    with torch.no_grad():  # whatever they see, all clouds embed alike: chance
        student.point_projection.zero_()
        student.point_projection[:16] = student.point_encoder.norm.bias.fill_(1.0)[:, None] * torch.randn(
            1, 8
        )
        student.point_encoder.norm.weight.zero_()
    assert values(terms_of(student, published()))["alignment"] == pytest.approx(2 * math.log(BATCH), abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_reference_recipe_starts_within_the_bounds_of_the_method(
    make_student: MakeStudent, published: Published, seed: int
) -> None:
    found = values(terms_of(make_student(seed=seed), published(), batch=a_batch(seed)))
    for branch in ("point", "image"):
        assert found[f"fairness/{branch}"] >= math.log(CLASSES) - 1e-4
        assert 0 <= found[f"global_local/{branch}"] <= 4
        assert found[f"reconstruction/{branch}"] > 0
    assert found["alignment"] / 2 >= math.log(1 + (BATCH - 1) * math.exp(-2))


def test_the_student_sees_60_of_196_patches_hidden_and_its_clouds_masked(
    make_student: MakeStudent, published: Published
) -> None:
    student, seen = make_student(), {}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, inputs, kwargs: seen.update({name: kwargs.get("mask", inputs[-1])})

    student.image_tower.register_forward_pre_hook(note("image"), with_kwargs=True)
    student.point_encoder.register_forward_pre_hook(note("point"), with_kwargs=True)
    config = published()
    loss_terms(
        student.train(),
        a_batch(),
        some_labels(),
        Fairness(config, CLASSES),
        config,
        torch.Generator().manual_seed(0),
    )
    assert seen["image"].shape == (BATCH, 14, 14)
    assert seen["image"].flatten(1).sum(dim=1).tolist() == [60] * BATCH
    assert seen["point"].shape == (BATCH, 10)
    assert set(seen["point"].sum(dim=1).tolist()) <= {3, 4}  # int(10 r), r in [.3, .4)


def test_nothing_kept_leaves_a_finite_loss_and_finite_gradients(
    make_student: MakeStudent, published: Published
) -> None:
    nothing = Targets(torch.zeros(BATCH, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.bool))
    student, config = make_student().train(), published()
    terms = loss_terms(
        student, a_batch(), PseudoLabels(nothing, nothing), Fairness(config, CLASSES), config,
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert values(terms)["self_training/point"] == values(terms)["self_training/image"] == 0.0
    total(terms, config).backward()
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def gradient_reaches(student: Student, term: str, config: TrainConfig) -> set[str]:
    student = copy.deepcopy(student).train()
    terms = loss_terms(
        student, a_batch(), some_labels(), Fairness(config, CLASSES), config, torch.Generator().manual_seed(0)
    )
    terms[term].backward()
    return {name for name, p in student.named_parameters() if p.grad is not None and bool(p.grad.any())}


def test_where_the_gradient_of_each_published_term_goes(
    make_student: MakeStudent, published: Published
) -> None:
    student, config = make_student(), published()
    shared = {"classifier", "logit_scale"}
    assert shared <= gradient_reaches(student, "self_training/point", config)
    assert shared <= gradient_reaches(student, "fairness/image", config)
    own_q = gradient_reaches(student, "global_local/point", config)
    assert "point_local_projection" in own_q
    assert own_q.isdisjoint({"point_projection", *shared})
    through_w = gradient_reaches(student, "global_local/image", config)
    assert {"image_tower.projection", "image_tower.ln_patch.weight"} <= through_w
    assert through_w.isdisjoint(shared)
    both = gradient_reaches(student, "alignment", config)
    assert {"point_projection", "image_tower.projection"} <= both
    assert both.isdisjoint(shared)  # plain cosines: no temperature
    assert {"point_encoder.lm_head.weight", "point_encoder.mask_token"} <= gradient_reaches(
        student, "reconstruction/point", config
    )
    assert "image_tower.decoder.0.weight" in gradient_reaches(student, "reconstruction/image", config)


SWITCHED: list[tuple[dict[str, Any], set[str]]] = [
    ({"point_target": "token"}, {"reconstruction/point"}),
    ({"point_target": "patch"}, {"reconstruction/point"}),
    ({"image_divisor": "channels"}, {"reconstruction/image"}),
    ({"alignment": "pseudo-label"}, {"alignment"}),
    ({"class_prior": (0.6, 0.1, 0.1, 0.1, 0.1)}, {"fairness/point", "fairness/image"}),
    ({"batch_norm": "frozen"}, {*(f"{term}/point" for term in BRANCH_TERMS), "alignment"}),
    ({"joint_label": "average", "threshold": "adaptive", "fairness": "moving-average"}, set()),
    ({"ema_ramp": "epochs", "classifier": "renormalized"}, set()),
]


@pytest.mark.parametrize(("switch", "changed"), SWITCHED)
def test_a_switch_changes_the_terms_it_names_and_no_other(
    make_student: MakeStudent, published: Published, switch: dict[str, Any], changed: set[str]
) -> None:
    student = make_student()
    before, after = values(terms_of(student, published())), values(terms_of(student, published(**switch)))
    assert {name for name in before if before[name] != after[name]} == changed


def test_the_divisor_of_a_mean_over_channels_weighs_65_times_as_much(
    make_student: MakeStudent, published: Published
) -> None:
    student = make_student()
    before, after = (values(terms_of(student, published(image_divisor=d))) for d in ("sequence", "channels"))
    ratio = after["reconstruction/image"] / before["reconstruction/image"]
    assert ratio == pytest.approx(197 / 3, rel=1e-5)


def test_alignment_with_pseudo_labels_spares_confident_pairs_of_one_class(
    monkeypatch: pytest.MonkeyPatch, make_student: MakeStudent, published: Published, reference: ModuleType
) -> None:
    fixed_masks(monkeypatch)
    config = published(alignment="pseudo-label", alignment_temperature=0.2)
    labels = Targets(torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([True, True, True, False, True, True]))
    student, seen = make_student(), {}
    original = Student.classify

    def note(self: Student, embedding: Tensor) -> Tensor:
        seen[len(seen)] = reference.f64(embedding)
        return original(self, embedding)

    monkeypatch.setattr(Student, "classify", note)
    found = values(terms_of(student, config, PseudoLabels(labels, labels)))["alignment"]
    dropped = np.zeros((BATCH, BATCH), dtype=bool)
    for one, other in ((0, 1), (2, 4)):  # 3 has the class of 2 and 4 but was not kept
        dropped[one, other] = dropped[other, one] = True
    assert found == pytest.approx(reference.cross_modal(seen[0], seen[1], 0.2, dropped), rel=1e-4)
    unsure = labels._replace(kept=torch.zeros(BATCH, dtype=torch.bool))
    apart = values(terms_of(student, config, PseudoLabels(unsure, unsure)))["alignment"]
    assert apart == pytest.approx(reference.cross_modal(seen[0], seen[1], 0.2), rel=1e-4)


def fairness_slope(fairness: Fairness, logits: Tensor) -> tuple[float, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = fairness.term("point", leaf)
    value.backward()
    assert leaf.grad is not None
    return float(value.detach()), leaf.grad


def test_moving_fairness_remembers_what_earlier_batches_used(
    published: Published, reference: ModuleType
) -> None:
    config = published(fairness="moving-average", prior_momentum=0.9)
    fairness, plain = Fairness(config, 3), Fairness(published(), 3)
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    assert fairness_slope(fairness, first)[0] == pytest.approx(fairness_slope(plain, first)[0], rel=1e-5)
    value, slope = fairness_slope(fairness, second)
    means = [reference.f64(logits.softmax(1).mean(0)) for logits in (first, second)]
    mean = 0.9 * means[0] + 0.1 * means[1]
    assert value == pytest.approx(reference.cross_entropy(np.full(3, 1 / 3), mean), rel=1e-4)
    expected = reference.gradient(
        lambda x: -sum(np.mean([reference.softmax(row) for row in x], axis=0) / (3 * mean)),
        reference.f64(second),
    )
    np.testing.assert_allclose(slope.numpy(), expected, atol=1e-4)  # of the batch's mean, not a tenth of it


def test_the_branches_have_a_memory_each(published: Published) -> None:
    fairness = Fairness(published(fairness="moving-average"), 3)
    fairness.term("point", 9 * torch.eye(3)[[0, 0]])
    found = float(fairness.term("image", torch.zeros(2, 3)))
    assert found == pytest.approx(math.log(3), abs=1e-4)
