"""The text tower of any CLIP without its image tower, however large that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossmost.checkpoints.clip_file import open_weights
from crossmost.errors import InputError
from crossmost.models.clip import advice, clip_on_meta, model_config, pretrained_clip, weights_file
from crossmost.models.clip_filling import fill_text, without_image
from crossmost.runtime.text_tags import SLIP


def load_text(name: str, weights: str | None, tag: str | None = None) -> Any:
    """Build a CLIP that has its text tower only, with pre-trained weights, on the CPU in float32.

    The image tower gets no memory, and only the text half of the file is read. Text towers of Hugging Face, and
    files in another layout than open_clip's, are loaded as a whole.

    Args:
        name: an open_clip model name.
        weights: a tag of open_clip's, a file, or None where the name brings its own.
        tag: which published weights the file is said to hold.

    Raises:
        InputError: no weights, no such tag or file, weights of another architecture, or no way to download.
    """
    file = weights_file(name, weights, tag)
    config = model_config(name)
    by_parts = "hf_model_name" not in config["text_cfg"] and file is not None and file.suffix != ".npz"
    model = _load_half(name, config, file) if by_parts and file is not None else None
    return without_image(pretrained_clip(name, weights, tag)) if model is None else model


def _load_half(name: str, config: dict[str, Any], file: Path) -> Any:
    """Load the text half; None for the layout of Apple's own MobileCLIP files."""
    try:
        with open_weights(file) as stored:
            if any(key.startswith("image_encoder.") for key in stored):
                return None
            if "image_projection" in stored:
                raise InputError(f"{file} is a file of SLIP or ULIP: give --clip {SLIP}")
            return fill_text(clip_on_meta(config), stored, file)
    except InputError as error:
        raise InputError(f"cannot load CLIP weights for {name!r}: {error}; {advice(name)}") from error
