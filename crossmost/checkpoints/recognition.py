"""Which published checkpoint a file is: keys and shapes decide, and must fit to the last one."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from crossmost.checkpoints.layout import Form, ImageLayout, Layout, Rule, Shape
from crossmost.errors import InputError
from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import PointCard
from crossmost.models.student import DualEncoder

Image = Literal["keep", "none"] | None
"""What to do with the image tower of a file; None: what its layout says."""

FIRST_LAYERS = ("point_encoder.encoder.first_conv.0.weight", "point_encoder.sa.mlp_convs.0.weight")
INPUTS = {3: "xyz without color", 6: "xyz and rgb", 9: "offset, xyz and rgb"}
SHOWN = 3


class Source(NamedTuple):
    """What a tensor of a base is made from."""

    keys: tuple[str, ...]
    form: Form
    shape: Shape  # of the base's tensor


class Misfit(NamedTuple):
    """A tensor that a layout and a file do not agree on; `ours` is the base's name for it."""

    key: str
    expected: Shape | None  # None: the layout knows no such key
    found: str | None  # None: the file lacks it
    ours: str = ""

    def __str__(self) -> str:
        expected = "no such key" if self.expected is None else str(self.expected)
        return f"'{self.key}' expected {expected}, found {self.found or 'none'}"


@dataclass(frozen=True)
class Fit:
    """How far a file is what a layout says.

    Attributes:
        layout: the layout.
        card: the point encoder it was compared with.
        image: the image tower that comes out of the file, or None.
        sources: by the base's name.
        new: names of the base's tensors that the file does not have and need not.
        left_out: reason by key of the file.
        misfits: none if the file is what the layout says.
        expected: how many keys the layout wants.
        matched: how many of them are there, in their shapes.
    """

    layout: Layout
    card: PointCard
    image: ImageLayout | None
    sources: dict[str, Source]
    new: tuple[str, ...]
    left_out: dict[str, str]
    misfits: tuple[Misfit, ...]
    expected: int
    matched: int

    @property
    def likeness(self) -> float:
        """Share of the keys of the layout and of the file that match, 0..1."""
        surplus = sum(each.expected is None for each in self.misfits)
        return self.matched / (self.expected + surplus)


def recognize(
    tensors: Mapping[str, Tensor],
    layouts: Sequence[Layout],
    path: Path,
    card: PointCard | None = None,
    image: Image = None,
) -> list[Fit]:
    """Find the layouts that a file fits whole, the best one first.

    Args:
        tensors: of the file, by their own names.
        layouts: to choose from; of several that fit, the first is the best.
        path: of the file, for messages.
        card: the point encoder that the user says it is; its own layout is then the best.
        image: whether to use the file's image tower.

    Raises:
        InputError: none fits; says which one comes nearest, and what differs.
    """
    names = {layout.card.name for layout in layouts}
    chosen = [layout for layout in layouts if card is None or _takes(layout, card, names)]
    if card is not None:
        chosen.sort(key=lambda layout: layout.card.name != card.name)
    fits = [fit(tensors, layout, card or layout.card, image) for layout in chosen]
    whole = [each for each in fits if not each.misfits]
    if whole:
        return whole
    if card is not None:
        for layout in layouts:
            if not fit(tensors, layout, layout.card, image).misfits:
                raise InputError(
                    f"{path}: expected the weights of {card.name}, as --as says, found those of {layout.title} "
                    f"({layout.card.name}): leave out --as"
                )
    raise InputError(f"{path}: {_nearest(tensors, fits, layouts)}")


def _takes(layout: Layout, card: PointCard, names: Collection[str]) -> bool:
    """Whether a file of a layout may be read with a card that the user names; `names` are the cards of all layouts."""
    if card.name in names:
        return card.name in (layout.card.name, layout.twin)
    return type(card) is type(layout.card)


def fit(tensors: Mapping[str, Tensor], layout: Layout, card: PointCard, image: Image = None) -> Fit:
    """Compare a file with a layout, key by key."""
    tower = _tower(tensors, layout, image)
    rules = (*(tower.rules if tower else ()), *layout.rules)
    shapes = base_shapes(card, tower.card if tower else None, layout.dim)
    found = {ours: _source(rules, ours, shape) for ours, shape in shapes.items()}
    there = {rule.optional for rule, keys in found.values() if any(key in tensors for key in keys)}
    sources, new, misfits, wanted = {}, [], [], set()
    for ours, (rule, keys) in found.items():
        if rule.form is None or (rule.optional and rule.optional not in there):
            new.append(ours)
            continue
        sources[ours] = Source(keys, rule.form, shapes[ours])
        wanted |= set(keys)
        expected = zip(keys, rule.form.shapes(shapes[ours]), strict=True)
        misfits += [each for key, shape in expected if (each := _compare(tensors, key, shape, ours))]
    left_out, unknown = _leave_out(tensors.keys() - wanted, layout, tower, image)
    surplus = [Misfit(key, None, str(tuple(tensors[key].shape))) for key in sorted(unknown)]
    matched = len(wanted) - len({each.key for each in misfits})
    return Fit(layout, card, tower, sources, tuple(new), left_out, (*misfits, *surplus), len(wanted), matched)


