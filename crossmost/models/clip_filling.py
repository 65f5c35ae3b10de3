"""Weights into a CLIP that was built without memory for them, both towers or the text tower alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmost.checkpoints.clip_file import Stored
from crossmost.errors import InputError

NOT_TEXT = ("visual.", "text_decoder.")
"""What classes are not embedded with; CoCa's decoder writes captions."""

BESIDE = ("input_resolution", "context_length", "vocab_size", "logit_bias")
"""Of the whole model: numbers of OpenAI's archive, and what SigLIP's loss adds to the logits."""


def fill_text(model: Any, stored: Mapping[str, Stored], file: Path) -> Any:
    """Read the text half of a file into a CLIP, and take its image tower away.

    Args:
        model: on the meta device, with both towers: the shapes in the file are compared with both.
        stored: the tensors of the file.
        file: for the message.

    Raises:
        InputError: a tensor is missing, unknown or of another shape.
    """
    if "positional_embedding" in stored and not hasattr(model, "positional_embedding"):
        from open_clip.model import convert_to_custom_text_state_dict

        stored = convert_to_custom_text_state_dict(stored)
    check_image_half(model, stored, file)
    without_image(model)
    return fill(model, {name: each for name, each in stored.items() if not name.startswith(NOT_TEXT)}, file)


def check_image_half(model: Any, stored: Mapping[str, Stored], file: Path) -> None:
    """Compare the shapes of the image tower, without reading it: many CLIPs have the same text tower.

    Raises:
        InputError: the file is that of another model.
    """
    if not any(name.startswith("visual.") for name in stored):
        return  # a file of the text half alone
    for name, parameter in model.named_parameters():
        if name.startswith("visual.") and name != "visual.positional_embedding":  # of any resolution
            _check_shape(name, tuple(parameter.shape), stored[name].shape if name in stored else None, file)


def without_image(model: Any) -> Any:
    """Take away what classes are not embedded with."""
    for part in NOT_TEXT:
        if hasattr(model, part.removesuffix(".")):
            delattr(model, part.removesuffix("."))
    return model


def fill(model: Any, stored: Mapping[str, Stored], file: Path) -> Any:
    """Read tensors into a CLIP, every one of both, as float32 copies that need the file no longer.

    Args:
        model: on the meta device.
        stored: the tensors; what is in `BESIDE` is passed over.
        file: for the message.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: a tensor is missing, unknown or of another shape.
    """
    model.logit_bias = None
    expected = model.state_dict()
    wanted = {name: each for name, each in stored.items() if name not in BESIDE}
    for name in sorted(wanted.keys() - expected.keys()):
        raise InputError(f"{file} is of another architecture: it has the unknown {name!r}")
    for name in sorted(expected.keys() - wanted.keys()):
        _check_shape(name, tuple(expected[name].shape), None, file)
    tensors = {name: each.read().to(expected[name].dtype, copy=True) for name, each in wanted.items()}
    tensors["logit_scale"] = tensors["logit_scale"].reshape(expected["logit_scale"].shape)
    _fit_positions(model, tensors)
    for name, tensor in tensors.items():
        _check_shape(name, tuple(expected[name].shape), tuple(tensor.shape), file)
    model.load_state_dict(tensors, assign=True)
    _fill_mask(getattr(model, "text", model))
    return model.eval()


def _check_shape(name: str, expected: tuple[int, ...], found: tuple[int, ...] | None, file: Path) -> None:
    if found != expected:
        raise InputError(
            f"{file} is of another architecture: expected {name!r} of shape {expected}, found {found or 'none'}"
        )


def _fit_positions(model: Any, tensors: dict[str, Tensor]) -> None:
    """Fit positions to another image size or context length, as open_clip does."""
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    if hasattr(model, "visual"):
        resize_pos_embed(tensors, model)
    resize_text_pos_embed(tensors, model)


def _fill_mask(text: Any) -> None:
    """Make the causal mask, which is no weight: a token sees itself and what came before it."""
    if text.attn_mask is not None:
        text.attn_mask = torch.full(text.attn_mask.shape, float("-inf")).triu(1)
