"""What README shows works as it stands there, and what comments cite is there."""

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


def test_every_section_that_is_cited_is_in_the_method() -> None:
    root = README.parent
    method = (root / "crossmost" / "METHOD.md").read_text("utf-8")
    headings = set(re.findall(r"^#+ ([0-9.]*[0-9])", method, re.MULTILINE))
    cited = set()
    for folder in ("crossmost", "export", "runtime", "tests", "benchmarks"):
        for path in (root / folder).rglob("*.py"):
            for numbers in re.findall(
                r"METHOD (?:sections? )?([0-9][0-9., andto]*)", path.read_text("utf-8")
            ):
                for number in re.findall(r"[0-9]+(?:\.[0-9]+)*", numbers):
                    cited.add(".".join(number.split(".")[:2]))  # a third number is an item of a list
    assert len(cited) > 10
    assert cited <= headings
