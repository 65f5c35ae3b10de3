"""What `crossmost inspect` says of class names and their text embeddings."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from crossmost.runtime.bundle_summary import class_lines, one_line
from crossmost.runtime.class_bank import load_class_bank

OF_A_VOCABULARY = {"names.npy", "embeddings.npy"}


def is_vocabulary(path: Path) -> bool:
    """Whether a file holds class names and their embeddings, and no clouds."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist()) >= OF_A_VOCABULARY


def describe_vocabulary(path: Path) -> dict[str, Any]:
    """The facts of a vocabulary or class bank, in JSON types.

    Raises:
        InvalidVocabulary: it cannot be used.
    """
    bank = load_class_bank(path)
    vocabulary = bank.vocabulary
    return {
        "vocabulary": str(path),
        "names": list(vocabulary.names),
        "dim": vocabulary.dim,
        "prompts": list(vocabulary.prompts),
        "text_model": vocabulary.tag,
        "logit_scale": vocabulary.logit_scale,
        "temperature": bank.temperature,
        "unknown_similarity": bank.unknown_similarity,
    }


def summarize_vocabulary(path: Path) -> list[str]:
    """The same as lines for people."""
    bank = load_class_bank(path)
    lines = [f"vocabulary   {path}, D {bank.vocabulary.dim}", *class_lines(bank)]
    return [one_line(line) for line in lines]
