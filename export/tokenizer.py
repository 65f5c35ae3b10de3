"""CLIP's tokenizer as a Hugging Face `tokenizer.json`, which a robot reads without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossmost.errors import InputError
from crossmost.models.clip import import_open_clip
from crossmost.models.text_tower import text_tokenizer
from crossmost.runtime.text_encoder import import_tokenizers

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
"""What open_clip takes for a word. White space is between words, so that there is no other cleaning of it."""

CURLED = {"[\u02bc\u2018-\u201b]": "'", "[\u201c-\u201f]": '"'}
CONTROL = r"[\x{0}-\x{8}\x{b}\x{e}-\x{1f}\x{7f}\x{206a}-\x{206f}\x{feff}\x{fff9}-\x{fffc}]"
"""What ftfy, through which open_clip cleans text, does to quotes and control characters."""


def write_tokenizer(clip: str, path: Path) -> None:
    """Write the tokenizer of a CLIP: text to its token ids, padded with 0 and cut to the model's context length.

    The ids are open_clip's, for text that is in order. open_clip runs it through ftfy first; of that the file
    holds the NFC normal form, straight quotes and the removal of control characters, and the runtime adds HTML
    entities. Left out are ftfy's guesses at wrongly decoded text (`Ã©` for `é`), Latin ligatures, full-width
    letters and terminal escapes. Three oddities differ also: a capital sigma that ends a word, an iota subscript
    on its own, and the marks `<start_of_text>` and `<end_of_text>` directly behind punctuation.

    Args:
        clip: an open_clip model name.
        path: the .json file.

    Raises:
        InputError: a model whose tokenizer is not CLIP's own.
        InvalidTextEncoder: the tokenizers package is missing.
    """
    source = text_tokenizer(clip)
    check_supported(clip, source)
    path.write_text(convert(source).to_str(), "utf-8")


def check_supported(clip: str, source: Any) -> None:
    """Refuse a tokenizer that is not CLIP's byte pairs in lower case.

    Raises:
        InputError: what it is instead.
    """
    tokenizer = import_open_clip().tokenizer
    if not isinstance(source, tokenizer.SimpleTokenizer):
        problem = type(source).__name__
    elif source.clean_fn is not tokenizer.get_clean_fn("lower") or source.reduction_fn is not None:
        problem = "one that cleans or cuts text in another way"
    else:
        return
    raise InputError(f"expected CLIP's own tokenizer for {clip!r}, found {problem}: leave out --text-encoder")


def convert(source: Any) -> Any:
    """Build the `tokenizers.Tokenizer` that does what a SimpleTokenizer of open_clip does."""
    tokenizers = import_tokenizers()
    normalizers, pre_tokenizers = tokenizers.normalizers, tokenizers.pre_tokenizers
    merges = sorted(source.bpe_ranks, key=source.bpe_ranks.__getitem__)
    model = tokenizers.models.BPE(vocab=source.encoder, merges=merges, end_of_word_suffix="</w>")
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(tokenizers.Regex(curled), plain) for curled, plain in CURLED.items()),
            normalizers.Replace(tokenizers.Regex(CONTROL), ""),
            normalizers.NFC(),
            normalizers.Lowercase(),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    marks = [(source.decoder[index], index) for index in source.all_special_ids]
    # open_clip reads its marks in a text as marks, in any case, hence after lower-casing.
    made.add_special_tokens([tokenizers.AddedToken(mark, normalized=True) for mark, _ in marks])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{marks[0][0]} $A {marks[1][0]}", special_tokens=marks[:2]
    )
    made.enable_truncation(max_length=source.context_length)
    made.enable_padding(length=source.context_length, pad_id=0, pad_token=source.decoder[0])
    return made
