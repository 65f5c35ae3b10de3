"""The terms of the student's loss (METHOD 1.7 to 1.11), each a small function named by its symbol.

Every term is computed in float32 whatever the networks' precision, and is zero, with a gradient of zero, where
it has nothing to average.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST = torch.finfo(torch.float32).tiny
"""Keeps logarithms and divisions finite without weakening the pull on a class that is nearly never predicted."""


def self_training(logits: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """L_st: cross-entropy with the pseudo-labels, mean over the kept samples.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        kept: (B,) bool.
    """
    each = functional.cross_entropy(logits.float(), labels, reduction="none")
    return (each * kept).sum() / kept.sum().clamp(min=1)


def fairness(mean_probabilities: Tensor, prior: Tensor) -> Tensor:
    """L_fair: cross-entropy of the batch's mean prediction with the expected class shares.

    Args:
        mean_probabilities: (C,) softmax outputs averaged over all samples, kept or not.
        prior: (C,) shares that add up to one; uniform in the published method, where the least value is ln C.
    """
    return -(prior * (mean_probabilities + SMALLEST).log()).sum()


def image_reconstruction(predicted: Tensor, target: Tensor, mask: Tensor, divisor: int) -> Tensor:
    """L_mim of the image branch: mean absolute error of the masked pixels, over `divisor`.

    Args:
        predicted: (B, 3, H, W).
        target: (B, 3, H, W), the normalised strong view.
        mask: (B, grid, grid) bool, True where the patch was hidden.
        divisor: 3 for a mean over the channels; 197 as published, see METHOD 1.8.
    """
    scale = target.shape[-1] // mask.shape[-1]
    pixels = mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2)[:, None]  # (B, 1, H, W)
    error = (predicted.float() - target.float()).abs() * pixels
    return error.sum() / pixels.sum().clamp(min=1) / divisor


def mask_token_regression(predicted: Tensor, mask_token: Tensor, mask: Tensor) -> Tensor:
    """L_mim of the point branch as published: the mask token regressed onto itself (METHOD 1.8).

    Args:
        predicted: (B, G, width), the head's output.
        mask_token: (1, 1, width), gradient flows into it.
        mask: (B, G) bool.
    """
    error = (predicted.float() - mask_token.float()).abs() * mask[..., None]
    return error.sum() / mask.sum().clamp(min=1) / len(mask)


def token_regression(predicted: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """L_mim of the point branch, repaired: mean absolute error to the token a patch had before masking.

    Args:
        predicted: (B, G, width).
        tokens: (B, G, width); no gradient flows into them.
        mask: (B, G) bool.
    """
    error = (predicted.float() - tokens.detach().float()).abs().mean(dim=-1)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def chamfer(predicted: Tensor, target: Tensor) -> Tensor:
    """Symmetric squared Chamfer distance of each pair of small point sets.

    Args:
        predicted: (M, K, 3).
        target: (M, K, 3).

    Returns:
        (M,) the mean squared distance to the nearest neighbour, both directions added.
    """
    squared = (predicted[:, :, None] - target[:, None]).square().sum(-1)  # (M, K, K)
    return squared.amin(dim=2).mean(dim=1) + squared.amin(dim=1).mean(dim=1)


def patch_reconstruction(predicted: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
    """L_mim of the point branch, repaired: Chamfer distance to the points of the masked patches.

    Each patch is measured in units of its own radius, so that dense and sparse clouds weigh the same.

    Args:
        predicted: (B, G, 3 K), in those units.
        patches: (B, G, K, 3+), xyz relative to the centre.
        mask: (B, G) bool.
    """
    target = patches[mask][..., :3].float()  # (M, K, 3)
    radius = target.norm(dim=-1).amax(dim=1).clamp(min=SMALLEST)[:, None, None]
    guess = predicted[mask].float().unflatten(-1, (-1, 3))
    return chamfer(guess, target / radius).sum() / mask.sum().clamp(min=1)


def global_local(local: Tensor, whole: Tensor, mask: Tensor) -> Tensor:
    """L_gl: squared distance of each masked patch's embedding to the sample's, mean over the masked patches.

    Args:
        local: (B, L, D) unit rows.
        whole: (B, D) unit rows; gradient flows into both.
        mask: (B, L) bool.
    """
    squared = (local - whole[:, None]).square().sum(-1)
    return (squared * mask).sum() / mask.sum().clamp(min=1)


def cross_modal(
    point: Tensor, image: Tensor, temperature: float = 1.0, same_class: Tensor | None = None
) -> Tensor:
    """L_x: each cloud finds its own view among the batch's, and the other way round (METHOD 1.10).

    Args:
        point: F_P, (B, D) unit rows.
        image: F_I, (B, D) unit rows.
        temperature: 1 as published (plain cosines).
        same_class: (B, B) bool, pairs that are no negatives; the diagonal does not matter.
    """
    with torch.autocast(point.device.type, enabled=False):
        similarity = point.float() @ image.float().T / temperature
    if same_class is not None:
        own = torch.eye(len(point), dtype=torch.bool, device=point.device)
        similarity = similarity.masked_fill(same_class & ~own, float("-inf"))
    target = torch.arange(len(point), device=point.device)
    return functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target)
