"""The tables of the adaptation benchmark, from its result files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from adaptation_rows import (
    BALANCED,
    BRANCHES,
    LONG,
    MAIN,
    READ_FROM_TEACHER,
    READ_OUTS,
    REFERENCE,
    REPAIRS,
    TITLES,
    TRUE_LABELS,
    WITHOUT,
    ZERO_SHOT,
    answering,
)
from paired import Paired, paired_test, unpack
from pairs import PAIRS

Result = dict[str, Any]
COLUMNS = ("points", "images", "both")
CURVED = ("joint", REFERENCE, "point-only")
"""Rows whose choice of an epoch is compared with the oracle's."""


class Line(NamedTuple):
    """A row of a pair: by seed, the share that each branch names rightly and the clouds themselves."""

    name: str
    accuracy: dict[int, dict[str, float]]  # seed -> branch -> 0..1
    right: dict[int, dict[str, np.ndarray]]  # seed -> branch -> (n,) bool
    branches: tuple[str, ...]

    def values(self, branch: str) -> list[float]:
        """Percent, seed by seed."""
        return [100 * self.accuracy[seed][branch] for seed in sorted(self.accuracy)]


def read(results: Path) -> list[Result]:
    """All results that the tables can be made from."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    return [each for each in found if "right" in each]


def line(name: str, results: Sequence[Result], moment: str = "adapted") -> Line:
    """The line of one row's results over the seeds."""
    by_seed = {each["seed"]: each for each in results}
    right = {
        seed: {branch: unpack(each["right"][moment][branch], each["n"]) for branch in BRANCHES}
        for seed, each in by_seed.items()
    }
    return Line(name, {seed: each[moment] for seed, each in by_seed.items()}, right, answering(name))


def lines_of(results: Sequence[Result], pair: str, names: Sequence[str]) -> dict[str, Line]:
    """The lines of a pair, zero-shot first."""
    of_pair = [each for each in results if each["pair"] == pair]
    if not of_pair:
        return {}
    found = {ZERO_SHOT: line(ZERO_SHOT, of_pair, "zero_shot")}
    for name in names:
        of_row = [each for each in of_pair if each["row"] == name]
        if of_row:
            found[name] = line(name, of_row)
    return found


def mean_and_spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation over the seeds."""
    mean = f"{statistics.mean(values):{sign}.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(
        f"| {' | '.join(cells)} |" if cells else "|---" * len(head) + "|" for cells in (head, (), *rows)
    )


def main_table(results: Sequence[Result], pair: str) -> str:
    """Every way to adapt, each branch alone and both together."""
    lines = lines_of(results, pair, [row.name for row in (*MAIN, *WITHOUT, BALANCED, LONG, TRUE_LABELS)])
    rows = [
        [
            TITLES[name],
            *(mean_and_spread(each.values(b)) if b in each.branches else "" for b in BRANCHES),
            str(len(each.accuracy)),
        ]
        for name, each in lines.items()
    ]
    return markdown(["row", *COLUMNS, "seeds"], rows)


def heading(results: Sequence[Result], pair: str) -> str:
    """What a pair's figures were measured on."""
    of_pair = [each for each in results if each["pair"] == pair]
    seeds = sorted({each["seed"] for each in of_pair})
    first = of_pair[0]
    return (
        f"**{pair}**: {first['n']} clouds of the {first['split']} split, 1024 points at most, no colour, "
        f"seeds {', '.join(map(str, seeds))}, {first['epochs']} epochs, {first['machine']}"
    )


def compare(first: Line, second: Line, branch: str, other: str) -> Paired:
    """The paired test over the seeds that both have."""
    seeds = sorted(first.right.keys() & second.right.keys())
    return paired_test(
        np.stack([first.right[seed][branch] for seed in seeds]),
        np.stack([second.right[seed][other] for seed in seeds]),
    )


def next_best(lines: dict[str, Line], branch: str | None) -> tuple[Line, str]:
    """The best other row with the seeds of joint, and the branch it answers with (`branch`, or None: its own)."""
    joint = lines["joint"]
    rivals = [
        (each, branch or each.branches[-1])
        for each in lines.values()
        if each is not joint
        and each.accuracy.keys() >= joint.accuracy.keys()
        and (branch or each.branches[-1]) in each.branches
    ]
    return max(
        rivals,
        key=lambda rival: statistics.mean(rival[0].accuracy[seed][rival[1]] for seed in joint.accuracy),
    )


def test_table(results: Sequence[Result]) -> str:
    """Joint training against the best of the others: by the points alone, and by the answer of each row."""
    rows = []
    for pair in PAIRS:
        lines = lines_of(results, pair, [row.name for row in MAIN])
        if "joint" not in lines:
            continue
        for title, branch in (("points", "point"), ("its own answer", None)):
            rival, other = next_best(lines, branch)
            found = compare(lines["joint"], rival, branch or "both", other)
            rows.append(
                [
                    pair, title, TITLES[rival.name], f"{100 * (found.only_first - found.only_second) / found.n:+.1f}",
                    str(found.only_first), str(found.only_second), str(found.n), probability(found.p),
                ]
            )  # fmt: skip
    head = [
        "pair",
        "by",
        "next best row",
        "joint, points of accuracy",
        "only joint right",
        "only the other right",
    ]
    return markdown([*head, "n", "p"], rows)


