"""Fixtures of the tests of the runtime."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def ptx_driver() -> ModuleType:
    """The module `ptx_driver` beside this file: a CUDA driver whose GPU is NumPy."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("ptx_driver")
    finally:
        sys.path.remove(folder)
