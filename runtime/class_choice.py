"""Which classes a bundle tells apart: its own, or others that the user names."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.class_bank import ClassBank, load_class_bank, load_classes
from crossmost.runtime.class_names import check_class_names
from crossmost.runtime.manifest import Manifest, check_files, locate
from crossmost.runtime.text_encoder import GRAPH, TOKENIZER, InvalidTextEncoder, TextEncoder
from crossmost.runtime.text_tags import explain_other_model, remedy
from crossmost.runtime.vocabulary import InvalidVocabulary, Vocabulary, check_names

CLASSES = "classes.npz"
TEXT_FILES = ("text_", "tokenizer.")
"""How the names of the text encoder's files start."""

GIVEN = "given to set_classes"
"""The rule of a threshold that the user chose."""

NOTHING_UNKNOWN = (
    "with these classes no cloud will be unknown: the threshold was found with the bundle's own, all of them"
)

MOST_KEPT = 4096
"""Names whose embeddings are kept for the next choice: some megabytes."""

SAME = 1e-4
"""Class vectors that differ by less in every number give the same similarities."""

Classes = Iterable[str] | Vocabulary | ClassBank | str | os.PathLike[str]


def needed(manifest: Manifest) -> set[str]:
    """The files that a classifier opens at once: engines and text encoder are large, and opened where they are used."""
    return {name for name in manifest.files if not name.startswith(("engines/", *TEXT_FILES))}


