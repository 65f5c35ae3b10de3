"""The light, torch-free runtime of crossmost: what runs on the robot.

    from crossmost.runtime import Classifier
    clf = Classifier.load("scans.bundle")
    clf(points)[0]                                  # Prediction(label='mug', score=0.93, ...)

Importing this package loads nothing else, and tells ONNX Runtime to send no telemetry; the names below come with
their first use, and ONNX Runtime or TensorRT with the first bundle.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossmost.runtime.backend import BackendUnavailable, EmbeddingFailed
    from crossmost.runtime.bundle_json import InvalidBundle
    from crossmost.runtime.class_bank import ClassBank
    from crossmost.runtime.classifier import Classifier, InvalidCall
    from crossmost.runtime.errors import InvalidInput, RuntimeFailure
    from crossmost.runtime.onnx_session import PassFailed
    from crossmost.runtime.prediction import Prediction
    from crossmost.runtime.preprocess import InvalidCloud
    from crossmost.runtime.selection import InvalidChoice
    from crossmost.runtime.test_time_cache import TestTimeCache
    from crossmost.runtime.text_encoder import InvalidTextEncoder
    from crossmost.runtime.vocabulary import InvalidVocabulary, Vocabulary

_HOMES = {
    "BackendUnavailable": "backend",
    "ClassBank": "class_bank",
    "Classifier": "classifier",
    "EmbeddingFailed": "backend",
    "InvalidBundle": "bundle_json",
    "InvalidCall": "errors",
    "InvalidChoice": "selection",
    "InvalidCloud": "preprocess",
    "InvalidInput": "errors",
    "InvalidTextEncoder": "text_encoder",
    "InvalidVocabulary": "vocabulary",
    "PassFailed": "onnx_session",
    "Prediction": "prediction",
    "RuntimeFailure": "errors",
    "TestTimeCache": "test_time_cache",
    "Vocabulary": "vocabulary",
}

__all__ = [
    "BackendUnavailable",
    "ClassBank",
    "Classifier",
    "EmbeddingFailed",
    "InvalidBundle",
    "InvalidCall",
    "InvalidChoice",
    "InvalidCloud",
    "InvalidInput",
    "InvalidTextEncoder",
    "InvalidVocabulary",
    "PassFailed",
    "Prediction",
    "RuntimeFailure",
    "TestTimeCache",
    "Vocabulary",
]


# ONNX Runtime reads this where it is first imported. Newer versions, 1.31.1 for one, would else keep a device id in the
# user's home on Linux and send events to their makers. Who wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
