"""Which text model embeddings come from, by its tag: `open_clip name/weights`, such as `ViT-B-32/openai`.

Two text models put the same words in different places, also where both places have as many numbers: names embedded
by the one mean nothing to an encoder that was aligned with the other.
"""

from __future__ import annotations

import re

TAG = re.compile(r"([\w.+-]+)/([\w-]+)", re.ASCII)
"""Weights with a dot are the name of a file, which anyone may have given to anything."""

NO_WEIGHTS = ("random",)

SLIP = "slip-vit-b-16"
FILES = {SLIP: "slip_base_100ep.pt"}
"""Text models whose weights nothing downloads, and the file they are published in."""


def text_model(tag: str) -> tuple[str, str] | None:
    """Name the model and the weights behind a tag, so that equal ones are the same space.

    OpenAI's weights go by two names, `ViT-B-16` and `ViT-B-16-quickgelu`.

    Returns:
        None where the tag does not say: it is empty, random, a file's, a folder's, or words of another kind.
    """
    found = TAG.fullmatch(tag)
    if found is None or found[2] in NO_WEIGHTS:
        return None
    return found[1].lower().removesuffix("-quickgelu"), found[2].lower().replace("-", "_")


def same_text_model(tag: str, other: str) -> bool | None:
    """Whether two tags mean the same space; None where one of them does not say."""
    one, two = text_model(tag), text_model(other)
    return None if one is None or two is None else one == two


def explain_other_model(whose: str, expected: str, found: str, dim: int) -> str | None:
    """Say why embeddings are of no use to an encoder although their width fits.

    Args:
        whose: the encoder, as a sentence begins: "this base", "scans.bundle".
        expected: tag of the text model that it was aligned with.
        found: tag of the text model of the embeddings.
        dim: D of both.

    Returns:
        One line with the remedy; None where both are the same model, or nobody can tell.
    """
    if same_text_model(expected, found) is not False:
        return None
    return (
        f"{whose} was aligned with {expected}, found class embeddings of {found}: these are different spaces, "
        f"although both have {dim} numbers; {remedy(expected)}"
    )


def remedy(expected: str) -> str:
    """Say how to get the class embeddings that an encoder wants, given the tag of its text model."""
    known = text_model(expected)
    if known is None:
        return "use class embeddings of the text tower it was aligned with"
    file = FILES.get(known[0])
    weights = f" --clip-weights {file}" if file else ""
    return f"make them with `crossmost vocabulary --clip {expected}{weights} --names FILE --out classes.npz`"
