"""Fixtures of the tests of the models."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def load_beside(name: str) -> ModuleType:
    """A module beside this file: with importlib's import mode a folder of tests is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def uni3d() -> ModuleType:
    """Uni3D in float64 NumPy, and small encoders to compare with it."""
    return load_beside("uni3d_reference")
