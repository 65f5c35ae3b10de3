"""Masks: how much METHOD 1.8 hides, in which shape, and that a seed decides which."""

from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.adaptation.masking import image_mask, point_mask

FEW = settings(max_examples=25, deadline=None)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(seed=st.integers(0, 10_000))
@FEW
def test_60_of_196_patches_in_cells_of_32_pixels(reference: ModuleType, seed: int) -> None:
    for mask in image_mask(3, 14, draw(seed)).numpy():
        assert mask.shape == (14, 14)
        assert mask.dtype == bool
        assert mask.sum() == 60
        assert reference.hidden_image_cells(mask, 2) == 15


@pytest.mark.parametrize("grid", [1, 2, 4, 7, 8, 14, 16, 24, 37])
def test_any_grid_hides_about_a_third_and_never_all_of_a_larger_one(grid: int) -> None:
    mask = image_mask(20, grid, draw(0))
    assert mask.shape == (20, grid, grid)
    assert mask.any()
    if grid > 2:
        assert 0.25 <= mask.double().mean() <= 0.45


def test_image_masks_of_a_batch_are_independent_and_every_cell_has_its_turn() -> None:
    masks = image_mask(400, 14, draw(0))
    assert len({mask.numpy().tobytes() for mask in masks}) == 400
    shares = masks.double().mean(dim=0)
    assert float(shares.min()) > 0.2
    assert float(shares.max()) < 0.42


@given(seed=st.integers(0, 10_000))
@FEW
def test_19_to_25_of_64_centres_hidden_as_one_block(reference: ModuleType, seed: int) -> None:
    centers = torch.randn(4, 64, 3, generator=draw(seed))
    masks = point_mask(centers, draw(seed + 1)).numpy()
    assert masks.shape == (4, 64)
    assert masks.dtype == bool
    for mask, center in zip(masks, reference.f64(centers), strict=True):
        assert 19 <= mask.sum() <= 25
        assert reference.is_block(center, mask)


def test_point_masks_take_every_count_every_middle_and_differ_between_samples() -> None:
    centers = torch.randn(1, 64, 3, generator=draw(0)).expand(3000, 64, 3)
    masks = point_mask(centers, draw(1))
    counts = masks.sum(dim=1)
    assert set(counts.tolist()) == set(range(19, 26))
    # int(64 r) with r from U(.3, .4): 20 to 24 take 1/64 of a ratio's 0.1 each, the ends less
    shares = np.bincount(counts.numpy(), minlength=26)[20:25] / 3000
    np.testing.assert_allclose(shares, 1 / 6.4, atol=0.03)
    smallest = masks[counts == 19]
    assert len({mask.numpy().tobytes() for mask in smallest}) > 20
    assert masks.any(dim=0).all()


def test_a_masked_block_is_found_among_equal_centres_too(reference: ModuleType) -> None:
    masks = point_mask(torch.zeros(5, 64, 3), draw(0)).numpy()
    assert all(19 <= mask.sum() <= 25 for mask in masks)
    few = point_mask(torch.randn(5, 2, 3, generator=draw(0)), draw(1))
    assert few.sum(dim=1).tolist() == [1] * 5


def test_a_seed_decides_the_masks() -> None:
    centers = torch.randn(4, 64, 3, generator=draw(3))
    assert torch.equal(image_mask(4, 14, draw(5)), image_mask(4, 14, draw(5)))
    assert not torch.equal(image_mask(4, 14, draw(5)), image_mask(4, 14, draw(6)))
    assert torch.equal(point_mask(centers, draw(5)), point_mask(centers, draw(5)))
    assert not torch.equal(point_mask(centers, draw(5)), point_mask(centers, draw(6)))


def test_masks_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    image_mask(2, 14, draw(0))
    point_mask(torch.randn(2, 8, 3, generator=draw(0)), draw(0))
    assert torch.equal(before, torch.get_rng_state())
