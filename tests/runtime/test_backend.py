"""Every backend is one by the protocol, and importing one loads no vendor's library."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from crossmost.runtime.backend import Backend, BackendUnavailable
from crossmost.runtime.onnx_backend import OnnxBackend
from crossmost.runtime.tensorrt_backend import TensorRtBackend


@pytest.mark.parametrize("backend", [OnnxBackend, TensorRtBackend])
@pytest.mark.parametrize("method", ["embed", "info", "close"])
def test_backends_have_the_methods_of_the_protocol(backend, method):
    expected, found = (inspect.signature(getattr(kind, method)) for kind in (Backend, backend))
    assert list(found.parameters) == list(expected.parameters)


def test_an_unavailable_backend_is_not_taken_for_bad_input():
    assert issubclass(BackendUnavailable, RuntimeError)
    assert not issubclass(BackendUnavailable, ValueError)


def test_importing_the_runtime_loads_nothing_but_what_it_is_asked_for():
    code = """
import sys
import crossmost.runtime
light = "numpy" not in sys.modules
import crossmost.runtime.classifier, crossmost.runtime.onnx_backend, crossmost.runtime.tensorrt_backend
heavy = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "tokenizers", "torch"} & set(sys.modules)
print(light, sorted(heavy), crossmost.runtime.Classifier.__name__, crossmost.runtime.Prediction.__name__)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert ran.stdout.strip() == "True [] Classifier Prediction"


def test_a_name_the_runtime_does_not_have_is_an_attribute_error():
    import crossmost.runtime

    with pytest.raises(AttributeError, match="Clasifier"):
        _ = crossmost.runtime.Clasifier
    for name in crossmost.runtime.__all__:
        assert getattr(crossmost.runtime, name).__name__ == name
