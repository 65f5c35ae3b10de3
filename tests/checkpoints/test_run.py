"""A run's folder: nobody's files are lost in it, and reading it takes no more memory than its networks."""

from __future__ import annotations

import hashlib
import shutil
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from torch import Tensor

from crossmost.adaptation.run import provenance
from crossmost.checkpoints import run as runs
from crossmost.checkpoints.base import Architecture
from crossmost.checkpoints.run import (
    BASE,
    CLASSES,
    CONFIG,
    EVALUATION,
    EVALUATION_REPORT,
    FILES,
    METRICS,
    PROVENANCE,
    REPORT,
    check_folder,
    start_run,
)
from crossmost.data.dataset import CloudDataset
from crossmost.errors import InputError, WorkFailed
from crossmost.models.student import DualEncoder
from crossmost.run_summary import describe_run
from crossmost.runtime.vocabulary import Vocabulary, load_vocabulary

MAPS = Path("/proc/self/maps")


def test_the_files_of_a_run_are_listed(finished_run: Path) -> None:
    later = {REPORT, EVALUATION, EVALUATION_REPORT}
    assert {path.name for path in finished_run.iterdir()} | later == set(FILES)


@pytest.mark.parametrize("damage", ['{"epoch": 0, "lo', "[]", "\x00"])
def test_damaged_notes_of_a_run_are_one_line(
    tmp_path: Path, finished_run: Path, shapes: CloudDataset, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    with (run / METRICS).open("a", encoding="utf-8") as file:
        file.write(damage)
    with pytest.raises(InputError, match=r"metrics\.jsonl: expected a JSON object a line"):
        describe_run(run)
    shutil.copy(finished_run / METRICS, run / METRICS)
    for name in (PROVENANCE, EVALUATION):
        kept = (run / name).read_bytes() if (run / name).is_file() else None
        (run / name).write_text(damage)
        with pytest.raises(InputError, match=rf"{name}: expected the run's {name}"):
            describe_run(run)
        (run / name).unlink() if kept is None else (run / name).write_bytes(kept)
    assert describe_run(run)["Classes"]


@pytest.mark.parametrize("name", FILES)
def test_somebodys_file_is_named_and_left_alone(
    tmp_path: Path, tiny_base: Path, tiny_vocabulary: Vocabulary, name: str
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    check_folder(tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError) as refusal:
        start_run(tmp_path, tiny_base, tiny_vocabulary)
    assert str(refusal.value) == (
        f"expected a folder without the files that a run writes, found {name} in {tmp_path}: choose another --out"
    )
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == dict.fromkeys(
        ["notes.txt", name], "mine"
    )


def test_a_run_that_ended_before_it_could_be_resumed_begins_anew(
    tmp_path: Path, tiny_base: Path, tiny_vocabulary: Vocabulary, finished_run: Path
) -> None:
    run = tmp_path / "run"
    for _ in range(2):
        start_run(run, tiny_base, tiny_vocabulary)
    shutil.copytree(finished_run, tmp_path / "later")
    (tmp_path / "later" / CONFIG).unlink()
    start_run(tmp_path / "later", tmp_path / "later" / BASE, tiny_vocabulary)  # onto itself
    for folder in (run, tmp_path / "later"):
        assert (folder / BASE).read_bytes() == tiny_base.read_bytes()
        assert load_vocabulary(folder / CLASSES).names == tiny_vocabulary.names


def test_a_base_is_copied_whole_or_not_at_all(
    tmp_path: Path,
    tiny_base: Path,
    tiny_vocabulary: Vocabulary,
    full_disk: Callable[[int], AbstractContextManager[None]],
) -> None:
    with full_disk(5000), pytest.raises(WorkFailed, match=r"cannot save .*base\.safetensors: File too large"):
        start_run(tmp_path / "run", tiny_base, tiny_vocabulary)
    assert not (tmp_path / "run" / BASE).exists()


def test_a_base_is_hashed_piece_by_piece(tiny_base: Path, shapes: CloudDataset) -> None:
    class Large(type(tiny_base)):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            raise MemoryError

    expected = hashlib.sha256(tiny_base.read_bytes()).hexdigest()
    assert provenance(shapes, Large(tiny_base))["base_sha256"] == expected


def test_what_was_read_is_let_go_once_it_is_copied(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the second network is filled, neither the base nor the first one's weights are there beside it."""
    if not MAPS.is_file():
        pytest.skip("the system does not list what is mapped")
    load_base, fill_weights = runs.load_base, runs.fill_weights
    bases: list[weakref.ref[DualEncoder]] = []
    mapped: list[set[str]] = []

    def load(path: Path) -> tuple[DualEncoder, Architecture]:
        loaded = load_base(path)
        bases.append(weakref.ref(loaded[0]))
        return loaded

    def fill(model: DualEncoder, tensors: Mapping[str, Tensor], source: Path) -> None:
        assert bases[0]() is None
        lines = [line.split()[-1] for line in MAPS.read_text("utf-8").splitlines()]
        mapped.append({Path(line).name for line in lines if line.startswith(str(finished_run))})
        fill_weights(model, tensors, source)

    monkeypatch.setattr(runs, "load_base", load)
    monkeypatch.setattr(runs, "fill_weights", fill)
    runs.load_run(finished_run)
    assert mapped == [
        {"state.pt", "student.safetensors", "teacher.safetensors"},
        {"state.pt", "teacher.safetensors"},
    ]
    assert not any(str(finished_run) in line for line in MAPS.read_text("utf-8").splitlines())
