"""Export parity on trained encoders and real clouds: torch against the graphs of a bundle, with time, memory and size.

    python benchmarks/export_parity.py --data DATA --work WORK

Makes a base with the point-bert-64x32 card on the source of pair P1, adapts it to some of the pair's unlabelled scans,
once with 64 and once with 512 groups (the weights do not depend on their number), and exports both runs in each
precision, verified on clouds of the scanned test split. Training is short: parity is measured here, not accuracy.
What is already in WORK or in results/export/ is not made again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation import crossmost, machine
from pairs import prepare
from tables import write_between

from crossmost.checkpoints.base import load_base, save_base
from crossmost.models.point_cards import load_point_card

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "export"
PAIR = "p1-moderate"
SIZES = {"point-bert-64x32": (384, 300), "point-bert-512x32": (64, 64)}
"""Clouds adapted to, and test clouds verified."""
SLOW = {"bf16": 16}
"""The most test clouds where a CPU has to emulate the precision."""
PRECISIONS = {"fp32": [], "fp16": ["--fp16"], "bf16": ["--bf16"]}
METRICS = ("max_abs_difference", "cosine_min", "cosine_mean", "top1_agreement", "fps_identical")


def make_bases(work: Path) -> dict[str, Path]:
    """Pre-train once; the second card shares the weights."""
    bases = {card: work / f"base-{card}.safetensors" for card in SIZES}
    first, second = SIZES
    pair = work / PAIR
    if not bases[first].is_file():
        crossmost(
            "pretrain", pair / "source.npz", "--vocabulary", pair / "source-classes.npz", "--card", first,
            "--split", "all", "--epochs", 2, "--batch-size", 32, "--learning-rate", 5e-4, "--out", bases[first],
        )  # fmt: skip
    if not bases[second].is_file():
        model, architecture = load_base(bases[first])
        save_base(bases[second], model, architecture._replace(point=load_point_card(second)), {})
    return bases


def adapt(card: str, base: Path, work: Path) -> Path:
    """Adapt to a few of the target's training clouds, once."""
    run, pair = work / f"run-{card}", work / PAIR
    if (run / "report.html").is_file():
        return run
    few = work / f"few-{card}.npz"
    with np.load(pair / "target.npz") as target:
        # The archive is sorted by class; 32 test clouds are for the run's report alone.
        chosen = np.concatenate(
            [spread(target["split"] == "train", SIZES[card][0]), spread(target["split"] == "test", 32)]
        )
        rows = {name: target[name][chosen] for name in ("points", "labels", "split", "ids")}
        np.savez(few, class_names=target["class_names"], **rows)
    again = ["--resume"] if (run / "config.yaml").is_file() else ["--base", base]
    words = ["--vocabulary", pair / "target-classes.npz"] if again[0] == "--base" else []
    settings = ["--set=epochs=1", "--set=batch_size=16", "--set=views=1", "--set=watched=32"]
    crossmost("train", few, "--out", run, *again, *words, *settings)
    return run


