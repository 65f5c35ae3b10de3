"""What subtracting the mean costs where a target holds few of the classes that the vocabulary names.

    python benchmarks/few_classes.py --data DATA --work WORK [--quick] [--tables-only]

Bases and embeddings are those of adaptation.py and baselines.py. A result file a pair and seed stays in
results/few_classes/ and is not measured again; the table is written from them. `--quick` measures one of them, the
quick base of adaptation.py, with few draws and writes into WORK.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation import base_of, machine, make_base
from baseline_features import BRANCHES, Frozen, frozen_features
from pairs import PAIRS, prepare
from tables import write_between

from crossmost.adaptation.centering import center_of
from crossmost.models.student import unit

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "few_classes"
DRAWS = 10


def numbers_of_classes(classes: int) -> list[int]:
    """How many of C classes are there: all, half, two, one."""
    return sorted({classes, max(2, classes // 2), 2, 1}, reverse=True)


def measure(frozen: Frozen, seed: int, draws: int) -> dict[str, Any]:
    """Share of the target's own clouds named rightly, without and about the center, by the number of classes there.

    The classes that are there are drawn; the vocabulary keeps all names, and the clouds are the training split's.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for count in numbers_of_classes(frozen.classes):
        drawn = [
            rng.permutation(frozen.classes)[:count] for _ in range(1 if count == frozen.classes else draws)
        ]
        chosen = [np.flatnonzero(np.isin(frozen.train.labels, classes)) for classes in drawn]
        found[str(count)] = {branch: accuracies(frozen, branch, chosen) for branch in BRANCHES}
    return found


def accuracies(frozen: Frozen, branch: str, chosen: list[NDArray[np.int64]]) -> dict[str, float]:
    """The mean over draws of clouds, as the base stands and about the mean of the clouds that were drawn."""
    rows = torch.from_numpy(frozen.train.unit(branch))
    theta = torch.from_numpy(frozen.vocabulary.embeddings)
    labels = torch.from_numpy(frozen.train.labels)
    right: dict[str, list[float]] = {"zero-shot": [], "centered": []}
    for index in chosen:
        seen, truth = rows[index], labels[index]
        for name, embedding in (("zero-shot", seen), ("centered", unit(seen - center_of(seen).mean))):
            right[name].append(float(((embedding @ theta.T).argmax(dim=1) == truth).float().mean()))
    return {name: statistics.mean(values) for name, values in right.items()}


def measure_missing(
    data: Path, work: Path, pairs: list[str], seeds: list[int], results: Path, draws: int
) -> None:
    """Measure what has no result yet."""
    results.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        for seed in seeds:
            path = results / f"{pair}_{seed}.json"
            if path.is_file():
                continue
            prepare(data, pair, work / pair)
            make_base(pair, seed, work)
            base = work / base_of(pair) / f"base-{seed}.safetensors"
            frozen = frozen_features(base, work / pair, work / "features" / f"{pair}-{seed}.npz")
            row = {"pair": pair, "seed": seed, "classes": frozen.classes, "draws": draws}
            row |= {"present": measure(frozen, seed, draws), "machine": machine()}
            path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
            print(path.stem, flush=True)


def table(results: Path) -> str:
    """A line for each pair and number of classes; means over seeds in percent."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    if not found:
        return ""
    head = [
        "pair",
        "classes there",
        "points: zero-shot",
        "centered",
        "images: zero-shot",
        "centered",
        "seeds",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for pair in PAIRS:
        of_pair = [each for each in found if each["pair"] == pair]
        for count in of_pair[0]["present"] if of_pair else ():
            cells = [
                f"{100 * statistics.mean(each['present'][count][branch][name] for each in of_pair):.1f}"
                for branch in BRANCHES
                for name in ("zero-shot", "centered")
            ]
            lines.append(
                f"| {pair} | {count} of {of_pair[0]['classes']} | {' | '.join(cells)} | {len(of_pair)} |"
            )
    return "\n".join([f"Training split of the target; {found[0]['machine']}", "", *lines])


def main() -> None:
    quick = "one pair and seed, two draws, into WORK"
    parser = common.parser(
        __doc__, work="archives, bases and embeddings", pairs=PAIRS, seeds=True, quick=quick
    )
    common.add_tables_only(parser)
    options = parser.parse_args()
    data, work = options.data.resolve(), options.work.resolve()
    if options.quick:
        results = work / "few-classes-quick"
        measure_missing(data, work / "adaptation-quick", ["p3"], [0], results, draws=2)
        print(table(results))
        return
    if not options.tables_only:
        measure_missing(data, work, options.pairs, options.seeds, RESULTS, DRAWS)
    write_between(HERE / "README.md", "few-classes", table(RESULTS))


if __name__ == "__main__":
    main()
