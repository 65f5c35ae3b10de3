"""The text encoder of a bundle: graph and tokenizer, compared with open_clip, and made sure to be the right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossmost.export.comparison import Subject, embedding_checks
from crossmost.export.parity import GATES, Check
from crossmost.export.precision import Precision
from crossmost.export.text_tower import check_alignment, check_prompts, export_text_encoder
from crossmost.export.tokenizer import write_tokenizer
from crossmost.models.clip import model_config
from crossmost.models.text_tower import embed_texts, model_tag, text_model, text_tokenizer
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.text_encoder import GRAPH, TOKENIZER, TextEncoder
from crossmost.runtime.vocabulary import Vocabulary

COMPARED = 64
"""Class names, in the vocabulary's prompts by turns, that are compared with open_clip."""


@dataclass(frozen=True)
class TextOptions:
    """The text tower that goes into the bundle, by its open_clip name, and its weights."""

    clip: str
    weights: str | None


def check_text(vocabulary: Vocabulary, options: TextOptions) -> None:
    """Find out what can be known before the work that a text encoder cannot be written.

    Raises:
        InputError: open_clip has no such tower, or the vocabulary says no prompts.
    """
    model_config(options.clip)
    check_prompts(vocabulary)


def write_text_encoder(
    vocabulary: Vocabulary, options: TextOptions, precision: Precision, folder: Path, threads: int | None
) -> tuple[dict[str, Any], list[Check]]:
    """Add text encoder and tokenizer to a bundle.

    Args:
        vocabulary: whose embeddings the tower must give.
        options: which tower.
        precision: of the bundle.
        folder: of the bundle.
        threads: of ONNX Runtime.

    Returns:
        What the runtime must know to embed class names as the vocabulary did, and the comparison with open_clip.

    Raises:
        InputError: no such text tower, or not the one of the vocabulary.
    """
    # ONNX Runtime's CPU provider has no bfloat16, and names are embedded once: nothing would be won.
    precision = "fp16" if precision == "fp16" else "fp32"
    model = text_model(options.clip, options.weights)
    export_text_encoder(model, folder, precision=precision)
    write_tokenizer(options.clip, folder / TOKENIZER)
    encoder = TextEncoder.load(folder, threads)
    alignment = check_alignment(vocabulary, encoder.embed)
    texts = some_prompts(vocabulary)
    expected = embed_all(model, options.clip, texts)
    subject = Subject(f"{precision}, against open_clip", GRAPH, precision, len(texts), GATES[precision])
    checks = embedding_checks(subject, expected, encoder.embed(texts), texts, ClassBank.plain(vocabulary))
    tag = model_tag(options.clip, options.weights)
    return {"tag": tag, "spaces": alignment.spaces, "cosine": alignment.cosine}, checks


def some_prompts(vocabulary: Vocabulary) -> list[str]:
    """Different texts that are like those the robot will embed."""
    names, prompts = vocabulary.names[:COMPARED], vocabulary.prompts
    texts = [prompts[index % len(prompts)].replace("{}", name) for index, name in enumerate(names)]
    return list(dict.fromkeys(texts))


def embed_all(model: Any, clip: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts with open_clip itself: (len, D) float32 unit rows."""
    with torch.inference_mode():
        return np.asarray(embed_texts(model, text_tokenizer(clip)(list(texts))))
