"""The light, torch-free runtime of crossmost: what runs on the robot.

    from crossmost.runtime import Classifier
    clf = Classifier.load("scans.bundle")
    clf(points)[0]                                  # Prediction(label='mug', score=0.93, ...)

Importing this package loads nothing else; the names below come with their first use, and ONNX Runtime or TensorRT
with the first bundle.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossmost.runtime.backend import BackendUnavailable
    from crossmost.runtime.classifier import Classifier
    from crossmost.runtime.prediction import Prediction
    from crossmost.runtime.test_time_cache import TestTimeCache

_HOMES = {
    "BackendUnavailable": "backend",
    "Classifier": "classifier",
    "Prediction": "prediction",
    "TestTimeCache": "test_time_cache",
}

__all__ = ["BackendUnavailable", "Classifier", "Prediction", "TestTimeCache"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
