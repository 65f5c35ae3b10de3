"""Options of the crossmost recipe at several values, on the same bases: what a choice between them is worth.

    python benchmarks/option_values.py --data DATA --work WORK [--jobs 2] [--pairs p3] [--seeds 0] [--tables-only]

Bases, clouds, epochs and shared options are those of adaptation.py; every value is trained anew, so that nothing but
the option differs. A result file a pair, value and seed stays in results/option_values/ and is not measured again; the
table is written from them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
import adaptation
import arguments as common
from adaptation_rows import Row
from adaptation_run import measure, result, target_set, train
from adaptation_table import Line, Result, compare, line, markdown, mean_and_spread, probability, read
from pairs import PAIRS, prepare
from tables import write_between

from crossmost.adaptation.pseudo_labels import SUREST

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "option_values"
VALUES: dict[str, tuple[float | None, ...]] = {"kept_share": (SUREST, 0.6, 1.0, None)}
"""The options with their values; the first is what the others are compared with, None what the run decides."""


class Job(NamedTuple):
    """One training."""

    pair: str
    option: str
    value: float | None
    seed: int

    @property
    def row(self) -> Row:
        """The crossmost recipe with the option at that value."""
        name = f"{self.option}={shown(self.value)}"
        return Row(name, name, {self.option: self.value})

    @property
    def path(self) -> Path:
        """File of the result."""
        return RESULTS / f"{self.pair}_{self.row.name}_{self.seed}.json"


def shown(value: float | None) -> str:
    """A value in a file's name and in the table."""
    return "own" if value is None else f"{value:g}"


def measure_job(job: Job, work: Path) -> None:
    """Train, see what the labels of the test split say of it, and write the result."""
    shared = adaptation.shared_options(job.pair, job.seed)
    config = job.row.config(shared)
    folder, target = work / job.pair / f"{job.row.name}-{job.seed}", work / job.pair / "target.npz"
    base = work / adaptation.base_of(job.pair) / f"base-{job.seed}.safetensors"
    seconds = train(job.row, config, base, target, folder, keep=False)
    records, right = measure(folder, target)
    found = {
        "pair": job.pair, "seed": job.seed, "data": target_set(job.pair),
        "command": adaptation.settings(shared | job.row.options),
        "seconds": seconds and round(seconds), **result(job.row, config, records, right),
        "machine": adaptation.machine(),
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    job.path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure_missing(pairs: Sequence[str], seeds: Sequence[int], data: Path, work: Path, jobs: int) -> None:
    """Measure what has no result yet, some at once, each on one thread."""
    every = [
        Job(pair, option, value, seed)
        for seed, pair, (option, values) in product(seeds, pairs, VALUES.items())
        for value in values
    ]
    missing = [job for job in every if not adaptation.is_measured(job.path)]
    for pair in dict.fromkeys(job.pair for job in missing):
        prepare(data, pair, work / pair)
    for pair, seed in dict.fromkeys((job.pair, job.seed) for job in missing):
        adaptation.make_base(pair, seed, work)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as processes:
        for done in [processes.submit(measure_job, job, work) for job in missing]:
            done.result()


def lines_of(results: Sequence[Result], pair: str, option: str) -> dict[float | None, Line]:
    """The lines of a pair and an option by value."""
    found: dict[float | None, list[Result]] = {}
    for each in results:
        if each["pair"] == pair and option in each["options"]:
            found.setdefault(each["options"][option], []).append(each)
    return {
        value: line(option, found[value]) for value in sorted(found, key=lambda each: (each is None, each))
    }


def against(of_value: Line, of_other: Line) -> list[str]:
    """How much better a value is than another by the points, with the seeds that both have, and how surely."""
    seeds = sorted(of_value.right.keys() & of_other.right.keys())
    if not seeds:
        return ["", ""]
    gained = [100 * (of_value.accuracy[seed]["point"] - of_other.accuracy[seed]["point"]) for seed in seeds]
    return [mean_and_spread(gained, "+"), probability(compare(of_value, of_other, "point", "point").p)]


def table(results: Path) -> str:
    """Every option, pair and value."""
    found = read(results)
    if not found:
        return ""
    rows = []
    for option, pair in product(VALUES, PAIRS):
        lines, other = lines_of(found, pair, option), VALUES[option][0]
        for value, each in lines.items():
            figures = [mean_and_spread(each.values(branch)) for branch in ("point", "image", "both")]
            compared = ["", ""] if value == other or other not in lines else against(each, lines[other])
            seeds = ", ".join(map(str, sorted(each.accuracy)))
            rows.append([pair, option, shown(value), *figures, *compared, seeds])
    head = ["pair", "option", "value", "points", "images", "both", "points gained", "p", "seeds"]
    return f"Test split; {found[0]['machine']}\n\n{markdown(head, rows)}"


def main() -> None:
    parser = common.parser(__doc__, work="archives, bases and runs", pairs=PAIRS, seeds=True)
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, each on one thread")
    common.add_tables_only(parser)
    options = parser.parse_args()
    if not options.tables_only:
        data, work = options.data.resolve(), options.work.resolve()
        measure_missing(options.pairs, options.seeds, data, work, options.jobs)
    write_between(HERE / "README.md", "option-values", table(RESULTS))


if __name__ == "__main__":
    main()
