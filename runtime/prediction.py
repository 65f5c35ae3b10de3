"""What a classifier says about one cloud."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The classes of one cloud.

    Attributes:
        label: name of the most probable class; where `unknown` is set, the class it is most like.
        score: its calibrated probability, 0 to 1.
        top_k: (name, score) of the most probable classes, the best first.
        embedding: (D,) float32 of unit length, read-only.
        similarity: to the class it is most like, by cosine; a score compares classes, this says whether any fits.
        unknown: the similarity is below the bundle's threshold: probably none of the classes.
        timings: seconds that each stage of the call took, for all its clouds together: `prepare`, the stages of the
            backend, and `total`, from raw clouds to embeddings.
        dropped: points left out because they held NaN or infinity, or zeros where nothing came back.
        points: usable points of the cloud, before it was thinned or filled up: of a few no shape can be told.
    """

    label: str
    score: float
    top_k: tuple[tuple[str, float], ...]
    embedding: NDArray[np.float32]
    similarity: float
    unknown: bool
    timings: dict[str, float]
    dropped: int = 0
    points: int = 0

    def __repr__(self) -> str:
        """One line: what was found, with the runners-up."""
        parts = [f"label={self.label!r}", f"score={self.score:.2f}"]
        if len(self.top_k) > 1:
            parts.append("next=" + ", ".join(f"{name} {score:.2f}" for name, score in self.top_k[1:3]))
        if self.unknown:
            parts.append("unknown=True")
        if self.dropped:
            parts.append(f"dropped={self.dropped}")
        if "total" in self.timings:
            parts.append(f"ms={1e3 * self.timings['total']:.1f}")
        return f"Prediction({', '.join(parts)})"

    def to_dict(self) -> dict[str, Any]:
        """All but embedding and timings, as plain JSON types."""
        return {
            "label": self.label,
            "score": self.score,
            "top_k": [[name, score] for name, score in self.top_k],
            "similarity": self.similarity,
            "unknown": self.unknown,
            "dropped": self.dropped,
            "points": self.points,
        }
