"""The one door to open_clip: CLIP models by name, with weights or an error that says what to do.

Names are open_clip's: a built-in one (`ViT-B-16`), `local-dir:FOLDER` or `hf-hub:OWNER/REPO`; the last two
bring their own weights. OpenAI's weights need the `-quickgelu` variant of a name: a tag is checked for it, also one
that a file is said to be of, and OpenAI's own archive; a file that nothing is said of cannot be.
"""

from __future__ import annotations

import difflib
import logging
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from crossmost.checkpoints.clip_file import open_weights
from crossmost.checkpoints.torchscript import is_torchscript
from crossmost.errors import InputError
from crossmost.models.clip_filling import fill
from crossmost.models.torchvision_cpu import repair_torchvision

SMALL_TEXT = {"context_length": 4, "vocab_size": 4, "width": 64, "heads": 1, "layers": 1}
SMALL_VISION = {"image_size": 16, "patch_size": 16, "width": 64, "layers": 1}
"""Stand-ins for the tower that a caller does not want."""

FOLDER_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""How open_clip calls the weights in a `local-dir:`, the one it prefers first."""


def import_open_clip() -> ModuleType:
    """Import open_clip (3 to 4 s, so only where it is needed) beside whatever torchvision there is."""
    repair_torchvision()
    import open_clip

    return open_clip


def has_scheme(name: str) -> bool:
    """Tell whether a model name points at a folder or a repository, which bring their own weights."""
    return name.startswith(("local-dir:", "hf-hub:"))


def model_config(name: str) -> dict[str, Any]:
    """Read the architecture behind an open_clip name.

    Raises:
        InputError: no such name, folder or repository.
    """
    open_clip = import_open_clip()
    try:
        with quiet_logging():
            config = open_clip.get_model_config(name)
    except Exception as error:
        raise InputError(f"cannot read the CLIP configuration of {name!r}: {first_line(error)}") from error
    if config is None:
        known = open_clip.list_models()
        spelled = {plain(each): each for each in known}
        near = difflib.get_close_matches(plain(name), spelled, n=1)
        hint = f"; did you mean {spelled[near[0]]!r}?" if near else ""
        raise InputError(f"expected one of open_clip's {len(known)} model names, found {name!r}{hint}")
    return config


def plain(name: str) -> str:
    """Spell a name without case and punctuation, to find the one that was meant: `vit-b/32` is `ViT-B-32`."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def random_vision(name: str) -> nn.Module:
    """Build the image tower of a name with random weights, without the text tower beside it."""
    config = model_config(name)
    return _random_clip(config, config["vision_cfg"], SMALL_TEXT).visual


def random_text(config: dict[str, Any]) -> nn.Module:
    """Build a CLIP of a configuration with random weights and a stand-in for its image tower."""
    return _random_clip(config, SMALL_VISION, config["text_cfg"])