def probability(p: float) -> str:
    """A p-value as it is read."""
    return f"{p:.2f}" if p >= 0.01 else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def oracle_table(results: Sequence[Result]) -> str:
    """The choice of an epoch beside the one that the test labels would have chosen."""
    moments, rows = ("zero_shot", "chosen", "last", "oracle"), []
    for pair in PAIRS:
        for name in CURVED:
            of_row = [choice(each) for each in results if each["pair"] == pair and each["row"] == name]
            found = [each for each in of_row if each is not None]
            if not found:
                continue
            gaps = [each["oracle"] - each["chosen"] for each in found]
            rows.append(
                [
                    pair, TITLES[name],
                    *(mean_and_spread([each[moment] for each in found]) for moment in moments),
                    f"{statistics.mean(gaps):.1f} (at most {max(gaps):.1f})",
                    ", ".join(f"{each['chosen_epoch']} / {each['oracle_epoch']}" for each in found), str(len(found)),
                ]
            )  # fmt: skip
    head = ["pair", "row", "zero-shot", "choice", "last epoch", "oracle epoch"]
    return markdown([*head, "oracle less choice", "epochs chosen / oracle", "seeds"], rows)


def choice(result: Result) -> dict[str, float] | None:
    """Accuracy in percent at the epochs of interest; None where the networks of the epochs were not kept."""
    branch = answering(result["row"])[-1]
    curve = [epoch[result["network"]] for epoch in result["by_epoch"]]
    if None in curve:
        return None
    values = [100 * each[branch] for each in curve]
    oracle = max(range(len(values)), key=values.__getitem__)
    return {
        "zero_shot": 100 * result["zero_shot"][branch],
        "chosen": values[result["chosen_epoch"]],
        "last": values[-1],
        "oracle": values[oracle],
        "chosen_epoch": result["chosen_epoch"],
        "oracle_epoch": oracle,
    }


def repair_table(results: Sequence[Result], pair: str) -> str:
    """The reference recipe with one repair at a time, against the reference recipe; empty where none was measured."""
    names = [row.name for row in (*REPAIRS, *READ_FROM_TEACHER)]
    lines = lines_of(results, pair, [REFERENCE, *names, "joint"])
    if REFERENCE not in lines or not any(name in lines for name in names):
        return ""
    rows = [repair_cells("reference recipe", lines[REFERENCE], None)]
    for name in names:
        if name in lines:
            title = name.removeprefix("repair-")
            rows.append(repair_cells(f"+ {title}{'*' * (title in READ_OUTS)}", lines[name], lines[REFERENCE]))
    if "joint" in lines:
        rows.append(repair_cells("all: crossmost recipe", lines["joint"], lines[REFERENCE]))
    head = ["recipe", *COLUMNS, "points gained", "p", "both gained", "p", "seeds"]
    return markdown(head, rows)


def repair_cells(title: str, found: Line, reference: Line | None) -> list[str]:
    """One line of the repair table."""
    cells = [title, *(mean_and_spread(found.values(branch)) for branch in BRANCHES)]
    for branch in ("point", "both"):
        if reference is None:
            cells += ["", ""]
            continue
        seeds = sorted(found.accuracy.keys() & reference.accuracy.keys())
        gains = [100 * (found.accuracy[s][branch] - reference.accuracy[s][branch]) for s in seeds]
        test = compare(found, reference, branch, branch)
        cells += [mean_and_spread(gains, "+"), probability(test.p)]
    return [*cells, str(len(found.accuracy))]


def full_tables(results: Sequence[Result]) -> str:
    """Everything for the page of measurements."""
    parts = []
    measured = [pair for pair in PAIRS if any(each["pair"] == pair for each in results)]
    for pair in measured:
        parts += [heading(results, pair), main_table(results, pair)]
    parts += ["Joint training (crossmost recipe) against the best of the other rows:", test_table(results)]
    parts += ["The choice of an epoch, by the row's own answer:", oracle_table(results)]
    for pair in measured:
        table = repair_table(results, pair)
        if table:
            parts += [f"The reference recipe with one repair at a time, {pair}:", table]
    return "\n" + "\n\n".join(parts)


def short_table(results: Sequence[Result]) -> str:
    """The rows that a reader of the front page asks for: accuracy of the points, which a robot classifies with."""
    names = [ZERO_SHOT, "centered", "point-only", "separate", "agreement", REFERENCE, "joint"]
    by_pair = {pair: lines_of(results, pair, names) for pair in PAIRS}
    by_pair = {pair: lines for pair, lines in by_pair.items() if lines}
    rows = []
    for name in names:
        cells = [short_cell(name, lines) for lines in by_pair.values()]
        if any(cells):
            rows.append([TITLES[name], *cells])
    return "\n" + markdown(["points", *by_pair], rows)


def short_cell(name: str, lines: dict[str, Line]) -> str:
    """A row's points in one pair, and how many seeds they are of where others have more."""
    if name not in lines:
        return ""
    seeds = len(lines[name].accuracy)
    fewer = seeds < max(len(each.accuracy) for each in lines.values())
    return mean_and_spread(lines[name].values("point")) + f" (seeds: {seeds})" * fewer
