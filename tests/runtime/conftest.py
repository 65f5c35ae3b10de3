"""Fixtures of the tests of the runtime."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load_beside(name: str) -> ModuleType:
    """A module beside this file, of which tests know no package."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


bundle_fixtures = load_beside("bundle_fixtures")
exported, half, speaking, altered, shapes_of = (
    getattr(bundle_fixtures, name) for name in ("exported", "half", "speaking", "altered", "shapes_of")
)


@pytest.fixture(scope="session")
def ptx_driver() -> ModuleType:
    """The module `ptx_driver` beside this file: a CUDA driver whose GPU is NumPy."""
    return load_beside("ptx_driver")


@pytest.fixture(scope="session")
def fake_gpu() -> ModuleType:
    """The module `fake_gpu` beside this file: CUDA and TensorRT whose GPU is NumPy."""
    return load_beside("fake_gpu")
