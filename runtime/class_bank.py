"""The classifier of a bundle: a vocabulary, how sure its scores are, and which clouds are like none of them.

Stored in the same `classes.npz` as a vocabulary, with further arrays: either can be read as the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.vocabulary import (
    InvalidVocabulary,
    Vocabulary,
    parse_vocabulary,
    read_arrays,
    single,
    single_text,
)

FURTHER = {"lengths", "temperature", "unknown_similarity", "unknown_rule"}
"""The arrays of a class bank that a vocabulary lacks."""


@dataclass(frozen=True, eq=False)
class ClassBank:
    """Class names with everything that turns an embedding into a score; `plain` makes one of a vocabulary.

    Attributes:
        vocabulary: C names with their unit rows (C, D).
        lengths: (C,) float32, positive: of the trained class vectors, which training may leave unnormalized.
        temperature: what logits are divided by before the softmax.
        unknown_similarity: a cloud that is less similar to every class is `unknown`; None where each gets a class.
        unknown_rule: how the threshold was found; empty where there is none.
    """

    vocabulary: Vocabulary
    lengths: NDArray[np.float32]
    temperature: float = 1.0
    unknown_similarity: float | None = None
    unknown_rule: str = ""

    def __post_init__(self) -> None:
        found = self.lengths
        if found.shape != (len(self.vocabulary),) or found.dtype != np.float32:
            expected = f"({len(self.vocabulary)},) float32"
            raise InvalidVocabulary(f"expected lengths {expected}, found {found.shape} {found.dtype}")
        # Not the lengths alone: their product with the logit scale must be a float32 too.
        with np.errstate(over="ignore"):
            scales = self._scales
        if not (np.isfinite(scales) & (scales > 0)).all():
            raise InvalidVocabulary("expected positive, finite lengths, found others among them")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise InvalidVocabulary(f"expected a positive temperature, found {self.temperature}")
        threshold = self.unknown_similarity
        if threshold is not None and not np.isfinite(threshold):
            raise InvalidVocabulary(f"expected a finite unknown_similarity, found {threshold}")

    def __len__(self) -> int:
        """C, the number of classes."""
        return len(self.vocabulary)

    @classmethod
    def plain(cls, vocabulary: Vocabulary) -> ClassBank:
        """The bank of a vocabulary that nobody trained or calibrated."""
        return cls(vocabulary, np.ones(len(vocabulary), np.float32))

    def logits(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines of unit rows (B, D) float32 and class vectors, scaled: (B, C) float32.

        Raises:
            InvalidVocabulary: embeddings of another width.
        """
        if embedding.ndim != 2 or embedding.shape[1] != self.vocabulary.dim:
            raise InvalidVocabulary(
                f"expected embeddings (B, {self.vocabulary.dim}) for these class names, found {embedding.shape}: "
                "take class names that were embedded for this encoder"
            )
        cosines = embedding.astype(np.float32, copy=False) @ self.vocabulary.embeddings.T
        return cosines * self._scales

    def scores(self, embedding: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities (B, C) float64 of the classes for unit rows (B, D): softmax(logits / temperature).

        Raises:
            InvalidVocabulary: embeddings of another width.
        """
        return self.probabilities(self.logits(embedding).astype(np.float64))

    def probabilities(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """softmax(logits / temperature) of logits (B, C): (B, C) float64."""
        # The maximum goes first: no temperature, however small, makes a difference to it overflow.
        with np.errstate(over="ignore"):
            powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / self.temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    def similarity(self, embedding: NDArray[np.float32]) -> NDArray[np.float64]:
        """How similar unit rows (B, D) are to the class they are most like: (B,) float64.

        The largest cosine, times the class vector's trained length. A score compares the classes with each other; this
        says whether any of them fits.

        Raises:
            InvalidVocabulary: embeddings of another width.
        """
        return self.logits(embedding).max(axis=1).astype(np.float64) / self.vocabulary.logit_scale

    def predict(
        self, embedding: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
        """The most probable class of unit rows (B, D).

        Returns:
            Index (B,) int64 of the class, the first one on a tie; its score (B,) float64; whether it is
            `unknown` (B,) bool: less similar to every class than the threshold. What is no number is unknown too.

        Raises:
            InvalidVocabulary: embeddings of another width.
        """
        scores = self.scores(embedding)
        index = scores.argmax(axis=1)
        score = np.take_along_axis(scores, index[:, None], axis=1)[:, 0]
        return index, score, self.is_unknown(self.similarity(embedding))

    def is_unknown(self, similarity: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether clouds with these similarities (B,) are `unknown`: (B,) bool."""
        least = -np.inf if self.unknown_similarity is None else self.unknown_similarity
        return ~(similarity >= least)  # not `similarity < least`: NaN is unknown too

    def save(self, path: Path | str) -> None:
        """Write `classes.npz`; an existing file is replaced only once the new one is complete."""
        further: dict[str, NDArray[Any]] = {
            "lengths": self.lengths,
            "temperature": np.array(self.temperature, np.float64),
            "unknown_rule": np.array(self.unknown_rule),
        }
        if self.unknown_similarity is not None:
            further["unknown_similarity"] = np.array(self.unknown_similarity, np.float64)
        self.vocabulary.save(path, **further)

    @property
    def _scales(self) -> NDArray[np.float32]:
        return np.float32(self.vocabulary.logit_scale) * self.lengths


def load_class_bank(path: Path | str) -> ClassBank:
    """Read a `classes.npz`; one that holds a vocabulary only is a `ClassBank.plain`.

    Nothing pickled is loaded.

    Raises:
        InvalidVocabulary: names the file and says what is wrong with it.
    """
    found = load_classes(path)
    return found if isinstance(found, ClassBank) else ClassBank.plain(found)


def load_classes(path: Path | str) -> Vocabulary | ClassBank:
    """Read a `classes.npz` as what it is: a class bank, or a vocabulary that says nothing beside its embeddings.

    Nothing pickled is loaded.

    Raises:
        InvalidVocabulary: names the file and says what is wrong with it.
    """
    path = Path(path)
    arrays = read_arrays(path)
    vocabulary = parse_vocabulary(arrays, path)
    threshold = arrays.get("unknown_similarity")
    if "unknown_threshold" in arrays:
        raise InvalidVocabulary(
            f"{path}: expected unknown_similarity, found an older version's threshold: export again"
        )
    if not arrays.keys() & FURTHER:
        return vocabulary
    try:
        return ClassBank(
            vocabulary,
            arrays.get("lengths", np.ones(len(vocabulary), np.float32)),
            single(arrays.get("temperature", np.array(1.0)), "temperature"),
            None if threshold is None else single(threshold, "unknown_similarity"),
            single_text(arrays.get("unknown_rule", np.array("")), "unknown_rule"),
        )
    except InvalidVocabulary as error:
        raise InvalidVocabulary(f"{path}: {error}") from None