def _random_clip(config: dict[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> Any:
    # Not through open_clip.create_model, which warns that the weights are random.
    return import_open_clip().CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=vision,
        text_cfg=text,
        quick_gelu=config.get("quick_gelu", False),
    )


def clip_on_meta(config: dict[str, Any]) -> Any:
    """Build a CLIP of a configuration without memory for its weights: names and shapes, in evaluation mode."""
    open_clip = import_open_clip()
    settings = {key: value for key, value in config.items() if key != "custom_text"}
    vision = settings["vision_cfg"]
    if vision.get("timm_model_name"):
        settings["vision_cfg"] = {**vision, "timm_model_pretrained": False}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    if "multimodal_cfg" in config:
        kind = open_clip.CoCa
    with torch.device("meta"):
        return kind(**settings).eval()


def pretrained_clip(name: str, weights: str | None, tag: str | None = None) -> Any:
    """Build a CLIP with its pre-trained weights, both towers, on the CPU in float32.

    Args:
        name: an open_clip model name.
        weights: a tag of open_clip's (downloaded unless cached) or a file (.safetensors, a state dict or OpenAI's
            TorchScript archive, of which nothing is run); None where the name brings its own.
        tag: which published weights the file is said to hold.

    Raises:
        InputError: no weights, no such tag or file, weights of another architecture, or no way to download.
    """
    file = weights_file(name, weights, tag)
    if file is not None and is_torchscript(file):
        with open_weights(file) as stored:
            return fill(clip_on_meta(model_config(name)), stored, file)
    # A folder or repository is left to open_clip, which would pass over weights that are given beside it.
    source = None if has_scheme(name) or file is None else str(file)
    try:
        with quiet_logging():
            return import_open_clip().create_model(name, source, require_pretrained=True)
    except Exception as error:  # open_clip passes on whatever its downloader, torch or safetensors raise
        raise InputError(
            f"cannot load CLIP weights {weights or name!r} for {name!r} ({first_line(error)}): {advice(name)}"
        ) from error


def weights_file(name: str, weights: str | None, tag: str | None = None) -> Path | None:
    """Find the file with the weights of a model, which may download it; see `pretrained_clip`.

    Returns:
        None for a folder or repository whose weights only open_clip finds.

    Raises:
        InputError: no weights or two of them, no such tag or file, the other GELU, or no way to download.
    """
    config = model_config(name)
    if has_scheme(name):
        if weights is not None:
            raise InputError(f"{name!r} brings its own weights, found also {weights!r}: give one of the two")
        return _own_file(name)
    if weights is None:
        raise InputError(f"{name!r} needs weights: {advice(name)}")
    published = import_open_clip().get_pretrained_cfg
    for known in filter(None, (weights, tag)):
        if (source := published(name, known)) and not _same_gelu(name, source):
            raise InputError(f"weights {known!r} of {name!r} {_other_gelu(name)}")
    if source := published(name, weights):
        return _download(name, weights, source)
    if not Path(weights).is_file():
        tags = ", ".join(known_tags(name)) or "none"
        raise InputError(f"expected a weights file or a tag of {name!r} ({tags}), found {weights!r}")
    if not config.get("quick_gelu") and is_torchscript(Path(weights)):
        raise InputError(f"{weights} is OpenAI's archive, whose weights {_other_gelu(name)}")
    return Path(weights)


def _own_file(name: str) -> Path | None:
    scheme, _, place = name.partition(":")
    if scheme == "local-dir":
        files = (Path(place) / file for file in FOLDER_WEIGHTS)
        return next((file for file in files if file.is_file()), None)
    try:
        with quiet_logging():
            return Path(import_open_clip().factory.download_pretrained_from_hf(place))
    except Exception as error:  # the hub raises what it likes
        raise InputError(
            f"cannot load CLIP weights of {name!r} ({first_line(error)}): {advice(name)}"
        ) from error


def _download(name: str, weights: str, tag: dict[str, Any]) -> Path:
    try:
        with quiet_logging():
            return Path(import_open_clip().factory.download_pretrained(tag))
    except Exception as error:  # as do its downloaders
        sources = [
            f"{FOLDER_WEIGHTS[0]} of https://huggingface.co/{tag['hf_hub'].rstrip('/')}"
            if tag.get("hf_hub")
            else "",
            tag.get("url", ""),
        ]
        raise InputError(
            f"cannot load CLIP weights {weights!r} for {name!r} ({first_line(error)}): without a network, give "
            f"--clip-weights FILE with --clip {name}/{weights}; FILE is {' or '.join(filter(None, sources))}"
        ) from error


def _same_gelu(name: str, tag: dict[str, Any]) -> bool:
    return bool(tag.get("quick_gelu")) == bool(model_config(name).get("quick_gelu"))


def _other_gelu(name: str) -> str:
    other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
    return f"were trained with the other GELU: use {other!r}"


def known_tags(name: str) -> list[str]:
    """List the weights that open_clip can download and that were trained with the activation of `name`."""
    open_clip = import_open_clip()
    tags = open_clip.list_pretrained_tags_by_model(name)
    return [tag for tag in tags if _same_gelu(name, open_clip.get_pretrained_cfg(name, tag))]


def advice(name: str) -> str:
    """Say where weights of a model can come from."""
    if has_scheme(name):
        return "expected open_clip_config.json and open_clip_model.safetensors in it"
    tags = known_tags(name)
    download = f" or, with a network, one of its tags ({', '.join(tags[:4])})" if tags else ""
    return f"give --clip-weights FILE (open_clip .safetensors or state dict){download}"


def first_line(error: BaseException) -> str:
    """Shorten what a library raised to one line."""
    if isinstance(error, pickle.UnpicklingError):  # torch's own message recommends to load it all the same
        return "it holds more than tensors, or none"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Hold log lines back: open_clip logs an error on the screen before it raises the same one."""
    before = logging.root.manager.disable
    logging.disable(sys.maxsize)
    try:
        yield
    finally:
        logging.disable(before)
