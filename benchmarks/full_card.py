"""The adaptation benchmark with other bases: by default with the published encoder, 22 million parameters, on a GPU.

    python benchmarks/full_card.py --data DATA --work WORK [--jobs 6] [--limit SECONDS]   # everything still missing
    python benchmarks/full_card.py --data DATA --work WORK --pairs p1-low --seeds 0 1 --rows joint fine-tuned

For each pair and seed: a base, made as `crossmost pretrain` makes one; the rows of adaptation.py on it; and the
supervised ceiling, the same base fine-tuned on the target's labels. Labels reach the making of the base (the source's)
and the ceiling alone. Trainings run side by side on one GPU, each in a process of its own; after --limit no new one
begins. Results are in results/full_card/ or --results, one file a pair, row and seed: what has one is not measured
again. Exit 1 where something failed; it is named, and the rest is measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import adaptation
import arguments as common
from adaptation_rows import LONG, ROWS, Row
from adaptation_run import Right, TestSplit, measure, result, shares, target_set, train
from baseline_features import VIEWS, load_student, open_target
from baseline_fine_tuning import STEPS, Place, fine_tune
from baseline_networks import Target
from full_card_table import ALL_KEPT, CEILING, FASTER, OWN_SHARE, RESULTS, table, write_table
from paired import pack
from pairs import PAIRS, prepare

from crossmost.adaptation.devices import choose_device
from crossmost.adaptation.pretrain import make_pretrain_config
from crossmost.checkpoints.store import load_metadata
from crossmost.data.reading import Reading
from crossmost.errors import InputError
from crossmost.pretraining import make_base as pretrain
from crossmost.runtime.vocabulary import load_vocabulary
from crossmost.words import Words

CARD = "point-bert-64x32"
RATE = 5e-4
"""Half of what point-tiny's bases are made with: a deep transformer from scratch, in batches of 64."""
NAMES = (OWN_SHARE, CEILING, "joint", FASTER, "point-only", LONG.name, ALL_KEPT)
"""Rows, the most wanted first: what the limit cuts off are the last."""
LOADING = 4
"""Processes that load beside each training on a GPU."""
FAILURES = (Exception, SystemExit)
"""Whatever ends a piece of work: scripts that are called from here end with SystemExit."""
Run = Callable[..., Any]


@dataclass(frozen=True)
class Settings:
    """Where a measurement takes place, and how it trains.

    Attributes:
        data: folder of the real clouds.
        work: folder for archives, bases and runs.
        results: folder for result files.
        device: name.
        precision: of what the networks compute.
        workers: processes that load beside each training.
        card: of the point encoder.
        epochs: of the bases.
        learning_rate: of the bases and of the ceiling.
        steps: of the ceiling.
        options: that all rows share, besides or instead of adaptation.py's.
    """

    data: Path
    work: Path
    results: Path = RESULTS
    device: str = "cuda"
    precision: str = "bfloat16"
    workers: int = LOADING
    card: str = CARD
    epochs: int = adaptation.PRETRAIN_EPOCHS
    learning_rate: float = RATE
    steps: int = STEPS
    options: dict[str, Any] = field(default_factory=dict)

    def base(self, pair: str, seed: int) -> Path:
        """File of a pair's base."""
        return self.work / adaptation.base_of(pair) / f"{self.card}-{seed}.safetensors"

    def place(self) -> Place:
        """Where trainings compute."""
        return Place(choose_device(self.device), self.precision, self.workers)


@dataclass(frozen=True)
class Job:
    """One result: a row of a pair with a seed."""

    row: str
    pair: str
    seed: int

    def __str__(self) -> str:
        return f"{self.pair}, {self.row}, seed {self.seed}"

    def path(self, settings: Settings) -> Path:
        """File of the result."""
        return settings.results / f"{self.pair}_{self.row}_{self.seed}.json"


def row_of(name: str, settings: Settings) -> Row:
    """A row of adaptation.py, or joint with another option.

    That is the rate of the base, which point-tiny has; every label kept; or as many as the run itself decides.
    """
    own: dict[str, dict[str, Any]] = {
        FASTER: {"learning_rate": settings.learning_rate},
        ALL_KEPT: {"kept_share": 1.0},
        OWN_SHARE: {"kept_share": None},
    }
    return Row(name, name, own[name]) if name in own else ROWS[name]


