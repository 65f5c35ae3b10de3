"""What can be known of a base on a target before and after training, and what labels say of it afterwards.

    python benchmarks/diagnosis.py --data DATA --work WORK [--quick] [--tables-only]

Bases and joint runs are those of adaptation.py. Clouds are the target's training split, which a run sees without its
labels; labels come in afterwards, to say how right the pseudo-labels are. A result file a pair and seed stays in
results/diagnosis/ and is not measured again. `--quick` looks at the quick run of adaptation.py and writes into WORK.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation import QUICK_PAIR, QUICK_WORK, machine
from diagnosis_table import table
from pairs import PAIRS
from tables import write_between

from crossmost.adaptation.centering import find_centers
from crossmost.adaptation.diagnosis import Diagnosis, agreement, calibrate, classified, diagnose, project
from crossmost.adaptation.pseudo_labels import SUREST, class_thresholds, most_likely
from crossmost.adaptation.up_axis import scores_by_up_axis
from crossmost.checkpoints.run import load_run
from crossmost.data.dataset import CloudDataset
from crossmost.data.reading import Reading
from crossmost.data.samples import PlainSamples, plain_batches
from crossmost.evaluation.metrics import reliability
from crossmost.models.student import Student

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "diagnosis"
CPU = torch.device("cpu")
SOME = 256
"""Clouds whose shape is measured."""
NEIGHBORS = 16
CONFUSIONS = 3
MODES = ("joint", "point-only")
"""Runs that look at both branches, and at one."""


def looks(network: Student, clouds: CloudDataset, views: int) -> Any:
    """Batches of clouds and views as they are."""
    return plain_batches(PlainSamples(clouds, image_size=network.image_size, views=views), 64, 0)


def moments(base: Student, adapted: Student, clouds: CloudDataset, views: int) -> dict[str, Diagnosis]:
    """Logits of the base, of the base about its center, and of what training made of it."""
    projected = list(project(base, looks(base, clouds, views), CPU))
    found = {"zero-shot": classified(base, projected)}
    _, centers = find_centers(base, projected, ("point", "image"), "mean")
    for branch, center in centers.items():
        getattr(base, f"{branch}_center").copy_(center.place)
    found["centered"] = classified(base, projected)
    found["joint"] = diagnose(adapted, looks(adapted, clouds, views), CPU)
    return found


def posteriors(found: Diagnosis) -> dict[str, Tensor]:
    """Of each branch and of both, at the temperatures that are found without labels."""
    assert found.image is not None
    of_point, of_image = calibrate(found)
    point, image = (found.point / of_point).softmax(dim=1), (found.image / of_image).softmax(dim=1)
    return {"point": point, "image": image, "both": (point + image) / 2}


def pseudo_labels(found: Diagnosis, labels: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Each branch's answers: how many are right, of all and of those a run would keep, and how sure it is of them."""
    result = {}
    for branch, each in posteriors(found).items():
        said = most_likely(each)
        right = said.label.numpy() == labels
        kept = (said.confidence > class_thresholds(said, each.shape[1], SUREST)[said.label]).numpy()
        result[branch] = {
            "right": float(right.mean()),
            "kept_right": float(right[kept].mean()),
            "confidence": float(said.confidence.mean()),
            "ece": reliability(each.numpy(), labels).ece,
        }
    return result


def confusions(found: Diagnosis, labels: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs of classes that most clouds are lost in, by both branches."""
    said = posteriors(found)["both"].argmax(dim=1).numpy()
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (labels, said), 1)
    sizes = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    worst = np.argsort(-counts, axis=None, kind="stable")[:CONFUSIONS]
    return [
        {"is": names[truth], "said": names[taken], "share": float(counts[truth, taken] / sizes[truth])}
        for truth, taken in (divmod(int(flat), len(names)) for flat in worst)
    ]


def shape_of(clouds: CloudDataset) -> dict[str, float]:
    """Medians over clouds, as the encoder gets them: in the unit sphere, thinned to its N.

    `spacing` is the distance to the nearest other place that is taken; `roughness` how far the points of a small
    neighbourhood lie from its plane (root mean square, as a share of its radius); `height` that of the box by its
    longer horizontal side.
    """
    measured = []
    for index in range(len(clouds)):
        cloud = np.unique(np.asarray(clouds.load(index), np.float64)[:, :3], axis=0)
        if len(cloud) <= NEIGHBORS:
            continue
        distances, near = cKDTree(cloud).query(cloud, k=NEIGHBORS + 1)
        patches = cloud[near] - cloud[near].mean(axis=1, keepdims=True)
        off_plane = np.linalg.eigvalsh(np.einsum("nki,nkj->nij", patches, patches) / patches.shape[1])[:, 0]
        extent = np.ptp(cloud, axis=0)
        measured.append(
            (
                len(cloud),
                np.median(distances[:, 1]),
                np.median(np.sqrt(np.maximum(off_plane, 0)) / distances[:, -1]),
                extent[2] / max(extent[0], extent[1], 1e-9),
            )
        )
    medians = np.median(np.array(measured), axis=0)
    return dict(zip(("points", "spacing", "roughness", "height"), map(float, medians), strict=True))


def measure(run: Path, pair: Path) -> dict[str, Any]:
    """Everything of one pair and seed."""
    loaded = load_run(run)
    base, adapted, names, views = (
        loaded.zero_shot,
        loaded.adapted,
        loaded.vocabulary.names,
        loaded.config.views,
    )
    card, target, source = base.point_encoder.card, pair / "target.npz", pair / "source.npz"
    clouds = Reading().open(target, card, "train")
    labels = clouds.label_indices(names)
    axes = {
        mode: scores_by_up_axis(base, clouds, loaded.config.model_copy(update={"mode": mode}), CPU)
        for mode in MODES
    }
    sides = {"source": Reading().open(source, card, "train"), "target": clouds}
    found = moments(base, adapted, clouds, views)
    return {
        "classes": len(names), "clouds": len(clouds), "axes": axes,
        "shape": {side: shape_of(each.subset(each.spread(SOME))) for side, each in sides.items()},
        "moments": {
            name: {
                "labels": pseudo_labels(each, labels[each.indices.numpy()]),
                "agreement": agreement(each.point, each.image).share,
                "confused": confusions(each, labels[each.indices.numpy()], names),
            }
            for name, each in found.items()
        },
        "machine": machine(),
    }  # fmt: skip


def measure_missing(work: Path, pairs: Sequence[str], seeds: Sequence[int], results: Path) -> None:
    """Measure what has no result yet."""
    results.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        for seed in seeds:
            path, run = results / f"{pair}_{seed}.json", work / pair / f"joint-{seed}"
            if path.is_file():
                continue
            if not run.is_dir():
                raise SystemExit(f"{run}: expected a finished run: run benchmarks/adaptation.py first")
            row = {"pair": pair, "seed": seed, **measure(run, work / pair)}
            path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
            print(path.stem, flush=True)


def main() -> None:
    quick = "the quick run of adaptation.py, into WORK"
    parser = common.parser(__doc__, work="the runs of adaptation.py", pairs=PAIRS, seeds=True, quick=quick)
    common.add_tables_only(parser)
    options = parser.parse_args()
    work = options.work.resolve()
    if options.quick:
        results = work / "diagnosis-quick"
        measure_missing(work / QUICK_WORK, [QUICK_PAIR], [0], results)
        print(table(results))
        return
    if not options.tables_only:
        measure_missing(work, options.pairs, options.seeds, RESULTS)
    write_between(HERE / "README.md", "diagnosis", table(RESULTS))


if __name__ == "__main__":
    main()
