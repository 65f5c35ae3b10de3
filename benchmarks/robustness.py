"""Zero-shot beside adapted on clouds with something wrong: corrupted, scanned, turned, or of other sizes.

    python benchmarks/robustness.py --data DATA --work WORK                   # everything that is still missing
    python benchmarks/robustness.py --data DATA --work WORK --changes jitter scan
    python benchmarks/robustness.py --data DATA --work WORK --quick           # 101 clouds, seed 0, README untouched

The networks are those of `adaptation.py` in WORK: a base a seed, and what it became on simulated scans. Results are
kept in results/robustness/, one file a change and seed that grows level by level; tables and figures are made from
them alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation import QUICK_WORK, machine
from changes import CHANGE_SEED, CHANGES, Change, Scene
from networks import ADAPTED, ZERO_SHOT, Network, embed, load_networks

from crossmost.checkpoints.atomic import write_text_atomic
from crossmost.evaluation.metrics import branch_metrics, compare

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "robustness"
PAIR = "p1-moderate"
QUICK_STRIDE = 9
Posteriors = NDArray[np.float64]  # (n, C)


def scores_of(networks: Sequence[Network], scene: Scene) -> list[Posteriors]:
    """Calibrated posteriors of every network on the clouds of a scene."""
    embedded = embed(networks, scene.clouds)
    return [network.bank.scores(embedding) for network, embedding in zip(networks, embedded, strict=True)]


def describe(
    posteriors: Posteriors, labels: NDArray[np.int64], before: Posteriors, reference: Posteriors | None
) -> dict[str, Any]:
    """What one network says about the clouds of one level.

    Args:
        posteriors: (n, C).
        labels: (n,), -1 where a cloud is of none of the classes.
        before: of the zero-shot network on the same clouds.
        reference: of the same network on the same objects at the change's reference level.

    Returns:
        top1, ece and mean confidence over the labelled clouds, won and lost against zero-shot; and, where there is a
        reference, the share of all clouds that get the same class as there.
    """
    known = labels >= 0
    names = [str(column) for column in range(posteriors.shape[1])]
    measured = branch_metrics(posteriors[known], labels[known], names)
    moved = compare(before[known], posteriors[known], labels[known])
    found = {
        "top1": measured.top1, "ece": measured.ece, "confidence": moved.confidence_after,
        "won": moved.won, "lost": moved.lost,
    }  # fmt: skip
    if reference is not None:
        found["same"] = float((posteriors.argmax(axis=1) == reference.argmax(axis=1)).mean())
    return found


def measure_level(
    scene: Scene, networks: Sequence[Network], references: dict[Network, Posteriors]
) -> dict[int, dict[str, Any]]:
    """What every network says about the clouds of one level, by seed and name."""
    posteriors = dict(zip(networks, scores_of(networks, scene), strict=True))
    before = {network.seed: posteriors[network] for network in networks if network.name == ZERO_SHOT}
    found: dict[int, dict[str, Any]] = {}
    for network, said in posteriors.items():
        of_seed = found.setdefault(network.seed, {})
        reference = references.get(network)
        of_seed[network.name] = describe(said, scene.labels, before[network.seed], reference)
    return found


def started(change: Change, seed: int, stride: int) -> dict[str, Any]:
    """The result of a change and seed before any level is measured."""
    return {
        "change": change.name, "data": change.data, "pair": PAIR, "split": change.split, "seed": seed,
        "options": {"change_seed": CHANGE_SEED, "stride": stride, "reference": change.reference},
        "networks": [ZERO_SHOT, *ADAPTED], "machine": machine(), "levels": [],
    }  # fmt: skip


def measure(change: Change, networks: Sequence[Network], data: Path, out: Path, stride: int) -> None:
    """Measure the levels of a change that a seed's result lacks, and write it after each."""
    classes = networks[0].bank.vocabulary.names
    path = {network.seed: out / f"{change.name}_{network.seed}.json" for network in networks}
    rows = {
        seed: json.loads(file.read_text()) if file.is_file() else started(change, seed, stride)
        for seed, file in path.items()
    }
    references: dict[Network, Posteriors] = {}
    for level in change.levels:
        seeds = [seed for seed, row in rows.items() if level not in [one["level"] for one in row["levels"]]]
        missing = [network for network in networks if network.seed in seeds]
        if not missing:
            continue
        if change.reference is not None and not references:
            first = scores_of(networks, change.make(data, change.reference, classes, stride))
            references = dict(zip(networks, first, strict=True))
        scene = change.make(data, level, classes, stride)
        sizes = [int(np.isfinite(cloud).all(axis=1).sum()) for cloud in scene.clouds]
        facts = {
            "level": level, "n": len(scene.clouds), "labelled": int((scene.labels >= 0).sum()),
            "median_points": float(np.median(sizes)),
        }  # fmt: skip
        for seed, found in measure_level(scene, missing, references).items():
            rows[seed]["levels"].append({**facts, "networks": found})
            write_text_atomic(path[seed], json.dumps(rows[seed], indent=1) + "\n")
        print(f"{change.name} {level}: {len(scene.clouds)} clouds", flush=True)


def main() -> None:
    quick = "a ninth of the clouds, one seed, in WORK only"
    parser = common.parser(__doc__, work="the runs of adaptation.py", seeds=True, quick=quick)
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES))
    common.add_tables_only(parser)
    options = parser.parse_args()
    import robustness_table

    if options.tables_only:
        robustness_table.write(RESULTS)
        return
    out, stride, seeds = RESULTS, 1, options.seeds
    if options.quick:
        out, stride, seeds = options.work / "robustness-quick", QUICK_STRIDE, options.seeds[:1]
    work = options.work / QUICK_WORK if options.quick else options.work
    networks = load_networks(work / PAIR, seeds)
    out.mkdir(parents=True, exist_ok=True)
    for name in options.changes:
        measure(CHANGES[name], networks, options.data, out, stride)
    if options.quick:
        print(robustness_table.tables(robustness_table.read(out)))
    else:
        robustness_table.write(RESULTS)


if __name__ == "__main__":
    main()
