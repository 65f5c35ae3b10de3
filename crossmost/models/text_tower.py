"""From class names to a vocabulary: prompt templates through a CLIP text tower (METHOD section 1.4)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmost.checkpoints.torchscript import is_torchscript
from crossmost.errors import InputError
from crossmost.models.clip import (
    first_line,
    has_scheme,
    import_open_clip,
    model_config,
    quiet_logging,
    random_text,
)
from crossmost.models.clip_filling import without_image
from crossmost.models.clip_text import load_text
from crossmost.models.slip import CONFIG, PUBLISHED, TOKENIZER, is_ulip, load_slip
from crossmost.runtime.class_names import check_class_names
from crossmost.runtime.text_tags import SLIP
from crossmost.runtime.vocabulary import Vocabulary

PROMPTS_FILE = Path(__file__).parent / "cards" / "prompts.json"
PROMPTS: tuple[str, ...] = tuple(json.loads(PROMPTS_FILE.read_text("utf-8")))
"""The 64 templates the method uses for every data set, `{}` standing for the class name."""


def embed_classes(
    names: Iterable[str],
    *,
    clip: str,
    weights: str | None,
    templates: Sequence[str] = PROMPTS,
    batch: int = 256,
    device: str | torch.device = "cpu",
    spaces: bool = False,
    allow_random: bool = False,
) -> Vocabulary:
    """Embed class names: unit embeddings of the prompts, averaged over the templates, at unit length again.

    Args:
        names: C different names.
        clip: an open_clip model name, `slip-vit-b-16`, or either with the tag of its weights, `NAME/TAG`.
        weights: a tag of open_clip's, a file, or None where the name brings its own or a tag is in `clip`.
        templates: prompts with one `{}` for the name.
        batch: prompts a forward pass.
        device: where the text tower runs.
        spaces: write `night_stand` as `night stand` in the prompts; the reference recipe does not.
        allow_random: take random weights where `weights` is None; only tests have a use for that.

    Returns:
        A vocabulary of embeddings (C, D) with the names as given.

    Raises:
        InvalidVocabulary: names that CLIP cannot tell apart.
        InputError: bad templates, an unknown model, or weights that cannot be had.
    """
    names, templates = tuple(names), tuple(templates)
    check_class_names(names)
    check_templates(templates)
    tokenizer = text_tokenizer(clip)
    model = text_model(clip, weights, allow_random=allow_random).to(device)
    words = [name.replace("_", " ") if spaces else name for name in names]
    prompts = [template.replace("{}", word) for word in words for template in templates]
    parts = [
        embed_texts(model, tokenizer(prompts[start : start + batch]).to(device))
        for start in range(0, len(prompts), batch)
    ]
    embeddings = torch.cat(parts).unflatten(0, (len(names), len(templates)))  # (C * T, D) to (C, T, D)
    return Vocabulary.create(
        names,
        embeddings.mean(dim=1).numpy(),
        logit_scale=model.logit_scale.exp().item(),
        prompts=templates,
        tag=model_tag(clip, weights),
    )


@torch.inference_mode()
def embed_texts(model: Any, tokens: Tensor) -> Tensor:
    """Embed tokens (B, T) with a CLIP: (B, D) float32 unit rows on the CPU."""
    return torch.nn.functional.normalize(model.encode_text(tokens).float(), dim=-1).cpu()


def text_model(clip: str, weights: str | None, *, allow_random: bool = False) -> Any:
    """Build a CLIP that has its text tower only, in evaluation mode; see `embed_classes`.

    Raises:
        InputError: an unknown name, or no weights: a random text tower names nothing.
    """
    name, tag = split_tag(clip)
    weights = weights or tag
    if weights is None and allow_random and not has_scheme(name):
        return without_image(random_text(CONFIG if name == SLIP else model_config(name))).eval()
    return load_slip(weights) if name == SLIP else load_text(name, weights, tag)


def text_tokenizer(clip: str) -> Any:
    """Build the tokenizer that belongs to a CLIP; it cuts over-long prompts.

    Raises:
        InputError: the tokenizer needs a package or a download that cannot be had.
    """
    name, _ = split_tag(clip)
    try:
        with quiet_logging():
            return import_open_clip().get_tokenizer(TOKENIZER if name == SLIP else name)
    except Exception as error:  # transformers and the hub raise what they like
        raise InputError(
            f"cannot make the tokenizer of {clip!r} ({first_line(error)}): "
            "use a model with CLIP's own, such as ViT-B-32"
        ) from error


def split_tag(clip: str) -> tuple[str, str | None]:
    """Split `ViT-B-32/openai` into a model's name and the tag of its weights; None where there is no tag."""
    name, slash, tag = clip.partition("/")
    if has_scheme(clip) or not slash or not (name == SLIP or name in import_open_clip().list_models()):
        return clip, None
    return name, tag


def model_tag(clip: str, weights: str | None) -> str:
    """Name a text model without the folders it was read from: `ViT-B-32/openai`.

    A file's name says little; where `clip` names published weights, the file is taken to be theirs.
    """
    if has_scheme(clip):
        scheme, _, place = clip.partition(":")
        return f"{scheme}:{Path(place).name if scheme == 'local-dir' else place}"
    name, tag = split_tag(clip)
    if weights is None or is_published(name, weights) or not Path(weights).is_file():
        return f"{name}/{weights or tag or 'random'}"
    if tag is not None and is_published(name, tag):
        return f"{name}/{tag}"
    return f"{name}/{file_tag(name, weights)}"


def is_published(name: str, tag: str) -> bool:
    """Whether a tag says which weights they are."""
    return tag == PUBLISHED if name == SLIP else bool(import_open_clip().get_pretrained_cfg(name, tag))


def file_tag(name: str, weights: str) -> str:
    """Name the weights in a file: by what is in it where that tells, else by the file's name."""
    file = Path(weights)
    if name == SLIP:
        return PUBLISHED if file.stem == PUBLISHED or is_ulip(weights) else file.name
    if is_torchscript(file):
        return "openai"
    return file.name if file.suffix else f"{file.name} (file)"  # no tag of open_clip's has a dot


def check_templates(templates: tuple[str, ...]) -> None:
    """Refuse prompt templates that a class name cannot be put into.

    Raises:
        InputError: no template, or one without exactly one `{}`.
    """
    if not templates:
        raise InputError("expected at least one prompt template, found none")
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"expected one {{}} in every prompt template, found {template!r}")
