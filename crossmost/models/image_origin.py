"""Which CLIP an image tower from elsewhere is of: it is of use only beside that CLIP's own text embeddings."""

from __future__ import annotations

from crossmost.errors import InputError
from crossmost.models.text_tower import model_tag
from crossmost.runtime.text_tags import same_text_model


def image_origin(clip: str, weights: str | None, text: str, remedy: str) -> str:
    """Name the image tower of a CLIP, after a look at whether it belongs to a text model, as far as tags tell.

    Args:
        clip: an open_clip model name.
        weights: a tag of open_clip's, a file, or None where the name brings its own.
        text: tag of the text model.
        remedy: what to do where it belongs to another one.

    Returns:
        Such as `ViT-B-32/openai`; with the name of the file in the place of the tag where that is all that is known.

    Raises:
        InputError: it belongs to another text model.
    """
    origin = model_tag(clip, weights)
    if same_text_model(text, origin) is False:
        raise InputError(
            f"expected the image tower of {text}, whose the text embeddings are, found that of {origin}, another "
            f"space: {remedy}"
        )
    return origin
