"""The tables of full_card.py, from its result files alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from adaptation_rows import LONG, ZERO_SHOT
from adaptation_rows import TITLES as ROW_TITLES
from adaptation_table import COLUMNS, Line, Result, lines_of, markdown, mean_and_spread, read
from pairs import PAIRS
from tables import write_between

from crossmost.adaptation.pseudo_labels import SUREST

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
RESULTS = HERE / "results" / "full_card"
MARKS = {RESULTS: "full-card"} | {
    HERE / "results" / f"bases_of_{epochs}": f"bases-of-{epochs}" for epochs in (32, 64)
}
"""Where the README has the table of a folder."""
CEILING, FASTER, ALL_KEPT, OWN_SHARE = "fine-tuned", "joint-base-rate", "joint-all-kept", "joint-own-share"
TITLES = {
    ZERO_SHOT: ZERO_SHOT,
    "point-only": "point-only",
    OWN_SHARE: "joint (crossmost recipe, its own share kept)",
    "joint": f"joint, the surest {100 * SUREST:g} % kept",
    ALL_KEPT: "joint, every label kept",
    LONG.name: f"{ROW_TITLES[LONG.name]}, the surest {100 * SUREST:g} % kept",
    FASTER: "joint, at the base's learning rate",
    CEILING: "*supervised*: fine-tuned",
}


def shares_closed(line: Line, lines: dict[str, Line], branch: str) -> list[float]:
    """Percent of the gap between zero-shot and the ceiling that a row closes, seed by seed; where there is a gap."""
    if line.name in (ZERO_SHOT, CEILING) or CEILING not in lines or branch not in line.branches:
        return []
    before, ceiling, found = lines[ZERO_SHOT].accuracy, lines[CEILING].accuracy, []
    for seed in sorted(line.accuracy.keys() & ceiling.keys()):
        gap = ceiling[seed][branch] - before[seed][branch]
        if gap > 0:
            found.append(100 * (line.accuracy[seed][branch] - before[seed][branch]) / gap)
    return found


def cell(values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds; empty without values."""
    return mean_and_spread(values) if values else ""


def of_means(line: Line, lines: dict[str, Line], branch: str) -> str:
    """The share of the gap between the means over the same seeds: a small gap of one seed does not rule it."""
    if not shares_closed(line, lines, branch):
        return ""
    seeds = line.accuracy.keys() & lines[CEILING].accuracy.keys()
    ours, before, ceiling = (
        statistics.mean(each.accuracy[seed][branch] for seed in seeds)
        for each in (line, lines[ZERO_SHOT], lines[CEILING])
    )
    return f"{100 * (ours - before) / (ceiling - before):.0f} %" if ceiling > before else ""


def pair_table(results: Sequence[Result], pair: str) -> str:
    """Every row of a pair."""
    lines = lines_of(results, pair, list(TITLES))
    rows = []
    for name in TITLES:
        if name not in lines:
            continue
        line = lines[name]
        cells = [cell(line.values(b)) if b in line.branches else "" for b in ("point", "image", "both")]
        for branch in ("point", "both"):
            cells += [of_means(line, lines, branch), cell(shares_closed(line, lines, branch))]
        rows.append([TITLES[name], *cells, ", ".join(map(str, sorted(line.accuracy)))])
    gap = ["gap closed, points", "by seed", "gap closed, both", "by seed"]
    return markdown(["row", *COLUMNS, *gap, "seeds"], rows)


def heading(results: Sequence[Result], pair: str) -> str:
    """What a pair's figures were measured on and with."""
    of_pair = [each for each in results if each["pair"] == pair]
    first, base = of_pair[0], of_pair[0]["base"]
    said = {name: " and ".join(sorted({each[name] for each in of_pair})) for name in ("machine", "precision")}
    return (
        f"**{pair}**: {first['card']}, {first['n']} clouds of the {first['split']} split, bases of {base['epochs']} "
        f"epochs at {base['learning_rate']:g}, {said['precision']}, {said['machine']}"
    )


def table(folder: Path = RESULTS) -> str:
    """Every pair that has been measured."""
    results = read(folder)
    parts = []
    for pair in PAIRS:
        if any(each["pair"] == pair for each in results):
            parts += [heading(results, pair), pair_table(results, pair)]
    return "\n" + "\n\n".join(parts or ["Not measured yet."])


def write_table(folder: Path) -> None:
    """Write the table of a folder into the README, where it has a place for it."""
    mark = MARKS.get(folder)
    if mark and f"<!-- {mark} -->" in README.read_text(encoding="utf-8"):
        write_between(README, mark, table(folder))
