"""The class names a command is given, and where their text embeddings come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossmost.errors import InputError
from crossmost.runtime.class_bank import ClassBank, load_class_bank
from crossmost.runtime.class_names import read_class_names
from crossmost.runtime.vocabulary import Vocabulary, load_vocabulary


@dataclass(frozen=True)
class Words:
    """Where the class names and their text embeddings come from."""

    classes: str | None = None
    vocabulary: Path | None = None
    clip: str | None = None
    clip_weights: str | None = None
    spaces: bool = True  # in prompts, where a class name has underscores

    def load(self, text_tag: str | None, captions: tuple[str, ...] | None = None) -> Vocabulary:
        """Read a ready-made vocabulary, or embed the class names with a CLIP text tower.

        Args:
            text_tag: the text model the base was aligned with, used where no --clip is given.
            captions: names to embed where neither --classes nor --vocabulary is given.

        Raises:
            InvalidVocabulary: names that cannot be used.
            InputError: no names, no text tower, or both ways at once.
        """
        if self.ready_made:
            return load_vocabulary(self.ready_made)
        from crossmost.models.text_tower import PROMPTS, embed_classes

        if self.classes is None and captions is None:
            raise InputError("expected the class names: give --classes or --vocabulary")
        names = read_class_names(self.classes) if self.classes else captions or ()
        if not (self.clip or text_tag):
            raise InputError(
                "expected a text tower for the class names: give --clip and --clip-weights, or --vocabulary with a "
                "classes.npz that has their embeddings"
            )
        clip, clip_weights = self.tower(text_tag)
        try:
            return embed_classes(
                names, clip=clip, weights=clip_weights, templates=PROMPTS, spaces=self.spaces
            )
        except InputError as error:
            made = "`crossmost vocabulary` makes on another machine"
            raise InputError(f"{error}; or give --vocabulary with a classes.npz, which {made}") from error

    def bank(self, text_tag: str | None) -> ClassBank:
        """The same with the lengths and the temperature that a ready-made file may hold beside its names.

        Raises:
            InputError: see `load`.
        """
        return load_class_bank(self.ready_made) if self.ready_made else ClassBank.plain(self.load(text_tag))

    @property
    def ready_made(self) -> Path | None:
        """The classes.npz that was given, as the one option or the other.

        Raises:
            InputError: both were given.
        """
        if self.classes and self.vocabulary:
            raise InputError("expected --classes or --vocabulary, found both")
        named = self.classes is not None and self.classes.endswith(".npz")
        return Path(str(self.classes)) if named else self.vocabulary

    def refuse_unused_tower(self, *, weights_used: bool = False) -> None:
        """Say so where a text tower is named and nothing would be embedded with it.

        Args:
            weights_used: whether --clip-weights are those of an image tower too.

        Raises:
            InputError: --clip or --clip-weights beside a ready-made vocabulary.
        """
        if self.ready_made and (self.clip or (self.clip_weights and not weights_used)):
            raise InputError("--clip names a text tower, and the vocabulary needs none: leave it out")

    def tower(self, text_tag: str | None) -> tuple[str, str | None]:
        """The text tower's name and weights: what was given, or the tag of what the base was aligned with.

        Raises:
            InputError: neither.
        """
        clip = self.clip or text_tag
        if not clip:
            raise InputError("expected a text tower for the class names: give --clip and --clip-weights")
        if text_tag and clip == text_tag.partition("/")[0] and self.clip_weights is None:
            return text_tag, None
        return clip, self.clip_weights
