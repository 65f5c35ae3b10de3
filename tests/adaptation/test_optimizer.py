"""AdamW's groups, layer decay, freezing and BatchNorm mode as METHOD 1.12 and 2.1 list them."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from crossmost.adaptation.optimizer import freeze, make_optimizer, training_mode
from crossmost.config import TrainConfig
from crossmost.models.student import Student

MakeStudent = Callable[..., Student]
Published = Callable[..., TrainConfig]

LISTED = {0: 0.003697, 1: 0.005688, 11: 0.4225, 12: 0.65, 13: 1.0}
"""Multipliers by id where METHOD 2.1 prints them; ids 1, 11 and 12 are blocks 0, 10 and 11."""


def grouped(student: Student, config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Each trained parameter's group, by the parameter's name."""
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    groups: dict[str, dict[str, Any]] = {}
    for group in make_optimizer(student, config).param_groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in groups
            groups[names[id(parameter)]] = group
    return groups


def published_id(name: str) -> int:
    """By the published rule: what of the image tower a name contains."""
    if not name.startswith("image_tower.visual."):
        return 13
    if any(part in name for part in ("embedding", "conv1", "ln_pre")):
        return 0
    return int(name.split("resblocks.")[1].split(".")[0]) + 1 if "resblocks." in name else 13


@pytest.fixture(scope="module")
def deep_student(make_student: MakeStudent) -> Student:
    return make_student(layers=12)


def test_layer_decay_of_a_12_layer_tower(
    deep_student: Student, published: Published, reference: ModuleType
) -> None:
    freeze(deep_student, published())
    groups, multipliers = grouped(deep_student, published()), reference.layer_multipliers(12)
    seen = set()
    for name, group in groups.items():
        assert group["multiplier"] == pytest.approx(multipliers[published_id(name)], rel=1e-9), name
        seen.add(published_id(name))
    assert seen == set(range(14))
    for index, multiplier in LISTED.items():
        assert multipliers[index] == pytest.approx(multiplier, abs=5e-7 if multiplier < 0.01 else 5e-5)


@pytest.mark.parametrize(
    "name",
    [
        "classifier", "logit_scale", "point_projection", "point_local_projection", "point_encoder.cls_token",
        "point_encoder.blocks.blocks.0.attn.qkv.weight", "point_encoder.reduce_dim.weight",
        "image_tower.projection", "image_tower.mask_token", "image_tower.ln_patch.weight",
        "image_tower.decoder.0.weight", "image_tower.visual.ln_post.weight",
    ],
)  # fmt: skip
def test_all_but_the_vision_transformer_learns_at_the_full_rate(
    deep_student: Student, published: Published, name: str
) -> None:
    assert grouped(deep_student, published())[name]["multiplier"] == 1.0


def test_every_tensor_but_vectors_decays_as_published(deep_student: Student, published: Published) -> None:
    freeze(deep_student, published())
    groups = grouped(deep_student, published())
    for name, parameter in deep_student.named_parameters():
        if name in groups:
            assert groups[name]["weight_decay"] == (0.0 if parameter.ndim == 1 else 0.05), name
    for name in (
        "logit_scale",
        "classifier",
        "point_encoder.mask_token",
        "image_tower.visual.positional_embedding",
    ):
        assert groups[name]["weight_decay"] == 0.05
    for name in (
        "image_tower.visual.class_embedding",
        "point_encoder.norm.weight",
        "point_encoder.lm_head.bias",
    ):
        assert groups[name]["weight_decay"] == 0.0


def test_the_renormalized_classifier_takes_the_decay_off_the_temperature_alone(
    deep_student: Student, published: Published
) -> None:
    freeze(deep_student, published())
    before, after = (
        grouped(deep_student, published(classifier=value)) for value in ("decayed", "renormalized")
    )
    changed = {name for name in before if before[name]["weight_decay"] != after[name]["weight_decay"]}
    assert changed == {"logit_scale"}
    assert after["logit_scale"]["weight_decay"] == 0.0
    assert all(before[name]["multiplier"] == after[name]["multiplier"] for name in before)


def test_the_published_adamw(deep_student: Student, published: Published) -> None:
    optimizer = make_optimizer(deep_student, published())
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.999)
        assert group["eps"] == 1e-8
        assert not group["amsgrad"]


def frozen(student: Student) -> set[str]:
    return {name for name, parameter in student.named_parameters() if not parameter.requires_grad}


def starting(student: Student, *prefixes: str) -> set[str]:
    return {name for name, _ in student.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("mode", ["joint", "separate", "agreement"])
def test_only_the_patch_encoder_is_frozen(make_student: MakeStudent, published: Published, mode: str) -> None:
    student = make_student()
    freeze(student, published(mode=mode))
    assert frozen(student) == starting(student, "point_encoder.encoder.")
    assert frozen(student).isdisjoint(grouped(student, published(mode=mode)))


def test_point_only_trains_points_and_as_published_the_patch_encoder_too(
    make_student: MakeStudent, published: Published
) -> None:
    student = make_student()
    freeze(student, published(mode="point-only"))
    assert frozen(student) == starting(student, "image_tower.")
    freeze(student, published(mode="point-only", recipe="crossmost"))
    assert frozen(student) == starting(student, "image_tower.", "point_encoder.encoder.")


def test_image_only_trains_every_parameter_that_is_not_the_points(
    make_student: MakeStudent, published: Published
) -> None:
    student = make_student()
    freeze(student, published(mode="image-only"))
    assert frozen(student) == starting(student, "point_")
    assert {"classifier", "logit_scale"}.isdisjoint(frozen(student))


def test_the_patch_encoder_can_be_let_go_and_freezing_starts_afresh(
    make_student: MakeStudent, published: Published
) -> None:
    student = make_student()
    freeze(student, published(mode="image-only"))
    freeze(student, published(freeze_patch_encoder=False))
    assert not frozen(student)


@pytest.mark.parametrize("batch_norm", ["live", "frozen"])
def test_batchnorm_of_the_frozen_patch_encoder_lives_on_as_published(
    make_student: MakeStudent, published: Published, batch_norm: str
) -> None:
    student = make_student()
    training_mode(student, published(batch_norm=batch_norm))
    assert student.training
    assert student.image_tower.training
    assert student.point_encoder.blocks.training
    mean = student.point_encoder.encoder.first_conv[1].running_mean.clone()
    student.point_encoder.encoder(3 + torch.randn(2, 4, 6, 3))
    moved = not torch.equal(mean, student.point_encoder.encoder.first_conv[1].running_mean)
    assert moved == (batch_norm == "live")
