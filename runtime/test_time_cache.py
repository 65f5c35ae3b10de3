"""A memory of confidently classified clouds that sharpens later answers, without training.

For each class it keeps the embeddings that the class bank was surest of, and adds to the logits of a new cloud how
near it is to them. The idea is that of TDA (Karmanov et al., CVPR 2024) and, for clouds, of Point-Cache (Sun et al.,
CVPR 2025): their positive and global caches. Those add up over a class's embeddings, here they are averaged, so that
a class does not gain by being met more often.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.errors import InvalidInput

LARGEST = 1e6
"""Of alpha and beta: logits stay numbers, and nothing that large means anything else than this does."""


class InvalidCache(InvalidInput):
    """Settings that make no cache."""


class TestTimeCache:
    """A bounded memory of embeddings; `Classifier.load(..., cache=TestTimeCache())` turns it on.

    What it answers depends on the clouds before, and so on their order: the same clouds in the same order give the
    same answers, in one call or in many. A cloud is answered from what came before it, and only then remembered.
    Threads may share it; which of their clouds comes first is then a matter of chance.

    It can cost accuracy as well as bring some: a bundle that was adapted to such clouds knows them already, and a
    memory of mistakes repeats them. Try it on labelled clouds before a robot relies on it.
    """

    def __init__(
        self, *, per_class: int = 8, alpha: float = 2.0, beta: float = 5.0, least_score: float = 0.5
    ) -> None:
        """Start empty.

        Args:
            per_class: the most embeddings kept of a class; the surest stay.
            alpha: weight of the memory, in units of logits: what a class of nothing but this embedding gains.
            beta: how fast that falls with the distance: the factor is exp(-beta (1 - cosine)).
            least_score: a cloud with a lower score, without the memory's help, is not remembered; 0 to 1.

        Raises:
            InvalidCache: a setting out of range.
        """
        if not isinstance(per_class, (int, np.integer)) or per_class < 1:
            raise InvalidCache(f"expected per_class as an integer from 1 on, found {per_class!r}")
        for name, value, most in (
            ("alpha", alpha, LARGEST),
            ("beta", beta, LARGEST),
            ("least_score", least_score, 1),
        ):
            if not isinstance(value, (int, float, np.number)) or not 0 <= value <= most:  # NaN is not
                raise InvalidCache(f"expected {name} from 0 to {most:g}, found {value!r}")
        self.per_class, self.alpha, self.beta, self.least_score = per_class, alpha, beta, least_score
        self._lock = threading.Lock()
        self.reset()

    def __len__(self) -> int:
        """How many embeddings it holds."""
        return len(self._labels)

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._rows = np.empty((0, 0), np.float32)  # (E, D)
            self._labels = np.empty(0, np.int64)  # (E,)
            self._entropies = np.empty(0)  # (E,)

    def fresh(self) -> TestTimeCache:
        """An empty one with the same settings."""
        return TestTimeCache(**self.settings())

    def settings(self) -> dict[str, Any]:
        """The arguments it was made with."""
        names = ("per_class", "alpha", "beta", "least_score")
        return {name: getattr(self, name) for name in names}

    def scores(self, bank: ClassBank, embedding: NDArray[np.float32]) -> NDArray[np.float64]:
        """`ClassBank.scores` with the memory's help; remembers the sure ones, row by row, and none that is `unknown`.

        Args:
            bank: the same at each call, until `reset`.
            embedding: (B, D), unit rows.

        Returns:
            (B, C) probabilities.

        Raises:
            InvalidVocabulary: embeddings of another width.
        """
        plain = bank.scores(embedding)
        logits = bank.logits(embedding).astype(np.float64)
        # A score only compares the classes: what resembles none of them can have a score of 1.
        foreign = bank.is_unknown(bank.similarity(embedding))
        with self._lock:
            for row, scores in enumerate(plain):
                logits[row] += self._evidence(embedding[row], len(bank))
                if not foreign[row]:
                    self._remember(embedding[row], scores)
        return bank.probabilities(logits)

    def _evidence(self, embedding: NDArray[np.float32], classes: int) -> NDArray[np.float64]:
        """What the memory adds to each logit: (C,)."""
        if not len(self._labels):
            return np.zeros(classes)
        affinity = np.exp(-self.beta * (1.0 - (self._rows @ embedding).astype(np.float64)))
        total, count = (np.bincount(self._labels, weights, classes) for weights in (affinity, None))
        return np.asarray(self.alpha * total / np.maximum(count, 1), np.float64)

    def _remember(self, embedding: NDArray[np.float32], scores: NDArray[np.float64]) -> None:
        """Keep an embedding (D,) if its class has room, or holds a less sure one; the oldest goes among equals."""
        label = int(scores.argmax())
        if not scores[label] >= self.least_score:  # NaN is not
            return
        entropy = float(-(scores * np.log(np.maximum(scores, np.finfo(np.float64).tiny))).sum())
        members = np.flatnonzero(self._labels == label)
        if len(members) < self.per_class:
            self._rows = np.concatenate([self._rows.reshape(-1, len(embedding)), embedding[None]])
            self._labels = np.append(self._labels, label)
            self._entropies = np.append(self._entropies, entropy)
            return
        least_sure = members[self._entropies[members].argmax()]
        if entropy < self._entropies[least_sure]:
            self._rows[least_sure] = embedding
            self._entropies[least_sure] = entropy
