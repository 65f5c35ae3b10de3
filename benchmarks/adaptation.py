"""Label-free adaptation on real clouds: zero-shot beside each way to self-train, on pairs of data sets.

    python benchmarks/adaptation.py --data DATA --work WORK [--jobs 2]        # everything that is still missing
    python benchmarks/adaptation.py --data DATA --work WORK --pairs p1-moderate --seeds 0 --rows joint

Every base and every run is kept in WORK and its result in results/adaptation/: an interrupted measurement goes on
where it stopped. The tables and figures are made from the result files alone. `--quick` trains one epoch on a few
clouds of one pair, prints the tables and writes to WORK only.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation_figures import draw
from adaptation_rows import ROWS
from adaptation_table import full_tables, read, short_table
from pairs import PAIRS, prepare
from tables import write_between

from crossmost.adaptation.pseudo_labels import SUREST

HERE = Path(__file__).resolve().parent
RESULTS, FIGURES = HERE / "results" / "adaptation", HERE / "figures"
PRETRAIN_EPOCHS = 16
EPOCHS = {"p1": 5, "p2": 3, "p3": 10}
OPTIONS = {"views": 2, "watched": 512, "kept_share": SUREST}
"""Of all rows; what a run of joint training keeps by its own choice is in the tables of option_values and full_card."""
QUICK_WORK, QUICK_PAIR = "adaptation-quick", "p1-moderate"
"""Where the quick runs are that the other scripts' `--quick` looks at."""
QUICK_ROWS, QUICK_CLOUDS = ("point-only", "joint-reference", "joint"), 256
QUICK_OPTIONS = {"views": 1, "watched": 64, "epochs": 1, "batch_size": 16, "seed": 0}


def base_of(pair: str) -> str:
    """Bases belong to the source: all severities of P1 share theirs, and P3 has the source of P2."""
    return "p1" if pair.startswith("p1-") else "p2"


def make_base(pair: str, seed: int, work: Path, epochs: int = PRETRAIN_EPOCHS) -> Path:
    """Pre-train the base of a pair's source, once."""
    path = work / base_of(pair) / f"base-{seed}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["pretrain", work / pair / "source.npz", "--vocabulary", work / pair / "source-classes.npz"]
        options = [
            "--split", "all", "--card", "point-tiny", "--epochs", epochs, "--seed", seed, "--out", path,
        ]  # fmt: skip
        crossmost(*command, *options)
    return path


def crossmost(*arguments: Any) -> None:
    """Run a command of the package as a user would."""
    subprocess.run([sys.executable, "-m", "crossmost", *map(str, arguments)], check=True)


def shared_options(pair: str, seed: int) -> dict[str, Any]:
    """The options of every run of a pair and a seed."""
    return {**OPTIONS, "epochs": EPOCHS[pair.split("-")[0]], "seed": seed}


def settings(options: Mapping[str, Any]) -> str:
    """Options as they are typed; None is what a run does unless told otherwise."""
    return " ".join(f"--set {name}={value}" for name, value in options.items() if value is not None)


def is_measured(path: Path) -> bool:
    """Whether a result file is there, with all that the tables are made from."""
    return path.is_file() and "right" in json.loads(path.read_text(encoding="utf-8"))


def measure(pair: str, training: str, work: Path, results: Path, options: dict[str, Any]) -> None:
    """Train one run in a process of its own, on one thread, and write the results of the rows that read from it."""
    base = work / base_of(pair) / f"base-{options['seed']}.safetensors"
    command = [sys.executable, HERE / "adaptation_run.py", "--pair", pair, "--training", training]
    command += ["--base", base, "--work", work, "--results", results, "--set", json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([str(part) for part in command], check=False, env=environment).returncode
    if ended:  # its own words stand above
        raise SystemExit(
            f"{pair}, {training}, seed {options['seed']}: ended with {ended}; a new start goes on there"
        )


def machine() -> str:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
            break
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def measure_missing(
    pairs: list[str], rows: list[str], seeds: list[int], data: Path, work: Path, jobs: int
) -> None:
    """Measure what has no result yet: archives, then bases, then a training at a time or several side by side."""
    missing = [
        (pair, seed, ROWS[row].training)
        for seed, pair, row in product(seeds, pairs, rows)
        if not is_measured(RESULTS / f"{pair}_{row}_{seed}.json")
    ]
    for pair in dict.fromkeys(pair for pair, _, _ in missing):
        prepare(data, pair, work / pair)
    bases = {(base_of(pair), seed): partial(make_base, pair, seed, work) for pair, seed, _ in missing}
    trainings = [
        partial(measure, pair, training, work, RESULTS, shared_options(pair, seed))
        for pair, seed, training in dict.fromkeys(missing)
    ]
    with ThreadPoolExecutor(jobs) as pool:
        for work_of_a_stage in (bases.values(), trainings):
            list(pool.map(lambda do: do(), work_of_a_stage))


def quick(data: Path, work: Path) -> None:
    """Every step on a few clouds, into WORK; its figures mean nothing."""
    results = work / "results"
    prepare(data, QUICK_PAIR, work / QUICK_PAIR)
    for side in ("source", "target"):
        thin(work / QUICK_PAIR / f"{side}.npz")
    make_base(QUICK_PAIR, 0, work, epochs=1)
    for row in QUICK_ROWS:
        if not is_measured(results / f"{QUICK_PAIR}_{row}_0.json"):
            measure(QUICK_PAIR, row, work, results, QUICK_OPTIONS)
    print(full_tables(read(results)))
    print(*draw(read(results), work / "figures"), sep="\n")


def thin(path: Path) -> None:
    """Leave QUICK_CLOUDS clouds of an archive, evenly spaced."""
    with np.load(path) as archive:
        arrays = dict(archive)
    count = len(arrays["ids"])
    chosen = np.linspace(0, count - 1, min(count, QUICK_CLOUDS)).astype(int)
    whole = {"class_names"}
    np.savez(path, **{name: each if name in whole else each[chosen] for name, each in arrays.items()})


def write_tables() -> None:
    """Write the tables into both READMEs, and the figures."""
    results = read(RESULTS)
    write_between(HERE / "README.md", "adaptation", full_tables(results))
    write_between(HERE.parent / "README.md", "adaptation", short_table(results))
    draw(results, FIGURES)


def main() -> None:
    parser = common.parser(
        __doc__,
        work="archives, bases and runs",
        pairs=PAIRS,
        seeds=True,
        quick="a few clouds; write to WORK only",
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, each on one thread")
    parser.add_argument(
        "--results-only", action="store_true", help="measure, and leave tables and figures as they are"
    )
    common.add_tables_only(parser)
    options = parser.parse_args()
    data, work = options.data.resolve(), options.work.resolve()
    if options.quick:
        quick(data, work / QUICK_WORK)
        return
    if not options.tables_only:
        measure_missing(options.pairs, options.rows, options.seeds, data, work, options.jobs)
    if not options.results_only:
        write_tables()


if __name__ == "__main__":
    main()