def make_base(pair: str, seed: int, settings: Settings) -> None:
    """Pre-train the base of a pair's source as `crossmost pretrain` does, which has no option for the precision."""
    folder, out = settings.work / pair, settings.base(pair, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    options = {
        "epochs": settings.epochs, "learning_rate": settings.learning_rate, "seed": seed,
        "device": settings.device, "precision": settings.precision, "workers": settings.workers,
    }  # fmt: skip
    words = Words(vocabulary=folder / "source-classes.npz")
    pretrain(
        folder / "source.npz", out, words, Reading(), make_pretrain_config(options),
        card=settings.card, image="tiny", captions=None, split="all",
    )  # fmt: skip


def measure_row(job: Job, settings: Settings) -> None:
    """Train one row, see what the labels of the test split say of it, and write its result."""
    started = time.monotonic()
    measured = measure_ceiling(job, settings) if job.row == CEILING else measure_run(job, settings)
    base = json.loads(load_metadata(settings.base(job.pair, job.seed))["pretraining"])
    found = {
        "pair": job.pair, "seed": job.seed, "row": job.row, "data": target_set(job.pair), "card": settings.card,
        "precision": settings.precision, "base": base, **measured,
        "seconds": round(time.monotonic() - started, 1), "machine": machine(settings.device),
    }  # fmt: skip
    settings.results.mkdir(parents=True, exist_ok=True)
    job.path(settings).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure_run(job: Job, settings: Settings) -> dict[str, Any]:
    """A label-free row; of its epochs what was seen without labels is kept, and not the networks."""
    place, row = settings.place(), row_of(job.row, settings)
    shared = adaptation.shared_options(job.pair, job.seed) | settings.options
    machine_options = {"device": settings.device, "precision": place.precision, "workers": place.workers}
    config = row.config(shared | machine_options)
    folder = settings.work / job.pair
    run, target = folder / f"{settings.card}-{job.row}-{job.seed}", folder / "target.npz"
    seconds = train(row, config, settings.base(job.pair, job.seed), target, run, keep=False)
    records, right = measure(run, target, place.device, place.workers)
    return {
        "command": adaptation.settings(shared | row.options),
        "training_seconds": seconds and round(seconds, 1),
        **result(row, config, records, right),
    }


def measure_ceiling(job: Job, settings: Settings) -> dict[str, Any]:
    """The base before and after it is fine-tuned on the labels of the target's training split."""
    place, folder = settings.place(), settings.work / job.pair
    student = load_student(settings.base(job.pair, job.seed), folder / "target-classes.npz")
    training, tested = (open_target(student, folder / "target.npz", split) for split in ("train", "test"))
    names = load_vocabulary(folder / "target-classes.npz").names
    test = TestSplit(
        tested, names,
        image_size=student.image_size, views=VIEWS, device=place.device, workers=place.workers,
    )  # fmt: skip
    started = time.monotonic()
    tuned = fine_tune(
        Target(student, training, tested, names), job.seed, settings.steps,
        rate=settings.learning_rate, place=place,
    )  # fmt: skip
    seconds = time.monotonic() - started
    moments: dict[str, Right] = {
        "zero_shot": test.right(test.look(student), (1.0, 1.0)),
        "adapted": test.right(test.look(tuned.eval()), (1.0, 1.0)),
    }
    return {
        "supervised": True, "steps": settings.steps, "learning_rate": settings.learning_rate,
        "training_seconds": round(seconds, 1), "n": len(test.labels), "split": "test",
        **{moment: shares(right) for moment, right in moments.items()},
        "right": {
            moment: {branch: pack(each) for branch, each in right.items()} for moment, right in moments.items()
        },
    }  # fmt: skip


def machine(device: str) -> str:
    """What the figures were measured on."""
    place = choose_device(device)
    if place.type != "cuda":
        return adaptation.machine()
    card = torch.cuda.get_device_name(place)
    return f"{card}, torch {torch.__version__}, Python {platform.python_version()}"


def fork_loaders() -> None:
    """Let this process fork those that load for it, though it was spawned: they leave CUDA alone.

    Spawned, as they would be, they would import everything anew in every epoch. A function of its own: the one of
    `multiprocessing` is a method of an object, and would set this for a copy of it.
    """
    multiprocessing.set_start_method("fork", force=True)


class Processes:
    """Processes that work is done in, one piece at a time each; they stay, for their imports take seconds.

    One in which something failed is replaced: an error of CUDA spoils all that its process does afterwards.
    """

    def __init__(self, count: int):
        self.idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        for _ in range(count):
            self.idle.put(self.start())

    @staticmethod
    def start() -> ProcessPoolExecutor:
        """A process that inherits nothing: CUDA does not survive a fork."""
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=spawn, initializer=fork_loaders)

    def run(self, work: Run, *arguments: Any) -> Any:
        """Do something in a process that has nothing else to do."""
        process = self.idle.get()
        try:
            return process.submit(work, *arguments).result()
        except FAILURES:
            process.shutdown(wait=False)
            process = self.start()
            raise
        finally:
            self.idle.put(process)

    def close(self) -> None:
        """End the processes; nothing may be running."""
        while not self.idle.empty():
            self.idle.get().shutdown()


