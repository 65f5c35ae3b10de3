"""The runtime's speed: eager PyTorch, float32 and int8 in turns, the matrix products alone, start, memory, a long loop.

    python benchmarks/runtime.py --data DATA --work WORK [--quick] [--soak 100000] [--install]

Makes the runs of export_parity.py if WORK lacks them, and bundles of them with the int8 encoder, verified on the
scanned test split. Every way has a process of its own; they take turns, so that whatever else the machine does meets
all of them. Clouds are sampled from DATA's meshes. What is in
benchmarks/results/runtime already is not measured again. `--quick` measures less and writes neither results nor the
README.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation import machine
from runtime_table import table
from tables import write_between
from turns import keep, make_bundle, make_clouds, spread, stage_spreads, take_turns

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "runtime"
WORKER, START, SOAK = (HERE / f"runtime_{name}.py" for name in ("worker", "start", "soak"))
WAYS = ("plain", "eager", "fp32", "int8", "torch", "numpy")
SETTINGS = (
    ("point-bert-64x32", 2048, 1), ("point-bert-64x32", 8192, 1), ("point-bert-512x32", 8192, 1),
    ("point-bert-64x32", 2048, 8), ("point-bert-512x32", 8192, 4),
)  # fmt: skip
"""Card, points and batch."""
THREADS = 2
SCALING = {"points": (1024, 2048, 4096, 8192, 16384, 32768), "groups": (32, 64, 128, 256, 512, 1024)}


@contextmanager
def worker(way: str, source: Path, clouds: Path, batch: int) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready to measure; see runtime_worker.py."""
    command = [sys.executable, WORKER, way, source, clouds, batch, THREADS]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    with subprocess.Popen(
        list(map(str, command)), env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise SystemExit(f"{way} did not start")
            yield process
        finally:
            process.terminate()


def measure(card: str, points: int, batch: int, turns: int, data: Path, work: Path) -> dict[str, Any]:
    """All ways of one setting: medians and quartiles by stage, and ratios turn by turn."""
    run, bundle = make_bundle(card, work, data)
    clouds = make_clouds(data, points, work)
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        processes = {
            way: stack.enter_context(worker(way, bundle if way in ("fp32", "int8") else run, clouds, batch))
            for way in WAYS
        }
        answers = take_turns(processes, turns)
    totals = {way: np.array([each["seconds"]["total"] for each in answers[way]]) for way in WAYS}
    encode = {way: np.array([each["seconds"]["encode"] for each in answers[way]]) for way in WAYS}
    classes = {way: [each["top1"] for each in answers[way]] for way in ("plain", "eager", "fp32", "int8")}
    product = np.minimum(encode["torch"], encode["numpy"])
    manifest = json.loads((bundle / "manifest.json").read_text())
    return {
        "card": card, "points": points, "batch": batch, "turns": turns, "threads": THREADS, "machine": machine(),
        "load_before": round(load, 2),
        "waited": {way: spread([each["waited"] for each in answers[way]]) for way in WAYS},
        "seconds": {way: stage_spreads(answers[way]) for way in WAYS},
        "faster": {
            eager: {way: spread(totals[eager] / totals[way]) for way in ("fp32", "int8")}
            for eager in ("plain", "eager")
        },
        "encoder_over_product": {way: spread(encode[way] / product) for way in ("plain", "eager", "fp32", "int8")},
        "operations": answers["torch"][0]["operations"],
        "same_top1": {
            way: float(np.mean(np.equal(classes[way], classes["plain"]))) for way in ("eager", "fp32", "int8")
        },
        "preprocessing_share": {
            way: spread((totals[way] - encode[way]) / totals[way]) for way in ("plain", "eager", "fp32", "int8")
        },
        "parity": [check for check in manifest["parity"]["checks"] if check["graph"].startswith("encoder")],
    }  # fmt: skip


def measure_scaling(turns: int, data: Path, work: Path) -> dict[str, Any]:
    """Preprocessing of one cloud by N with 64 groups and by G with 8192 points, and fitted exponents."""
    from crossmost.runtime.preprocess import prepare
    from crossmost.runtime.sampling import group

    cloud = np.load(make_clouds(data, max(SCALING["points"]), work))[0]
    cases = [("points", points, points, 64) for points in SCALING["points"]]
    cases += [("groups", groups, 8192, groups) for groups in SCALING["groups"]]
    seconds: dict[str, dict[int, list[float]]] = {"points": {}, "groups": {}}
    for _ in range(turns):
        for axis, at, points, groups in cases:
            part = cloud[:points]
            began = time.perf_counter()
            group(prepare(part, most=points, least=max(groups, 32)), groups, 32)
            seconds[axis].setdefault(at, []).append(time.perf_counter() - began)
    spreads = {axis: {str(at): spread(found) for at, found in by.items()} for axis, by in seconds.items()}
    exponents = {
        axis: float(np.polyfit(np.log(list(by)), np.log([np.median(found) for found in by.values()]), 1)[0])
        for axis, by in seconds.items()
    }
    return {"seconds": spreads, "exponents": exponents, "turns": turns, "machine": machine()}


def measure_start(turns: int, data: Path, work: Path) -> dict[str, Any]:
    """Import, load and first prediction in new processes, and their memory."""
    _, bundle = make_bundle("point-bert-512x32", work, data)
    clouds = make_clouds(data, 8192, work)
    found = [ask([START, bundle, clouds, THREADS]) for _ in range(turns)]
    return {name: spread([each[name] for each in found]) for name in found[0]} | {"machine": machine()}


def ask(command: list[Any]) -> dict[str, Any]:
    """The JSON that a script prints."""
    parts = [sys.executable, *map(str, command)]
    return json.loads(subprocess.run(parts, check=True, capture_output=True, text=True).stdout)


def measure_install() -> dict[str, Any]:
    """Bytes of `pip install "crossmost[cpu]"` in a new environment, pip's own not counted."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        before = folder_bytes(Path(folder))
        pip = [
            Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
        ]
        constraints = ["-c", HERE.parent / "constraints.txt"]
        subprocess.run([str(part) for part in [*pip, f"{HERE.parent}[cpu]", *constraints]], check=True)
        return {"bytes": folder_bytes(Path(folder)) - before, "machine": machine()}


def folder_bytes(folder: Path) -> int:
    """Sizes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def soak(predictions: int, data: Path, work: Path) -> dict[str, Any]:
    """A long loop of predictions in one process."""
    _, bundle = make_bundle("point-bert-64x32", work, data)
    clouds = make_clouds(data, 2048, work)
    return ask([SOAK, bundle, clouds, THREADS, predictions]) | {"machine": machine()}


def main() -> None:
    quick = "few turns, single clouds; print the table only"
    parser = common.parser(__doc__, work="bases, runs and bundles", quick=quick)
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="also N predictions in a loop")
    parser.add_argument(
        "--install", action="store_true", help="also the size of an installation; needs an index"
    )
    arguments = parser.parse_args()
    data, work, quick = arguments.data, arguments.work, arguments.quick
    results = work / "runtime-quick" if quick else RESULTS
    for card, points, batch in SETTINGS[:3] if quick else SETTINGS:
        turns = 5 if quick else 20 // batch + 10
        keep(f"{card}_{points}_{batch}", results, partial(measure, card, points, batch, turns, data, work))
    keep("scaling", results, partial(measure_scaling, 5 if quick else 31, data, work))
    keep("start", results, partial(measure_start, 3 if quick else 11, data, work))
    if arguments.install:
        keep("install", results, measure_install)
    if arguments.soak:
        keep("soak", results, partial(soak, arguments.soak, data, work))
    if quick:
        print(table(results))
    else:
        write_between(HERE / "README.md", "runtime", table(results))


if __name__ == "__main__":
    main()