def spread(mask: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    """`count` rows where the mask is true, evenly spaced."""
    rows = np.flatnonzero(mask)
    return rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def measure(card: str, precision: str, run: Path, work: Path) -> None:
    """Export once and keep what the manifest, the clock and the system say."""
    result = RESULTS / f"{card}_{precision}.json"
    if result.is_file():
        return
    bundle = work / f"{card}-{precision}.bundle"
    command = [
        sys.executable, "-m", "crossmost", "export", run, "--out", bundle, "--overwrite", *PRECISIONS[precision],
        "--verify", work / PAIR / "target.npz", "--split", "test",
        "--verify-clouds", min(SIZES[card][1], SLOW.get(precision, SIZES[card][1])),
    ]  # fmt: skip
    started = time.monotonic()
    verified = run_measured([str(part) for part in command])
    seconds = time.monotonic() - started
    default = [
        sys.executable, "-m", "crossmost", "export", run, "--out", bundle.with_suffix(".default"), "--overwrite",
        *PRECISIONS[precision],
    ]  # fmt: skip
    started = time.monotonic()
    memory = run_measured([str(part) for part in default])
    manifest = json.loads((bundle / "manifest.json").read_text())
    row = {
        "card": card, "precision": precision, "pair": PAIR, "split": "test", "parity": manifest["parity"],
        "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
        "seconds_all_clouds": round(seconds, 1), "peak_bytes_all_clouds": verified,
        "seconds_default": round(time.monotonic() - started, 1), "peak_bytes_default": memory,
        "machine": machine(),
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(row, indent=1) + "\n")


def run_measured(command: list[str]) -> int:
    """Run a command; its peak memory in bytes.

    Raises:
        SystemExit: it failed.
    """
    status, memory = ended(subprocess.Popen(command))
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return memory


def ended(child: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Wait for a process: its status, 0 if it succeeded, and its peak memory in bytes."""
    _, status, usage = os.wait4(child.pid, 0)
    return status, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table() -> str:
    """The rows of all results."""
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    lines = []
    for row in sorted(
        rows, key=lambda row: (list(SIZES).index(row["card"]), list(PRECISIONS).index(row["precision"]))
    ):
        lines += parity_lines(row)
    head = (
        f"{PAIR}, scanned test split, seed 0; {rows[0]['machine'] if rows else ''}\n\n"
        "| card | precision | computed by | clouds | max diff | cosine min | cosine mean | same FPS | same top-1 |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *lines, "", *cost_lines(rows)])


def parity_lines(row: dict[str, Any]) -> list[str]:
    """One line for each way a graph was computed, over all its batch sizes."""
    ways: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for check in row["parity"]["checks"]:
        ways.setdefault((check["graph"], check["name"]), []).append(check)
    lines = []
    for (graph, name), checks in ways.items():
        found = {metric: [c["value"] for c in checks if c["metric"] == metric] for metric in METRICS}
        worst = [
            cell(found["max_abs_difference"], max, "{:.1e}"), cell(found["cosine_min"], min, "{:.7f}"),
            cell(found["cosine_mean"], min, "{:.7f}"), cell(found["fps_identical"], min, "{:.1%}"),
            cell(found["top1_agreement"], min, "{:.2%}"),
        ]  # fmt: skip
        clouds = max(check["clouds"] for check in checks)
        lines.append(
            f"| {row['card']} | {row['precision']} | {graph}, {name} | {clouds} | {' | '.join(worst)} |"
        )
    return lines


def cell(values: list[float], worst: Callable[[list[float]], float], form: str) -> str:
    """The worst of the values, or nothing."""
    return form.format(worst(values)) if values else ""


def cost_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Size, time and memory of the exports."""
    by_card = {(row["card"], row["precision"]): row for row in rows}
    lines = [
        "| card | precision | bundle | share of fp32 | default export | its peak memory | verified on all clouds |",
        "|---|---|---|---|---|---|---|",
    ]
    for (card, precision), row in by_card.items():
        full = by_card.get((card, "fp32"), row)
        lines.append(
            f"| {card} | {precision} | {row['bytes'] / 1e6:.1f} MB | {row['bytes'] / full['bytes']:.1%} | "
            f"{row['seconds_default']:.0f} s | {row['peak_bytes_default'] / 2**30:.1f} GiB | "
            f"{row['seconds_all_clouds']:.0f} s |"
        )
    return lines


def main() -> None:
    parser = common.parser(__doc__, work="bases, runs and bundles")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    prepare(arguments.data, PAIR, work / PAIR)
    bases = make_bases(work)
    for card, base in bases.items():
        run = adapt(card, base, work)
        for precision in PRECISIONS:
            measure(card, precision, run, work)
    write_between(HERE / "README.md", "export", table())


if __name__ == "__main__":
    main()
