"""What README shows works as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from crossmost.checkpoints.run_files import is_run
from crossmost.models.student import Student
from crossmost.runtime.vocabulary import Vocabulary

README = Path(__file__).parents[1] / "README.md"


def snippet(holding: str) -> str:
    """The one Python block of README that holds these words."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if holding in block)
    return found


def test_a_run_can_be_trained_from_python(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shapes_file: Path,
    tiny_base: Path,
    tiny_vocabulary: Vocabulary,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_base, "base.safetensors")
    shutil.copy(shapes_file, "scans.npz")
    tiny_vocabulary.save("classes.npz")
    shown = snippet("runs.train(").replace('Path("scans")', 'Path("scans.npz")')
    names: dict[str, object] = {}
    exec(
        shown.replace('{"epochs": 10}', '{"epochs": 1, "batch_size": 8, "views": 2, "device": "cpu"}'), names
    )
    assert isinstance(names["student"], Student)
    assert is_run(tmp_path / "runs" / "scans")
