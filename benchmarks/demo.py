"""The demo with three seeds: what adaptation gains on held-out simulated scans, and how long it takes.

python benchmarks/demo.py --work WORK
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from adaptation import machine
from tables import write_between

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "demo.json"
FIGURE = HERE / "figures" / "demo_scans.png"
BRANCHES = ("point", "image", "both")


def table(rows: list[dict]) -> str:
    """One line a seed and their mean."""
    lines = [
        f"{rows[0]['n_test']} held-out scans a seed; {rows[0]['machine']}\n",
        "| seed | points | images | both | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{100 * row['zero_shot'][b]:.1f} → {100 * row['adapted'][b]:.1f}" for b in BRANCHES]
        lines.append(f"| {row['seed']} | {' | '.join(cells)} | {row['seconds']:.0f} |")
    gains = [
        statistics.mean(100 * (row["adapted"][b] - row["zero_shot"][b]) for row in rows) for b in BRANCHES
    ]
    lines.append(f"| mean gain | {' | '.join(f'{gain:+.1f}' for gain in gains)} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the demos")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        out = options.work.resolve() / f"demo-{seed}"
        if not (out / "summary.json").is_file():
            shutil.rmtree(out, ignore_errors=True)
            command = [sys.executable, "-m", "crossmost", "demo", "--out", out, "--seed", seed]
            subprocess.run([str(part) for part in command], check=True)
        summary = json.loads((out / "summary.json").read_text())
        rows.append({**{name: summary[name] for name in summary if name != "run"}, "machine": machine()})
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.work / f"demo-{options.seeds[0]}" / "scans.png", FIGURE)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=1) + "\n")
    write_between(HERE / "README.md", "demo", table(rows))
    write_between(HERE.parent / "README.md", "demo", table(rows))


if __name__ == "__main__":
    main()
