"""SLIP's text tower, with which ULIP's first models are aligned: CLIP's, trained by other people on other data.

As models.py of facebookresearch/SLIP has it: 12 blocks of width 512 with 8 heads and QuickGELU, a causal context
of 77 tokens, the feature at the end-of-text token, LayerNorm's usual epsilon of 1e-5; its tokenizer.py is CLIP's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossmost.checkpoints.clip_file import Stored, open_weights
from crossmost.errors import InputError
from crossmost.models.clip import SMALL_VISION, clip_on_meta
from crossmost.models.clip_filling import fill_text
from crossmost.runtime.text_tags import FILES, SLIP

CONFIG: dict[str, Any] = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": SMALL_VISION,
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
TOKENIZER = "ViT-B-16"
"""The open_clip name whose tokenizer is SLIP's."""

PUBLISHED = Path(FILES[SLIP]).stem
URL = f"https://dl.fbaipublicfiles.com/slip/{FILES[SLIP]}"

OTHERS = ("visual.", "image_projection", "image_mlp.", "point_encoder.", "pc_projection")
"""What the files of SLIP and ULIP hold beside the text tower."""


def load_slip(weights: str | None) -> Any:
    """Build SLIP's text tower, on the CPU in float32, as a CLIP without image tower.

    Args:
        weights: SLIP's file, or a ULIP checkpoint, which holds the same tower.

    Raises:
        InputError: no file, damaged, holding more than tensors and options, or of another model.
    """
    if weights is None or not Path(weights).is_file():
        found = "no file" if weights in (None, PUBLISHED) else repr(weights)
        raise InputError(
            f"expected the weights of {SLIP!r}, found {found}: give --clip-weights {FILES[SLIP]} from {URL}, "
            "or a ULIP checkpoint"
        )
    file = Path(weights)
    with open_weights(file) as stored:
        check_slip(stored, file)
        return fill_text(clip_on_meta(CONFIG), _text(stored), file)


def check_slip(stored: dict[str, Stored], file: Path) -> None:
    """Refuse other models of the same text tower: SLIP's, and ULIP's, have timm's vision transformer beside it.

    Raises:
        InputError: says what it looks like.
    """
    if "visual.class_embedding" in stored or "visual.conv1.weight" in stored:
        raise InputError(
            f"{file}: expected a file of SLIP or ULIP, found CLIP's own towers: give its open_clip name"
        )
    if "image_projection" not in stored:
        raise InputError(f"{file}: expected a file of SLIP or ULIP, found no image_projection in it")


def is_ulip(weights: str) -> bool:
    """Whether a file is a ULIP checkpoint."""
    with open_weights(Path(weights)) as stored:
        return "pc_projection" in stored


def _text(stored: dict[str, Stored]) -> dict[str, Stored]:
    return {name: tensor for name, tensor in stored.items() if not name.startswith(OTHERS)}
