"""benchmarks/adaptation*.py and paired.py without training: rows, the paired test, the chosen epoch, the tables."""

from __future__ import annotations

import json
from itertools import product
from math import comb
from pathlib import Path
from unittest import mock

import adaptation_rows as rows
import adaptation_run as run
import adaptation_table as table
import numpy as np
import option_values
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paired import pack, paired_test, unpack
from true_labels import taught

from crossmost.adaptation import run as runs
from crossmost.adaptation import trainer
from crossmost.config import SWITCHES, TrainConfig, make_config

SHARED = {"epochs": 2, "seed": 0}
answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(answers)
def test_packed_answers_come_back(pairs):
    right = np.array([first for first, _ in pairs])
    assert np.array_equal(unpack(pack(right), len(right)), right)


@given(answers)
def test_with_one_seed_it_is_the_two_sided_binomial_of_the_clouds_that_differ(pairs):
    first, second = (np.array([each]) for each in zip(*pairs, strict=True))
    found = paired_test(first, second)
    won, lost = int((first & ~second).sum()), int((~first & second).sum())
    n = won + lost
    as_uneven = [k for k in range(n + 1) if abs(k - n / 2) >= abs(won - n / 2)]
    assert (found.n, found.only_first, found.only_second) == (len(pairs), won, lost)
    assert found.p == pytest.approx(sum(comb(n, k) for k in as_uneven) / 2**n)
    assert found.p == paired_test(second, first).p


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 99))
def test_with_several_seeds_a_clouds_answers_are_flipped_together(seeds, clouds, draw):
    rng = np.random.default_rng(draw)
    first, second = rng.random((2, seeds, clouds)) < 0.6
    leads = first.sum(axis=0).astype(int) - second.sum(axis=0)
    sums = [abs(sum(signs)) for signs in product(*((lead, -lead) for lead in leads))]
    as_uneven = sum(each >= abs(leads.sum()) for each in sums)
    assert paired_test(first, second).p == pytest.approx(as_uneven / len(sums))


def test_paired_test_of_known_counts():
    first = np.array([[True] * 10 + [False] * 2 + [True] * 50])
    second = np.array([[False] * 10 + [True] * 2 + [True] * 50])
    assert paired_test(first, second).p == pytest.approx(2 * (1 + 12 + 66) / 4096)
    with pytest.raises(ValueError, match="the same clouds"):
        paired_test(first, second[:, 1:])


def test_each_repair_differs_from_the_reference_recipe_by_its_switch_alone():
    reference = make_config({"recipe": "reference"}).model_dump()
    repaired = TrainConfig().model_dump()
    seen = set()
    for row in rows.REPAIRS:
        found = row.config({}).model_dump()
        changed = {name for name in found if found[name] != reference[name]}
        assert changed
        assert all(found[name] == repaired[name] for name in changed)
        assert row.name == "repair-strong_augmentation" or changed == {row.name.removeprefix("repair-")}
        seen |= changed
    assert seen >= SWITCHES.keys()
    assert seen | {"recipe"} == {name for name in reference if reference[name] != repaired[name]}


def test_every_row_reads_from_a_row_with_the_same_training():
    for row in rows.ROWS.values():
        config, trained = row.config(SHARED).model_dump(), rows.ROWS[row.training].config(SHARED).model_dump()
        assert {name for name in config if config[name] != trained[name]} <= set(rows.READ_OUTS)


def record(epoch: int, score: float, histogram: list[int]) -> dict:
    return {
        "epoch": epoch, "selection_score": score, "histogram": histogram, "kept_right": 0.5, "watched/kept": 0.8,
        "watched/agreement": 0.6, "watched/kappa": 0.5, "chosen_epoch": 0,
    }  # fmt: skip


RECORDS = [record(-1, 0.5, [5, 5, 5, 5]), record(0, 0.9, [4, 6, 5, 5]), record(1, 0.7, [0, 20, 0, 0])]


@pytest.mark.parametrize(
    ("options", "epoch"),
    [({}, 0), ({"selection": "last"}, 0), ({"collapse": "ignore"}, 0),
     ({"selection": "last", "collapse": "ignore"}, 1)],
)  # fmt: skip
def test_the_epoch_that_other_read_outs_would_have_kept(options, epoch):
    assert run.chosen_epoch(RECORDS, make_config(options)) == epoch


def right(*shares: float) -> dict[str, np.ndarray]:
    return {branch: np.arange(10) < 10 * share for branch, share in zip(rows.BRANCHES, shares, strict=True)}


def write(folder: Path, name: str, seed: int, points: float, row: rows.Row | None = None) -> dict:
    row = row or rows.ROWS[name]
    found = {
        run.ZERO_SHOT: right(0.4, 0.3, 0.5),
        (-1, "teacher"): right(0.4, 0.3, 0.4), (-1, "student"): right(0.4, 0.3, 0.4),
        (0, "teacher"): right(points, 0.5, points), (0, "student"): right(0.1, 0.1, 0.1),
        (1, "teacher"): right(1.0, 1.0, 1.0), (1, "student"): right(0.2, 0.2, 0.2),
    }  # fmt: skip
    config = row.config(SHARED)
    chosen = min(0, config.epochs - 1)
    seen = [{**each, "chosen_epoch": chosen} for each in RECORDS[: 1 + config.epochs]]
    result = run.result(row, config, seen, found)
    result |= {"pair": "p2", "seed": seed, "machine": "a computer"}
    (folder / f"p2_{name}_{seed}.json").write_text(json.dumps(result))
    return result


