"""Export parity of every card in every precision: torch against the graphs of a bundle.

    python benchmarks/export_cards.py --data DATA --work WORK [--cards point-tiny,uni3d-ti]

Every encoder that this package can build, in full size, with random weights and random class vectors, exported with
`crossmost export` and verified on clouds of as many points as it takes, sampled from DATA's meshes: whether each graph
computes what its module does is asked here, and what a precision costs a trained network in export_parity.py. What is
in results/export_cards/ already is not made again; a bundle is gone once it has been read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation import machine
from export_parity import PRECISIONS, cell, ended
from tables import write_between

from crossmost.checkpoints.base import Architecture, save_base
from crossmost.models.point_cards import PointCard, list_point_cards, load_point_card
from crossmost.models.student import DualEncoder
from crossmost.runtime.vocabulary import Vocabulary
from crossmost.zoo import list_models

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "export_cards"
WAYS = {**PRECISIONS, "int8": ["--int8"]}
CLASSES = 40
CLOUDS, BATCHES = 4, "1:2:4"
DIM, TAG = 512, "random"
"""Of the cards that no public model has."""
PEAK, PEAK_INT8 = 5, 10
"""An export's memory as a multiple of the encoder's float32 weights, a little more than uni3d-l took."""
REFUSED = "error: verification failed, no bundle was written: "
EMULATED = "every operation rounded"


def random_base(card: PointCard, dim: int, tag: str, folder: Path) -> tuple[Path, Path]:
    """A base with random weights, and random class vectors of its text model's width."""
    torch.manual_seed(0)
    base, words = folder / "base.safetensors", folder / "classes.npz"
    save_base(base, DualEncoder(card, None, dim), Architecture(card, None, dim, tag), {})
    rows = np.random.default_rng(0).standard_normal((CLASSES, dim))
    names = [f"class {index}" for index in range(CLASSES)]
    Vocabulary.create(names, rows, logit_scale=100.0, tag=tag).save(words)
    return base, words


def joint_space(card: str) -> tuple[int, str]:
    """The width of the embeddings and the text model that a card's public encoder is aligned with."""
    for model in list_models():
        if model.name == card:
            return model.dim, model.text
    return DIM, TAG


def fits(card: str, precision: str = "fp32") -> bool:
    """Whether this machine has the memory to export a card's encoder; says so where it has not."""
    size = 4 * next((model.parameters for model in list_models() if model.name == card), 0)
    needed = size * (PEAK_INT8 if precision == "int8" else PEAK)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        left_out = f"{card} in {precision}: left out"
        print(f"{left_out}, {needed / 2**30:.0f} of {there / 2**30:.0f} GiB are needed", file=sys.stderr)
    return needed <= there


def measure(card: str, precisions: list[str], meshes: Path, work: Path) -> None:
    """Export one card in the precisions that are missing."""
    missing = [each for each in precisions if not (RESULTS / f"{card}_{each}.json").is_file()]
    missing = [each for each in missing if fits(card, each)]
    if not missing:
        return
    with tempfile.TemporaryDirectory(dir=work, prefix=f"{card}-") as name:
        folder = Path(name)
        base, words = random_base(load_point_card(card), *joint_space(card), folder)
        for precision in missing:
            bundle = folder / "exported.bundle"
            command = [
                sys.executable, "-m", "crossmost", "export", base, "--vocabulary", words, "--out", bundle,
                "--verify", meshes, "--verify-clouds", CLOUDS, "--batch", BATCHES,
                *WAYS[precision],
            ]  # fmt: skip
            row = {"card": card, "precision": precision, "machine": machine()}
            row |= export([str(part) for part in command], bundle, folder / "stderr.txt")
            RESULTS.mkdir(parents=True, exist_ok=True)
            (RESULTS / f"{card}_{precision}.json").write_text(json.dumps(row, indent=1) + "\n")
            print(f"{card} {precision}: done", file=sys.stderr)


def export(command: list[str], bundle: Path, said: Path) -> dict[str, Any]:
    """What the manifest says of an export, or why it was refused; and its peak memory.

    Raises:
        SystemExit: it failed for another reason than its gates.
    """
    with said.open("w") as stderr:
        status, memory = ended(subprocess.Popen(command, stderr=stderr))
    if status:
        last = (said.read_text().splitlines() or [""])[-1]
        if not last.startswith(REFUSED):
            raise SystemExit(f"{' '.join(command)} failed: {last}")
        return {"refused": last.removeprefix(REFUSED), "peak_bytes": memory}
    manifest = json.loads((bundle / "manifest.json").read_text())
    shutil.rmtree(bundle)
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    return {"parity": manifest["parity"], "bytes": total, "peak_bytes": memory}


def table() -> str:
    """The rows of all results."""
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    rows.sort(key=lambda row: (list_point_cards().index(row["card"]), list(WAYS).index(row["precision"])))
    head = (
        f"{rows[0]['machine'] if rows else ''}\n\n"
        "| card | precision | clouds | points | ONNX Runtime: max diff | cosine min | all rounded in torch: cosine min "
        "| same FPS | same top-1 | gates passed | peak memory |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *(line(row) for row in rows)])


def line(row: dict[str, Any]) -> str:
    """The worst of one export, over its graphs and batches."""
    if "refused" in row:
        return f"| {row['card']} | {row['precision']} | refused: {row['refused']} {'|' * 9}"
    checks = row["parity"]["checks"]

    def values(metric: str, emulated: bool = False) -> list[float]:
        return [c["value"] for c in checks if c["metric"] == metric and (EMULATED in c["name"]) == emulated]

    cells = [
        row["card"], row["precision"], str(max(check["clouds"] for check in checks)),
        str(row["parity"]["clouds"]["points"][1]),
        cell(values("max_abs_difference"), max, "{:.1e}"), cell(values("cosine_min"), min, "{:.7f}"),
        cell(values("cosine_min", emulated=True), min, "{:.7f}"), cell(values("fps_identical"), min, "{:.0%}"),
        cell(values("top1_agreement"), min, "{:.0%}"),
        f"{sum(check['passed'] for check in checks)} of {len(checks)}", f"{row['peak_bytes'] / 2**30:.1f} GiB",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = common.parser(__doc__, work="bases and bundles")
    parser.add_argument("--cards", help="only these, such as point-tiny,uni3d-ti; default: all")
    parser.add_argument("--precisions", nargs="+", choices=WAYS, default=list(WAYS))
    common.add_tables_only(parser)
    options = parser.parse_args()
    if not options.tables_only:
        options.work.mkdir(parents=True, exist_ok=True)
        for card in options.cards.split(",") if options.cards else list_point_cards():
            measure(card, options.precisions, options.data / "raw", options.work)
    write_between(HERE / "README.md", "export-cards", table())


if __name__ == "__main__":
    main()
