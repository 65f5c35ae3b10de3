"""Latency over points, groups, batch, threads, precision: the runtime, ONNX Runtime alone, three forms of torch.

    python benchmarks/latency.py --data DATA --work WORK [--quick] [--seconds 240] [--prepare-only] [--tables-only]

A sweep on top of runtime.py, whose method it shares: every way has a process of its own and they take turns. The limits
are measured beside the ways, in the same turns: the encoder's matrix products alone, in float32 and with 8-bit factors,
and a copy of memory. What is in results/latency/ already is not measured again; `--seconds` begins no further setting
after so long, so that a measurement can be made in pieces. `--quick` measures three settings in few turns and writes
neither results nor the README. Without networks in WORK, `--prepare-only` (minutes) makes them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation import crossmost, machine
from export_parity import PAIR, SIZES, adapt, make_bases
from latency_figure import draw
from latency_table import RUNTIME, TORCH, table
from tables import write_between
from turns import keep, make_bundle, make_clouds, spread, stage_spreads, take_turns

from crossmost.checkpoints.base import load_base, save_base

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "latency"
FIGURE = HERE / "figures" / "latency.png"
WORKER = HERE / "latency_worker.py"
LIMITS = ("torch", "numpy", "integer", "copy")
WAYS = (*TORCH, *RUNTIME, *LIMITS)
WEIGHTS = {"fp32": "weights.bin", "fp16": "weights.bin", "int8": "int8_weights.bin"}


class Setting(NamedTuple):
    """One point of the sweep; the card's other numbers are those of Point-BERT."""

    groups: int
    points: int
    batch: int
    threads: int
    turns: int

    @property
    def name(self) -> str:
        """Of its result file."""
        return f"{self.groups}_{self.points}_{self.batch}_{self.threads}"


SETTINGS = (
    Setting(64, 2048, 1, 2, 5),
    Setting(64, 1024, 1, 2, 4), Setting(64, 4096, 1, 2, 4), Setting(64, 8192, 1, 2, 4),
    Setting(64, 2048, 2, 2, 4), Setting(64, 2048, 4, 2, 3), Setting(64, 2048, 8, 2, 2),
    Setting(128, 8192, 1, 2, 4), Setting(256, 8192, 1, 2, 3), Setting(512, 8192, 1, 2, 3),
    Setting(64, 2048, 1, 1, 4), Setting(512, 8192, 1, 1, 2),
)  # fmt: skip
QUICK = (Setting(64, 1024, 1, 2, 2), Setting(64, 2048, 1, 2, 2), Setting(64, 8192, 1, 2, 2))


class Network(NamedTuple):
    """The same weights for torch and, exported, for the runtime."""

    run: Path
    bundle: Path  # float32 with the int8 encoder
    half: Path  # float16


def make_run(groups: int, work: Path) -> Path:
    """A run of the card with so many groups, once; export_parity.py's where it has one."""
    card = f"point-bert-{groups}x32"
    bases = make_bases(work)
    if card in bases:
        return adapt(card, bases[card], work)
    run, base = work / f"run-{card}", work / f"base-{card}.safetensors"
    if (run / "report.html").is_file():
        return run
    first, second = SIZES
    adapt(second, bases[second], work)  # makes the few clouds
    model, architecture = load_base(bases[first])
    own = architecture.point.model_copy(update={"name": card, "groups": groups})
    save_base(base, model, architecture._replace(point=own), {})
    settings = ["--set=epochs=1", "--set=batch_size=16", "--set=views=1", "--set=watched=32"]
    words = ["--vocabulary", work / PAIR / "target-classes.npz"]
    crossmost("train", work / f"few-{second}.npz", "--out", run, "--base", base, *words, *settings)
    return run


def make_network(groups: int, data: Path, work: Path) -> Network:
    """Run and bundles of one number of groups, once."""
    card = f"point-bert-{groups}x32"
    if card in SIZES:
        run, bundle = make_bundle(card, work, data)
    else:
        run, bundle = make_run(groups, work), work / f"{card}-runtime.bundle"
    half = work / f"{card}-fp16.bundle"
    for path, precision in ((bundle, "--int8"), (half, "--fp16")):
        if not (path / "manifest.json").is_file():
            crossmost("export", run, precision, "--out", path)
    return Network(run, bundle, half)