@functools.lru_cache(maxsize=32)
def base_shapes(card: PointCard, image: ImageCard | None, dim: int) -> dict[str, Shape]:
    """Names and shapes of all tensors of a base; nothing is allocated."""
    return {name: tuple(value.shape) for name, value in empty_base(card, image, dim).state_dict().items()}


def empty_base(card: PointCard, image: ImageCard | None, dim: int) -> DualEncoder:
    """A base whose tensors have a shape and no memory."""
    with torch.device("meta"):
        return DualEncoder(card, image, dim, load_image_weights=False)


def _tower(tensors: Mapping[str, Tensor], layout: Layout, image: Image) -> ImageLayout | None:
    """The image tower to take from the file."""
    tower = layout.image
    if tower is None or image == "none" or not (tower.kept or image == "keep"):
        return None
    return tower if any(re.fullmatch(tower.keys, key) for key in tensors) else None


def _source(rules: Iterable[Rule], ours: str, shape: Shape) -> tuple[Rule, tuple[str, ...]]:
    for rule in rules:
        if match := re.fullmatch(rule.ours, ours):
            return rule, tuple(match.expand(key) for key in rule.keys)
    raise LookupError(f"no rule for '{ours}' {shape}")


def _compare(tensors: Mapping[str, Tensor], key: str, shape: Shape, ours: str) -> Misfit | None:
    if key not in tensors:
        return Misfit(key, shape, None, ours)
    tensor = tensors[key]
    if tuple(tensor.shape) != shape:
        return Misfit(key, shape, str(tuple(tensor.shape)), ours)
    if tensor.is_floating_point() == ours.endswith("num_batches_tracked"):
        return Misfit(
            key, shape, f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}", ours
        )
    return None


def _leave_out(
    keys: Iterable[str], layout: Layout, tower: ImageLayout | None, image: Image
) -> tuple[dict[str, str], list[str]]:
    """Reasons for the keys that need not be used, and the keys that nothing is known of."""
    reasons = [(each.keys, each.reason) for each in layout.left_out]
    if layout.image is not None and tower is None:
        why = "as --image says" if image == "none" else "--image keep takes it"
        reasons.append((layout.image.keys, f"the image tower: {why}"))
    if layout.classifier is not None:
        reasons.append((re.escape(layout.classifier), "trained class vectors: --classes keeps them"))
    left_out: dict[str, str] = {}
    unknown = []
    for key in sorted(keys):
        why = next((reason for pattern, reason in reasons if re.fullmatch(pattern, key)), "")
        if why:
            left_out[key] = why
        else:
            unknown.append(key)
    return left_out, unknown


def _nearest(tensors: Mapping[str, Tensor], fits: Sequence[Fit], layouts: Sequence[Layout]) -> str:
    """One line: what was expected, which model comes nearest, and what differs."""
    nearest = max(fits, key=lambda each: each.likeness)
    known = ", ".join(layout.card.name for layout in layouts)
    if not nearest.matched:
        first = ", ".join(f"'{key}'" for key in sorted(tensors)[:SHOWN])
        return f"expected the weights of {known}, found none of their {len(tensors)} tensors, but {first}"
    shown = "; ".join(str(each) for each in nearest.misfits[:SHOWN])
    more = len(nearest.misfits) - SHOWN
    return (
        f"expected the weights of {known}, found something like {nearest.layout.title} ({nearest.card.name}), of whose "
        f"{nearest.expected} keys {nearest.matched} match: {shown}"
        + (f"; and {more} more" if more > 0 else "")
        + "".join(f". {words}" for words in _in_words(nearest))
    )


def _in_words(nearest: Fit) -> Iterable[str]:
    """What the misfits mean, where it can be said."""
    layout = nearest.layout
    for each in nearest.misfits:
        found = tuple(int(side) for side in re.findall(r"\d+", each.found or ""))
        if each.expected is None or len(found) != len(each.expected):
            continue
        if each.ours in FIRST_LAYERS and found[1] != each.expected[1]:
            yield (
                f"It reads {found[1]} numbers a point ({INPUTS.get(found[1], 'of another kind')}) where "
                f"{nearest.card.name} reads {each.expected[1]} ({INPUTS.get(each.expected[1], 'of its own')}): "
                "a variant that crossmost has no card for"
            )
        if each.ours == "point_projection":
            widths = [other for other, side in zip(found, each.expected, strict=True) if side == layout.dim]
            if widths and widths[0] != layout.dim:
                yield (
                    f"Its embedding has {widths[0]} numbers where that of {layout.text} has {layout.dim}: "
                    "it was aligned with another text model"
                )
