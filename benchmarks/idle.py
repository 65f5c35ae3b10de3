"""What a classifier costs a robot between its calls: ONNX Runtime's threads asleep, as we have them, or spinning.

    python benchmarks/idle.py --work WORK [--cards point-tiny crossmost-pointbert] [--rounds 7] [--quick]
    python benchmarks/idle.py --work WORK --tables-only

Encoders with random weights, on which time does not depend, in float32 on the CPU, a thread a core. The two ways take
turns, each turn in a process of its own: first calls back to back, then calls at 10 Hz, of whose time the share is
taken that the process kept processors busy (100 % is one of them). `--quick` makes one round with the small card and
writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from tables import write_between

HERE = Path(__file__).resolve().parent
README, RESULT = HERE / "README.md", HERE / "results" / "idle.json"
CARDS = ("point-tiny", "crossmost-pointbert")
SPINNING = "session.intra_op.allow_spinning"
WAYS = ("asleep", "spinning")
CALLS, RATE = 30, 10.0
"""Calls of each part of a turn, and of how many a second the second part is."""


def work(bundle: str, way: str) -> None:
    """A turn: print median seconds back to back, and the share of a processor at the rate."""
    import onnxruntime

    if way == "spinning":

        class Spinning(onnxruntime.SessionOptions):  # type: ignore[misc]
            """Options that leave the default as it is."""

            def add_session_config_entry(self, key: str, value: str) -> None:
                super().add_session_config_entry(key, "1" if key == SPINNING else value)

        onnxruntime.SessionOptions = Spinning
    from crossmost.runtime import Classifier

    with Classifier.load(bundle, backend="onnxruntime-cpu") as classifier:
        cloud = np.random.default_rng(0).standard_normal((2048, 3))
        classifier.warmup()
        seconds = []
        for _ in range(CALLS):
            began = time.perf_counter()
            classifier(cloud)
            seconds.append(time.perf_counter() - began)
        busy, began = time.process_time(), time.perf_counter()
        for call in range(CALLS):
            classifier(cloud)
            time.sleep(max(0.0, began + (call + 1) / RATE - time.perf_counter()))
        share = (time.process_time() - busy) / (time.perf_counter() - began)
    print(json.dumps({"seconds": float(np.median(seconds)), "share": share}))


def measure(card: str, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """A row a way: first quartile, median and third quartile over the rounds."""
    from gpu_torch import export
    from turns import spread

    bundle = export(card, "fp32", folder)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--work", folder, "--turn", bundle, way]
            done = subprocess.run(
                [str(part) for part in command], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{card}, {way}: {done.stderr}")
            found[way].append(json.loads(done.stdout))
    return [
        {"card": card, "way": way, "rounds": rounds}
        | {name: spread([each[name] for each in turns]) for name in ("seconds", "share")}
        for way, turns in found.items()
    ]


def table(result: dict[str, Any]) -> str:
    """Medians, quartiles in brackets."""
    lines = [
        f"{result['machine']}, ONNX Runtime {result['onnxruntime']}; {CALLS} calls a turn, median [quartiles] of turns"
        "\n",
        f"| encoder | threads | a call, back to back | processor at {RATE:g} Hz | turns |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, middle, high = (1e3 * value for value in row["seconds"])
        less, share, more = (100 * value for value in row["share"])
        lines.append(
            f"| {row['card']} | {row['way']} | {middle:.2f} ms [{low:.2f}, {high:.2f}] | "
            f"{share:.0f} % [{less:.0f}, {more:.0f}] | {row['rounds']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for bases and bundles")
    parser.add_argument("--cards", nargs="+", default=list(CARDS))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each way")
    parser.add_argument("--quick", action="store_true", help="one round, the small card; write nothing")
    parser.add_argument("--turn", nargs=2, metavar=("BUNDLE", "WAY"), help=argparse.SUPPRESS)
    common.add_tables_only(parser)
    options = parser.parse_args()
    if options.turn:
        work(*options.turn)
        return
    if not options.tables_only:
        import onnxruntime
        from adaptation import machine

        cards, rounds = (CARDS[:1], 1) if options.quick else (options.cards, options.rounds)
        rows = [row for card in cards for row in measure(card, rounds, options.work / "idle")]
        place = f"{machine().split(',')[0]}, {os.cpu_count()} cores"
        result = {"machine": place, "onnxruntime": onnxruntime.__version__, "rows": rows}
        print(table(result))
        if options.quick:
            return
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    write_between(README, "idle", table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