@contextmanager
def worker(way: str, threads: int, work: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that waits to be told a setting; see latency_worker.py."""
    command = [sys.executable, str(WORKER), way, str(threads)]
    # What torch.compile made is kept, so that it need not be made again while others wait their turn.
    kept = {
        "OMP_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str((work / "inductor").resolve()),
    }
    with subprocess.Popen(
        command, env=os.environ | kept, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def choose(processes: dict[str, subprocess.Popen[str]], asked: dict[str, Any]) -> None:
    """Tell all processes a setting and wait until they are warm."""
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
    for way, process in processes.items():
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{way} did not start")


def request(setting: Setting, network: Network, data: Path, work: Path) -> dict[str, Any]:
    """What a process is told."""
    clouds = work / f"meshes-{setting.points}.npy"
    if not clouds.is_file():
        make_clouds(data, setting.points, work)
    named = {name: str(path) for name, path in network._asdict().items()}
    return {**named, "clouds": str(clouds), "batch": setting.batch}


def measure(
    setting: Setting, processes: dict[str, subprocess.Popen[str]], data: Path, work: Path
) -> dict[str, Any]:
    """All ways and limits of one setting."""
    network = make_network(setting.groups, data, work)
    choose(processes, request(setting, network, data, work))
    load = os.getloadavg()[0]
    answers = take_turns(processes, setting.turns)
    return summary(answers) | {
        **setting._asdict(), "weight_bytes": weight_bytes(network), "load_before": round(load, 2), "machine": machine()
    }  # fmt: skip


def weight_bytes(network: Network) -> dict[str, int]:
    """What each precision's encoder has to read: its weights."""
    folders = {"fp32": network.bundle, "fp16": network.half, "int8": network.bundle}
    return {precision: (folders[precision] / file).stat().st_size for precision, file in WEIGHTS.items()}


def summary(answers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Quartiles of seconds by stage, ratios call by call, and what memory and arithmetic gave."""
    totals = {way: np.array([each["seconds"]["total"] for each in answers[way]]) for way in answers}
    encode = {
        way: np.array([each["seconds"]["encode"] for each in found])
        for way, found in answers.items()
        if "encode" in found[0]["seconds"]
    }
    product = np.minimum(encode["torch"], encode["numpy"])
    copies = np.array([each["bytes"] / each["seconds"]["copy"] for each in answers["copy"]])
    ways = [way for way in (*TORCH, *RUNTIME) if way in answers]
    classes = {way: [each["top1"] for each in answers[way]] for way in ways}
    return {
        "seconds": {way: stage_spreads(found) for way, found in answers.items()},
        "waited": {way: spread([each["waited"] for each in found]) for way, found in answers.items()},
        "faster": {way: {other: spread(totals[other] / totals[way]) for other in TORCH} for way in RUNTIME},
        "products": spread(product),
        "encoder_over_products": {way: spread(encode[way] / product) for way in ways if way in encode},
        "int8_over_integer_products": spread(encode["int8"] / encode["integer"]),
        "operations": answers["torch"][0]["operations"],
        "copied_bytes_per_second": spread(copies),
        "same_top1": {way: float(np.mean(np.equal(classes[way], classes["plain"]))) for way in ways},
    }


def sweep(settings: Iterable[Setting], seconds: float, results: Path, data: Path, work: Path) -> None:
    """Measure what is missing, in the order given, until the time is over."""
    began = time.monotonic()
    missing = [setting for setting in settings if not (results / f"{setting.name}.json").is_file()]
    for threads, group in groupby(missing, key=lambda setting: setting.threads):
        if time.monotonic() - began > seconds:
            break
        with ExitStack() as stack:
            processes = {way: stack.enter_context(worker(way, threads, work)) for way in WAYS}
            for setting in group:
                if time.monotonic() - began > seconds:
                    break
                keep(setting.name, results, partial(measure, setting, processes, data, work))


def prepare(settings: Iterable[Setting], data: Path, work: Path) -> None:
    """Make networks and clouds, and have torch.compile do what it keeps."""
    for setting in settings:
        asked = request(setting, make_network(setting.groups, data, work), data, work)
        with worker("compiled", setting.threads, work) as process:
            choose({"compiled": process}, asked)


def main() -> None:
    quick = "three settings; print the table only"
    parser = common.parser(__doc__, work="bases, runs and bundles", quick=quick)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no setting after so long")
    parser.add_argument("--prepare-only", action="store_true", help="make what is measured, measure nothing")
    common.add_tables_only(parser)
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    settings = QUICK if arguments.quick else SETTINGS
    results = work / "latency-quick" if arguments.quick else RESULTS
    if arguments.prepare_only:
        prepare(settings, data, work)
        return
    if not arguments.tables_only:
        sweep(settings, arguments.seconds, results, data, work)
    if arguments.quick:
        print(table(results))
        draw(results, work / "latency-quick.png")
    else:
        write_between(HERE / "README.md", "latency", table(results))
        draw(results, FIGURE)


if __name__ == "__main__":
    main()
