"""From a published checkpoint to a base: recognise it, put every tensor in its place, say what was done."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from crossmost.checkpoints.atomic import replacing
from crossmost.checkpoints.base import Architecture, save_base
from crossmost.checkpoints.conversion import Conversion
from crossmost.checkpoints.destination import check_destination
from crossmost.checkpoints.layout import Layout
from crossmost.checkpoints.layouts import LAYOUTS
from crossmost.checkpoints.legacy import read_legacy
from crossmost.checkpoints.recognition import Fit, Image, empty_base, recognize
from crossmost.checkpoints.unwrapping import Network, unwrap
from crossmost.errors import InputError
from crossmost.models.clip import pretrained_clip
from crossmost.models.image_origin import image_origin
from crossmost.models.image_tower import ImageCard, ImageTower, check_config
from crossmost.models.point_cards import load_point_card
from crossmost.models.student import LOGIT_SCALE, DualEncoder
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.manifest import hash_file
from crossmost.runtime.vocabulary import InvalidVocabulary, Vocabulary

SEED = 0
"""Of what no published file has and masked modelling needs: each conversion draws the same."""
TOWER = "image_tower."
HIGHEST_LOGIT_SCALE = 8.0
"""Far above every published one: CLIP stops at ln 100 = 4.6, SigLIP's is 4.8. Above it, it was no logarithm."""


class Tower(NamedTuple):
    """An image tower from elsewhere: its card, its tensors by a base's names, and which CLIP's it is."""

    card: ImageCard
    tensors: dict[str, Tensor]
    origin: str


def convert_checkpoint(
    path: Path,
    out: Path,
    *,
    name: str | None = None,
    network: Network = "student",
    image: str | None = None,
    classes: Sequence[str] | None = None,
    overwrite: bool = False,
    layouts: Sequence[Layout] = LAYOUTS,
) -> Conversion:
    """Make a base of a published checkpoint.

    Args:
        path: a file of torch.save or a .safetensors.
        out: the .safetensors to write; trained class vectors go into the .classes.npz of the same stem.
        name: the card of the point encoder, where weights alone cannot tell: how many patches of how many points.
        network: which one, where self-training saved two.
        image: `keep` or `none` for the file's image tower, or a tag or file of weights of the CLIP that the encoder is
            aligned with; None keeps the file's own unless it is huge.
        classes: names of the trained class vectors, in their order.
        overwrite: replace what is at `out`.
        layouts: what may be recognised.

    Raises:
        InputError: a file that cannot be read, or is none of the known ones; options that do not fit it.
        WorkFailed: the base cannot be written; nothing is left behind.
    """
    bank_path = out.with_suffix(".classes.npz")
    check_destination(out, ".safetensors", [path], overwrite=overwrite)
    if classes:
        check_destination(bank_path, ".npz", [path], overwrite=overwrite)
    card = None if name is None else load_point_card(name)
    content = unwrap(read_legacy(path), network, path)
    fits = recognize(content.tensors, layouts, path, card, _own_tower(image))
    best = fits[0]
    tower = _foreign_tower(best, image, path)
    bank = _class_bank(best, content.tensors, classes, path) if classes else None
    model = _fill(best, content.tensors, tower, path)
    made = Conversion(
        source=path,
        sha256=hash_file(path).sha256,
        out=out,
        network=network,
        title=best.layout.title,
        architecture=_architecture(best, tower),
        sources={ours: each.keys for ours, each in best.sources.items()},
        new=_new(best, tower),
        left_out=_left_out(best, content.others, bank),
        classes=bank_path if bank else None,
        parameters=sum(value.numel() for value in model.parameters()),
        image_origin=tower.origin if tower else None,
        also=tuple(each.card.name for each in fits[1:] if each.card.name != best.card.name),
    )
    with ExitStack() as both:
        if bank:  # in its place once the base is in its own
            bank.save(both.enter_context(replacing(bank_path)))
        save_base(out, model, made.architecture, made.notes())
    return made


def _fill(fit: Fit, tensors: Mapping[str, Tensor], tower: Tower | None, path: Path) -> DualEncoder:
    """A base with the file's weights in it, in float32."""
    architecture = _architecture(fit, tower)
    model = empty_base(architecture.point, architecture.image, architecture.dim)
    values = _draw(model, _new(fit, tower))
    if tower:
        values |= tower.tensors
    if fit.image is not None and fit.image.whole is not None:
        made = fit.image.whole({key: value for key, value in tensors.items() if key not in fit.left_out})
        values |= {f"{TOWER}{name}": value for name, value in made.items()}
    for ours, (keys, form, shape) in fit.sources.items():
        if ours not in values:
            assert form.make is not None
            values[ours] = form.make([_single(tensors[key]) for key in keys], shape)
    _check_values(values, path)
    model.load_state_dict(values, assign=True)
    return model.eval()


