"""Label-free adaptation on real clouds: zero-shot beside each way to self-train, on pairs of data sets.

    python benchmarks/adaptation.py --data DATA --work WORK                   # everything that is still missing
    python benchmarks/adaptation.py --data DATA --work WORK --pairs p1-moderate --seeds 0

Every base and every run is kept in WORK and its result in results/adaptation/: an interrupted measurement goes on
where it stopped, and several can share the work. The table in README.md is written from the result files alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pairs import PAIRS, prepare
from tables import write_between

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "adaptation"
MODES = ("image-only", "point-only", "separate", "joint")
PRETRAIN_EPOCHS = 16
EPOCHS = {"p1": 5, "p2": 2, "p3": 10}
OPTIONS = {"views": 2, "watched": 512}


def base_of(pair: str) -> str:
    """Bases belong to the source: all severities of P1 share theirs."""
    return pair.split("-")[0]


def make_base(pair: str, seed: int, work: Path) -> Path:
    """Pre-train the base of a pair's source, once."""
    path = work / base_of(pair) / f"base-{seed}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["pretrain", work / pair / "source.npz", "--vocabulary", work / pair / "source-classes.npz"]
        options = ["--card", "point-tiny", "--epochs", PRETRAIN_EPOCHS, "--seed", seed, "--out", path]
        crossmost(*command, *options)
    return path


def crossmost(*arguments: Any) -> None:
    """Run a command of the package as a user would."""
    subprocess.run([sys.executable, "-m", "crossmost", *map(str, arguments)], check=True)


def measure(pair: str, mode: str, seed: int, work: Path) -> None:
    """Train one run and write its result, once."""
    result = RESULTS / f"{pair}_{mode}_{seed}.json"
    if result.is_file():
        return
    base = make_base(pair, seed, work)
    run = work / pair / f"{mode}-{seed}"
    target, vocabulary = work / pair / "target.npz", work / pair / "target-classes.npz"
    started = time.monotonic()
    settings = [
        f"--set={name}={value}" for name, value in {**OPTIONS, "epochs": EPOCHS[base_of(pair)]}.items()
    ]
    again = ["--resume"] if (run / "config.yaml").is_file() else ["--base", base, "--vocabulary", vocabulary]
    crossmost("train", target, "--out", run, "--mode", mode, "--seed", seed, *settings, *again)
    found = json.loads((run / "evaluation.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    RESULTS.mkdir(parents=True, exist_ok=True)
    row = {
        "pair": pair, "mode": mode, "seed": seed, "n": found["n"], "split": found["split"],
        "zero_shot": found["zero_shot"], "adapted": found["adapted"],
        "chosen_epoch": last["chosen_epoch"] + 1, "epochs": EPOCHS[base_of(pair)],
        "seconds": round(time.monotonic() - started), "machine": machine(),
    }  # fmt: skip
    result.write_text(json.dumps(row, indent=1) + "\n")


def machine() -> str:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
            break
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def table() -> str:
    """The rows of all results, mean and standard deviation over the seeds."""
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    lines = []
    for pair in PAIRS:
        of_pair = [row for row in rows if row["pair"] == pair]
        if not of_pair:
            continue
        seeds = sorted({row["seed"] for row in of_pair})
        lines += [
            f"\n**{pair}**: {of_pair[0]['n']} test clouds, seeds {', '.join(map(str, seeds))}, "
            f"{of_pair[0]['epochs']} epochs, {of_pair[0]['machine']}\n",
            "| row | points | images | both | seeds |", "|---|---|---|---|---|",
        ]  # fmt: skip
        first = {row["seed"]: row for row in of_pair}
        lines.append(
            line("zero-shot", [row["zero_shot"] for row in first.values()], ("point", "image", "both"))
        )
        for mode in MODES:
            found = [row["adapted"] for row in of_pair if row["mode"] == mode]
            if found:
                own = {"point-only": ("point",), "image-only": ("image",)}.get(
                    mode, ("point", "image", "both")
                )
                lines.append(line(mode, found, own))
    return "\n".join(lines)


def write_tables() -> None:
    """Write the table into both READMEs."""
    for path in (HERE / "README.md", HERE.parent / "README.md"):
        write_between(path, "adaptation", table())


def line(name: str, found: list[dict[str, float]], branches: tuple[str, ...]) -> str:
    """One row: mean ± standard deviation in percent; a branch that was not trained is left out."""
    cells = []
    for branch in ("point", "image", "both"):
        values = [100 * each[branch] for each in found]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}" if branch in branches else "")
    return f"| {name} | {' | '.join(cells)} | {len(found)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the real clouds")
    parser.add_argument("--work", type=Path, required=True, help="folder for archives, bases and runs")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=["p1-moderate", "p2"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--tables-only", action="store_true", help="write the tables from the results there are"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    if options.tables_only:
        write_tables()
        return
    work = options.work.resolve()
    for seed in options.seeds:
        for pair in options.pairs:
            prepare(options.data.resolve(), pair, work / pair)
            for mode in options.modes:
                measure(pair, mode, seed, work)
    write_tables()


if __name__ == "__main__":
    main()
