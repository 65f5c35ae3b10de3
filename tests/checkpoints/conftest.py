"""Fixtures of the tests of checkpoints."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def published() -> ModuleType:
    """The module `published` beside this file: checkpoints like the published ones."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("published")
    finally:
        sys.path.remove(folder)
