"""Every loss term against METHOD 1.7 to 1.10 in float64: value, gradient, and nothing to average."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmost.adaptation import losses

FEW = settings(max_examples=25, deadline=None)

SEEDS = range(3)
TERMS = ["self_training", "image", "mask_token", "token", "patch", "global_local"]


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def close(found: Tensor, expected: Any, tolerance: float = 1e-5) -> bool:
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=tolerance, atol=tolerance)
    return True


def slope(term: Callable[[Tensor], Tensor], x: Tensor) -> np.ndarray[Any, Any]:
    leaf = x.clone().requires_grad_()
    term(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


def masked_term(name: str, mask: Tensor, seed: int = 0) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A term that averages over a mask (4, 9), as a function of its prediction, and a prediction."""
    torch.manual_seed(seed)
    if name == "self_training":
        labels = torch.randint(6, (4,))
        return lambda x: losses.self_training(x, labels, mask[:, 0]), torch.randn(4, 6)
    if name == "image":
        target = torch.randn(4, 3, 6, 6)
        grid = mask.unflatten(1, (3, 3))
        return lambda x: losses.image_reconstruction(x, target, grid, 3), torch.randn(4, 3, 6, 6)
    if name == "mask_token":
        token = torch.randn(1, 1, 5)
        return lambda x: losses.mask_token_regression(x, token, mask), torch.randn(4, 9, 5)
    if name == "token":
        tokens = torch.randn(4, 9, 5)
        return lambda x: losses.token_regression(x, tokens, mask), torch.randn(4, 9, 5)
    if name == "patch":
        patches = torch.randn(4, 9, 7, 3)
        return lambda x: losses.patch_reconstruction(x, patches, mask), torch.randn(4, 9, 21)
    whole = unit(torch.randn(4, 5))
    return lambda x: losses.global_local(x, whole, mask), unit(torch.randn(4, 9, 5))


@pytest.mark.parametrize("name", TERMS)
def test_a_term_with_nothing_to_average_is_zero_with_a_gradient_of_zero(name: str) -> None:
    term, x = masked_term(name, torch.zeros(4, 9, dtype=torch.bool))
    assert float(term(x)) == 0.0
    assert not slope(term, x).any()


@pytest.mark.parametrize("name", TERMS)
def test_what_is_left_out_of_a_mean_takes_no_gradient(name: str) -> None:
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[1] = True
    term, x = masked_term(name, mask)
    gradient = slope(term, x)
    assert gradient[1].any()
    assert not gradient[[0, 2, 3]].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_self_training_is_the_mean_cross_entropy_of_the_kept(reference: ModuleType, seed: int) -> None:
    torch.manual_seed(seed)
    logits, labels, kept = 20 * torch.randn(12, 7), torch.randint(7, (12,)), torch.rand(12) < 0.5
    expected = reference.self_training(reference.f64(logits), labels.tolist(), kept.tolist())
    assert close(losses.self_training(logits, labels, kept), expected)


