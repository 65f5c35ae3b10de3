"""benchmarks/full_card.py with the smallest card on a few shapes, and the arithmetic of its table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import full_card
import full_card_table
import numpy as np
import pytest
from adaptation_rows import BRANCHES
from paired import pack

if TYPE_CHECKING:
    from crossmost.runtime.vocabulary import Vocabulary

BASE = {"epochs": 16, "learning_rate": 5e-4}
SMALL = {"epochs": 1, "watched": 8, "batch_size": 8, "views": 1}


@pytest.fixture
def settings(
    tmp_path: Path, write_shapes: Callable[..., Path], tiny_vocabulary: Vocabulary
) -> full_card.Settings:
    """A pair of shapes, already prepared."""
    folder = tmp_path / "work" / "p1-low"
    folder.mkdir(parents=True)
    for seed, side in enumerate(("source", "target")):
        write_shapes(folder / f"{side}.npz", seed=seed, split=np.array(["train"] * 16 + ["test"] * 8))
        tiny_vocabulary.save(folder / f"{side}-classes.npz")
    return full_card.Settings(
        tmp_path, tmp_path / "work", tmp_path / "results", "cpu", "bfloat16", 0, "point-tiny",
        epochs=1, steps=2, options=SMALL,
    )  # fmt: skip


def measurement(settings: full_card.Settings, over: float = float("inf"), **more: Any) -> Any:
    """All in this process."""
    more.setdefault("run", lambda work, *arguments: work(*arguments))
    return full_card.Measurement(settings, over=over, **more)


def jobs(settings: full_card.Settings, *rows: str) -> list[full_card.Job]:
    return full_card.missing(["p1-low"], rows, [0], settings)


def test_rows_and_the_ceiling_are_measured_once(settings: full_card.Settings) -> None:
    rows = (full_card_table.FASTER, full_card_table.CEILING)
    found = measurement(settings)
    found.take(jobs(settings, *rows), 1)
    assert (found.failed, found.left) == ([], [])
    assert jobs(settings, *rows) == []
    assert jobs(settings, "joint", *rows) == [full_card.Job("joint", "p1-low", 0)]
    joint, ceiling = (json.loads((settings.results / f"p1-low_{row}_0.json").read_text()) for row in rows)
    for result in (joint, ceiling):
        assert set(result["zero_shot"]) == set(result["adapted"]) == set(BRANCHES)
        assert (result["n"], result["card"], result["precision"]) == (8, "point-tiny", "bfloat16")
        assert result["base"]["learning_rate"] == settings.learning_rate
        assert "torch" in result["machine"]
    assert joint["zero_shot"] == ceiling["zero_shot"]
    assert joint["options"] == {"learning_rate": settings.learning_rate}
    assert [epoch["epoch"] for epoch in joint["by_epoch"]] == [0, 1]
    assert "supervised" not in joint
    table = full_card_table.table(settings.results)
    assert "| joint, at the base's learning rate |" in table


def test_after_the_limit_nothing_begins(settings: full_card.Settings) -> None:
    found = measurement(settings, over=0.0, run=lambda *_: pytest.fail("nothing may begin"))
    found.take(jobs(settings, "joint"), 2)
    assert found.failed == []
    assert found.left == ["base of p1, seed 0", "p1-low, joint, seed 0: no base"]


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), SystemExit("out of memory")])
def test_what_fails_is_named_and_the_others_go_on(
    settings: full_card.Settings, failure: BaseException
) -> None:
    begun = []

    def run(work: Callable[..., Any], *arguments: Any) -> None:
        if work is full_card.measure_row:
            begun.append(arguments[0].row)
            if arguments[0].row == "joint":
                raise failure

    found = measurement(settings, run=run)
    settings.base("p1-low", 0).parent.mkdir(parents=True)
    settings.base("p1-low", 0).touch()
    found.take(jobs(settings, "joint", "point-only"), 1)
    assert begun == ["joint", "point-only"]
    assert found.failed == [f"p1-low, joint, seed 0: {type(failure).__name__}: out of memory"]


def test_a_process_that_failed_is_replaced_and_forks_what_loads() -> None:
    processes = full_card.Processes(1)
    with pytest.raises(ZeroDivisionError):
        processes.run(divmod, 1, 0)
    assert processes.run(divmod, 7, 2) == (3, 1)
    assert processes.run(eval, "__import__('multiprocessing').get_start_method()") == "fork"
    processes.close()


def write(folder: Path, row: str, seed: int, before: float, after: float) -> None:
    def moment(share: float) -> dict[str, Any]:
        return dict.fromkeys(BRANCHES, share)

    right = {branch: pack(np.arange(10) < 5) for branch in BRANCHES}
    result = {
        "pair": "p1-low", "row": row, "seed": seed, "n": 10, "split": "test", "card": "point-tiny", "base": BASE,
        "precision": "bfloat16", "machine": "a GPU", "right": {"zero_shot": right, "adapted": right},
        "zero_shot": moment(before), "adapted": moment(after),
    }  # fmt: skip
    (folder / f"p1-low_{row}_{seed}.json").write_text(json.dumps(result))


def test_the_share_of_the_gap_that_is_closed(tmp_path: Path) -> None:
    assert "Not measured yet" in full_card_table.table(tmp_path)
    for seed, (before, joint, ceiling) in enumerate([(0.6, 0.7, 0.8), (0.5, 0.6, 0.9), (0.4, 0.9, None)]):
        write(tmp_path, "joint", seed, before, joint)
        write(tmp_path, "point-only", seed, before, before)
        if ceiling is not None:
            write(tmp_path, full_card_table.CEILING, seed, before, ceiling)
    table = full_card_table.table(tmp_path)
    assert (
        "**p1-low**: point-tiny, 10 clouds of the test split, bases of 16 epochs at 0.0005, bfloat16" in table
    )
    assert "| zero-shot | 50.0 ± 10.0 | 50.0 ± 10.0 | 50.0 ± 10.0 |  |  |  |  | 0, 1, 2 |" in table
    # By seed 1/2 and 1/4 of the gap; of the means of both seeds 0.1 of 0.3.
    assert "| 33 % | 37.5 ± 17.7 | 33 % | 37.5 ± 17.7 | 0, 1, 2 |" in table
    assert "| point-only | 50.0 ± 10.0 |  |  | 0 % | 0.0 ± 0.0 |  |  | 0, 1, 2 |" in table
    assert table.splitlines()[-1].endswith("| 85.0 ± 7.1 | 85.0 ± 7.1 | 85.0 ± 7.1 |  |  |  |  | 0, 1 |")


def test_a_readme_without_a_place_for_the_table_stays(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(full_card_table, "README", tmp_path / "README.md")
    full_card_table.README.write_text("nothing")
    full_card_table.write_table(full_card_table.RESULTS)
    assert full_card_table.README.read_text() == "nothing"
    places = "<!-- full-card -->\n<!-- /full-card -->\n<!-- bases-of-32 -->\n<!-- /bases-of-32 -->\n"
    full_card_table.README.write_text(places)
    full_card_table.write_table(tmp_path)
    assert full_card_table.README.read_text() == places
    monkeypatch.setattr(full_card_table, "MARKS", {tmp_path: "bases-of-32"})
    write(tmp_path, "joint", 0, 0.5, 0.6)
    full_card_table.write_table(tmp_path)
    first, second = full_card_table.README.read_text().split("<!-- bases-of-32 -->")
    assert "p1-low" in second
    assert "p1-low" not in first


def test_without_a_gpu_it_says_so(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    words = ["full_card.py", "--data", str(tmp_path), "--work", str(tmp_path), "--device", "cuda:7"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        full_card.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("device 'cuda:7' cannot be used here: ")
    assert said.count("\n") == 1
