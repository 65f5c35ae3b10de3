"""What is known about one kind of published checkpoint: which tensors become which of a base, and which are left out.

A layout is data. `crossmost.checkpoints.layouts` lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import PointCard

Shape = tuple[int, ...]


class Form(NamedTuple):
    """How tensors of a file become one tensor of a base.

    Attributes:
        shapes: from the shape of the base's tensor to those the file's must have.
        make: from the file's tensors and the shape of the base's to the base's; None where an `ImageLayout.whole` does.
    """

    shapes: Callable[[Shape], tuple[Shape, ...]]
    make: Callable[[Sequence[Tensor], Shape], Tensor] | None


def convolution(axes: int) -> Form:
    """A 1x1 convolution over so many axes as a linear layer: (out, in, 1, ...) to (out, in)."""
    return Form(lambda shape: ((*shape, *[1] * axes),), lambda given, shape: given[0].reshape(shape))


SAME = Form(lambda shape: (shape,), lambda given, _: given[0])
AFFINE = Form(
    lambda shape: ((shape[1], shape[0] - 1), (shape[1],)),
    lambda given, _: torch.cat([given[0].T, given[1][None]]),
)
"""Weight (D, F - 1) and bias (D,) of a linear layer as the matrix (F, D) whose last row is the bias."""
UNIT = Form(lambda _: (), lambda _, shape: torch.eye(*shape))
"""No projection: (F, D) that passes D numbers on."""


class Rule(NamedTuple):
    r"""Where tensors of a base come from.

    Attributes:
        ours: regular expression for the whole name of a base's tensor.
        keys: the file's tensors, with what the groups of `ours` matched as \1, \2.
        form: how they become the base's; None for a tensor that no such file has, which is drawn.
        optional: tensors of one such word may all be absent from a file; they are then drawn, or the default.
    """

    ours: str
    keys: tuple[str, ...]
    form: Form | None = SAME
    optional: str = ""


class LeftOut(NamedTuple):
    """Tensors of a file that a base has no place for."""

    keys: str  # regular expression for the whole name
    reason: str


@dataclass(frozen=True)
class ImageLayout:
    """The image tower in a file.

    Attributes:
        card: what it is.
        keys: regular expression for the whole names of its tensors in the file.
        rules: for what a base calls `image_tower.*`.
        kept: whether it is used where the user says nothing.
        whole: makes all tensors of an `ImageTower` from the file's at once, where the rules cannot one by one.
    """

    card: ImageCard
    keys: str
    rules: tuple[Rule, ...]
    kept: bool = True
    whole: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None


@dataclass(frozen=True)
class Layout:
    """One kind of published checkpoint.

    Attributes:
        title: what people call it.
        card: its point encoder; `--as` can take another one of the same shapes that no layout has.
        dim: D of the joint space.
        text: tag of the text model it is aligned with.
        rules: for all tensors of a base but the image tower's; the first that applies counts.
        left_out: what a base has no place for.
        image: the image tower in the file, if its makers save one.
        classifier: key of trained class vectors, (D, C).
        twin: name of the one card of another layout that `--as` can take too.
    """

    title: str
    card: PointCard
    dim: int
    text: str
    rules: tuple[Rule, ...]
    left_out: tuple[LeftOut, ...] = ()
    image: ImageLayout | None = None
    classifier: str | None = None
    twin: str | None = None


PATCH_HEAD = Rule(r"point_encoder\.patch_head\..*", (), None)
"""What predicts the points of a masked patch: of this project alone."""
NO_HEADS = Rule(r"point_encoder\.(?:mask_token|lm_head\..*)", (), None)
"""Nor do most have any other head of masked modelling."""
LOGIT_SCALE = Rule(r"logit_scale", ("logit_scale",))
