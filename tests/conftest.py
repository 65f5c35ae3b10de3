"""Fixtures every test package shares."""

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clouds; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("CROSSMOST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "modelnet10_vox30_1024.npz").is_file():
        pytest.skip("real clouds are not here: set CROSSMOST_DATA to their folder")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
