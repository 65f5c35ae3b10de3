"""Class names to a vocabulary on the robot: the exported text tower and its tokenizer, without torch."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.errors import InvalidInput
from crossmost.runtime.onnx_session import create_session, run_session
from crossmost.runtime.vocabulary import Vocabulary, check_names

GRAPH = "text_encoder.onnx"
TOKENIZER = "tokenizer.json"
BATCH = 64
"""Texts a pass, which bounds its memory."""
GROUP = 1024
"""Texts a call, at least, where names are embedded: enough of them have the same length."""


class InvalidTextEncoder(InvalidInput):
    """A text encoder that cannot be used, or asked for something it cannot do."""


class TextEncoder:
    """The text tower of a bundle.

    Safe to share between threads: nothing changes after loading, and passes run in parallel.
    """

    def __init__(self, session: Any, tokenizer: Any):
        """Join an ONNX Runtime session of the text graph and a `tokenizers.Tokenizer`; see `load`."""
        self._session = session
        self._tokenizer = tokenizer
        # A graph with a symbolic length gives the same without padding, for a fraction of the work.
        self._cut_padding = not isinstance(session.get_inputs()[0].shape[1], int)
        self.dim = int(session.get_outputs()[0].shape[1])
        """D, the width of the joint space."""

    @classmethod
    def load(cls, bundle: Path | str, threads: int | None = None) -> TextEncoder:
        """Open the text encoder of a bundle.

        Args:
            bundle: the folder.
            threads: of one pass; None for one a core.

        Raises:
            InvalidTextEncoder: the bundle has none, its files are damaged, or a package is missing: says which.
        """
        folder = Path(bundle)
        for name in (GRAPH, TOKENIZER):
            if not (folder / name).is_file():
                raise InvalidTextEncoder(
                    f"{folder}: expected {name} in it, found none: export the bundle with --text-encoder"
                )
        tokenizers = import_tokenizers()
        tokenizer = _open(folder / TOKENIZER, lambda path: tokenizers.Tokenizer.from_file(str(path)))
        return cls(_open(folder / GRAPH, lambda path: create_session(path, threads=threads)), tokenizer)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed M texts: (M, D) float32 unit rows; what is beyond the context length is cut.

        Raises:
            InvalidTextEncoder: one string in place of a sequence of them, or something that is not text.
            PassFailed: ONNX Runtime could not, such as for want of memory.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InvalidTextEncoder(f"expected a sequence of texts, found {_describe(texts)}")
        if len(texts) == 0:
            return np.empty((0, self.dim), np.float32)
        tokens = self.tokens(texts)
        lengths = self._lengths(tokens)
        order = np.argsort(lengths)  # texts of like length go together: padding is work
        rows = np.empty((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), BATCH):
            batch = order[start : start + BATCH]
            cut = tokens[batch, : lengths[batch[-1]]]
            rows[batch] = run_session(self._session, {"tokens": cut})
        return rows

    def tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokenize M texts, M > 0: (M, T) int64, T the context length, padded with 0."""
        return np.array([self._tokenizer.encode(clean(text)).ids for text in texts], np.int64)

    def _lengths(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count what the graph must see of each row: all of it, or all but the padding: (M,)."""
        length = tokens.shape[1]
        if not self._cut_padding:
            return np.full(len(tokens), length)
        # "!" is 0 too, but a text always ends on the end-of-text token.
        return length - (tokens[:, ::-1] != 0).argmax(axis=1)

    def vocabulary(
        self,
        names: Iterable[str],
        prompts: Iterable[str],
        *,
        logit_scale: float,
        tag: str,
        spaces: bool = True,
    ) -> Vocabulary:
        """Embed class names: unit embeddings of the prompts, averaged over the templates, at unit length again.

        Args:
            names: C different names.
            prompts: templates with one `{}` for the name.
            logit_scale: of the model, positive.
            tag: of the model.
            spaces: write `night_stand` as `night stand` in the prompts; the vocabulary keeps the name.

        Raises:
            InvalidVocabulary: no name, an empty one, or one twice.
            InvalidTextEncoder: no template, or one without exactly one `{}`.
        """
        names, prompts = tuple(names), tuple(prompts)
        check_names(names)
        rows = embed_names(self.embed, names, prompts, spaces=spaces)
        return Vocabulary.create(names, rows, logit_scale=logit_scale, prompts=prompts, tag=tag)


def embed_names(
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    names: Sequence[str],
    prompts: Sequence[str],
    *,
    spaces: bool,
) -> NDArray[np.float32]:
    """Average the embeddings of every name over its prompts: (C, D) float32, shorter than unit length.

    Raises:
        InvalidTextEncoder: no template, or one without exactly one `{}`.
    """
    for prompt in prompts or ("",):
        if prompt.count("{}") != 1:
            raise InvalidTextEncoder(
                f"expected prompt templates with one {{}} for the name, found {prompt!r}"
            )
    words = [name.replace("_", " ") if spaces else name for name in names]
    group = -(-GROUP // len(prompts))  # names at a time, so that memory does not grow with their number
    means = []
    for start in range(0, len(words), group):
        texts = [prompt.replace("{}", word) for word in words[start : start + group] for prompt in prompts]
        rows = embed(texts)
        means.append(rows.reshape(-1, len(prompts), rows.shape[1]).mean(axis=1))
    return np.concatenate(means)


def clean(text: str) -> str:
    """Do to a text what open_clip does before tokenizing and `tokenizer.json` cannot: HTML entities, surrogates."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return html.unescape(html.unescape(whole))


def import_tokenizers() -> ModuleType:
    """Import the tokenizers package.

    Raises:
        InvalidTextEncoder: it is missing; says which line to type.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise InvalidTextEncoder(
            f'class names need the tokenizers package ({error}): pip install "crossmost[text]"'
        ) from error
    return tokenizers


def _open(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except ImportError as error:
        raise InvalidTextEncoder(
            f"class names need ONNX Runtime, whatever runs the encoder ({error}): pip install onnxruntime"
        ) from error
    except Exception as error:  # both libraries raise classes of their own
        reason = " ".join(str(error).split())[:200]
        raise InvalidTextEncoder(f"{path}: expected a file of crossmost export, found {reason}") from error


def _describe(texts: Any) -> str:
    if isinstance(texts, str):
        return f"the text {texts!r}: put it in a list"
    return next(type(text).__name__ for text in texts if not isinstance(text, str))