@dataclass
class Measurement:
    """What is still to be measured, side by side, until the time is over.

    Attributes:
        settings: of every training.
        run: does a piece of work in another process.
        over: moment of `time.monotonic` after which no training begins.
        failed: what failed, and why.
        left: what was not begun, because the time was over or its base is not there.
    """

    settings: Settings
    run: Run
    over: float
    failed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def take(self, jobs: Sequence[Job], at_once: int) -> None:
        """Measure jobs in their order, each pair's base first."""
        with ThreadPoolExecutor(at_once) as threads:
            bases: dict[Path, Future[bool]] = {}
            for job in jobs:
                base = self.settings.base(job.pair, job.seed)
                if base not in bases:
                    bases[base] = threads.submit(self.make_base, base, job)
            measured = [
                threads.submit(self.measure, job, bases[self.settings.base(job.pair, job.seed)])
                for job in jobs
            ]
        for each in measured:
            each.result()  # raises what went wrong here and in no training

    def make_base(self, base: Path, job: Job) -> bool:
        """Make the base of a job, which others may share; whether it is there."""
        name = f"base of {adaptation.base_of(job.pair)}, seed {job.seed}"
        return self.step(name, base, make_base, job.pair, job.seed, self.settings)

    def measure(self, job: Job, base: Future[bool]) -> None:
        """Measure a job once its base is made; bases stand before all jobs in the queue, so none waits for ever."""
        if base.result():
            self.step(str(job), job.path(self.settings), measure_row, job, self.settings)
        else:  # named already: it failed, or the time was over
            self.left.append(f"{job}: no base")

    def step(self, name: str, made: Path, *work: Any) -> bool:
        """Do a piece of work unless what it makes is there; whether it is there at the end."""
        if made.is_file():
            return True
        if time.monotonic() >= self.over:
            self.left.append(name)
            return False
        started = time.monotonic()
        try:
            self.run(*work)
        except FAILURES as error:  # the others go on
            traceback.print_exception(error)
            self.failed.append(f"{name}: {type(error).__name__}: {error}")
            return False
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
        return True


def missing(pairs: Sequence[str], rows: Sequence[str], seeds: Sequence[int], settings: Settings) -> list[Job]:
    """What has no result yet: each row for all pairs and seeds before the next."""
    jobs = [Job(row, pair, seed) for row, pair, seed in product(rows, pairs, seeds)]
    return [job for job in jobs if not job.path(settings).is_file()]


def measure_missing(jobs: Sequence[Job], settings: Settings, at_once: int, limit: float) -> bool:
    """Measure jobs, some at once, and say what was not; whether nothing failed."""
    over = time.monotonic() + limit
    for pair in dict.fromkeys(job.pair for job in jobs):
        prepare(settings.data, pair, settings.work / pair)
    processes = Processes(at_once)
    measurement = Measurement(settings, processes.run, over)
    try:
        measurement.take(jobs, at_once)
    finally:
        processes.close()
    for line in measurement.left:
        print(f"not begun: {line}")
    for line in measurement.failed:
        print(f"failed: {line}", file=sys.stderr)
    return not measurement.failed


def share_cores(at_once: int, workers: int) -> None:
    """Let the processes that are started from here share the cores: arithmetic takes as many threads as processors."""
    threads = max(1, (os.cpu_count() or 1) // (at_once * (1 + workers)))
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(threads)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = common.parser(__doc__, work="archives, bases and runs", pairs=PAIRS, seeds=True)
    parser.add_argument("--rows", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for result files")
    parser.add_argument("--card", default=CARD, help="of the point encoder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--workers", type=int, help=f"that load beside each; default: {LOADING} on a GPU")
    parser.add_argument("--epochs", type=int, default=adaptation.PRETRAIN_EPOCHS, help="of the bases")
    parser.add_argument("--learning-rate", type=float, default=RATE, help="of bases and ceilings")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the ceilings")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds until the last begins")
    common.add_tables_only(parser)
    return parser.parse_args()


def main() -> None:
    options = parse()
    passed = True
    if not options.tables_only:
        try:
            device = choose_device(options.device)
        except InputError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        on_gpu = device.type == "cuda"
        workers = options.workers if options.workers is not None else LOADING * on_gpu
        settings = Settings(
            options.data.resolve(), options.work.resolve(), options.results.resolve(), str(device),
            options.precision or ("bfloat16" if on_gpu else "float32"), workers, options.card,
            options.epochs, options.learning_rate, options.steps,
        )  # fmt: skip
        share_cores(options.jobs, workers)
        jobs = missing(options.pairs, options.rows, options.seeds, settings)
        passed = measure_missing(jobs, settings, options.jobs, options.limit)
    print(table(options.results))
    write_table(options.results.resolve())
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