def test_tables_are_made_from_result_files(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "joint", seed, 0.9)
        write(tmp_path, "point-only", seed, 0.5 + 0.2 * seed)
        write(tmp_path, "centered", seed, 0.9)
    (tmp_path / "p2_separate_0.json").write_text('{"pair": "p2"}')  # of a version that the tables cannot use
    results = table.read(tmp_path)
    text = table.full_tables(results)
    assert "| zero-shot | 40.0 ± 0.0 | 30.0 ± 0.0 | 50.0 ± 0.0 | 2 |" in text
    assert "| zero-shot about the center, untrained | 40.0 ± 0.0 | 30.0 ± 0.0 | 40.0 ± 0.0 | 2 |" in text
    assert "| point-only | 60.0 ± 14.1 |  |  | 2 |" in text
    assert "| joint (crossmost recipe) | 90.0 ± 0.0 | 50.0 ± 0.0 | 90.0 ± 0.0 | 2 |" in text
    assert f"| p2 | points | point-only | +30.0 | 6 | 0 | 20 | {2 / 2**4:.2f} |" in text
    assert (
        "| p2 | joint (crossmost recipe) | 50.0 ± 0.0 | 90.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 10.0 (at most 10.0)"
        in text
    )
    assert "separate" not in text
    (tmp_path / "p2_point-only_1.json").unlink()
    assert "| point-only | 50.0 (seeds: 1) |" in table.short_table(table.read(tmp_path))
    assert table.short_table(results).splitlines()[-1] == "| joint (crossmost recipe) | 90.0 ± 0.0 |"


def test_values_of_an_option_are_compared_with_the_first_of_them(tmp_path):
    for value, seed, points in ((0.6, 0, 0.7), (0.8, 0, 0.5), (0.8, 1, 0.5), (1.0, 1, 0.4)):
        job = option_values.Job("p2", "kept_share", value, seed)
        assert job.row.config(SHARED).kept_share == value
        write(tmp_path, job.row.name, seed, points, job.row)
    lines = option_values.table(tmp_path).splitlines()
    assert lines[0] == "Test split; a computer"
    assert lines[4:] == [
        "| p2 | kept_share | 0.6 | 70.0 | 50.0 | 70.0 | +20.0 | 0.50 | 0 |",
        "| p2 | kept_share | 0.8 | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 |  |  | 0, 1 |",
        "| p2 | kept_share | 1 | 40.0 | 50.0 | 40.0 | -10.0 | 1.00 | 1 |",
    ]
    assert option_values.table(tmp_path / "none") == ""


def test_a_choice_that_the_run_did_not_make_is_refused(tmp_path):
    found = {key: right(0.5, 0.5, 0.5) for key in (run.ZERO_SHOT, (0, "teacher"))}
    records = [{**each, "chosen_epoch": 1} for each in RECORDS]
    with pytest.raises(SystemExit, match="joint: chose epoch 1, expected 0"):
        run.result(rows.ROWS["joint"], rows.ROWS["joint"].config(SHARED), records, found)


def test_the_oracle_is_silent_where_epochs_were_not_kept(tmp_path):
    result = write(tmp_path, "joint", 0, 0.9)
    result["by_epoch"][2]["teacher"] = None
    assert table.choice(result) is None


def test_a_taught_run_learns_the_true_labels_and_no_other_run_does(
    shapes, tiny_base, tiny_vocabulary, tiny_config, tmp_path
):
    truth = shapes.label_indices(tiny_vocabulary.names)

    def learned(folder: Path) -> tuple[list[int], list[int], list[bool]]:
        """What the student learns of each cloud, what is true of it, and whether it is kept."""
        with mock.patch.object(trainer, "loss_terms", wraps=trainer.loss_terms) as terms:
            runs.train(shapes, tiny_base, tiny_vocabulary, tiny_config(epochs=1), folder)
        calls = [(call.args[1].indices, call.args[2].point) for call in terms.call_args_list]
        label = [each for _, targets in calls for each in targets.label.tolist()]
        kept = [each for _, targets in calls for each in targets.kept.tolist()]
        return label, [int(truth[index]) for indices, _ in calls for index in indices.tolist()], kept

    with taught(shapes, tiny_vocabulary.names):
        label, true, kept = learned(tmp_path / "taught")
    assert label == true
    assert len(set(true)) > 1
    assert all(kept)
    label, true, _ = learned(tmp_path / "run")
    assert label != true


def test_rows_that_know_labels_are_no_rivals():
    assert [row.name for row in rows.ROWS.values() if row.taught] == [rows.TRUE_LABELS.name]
    assert rows.TRUE_LABELS not in rows.MAIN
