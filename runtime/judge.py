"""From embeddings to predictions: the classes, and the memory that belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.prediction import Prediction
from crossmost.runtime.test_time_cache import InvalidCache, TestTimeCache


@dataclass(frozen=True)
class Judge:
    """One choice of classes; a call keeps to the one it began with, whatever other threads set meanwhile.

    Attributes:
        bank: the classes.
        cache: what was seen of these classes; None where nothing is remembered.
    """

    bank: ClassBank
    cache: TestTimeCache | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cache, TestTimeCache | None):
            raise InvalidCache(f"expected a TestTimeCache or None, found {self.cache!r}")

    def predict(
        self,
        embedding: NDArray[np.float32],
        top_k: int,
        counts: Sequence[tuple[int, int]],
        timings: dict[str, float],
    ) -> list[Prediction]:
        """Classify unit rows.

        Args:
            embedding: (B, D) float32.
            top_k: classes listed a prediction, at least 1.
            counts: invalid and usable points of each of the B clouds.
            timings: copied into each prediction.
        """
        names = self.bank.vocabulary.names
        scores = self._scores(embedding)
        similarity = self.bank.similarity(embedding)
        unknown = self.bank.is_unknown(similarity)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        predictions = []
        for row, classes in enumerate(best):
            listed = tuple((names[index], float(scores[row, index])) for index in classes)
            label, score = listed[0]
            own = embedding[row].copy()  # a row would keep the whole batch
            own.flags.writeable = False
            predictions.append(
                Prediction(
                    label,
                    score,
                    listed,
                    own,
                    float(similarity[row]),
                    bool(unknown[row]),
                    dict(timings),
                    *counts[row],
                )
            )
        return predictions

    def _scores(self, embedding: NDArray[np.float32]) -> NDArray[np.float64]:
        if self.cache is None:
            return self.bank.scores(embedding)
        return self.cache.scores(self.bank, embedding)