def test_self_training_gradient(reference: ModuleType) -> None:
    torch.manual_seed(0)
    logits, labels, kept = (
        torch.randn(5, 4),
        torch.randint(4, (5,)),
        torch.tensor([True, False, True, True, False]),
    )
    found = slope(lambda x: losses.self_training(x, labels, kept), logits)
    expected = reference.gradient(
        lambda x: reference.self_training(x, labels.tolist(), kept.tolist()), reference.f64(logits)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def mean_fairness(logits: Tensor) -> Tensor:
    classes = logits.shape[1]
    return losses.fairness(logits.softmax(dim=1).mean(dim=0), torch.full((classes,), 1 / classes))


@pytest.mark.parametrize("seed", SEEDS)
def test_fairness_is_the_cross_entropy_of_uniform_with_the_mean_prediction(
    reference: ModuleType, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = 2 * torch.randn(9, 6)
    assert close(mean_fairness(logits), reference.fairness(reference.f64(logits)), 2e-4)
    expected = reference.gradient(reference.fairness, reference.f64(logits))
    np.testing.assert_allclose(slope(mean_fairness, logits), expected, atol=1e-4)


@pytest.mark.parametrize(("classes", "least"), [(40, 3.689), (15, 2.708), (9, 2.197)])
def test_fairness_of_a_uniform_prediction_is_ln_c(classes: int, least: float) -> None:
    assert float(mean_fairness(torch.zeros(4, classes))) == pytest.approx(math.log(classes), abs=1e-4)
    assert float(mean_fairness(torch.zeros(4, classes))) == pytest.approx(least, abs=1e-3)


@given(seed=st.integers(0, 10_000), scale=st.floats(0, 100), classes=st.integers(2, 42))
@FEW
def test_fairness_never_falls_below_ln_c(seed: int, scale: float, classes: int) -> None:
    logits = scale * torch.randn(8, classes, generator=torch.Generator().manual_seed(seed))
    found = float(mean_fairness(logits))
    assert math.isfinite(found)
    assert found >= math.log(classes) - 1e-6 * classes - 1e-5  # less what keeps the logarithm finite


def test_fairness_of_a_class_that_is_never_predicted_is_finite_and_asks_for_it() -> None:
    shares = torch.tensor([0.7, 0.3, 0.0], requires_grad=True)
    losses.fairness(shares, torch.full((3,), 1 / 3)).backward()
    assert shares.grad is not None
    assert torch.isfinite(shares.grad).all()
    assert int(shares.grad.argmin()) == 2


def test_fairness_calls_for_a_class_nobody_predicts_as_loudly_as_published(reference: ModuleType) -> None:
    """METHOD 1.7 has no epsilon: the fewer predict a class, the larger the loss, and its pull never fades."""
    torch.manual_seed(0)
    logits = torch.randn(6, 4)
    logits[:, 3] -= 25  # a mean prediction of about 1e-11, nothing unusual at a temperature of 100
    assert float(mean_fairness(logits)) == pytest.approx(reference.fairness(reference.f64(logits)), rel=1e-3)
    expected = reference.gradient(reference.fairness, reference.f64(logits))
    np.testing.assert_allclose(slope(mean_fairness, logits), expected, atol=1e-3)


def test_fairness_with_a_prior_is_least_at_the_prior(reference: ModuleType) -> None:
    prior, mean = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    assert close(losses.fairness(mean, prior), reference.cross_entropy(prior.numpy(), mean.numpy()))
    assert float(losses.fairness(prior, prior)) < float(losses.fairness(mean, prior))


@pytest.mark.parametrize("divisor", [3, 197])
def test_image_reconstruction(reference: ModuleType, divisor: int) -> None:
    torch.manual_seed(1)
    predicted, target, mask = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.rand(2, 4, 4) < 0.3
    arrays = reference.f64(predicted), reference.f64(target), mask.numpy()
    found = losses.image_reconstruction(predicted, target, mask, divisor)
    assert close(found, reference.image_reconstruction(*arrays, divisor))
    expected = reference.gradient(
        lambda x: reference.image_reconstruction(x, *arrays[1:], divisor), arrays[0]
    )
    gradient = slope(lambda x: losses.image_reconstruction(x, target, mask, divisor), predicted)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_image_reconstruction_as_published_weighs_a_65th_of_a_mean_over_channels() -> None:
    target, mask = torch.randn(2, 3, 8, 8), torch.ones(2, 4, 4, dtype=torch.bool)
    assert close(losses.image_reconstruction(target + 1, target, mask, 3), 1.0)
    assert close(losses.image_reconstruction(target + 1, target, mask, 197), 1 / 65.667)


@pytest.mark.parametrize("seed", SEEDS)
def test_mask_token_regression_pulls_on_both_sides(reference: ModuleType, seed: int) -> None:
    torch.manual_seed(seed)
    predicted, token, mask = torch.randn(3, 6, 5), torch.randn(1, 1, 5), torch.rand(3, 6) < 0.4
    exact, wanted = reference.f64(predicted), reference.f64(token)[0, 0]
    assert close(
        losses.mask_token_regression(predicted, token, mask),
        reference.mask_token_regression(exact, wanted, mask.numpy()),
    )
    of_prediction = slope(lambda x: losses.mask_token_regression(x, token, mask), predicted)
    of_token = slope(lambda x: losses.mask_token_regression(predicted, x, mask), token)[0, 0]
    function = reference.mask_token_regression
    np.testing.assert_allclose(
        of_prediction, reference.gradient(lambda x: function(x, wanted, mask.numpy()), exact), atol=1e-6
    )
    np.testing.assert_allclose(
        of_token, reference.gradient(lambda x: function(exact, x, mask.numpy()), wanted), atol=1e-6
    )
    assert of_token.any()


@pytest.mark.parametrize(("batch", "factor"), [(128, 3.0), (4, 96.0)])
def test_mask_token_regression_grows_with_the_width_over_the_batch(batch: int, factor: float) -> None:
    token, mask = torch.zeros(1, 1, 384), torch.ones(batch, 2, dtype=torch.bool)
    assert close(losses.mask_token_regression(torch.ones(batch, 2, 384), token, mask), factor)


@pytest.mark.parametrize("seed", SEEDS)
def test_token_regression_is_a_mean_and_stops_the_gradient_of_its_target(
    reference: ModuleType, seed: int
) -> None:
    torch.manual_seed(seed)
    predicted, mask = torch.randn(3, 6, 5), torch.rand(3, 6) < 0.4
    tokens = torch.randn(3, 6, 5, requires_grad=True)
    expected = reference.token_regression(reference.f64(predicted), reference.f64(tokens), mask.numpy())
    assert close(losses.token_regression(predicted, tokens, mask), expected)
    losses.token_regression(predicted.requires_grad_(), tokens, mask).backward()
    assert tokens.grad is None or not tokens.grad.any()
    assert close(losses.token_regression(tokens + 2, tokens, mask), 2.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_chamfer(reference: ModuleType, seed: int) -> None:
    torch.manual_seed(seed)
    first, second = torch.randn(4, 6, 3), torch.randn(4, 6, 3)
    expected = [
        reference.chamfer(a, b) for a, b in zip(reference.f64(first), reference.f64(second), strict=True)
    ]
    assert close(losses.chamfer(first, second), expected)
    assert close(losses.chamfer(second, first), expected)
    assert close(losses.chamfer(first, first[:, torch.randperm(6)]), np.zeros(4))


@pytest.mark.parametrize("seed", SEEDS)
def test_patch_reconstruction_in_units_of_the_patch(reference: ModuleType, seed: int) -> None:
    torch.manual_seed(seed)
    predicted, patches, mask = torch.randn(2, 5, 12), torch.randn(2, 5, 4, 6), torch.rand(2, 5) < 0.6
    arrays = reference.f64(predicted), reference.f64(patches), mask.numpy()
    found = losses.patch_reconstruction(predicted, patches, mask)
    assert close(found, reference.patch_reconstruction(*arrays))
    assert close(losses.patch_reconstruction(predicted, patches * 0.01, mask), found.numpy(), 1e-4)
    gradient = slope(lambda x: losses.patch_reconstruction(x, patches, mask), predicted)
    expected = reference.gradient(lambda x: reference.patch_reconstruction(x, *arrays[1:]), arrays[0])
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


def test_patch_reconstruction_is_zero_for_the_patch_itself_in_any_order() -> None:
    torch.manual_seed(0)
    patches = unit(torch.randn(2, 5, 8, 3)) * torch.rand(2, 5, 8, 1)
    scaled = patches / patches.norm(dim=-1).amax(dim=2)[..., None, None]
    predicted = scaled[:, :, torch.randperm(8)].flatten(2)
    found = losses.patch_reconstruction(predicted, patches, torch.ones(2, 5, dtype=torch.bool))
    assert close(found, 0.0, 1e-9)


def test_a_patch_whose_points_are_all_its_centre_has_a_finite_loss_and_gradient() -> None:
    patches, mask = torch.zeros(1, 2, 4, 3), torch.ones(1, 2, dtype=torch.bool)
    gradient = slope(lambda x: losses.patch_reconstruction(x, patches, mask), torch.randn(1, 2, 12))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_global_local_pulls_on_both_sides(reference: ModuleType, seed: int) -> None:
    torch.manual_seed(seed)
    raw_local, raw_whole, mask = torch.randn(3, 7, 5), torch.randn(3, 5), torch.rand(3, 7) < 0.4
    local, whole = reference.f64(raw_local), reference.f64(raw_whole)
    found = losses.global_local(unit(raw_local), unit(raw_whole), mask)
    assert close(found, reference.global_local(local, whole, mask.numpy()))
    function = reference.global_local
    of_local = slope(lambda x: losses.global_local(unit(x), unit(raw_whole), mask), raw_local)
    of_whole = slope(lambda x: losses.global_local(unit(raw_local), unit(x), mask), raw_whole)
    np.testing.assert_allclose(
        of_local, reference.gradient(lambda x: function(x, whole, mask.numpy()), local), atol=1e-5
    )
    np.testing.assert_allclose(
        of_whole, reference.gradient(lambda x: function(local, x, mask.numpy()), whole), atol=1e-5
    )
    assert of_whole.any()


@given(seed=st.integers(0, 10_000))
@FEW
def test_global_local_lies_between_0_and_4(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    local, whole = unit(torch.randn(3, 7, 2, generator=draw)), unit(torch.randn(3, 2, generator=draw))
    found = losses.global_local(local, whole, torch.rand(3, 7, generator=draw) < 0.5)
    assert 0 <= float(found) <= 4 + 1e-5


def test_global_local_reaches_its_ends() -> None:
    whole, mask = unit(torch.randn(3, 5)), torch.ones(3, 7, dtype=torch.bool)
    same = whole[:, None].expand(3, 7, 5)
    assert close(losses.global_local(same, whole, mask), 0.0)
    assert close(losses.global_local(-same, whole, mask), 4.0)


@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize("seed", SEEDS)
def test_cross_modal(reference: ModuleType, seed: int, temperature: float) -> None:
    torch.manual_seed(seed)
    point, image, dropped = unit(torch.randn(6, 4)), unit(torch.randn(6, 4)), torch.rand(6, 6) < 0.3
    exact = reference.f64(point), reference.f64(image)
    for same, drop in ((None, None), (dropped, dropped.numpy())):
        found = losses.cross_modal(point, image, temperature, same)
        assert close(found, reference.cross_modal(*exact, temperature, drop))
        gradients = [
            slope(lambda x, same=same: losses.cross_modal(x, image, temperature, same), point),
            slope(lambda x, same=same: losses.cross_modal(point, x, temperature, same), image),
        ]
        expected = [
            reference.gradient(
                lambda x, drop=drop: reference.cross_modal(x, exact[1], temperature, drop), exact[0]
            ),
            reference.gradient(
                lambda x, drop=drop: reference.cross_modal(exact[0], x, temperature, drop), exact[1]
            ),
        ]
        np.testing.assert_allclose(gradients, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("batch", "least", "apart", "chance"), [(128, 2.90, 3.87, 4.85), (64, 2.25, 3.19, 4.16)]
)
def test_cross_modal_at_chance_and_at_best(batch: int, least: float, apart: float, chance: float) -> None:
    same = unit(torch.ones(batch, 3))
    assert float(losses.cross_modal(same, same)) / 2 == pytest.approx(math.log(batch), abs=1e-4)
    assert float(losses.cross_modal(same, same)) / 2 == pytest.approx(chance, abs=0.01)
    axes = torch.eye(batch)
    assert float(losses.cross_modal(axes, axes)) / 2 == pytest.approx(apart, abs=0.01)
    for seed in SEEDS:
        torch.manual_seed(seed)
        point = unit(torch.randn(batch, 4))
        assert float(losses.cross_modal(point, point)) / 2 >= least
    two_sides = unit(torch.tensor([[1.0], [-1.0]]))  # B = 2, where all negatives can be at -1
    assert float(losses.cross_modal(two_sides, two_sides)) / 2 == pytest.approx(
        math.log(1 + math.exp(-2)), abs=1e-5
    )


def test_cross_modal_without_a_negative_is_zero_with_a_gradient_of_zero() -> None:
    image, every = unit(torch.randn(4, 3)), torch.ones(4, 4, dtype=torch.bool)
    gradient = slope(lambda x: losses.cross_modal(x, image, 0.1, every), unit(torch.randn(4, 3)))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_masked_terms_are_float32_inside_mixed_precision(name: str) -> None:
    term, x = masked_term(name, torch.rand(4, 9) < 0.7)
    x = x.bfloat16().float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = term(x)
    assert close(mixed, term(x).numpy(), 1e-6)


def test_cross_modal_is_float32_inside_mixed_precision() -> None:
    torch.manual_seed(0)
    point, image = unit(torch.randn(8, 16)), unit(torch.randn(8, 16))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses.cross_modal(point, image, 0.05)
    assert close(mixed, losses.cross_modal(point, image, 0.05).numpy(), 1e-5)