def _check_values(values: Mapping[str, Tensor], path: Path) -> None:
    """Refuse numbers that no training leaves behind: what is made of them is NaN, or nothing.

    Raises:
        InputError: NaN or infinity, a variance below zero, or a logit scale that is no logarithm of one.
    """
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{path}: expected finite weights, found NaN or infinity for '{name}'")
        if name.endswith("running_var") and (value < 0).any():
            raise InputError(
                f"{path}: expected variances of 0 or more, found {value.min().item():g} in '{name}'"
            )
        if name == "logit_scale" and value.item() > HIGHEST_LOGIT_SCALE:
            raise InputError(
                f"{path}: expected the logarithm of what cosines are multiplied by, at most {HIGHEST_LOGIT_SCALE:g}, "
                f"found {value.item():g} for '{name}'"
            )


def _single(value: Tensor) -> Tensor:
    """Float32, if it is a float at all; counters stay as they are."""
    return value.float() if value.is_floating_point() else value


def _draw(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Start tensors as training from nothing starts them, from a fixed seed."""
    drawn: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for name in sorted(names):
            owner, _, leaf = name.rpartition(".")
            if leaf == "logit_scale":
                drawn[name] = torch.tensor(LOGIT_SCALE)
            elif leaf == "mask_token":
                drawn[name] = nn.init.trunc_normal_(torch.empty(model.get_parameter(name).shape), std=0.02)
            elif name not in drawn:
                layer = copy.deepcopy(model.get_submodule(owner)).to_empty(device="cpu")
                layer.reset_parameters()  # type: ignore[operator]
                drawn |= {f"{owner}.{each}": value for each, value in layer.state_dict().items()}
    return drawn


def _architecture(fit: Fit, tower: Tower | None) -> Architecture:
    own = None if fit.image is None else fit.image.card
    return Architecture(fit.card, tower.card if tower else own, fit.layout.dim, fit.layout.text)


def _new(fit: Fit, tower: Tower | None) -> tuple[str, ...]:
    """What has to be drawn; an image tower from elsewhere comes whole."""
    return tuple(ours for ours in fit.new if not (tower and ours.startswith(TOWER)))


def _own_tower(image: str | None) -> Image:
    """What --image says about the file's tower: not to take it, where it names another."""
    if image is None:
        return None
    return "keep" if image == "keep" else "none"


def _foreign_tower(fit: Fit, image: str | None, path: Path) -> Tower | None:
    """The image tower of the CLIP that the encoder is aligned with, if --image names its weights."""
    if image == "keep" and fit.image is None:
        raise InputError(f"{path}: expected an image tower in it for --image keep, found none")
    if image in (None, "keep", "none"):
        return None
    clip, _, tag = fit.layout.text.partition("/")
    try:
        check_config(clip)
    except InputError as error:
        raise InputError(
            f"--image cannot give the image tower of {fit.layout.text}: {error}; without --image the base keeps the "
            "tower of the file, or trains in point-only mode if it has none"
        ) from error
    origin = image_origin(clip, image, fit.layout.text, f"give --image {tag}, or a file with these weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            tower = ImageTower(pretrained_clip(clip, image).visual)
        except InputError as error:  # its advice is for commands that name the weights otherwise
            raise InputError(str(error).replace("--clip-weights", "--image")) from error
    tensors = {f"{TOWER}{name}": value for name, value in tower.state_dict().items()}
    return Tower(ImageCard(clip=clip, weights=None if Path(image).is_file() else image), tensors, origin)


def _class_bank(fit: Fit, tensors: Mapping[str, Tensor], names: Sequence[str], path: Path) -> ClassBank:
    """The trained class vectors of a file as a vocabulary with their lengths."""
    key = fit.layout.classifier
    if key is None or key not in tensors:
        raise InputError(f"{path}: expected trained class vectors in it for --classes, found none")
    vectors = _single(tensors[key]).numpy()
    if vectors.shape != (fit.layout.dim, len(names)):
        raise InputError(
            f"{path}: expected class vectors of shape {(fit.layout.dim, len(names))} for {len(names)} names, "
            f"found '{key}' of shape {vectors.shape}"
        )
    scale = float(tensors["logit_scale"].double().exp())
    try:
        vocabulary = Vocabulary.create(names, vectors.T, logit_scale=scale, tag=fit.layout.text)
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=0).astype(np.float32)
        return ClassBank(vocabulary, lengths)
    except InvalidVocabulary as error:
        raise InputError(f"{path}: '{key}': {error}") from error


def _left_out(fit: Fit, others: Mapping[str, str], bank: ClassBank | None) -> dict[str, str]:
    used = {fit.layout.classifier} if bank else set()
    return {key: why for key, why in (*fit.left_out.items(), *others.items()) if key not in used}
