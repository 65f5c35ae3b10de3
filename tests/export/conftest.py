"""Encoders and bundles every test of the export shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from crossmost.checkpoints.base import Architecture
    from crossmost.models.point_bert import PointBert
    from crossmost.models.point_encoder import PointEncoder


def used_batch_norms(encoder: PointEncoder) -> Any:
    """Give an encoder batch norms that have seen something: folding the fresh ones would change nothing."""
    generator = torch.Generator().manual_seed(5)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            for name, low, high in (
                ("running_mean", -1.0, 1.0), ("running_var", 0.5, 2.0), ("weight", 0.5, 1.5), ("bias", -0.5, 0.5),
            ):  # fmt: skip
                tensor = getattr(module, name).data
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return encoder.eval()


@pytest.fixture(scope="session")
def used_norms() -> Callable[[PointEncoder], Any]:
    """`used_batch_norms`, for encoders of other architectures."""
    return used_batch_norms


@pytest.fixture(scope="session")
def make_encoder(tiny_architecture: Architecture) -> Callable[..., PointBert]:
    """Build an encoder of the tiny card, some of its numbers changed, with random weights."""
    from crossmost.models.point_bert import PointBert

    def make(**numbers: int) -> PointBert:
        torch.manual_seed(3)
        return used_batch_norms(PointBert(tiny_architecture.point.model_copy(update=numbers)))

    return make
