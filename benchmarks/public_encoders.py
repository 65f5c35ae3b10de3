"""The public encoders through the runtime on a CPU: latency of a cloud, and the size of their bundles.

    python benchmarks/public_encoders.py --data DATA --work WORK [--cards uni3d-b,ulip2-pointbert] [--quick]

What is measured does not depend on the values of the weights, so each encoder is built in full size with random ones
and random class vectors, exported with `crossmost export` in float32 and in float16, and the float32 bundle classifies
clouds sampled from DATA's meshes in a process of its own. An encoder that is in results/public/ already is not
measured again. `--quick` measures less and writes neither results nor a README.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation import machine
from export_cards import fits, random_base
from export_parity import run_measured
from tables import write_between

from crossmost.data.meshes import read_mesh
from crossmost.zoo import Model, find, list_models
from crossmost.zoo_text import parameters, patches

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "public"
WORKER = HERE / "public_encoders_worker.py"
PRECISIONS = {"fp32": [], "fp16": ["--fp16"]}
THREADS = 2
MESHES = 8
RUNS, LEAST, SECONDS = 31, 7, 120.0
"""Clouds classified; fewer where they take longer than so many seconds, but no fewer than the least."""


def export(base: Path, words: Path, precision: str, folder: Path) -> dict[str, Any]:
    """Export once, verified on a few simulated clouds; the bundle's bytes and the export's peak memory."""
    bundle = folder / f"{precision}.bundle"
    few = ["--verify-clouds", "2", "--batch", "1:1:2"]
    command = [
        "export",
        str(base),
        "--vocabulary",
        str(words),
        "--out",
        str(bundle),
        *few,
        *PRECISIONS[precision],
    ]
    memory = run_measured([sys.executable, "-m", "crossmost", *command])
    manifest = json.loads((bundle / "manifest.json").read_text())
    return {"bytes": sum(file["bytes"] for file in manifest["files"].values()), "export_peak_bytes": memory}


def make_clouds(data: Path, points: int, folder: Path) -> Path:
    """Some of the meshes as clouds (MESHES, points, 3) float32."""
    path = folder / "clouds.npy"
    meshes = sorted((data / "raw").iterdir())[:MESHES]
    np.save(path, np.stack([read_mesh(mesh, points).xyz.astype(np.float32) for mesh in meshes]))
    return path


def classify(bundle: Path, clouds: Path, runs: int, least: int, seconds: float) -> dict[str, Any]:
    """What a process that classifies says: seconds of each cloud by stage."""
    command = [sys.executable, WORKER, bundle, clouds, THREADS, runs, least, seconds]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(
        list(map(str, command)), env=environment, check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(model: Model, data: Path, work: Path, results: Path, quick: bool) -> None:
    """One encoder; what it needs on the disk is gone afterwards."""
    result = results / f"{model.name}.json"
    if result.is_file():
        return
    with tempfile.TemporaryDirectory(dir=work, prefix=f"{model.name}-") as name:
        folder = Path(name)
        base, words = random_base(model.card, model.dim, model.text, folder)
        exports = {precision: export(base, words, precision, folder) for precision in PRECISIONS}
        clouds = make_clouds(data, model.card.points, folder)
        found = classify(folder / "fp32.bundle", clouds, *((3, 3, 0.0) if quick else (RUNS, LEAST, SECONDS)))
    stages = {stage: spread([run[stage] for run in found["seconds"]]) for stage in found["seconds"][0]}
    row = {
        "name": model.name, "parameters": model.parameters, "points": model.card.points, "threads": THREADS,
        "runs": len(found["seconds"]), "seconds": stages, "exports": exports,
        "machine": machine(),
    }  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(row, indent=1) + "\n")


def spread(values: list[float]) -> list[float]:
    """First quartile, median and third quartile."""
    return [float(value) for value in np.percentile(values, [25, 50, 75])]


def table(results: Path) -> str:
    """The rows of all results, in the order of `crossmost zoo`."""
    rows = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    lines = [line(model, rows[model.name]) for model in list_models() if model.name in rows]
    if not lines:
        return ""
    first = next(iter(rows.values()))
    head = (
        f"{first['machine']}; {first['threads']} threads in the runtime; one cloud in float32, median [quartiles]\n\n"
        "| encoder | parameters | points | patches | latency | of it sampling | fp32 bundle | fp16 bundle |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *lines])


def line(model: Model, row: dict[str, Any]) -> str:
    """One encoder."""
    low, middle, high = (1e3 * value for value in row["seconds"]["total"])
    sampling = 1e3 * (row["seconds"]["total"][1] - row["seconds"]["encode"][1])
    sizes = [f"{row['exports'][precision]['bytes'] / 1e6:.0f} MB" for precision in PRECISIONS]
    cells = [
        model.name, parameters(model), str(row["points"]), patches(model.card),
        f"{middle:.0f} ms [{low:.0f}, {high:.0f}]", f"{sampling:.0f} ms", *sizes,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = common.parser(__doc__, work="bases and bundles", quick="three clouds each; print the table only")
    parser.add_argument(
        "--cards", help="only these, such as uni3d-ti,ulip-pointbert; default: all, the smallest first"
    )
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = arguments.work / "public-quick" if arguments.quick else RESULTS
    models = [find(name) for name in arguments.cards.split(",")] if arguments.cards else list_models()
    for model in sorted(models, key=lambda model: model.parameters):
        if fits(model.name):
            measure(model, arguments.data, arguments.work, results, arguments.quick)
            print(f"{model.name}: done", file=sys.stderr)
    if arguments.quick:
        print(table(results))
    else:
        for path in (HERE / "README.md", HERE.parent / "README.md"):
            write_between(path, "public", table(results))


if __name__ == "__main__":
    main()