class ClassChoice:
    """Makes class banks for one bundle; safe to share between threads."""

    def __init__(self, bundle: Path, manifest: Manifest, threads: int | None) -> None:
        """Read the bundle's own classes, whose digest the caller has checked.

        Args:
            bundle: the folder.
            manifest: of the bundle.
            threads: of the text encoder.

        Raises:
            InvalidBundle, InvalidVocabulary: the class bank is missing, damaged, or that of another encoder.
        """
        self._bundle, self._manifest, self._threads = bundle, manifest, threads
        self._text: TextEncoder | None = None
        self._rows: dict[str, NDArray[np.float32]] = {}  # embeddings (D,) of names, embedded once
        self._lock = threading.Lock()
        self.own = self._fitting(load_class_bank(locate(bundle, CLASSES)))
        """The classes of the bundle."""

    def bank(self, classes: Classes, unknown_similarity: float | None = None) -> ClassBank:
        """Make the class bank of what a user gives: see `Classifier.set_classes`."""
        bank = self._bank(classes)
        if unknown_similarity is None:
            return bank
        return replace(bank, unknown_similarity=_number(unknown_similarity), unknown_rule=GIVEN)

    def _bank(self, classes: Classes) -> ClassBank:
        if isinstance(classes, str) and not classes.endswith(".npz") and not os.path.exists(classes):
            raise InvalidVocabulary(
                f"expected a list of class names, or the path of a classes.npz, found the text {classes[:80]!r}"
            )
        if isinstance(classes, (str, os.PathLike)):
            classes = load_classes(Path(classes))
        if isinstance(classes, ClassBank):
            return self._given(classes)
        if isinstance(classes, Vocabulary):
            # Its own scale is that of the text model alone, at which nearly every score is 0 or 1.
            scale = self.own.vocabulary.logit_scale
            return self._given(self._like_own(replace(classes, logit_scale=scale)))
        if not isinstance(classes, Iterable):
            raise InvalidVocabulary(
                f"expected class names, a vocabulary, a bank or a path, found {classes!r}"
            )
        names = tuple(classes)
        check_names(names)
        if set(names) <= set(self.own.vocabulary.names):
            return self._chosen(names)
        check_class_names(names)
        return self._embedded(names)

    def note(self, bank: ClassBank) -> str:
        """What one should know of classes that `bank` made; empty where there is nothing."""
        lost = bank.unknown_similarity is None and self.own.unknown_similarity is not None
        return NOTHING_UNKNOWN if lost else ""

    def _fitting(self, bank: ClassBank) -> ClassBank:
        dim, found = self._manifest.encoder.dim, bank.vocabulary
        if found.dim != dim:
            raise InvalidVocabulary(
                f"{self._bundle}: expected class embeddings of the encoder's {dim} numbers, found {found.dim} "
                f"({found.tag or 'no tag'}): it was aligned with {self._text_tag() or 'another text model'}; "
                f"{remedy(self._text_tag())}"
            )
        return bank

    def _given(self, bank: ClassBank) -> ClassBank:
        """Classes from elsewhere, which may be of another text model than the encoder."""
        found = self._fitting(bank).vocabulary
        problem = explain_other_model(str(self._bundle), self._text_tag(), found.tag, found.dim)
        if problem:
            raise InvalidVocabulary(problem)
        return copy.deepcopy(bank)  # whoever gave it may change its arrays

    def _text_tag(self) -> str:
        """The text model that the encoder was aligned with; empty where the export did not know."""
        tag = self._manifest.provenance.get("text")
        return tag if isinstance(tag, str) else ""

    def _chosen(self, names: tuple[str, ...]) -> ClassBank:
        """Some of the bundle's classes, as they were trained; all of them keep the threshold too."""
        own = self.own
        row = {name: index for index, name in enumerate(own.vocabulary.names)}
        lengths = own.lengths[[row[name] for name in names]]
        return ClassBank(own.vocabulary.select(names), lengths, own.temperature, *self._threshold(names))

    def _embedded(self, names: tuple[str, ...]) -> ClassBank:
        """Other classes: embedded as the bundle's were, and each name once."""
        own, known = self.own.vocabulary, self._rows
        rows = {name: known[name] for name in names if name in known}
        if new := tuple(name for name in names if name not in rows):
            found = self._text_encoder().vocabulary(
                new, own.prompts, logit_scale=own.logit_scale, tag=own.tag, spaces=self._spaces()
            )
            rows |= zip(new, found.embeddings, strict=True)
            # Replaced and never changed: of two threads that embed at once, one may do so again later.
            self._rows = {**known, **rows} if len(known) + len(new) <= MOST_KEPT else rows
        vocabulary = Vocabulary.create(
            names,
            np.stack([rows[name] for name in names]),
            logit_scale=own.logit_scale,
            prompts=own.prompts,
            tag=own.tag,
        )
        return self._fitting(self._like_own(vocabulary))

    def _like_own(self, vocabulary: Vocabulary) -> ClassBank:
        """Text embeddings with what training and calibration found about any class."""
        own = self.own
        lengths = np.full(len(vocabulary), np.median(own.lengths), np.float32)
        threshold = self._threshold(vocabulary.names)
        if (
            threshold[0] is not None
        ):  # it holds for the vectors that it was found with, which training may have moved
            rows = vocabulary.select(own.vocabulary.names).embeddings
            if not (np.allclose(rows, own.vocabulary.embeddings, atol=SAME) and np.ptp(own.lengths) < SAME):
                threshold = None, ""
        return ClassBank(vocabulary, lengths, own.temperature, *threshold)

    def _threshold(self, names: tuple[str, ...]) -> tuple[float | None, str]:
        """The threshold of `unknown` and its rule: they hold for all of the bundle's classes, in any order."""
        own = self.own
        whole = set(names) == set(own.vocabulary.names)
        return (own.unknown_similarity, own.unknown_rule) if whole else (None, "")

    def _text_encoder(self) -> TextEncoder:
        with self._lock:
            if self._text is None:
                files = [name for name in self._manifest.files if name.startswith(TEXT_FILES)]
                if not {GRAPH, TOKENIZER} <= set(
                    files
                ):  # whatever lies in the folder, the export did not write it
                    raise InvalidTextEncoder(
                        f"{self._bundle}: expected a text encoder for new class names, found none: export the bundle "
                        "with --text-encoder"
                    )
                check_files(self._bundle, self._manifest, files)
                self._text = TextEncoder.load(self._bundle, self._threads)
            return self._text

    def _spaces(self) -> bool:
        """Whether `night_stand` is embedded as `night stand`: as the export found that the vocabulary was."""
        facts = self._manifest.provenance.get("text_encoder")
        return not isinstance(facts, dict) or facts.get("spaces") is not False


def _number(similarity: float) -> float:
    if isinstance(similarity, bool) or not isinstance(similarity, Real):
        raise InvalidVocabulary(f"expected unknown_similarity as a number, found {similarity!r}")
    if not -1 <= similarity <= 1:
        raise InvalidVocabulary(f"expected unknown_similarity as a cosine, -1 to 1, found {similarity:g}")
    return float(similarity)
