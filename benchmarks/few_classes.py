"""What subtracting the mean costs where a target holds few of the classes that the vocabulary names, and what tells.

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
from adaptation import QUICK_PAIR, QUICK_WORK, base_of, machine, make_base
from baseline_features import BRANCHES, Frozen, frozen_features
from pairs import PAIRS, prepare
from tables import write_between

from crossmost.adaptation.centering import center_of
from crossmost.models.student import unit

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "few_classes"
DRAWS = 10
WAYS = ("zero-shot", "centered")
TITLES = {"point": "points", "image": "images", "agree": "branches agree"}
AGREEMENT = (
    ("less often, or as often", -1.0, 0.0),
    ("up to 5 points more often", 0.0, 0.05),
    ("more than that", 0.05, 1.0),
)
"""Ranges of the change of agreement: above the first bound, up to the second."""


def numbers_of_classes(classes: int) -> list[int]:
    """How many of C classes are there: all, half, two, one."""
    return sorted({classes, max(2, classes // 2), 2, 1}, reverse=True)


def measure(frozen: Frozen, seed: int, draws: int) -> dict[str, Any]:
    """What the base and the base about the center say of the target's own clouds, by the number of classes there.

    The classes that are there are drawn; the vocabulary keeps all names, and the clouds are the training split's.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for count in numbers_of_classes(frozen.classes):
        drawn = [
            rng.permutation(frozen.classes)[:count] for _ in range(1 if count == frozen.classes else draws)
        ]
        chosen = [np.flatnonzero(np.isin(frozen.train.labels, classes)) for classes in drawn]
        found[str(count)] = {way: [look(frozen, index, way) for index in chosen] for way in WAYS}
    return found


def look(frozen: Frozen, index: NDArray[np.int64], way: str) -> dict[str, float]:
    """The share of clouds that each branch names rightly, and on which both name the same class."""
    theta = torch.from_numpy(frozen.vocabulary.embeddings)
    labels = torch.from_numpy(frozen.train.labels[index])
    said = {}
    for branch in BRANCHES:
        rows = torch.from_numpy(frozen.train.unit(branch)[index])
        said[branch] = ((unit(rows - center_of(rows).mean) if way == "centered" else rows) @ theta.T).argmax(
            dim=1
        )
    shares = {branch: float((answer == labels).float().mean()) for branch, answer in said.items()}
    return {**shares, "agree": float((said["point"] == said["image"]).float().mean())}


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
    """A line for each pair and number of classes, means over seeds and draws; then what the agreement told."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    if not found:
        return ""
    head = [
        "pair",
        "classes there",
        *(f"{TITLES[figure]}: zero-shot | centered" for figure in TITLES),
        "seeds",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * (len(head) + len(TITLES)) + "|"]
    for pair in PAIRS:
        of_pair = [each for each in found if each["pair"] == pair]
        for count in of_pair[0]["present"] if of_pair else ():
            looks = {way: [one for each in of_pair for one in each["present"][count][way]] for way in WAYS}
            cells = [
                f"{100 * statistics.mean(one[figure] for one in looks[way]):.1f}"
                for figure in TITLES
                for way in WAYS
            ]
            lines.append(
                f"| {pair} | {count} of {of_pair[0]['classes']} | {' | '.join(cells)} | {len(of_pair)} |"
            )
    return "\n".join(
        [f"Training split of the target; {found[0]['machine']}", "", *lines, "", *agreement_lines(found)]
    )


def agreement_lines(found: list[dict[str, Any]]) -> list[str]:
    """What the center did to accuracy, by what it did to the agreement of the branches: a line for each range."""
    changes = np.array(
        [
            (one["agree"] - zero["agree"], (one["point"] + one["image"] - zero["point"] - zero["image"]) / 2)
            for each in found
            for looks in each["present"].values()
            for zero, one in zip(*(looks[way] for way in WAYS), strict=True)
        ]
    )
    lines = [
        "| the branches agree, centered | accuracy, mean of the branches | worst draw | draws that gain | draws |",
        "|---|---|---|---|---|",
    ]
    for title, low, high in AGREEMENT:
        gained = 100 * changes[(changes[:, 0] > low) & (changes[:, 0] <= high), 1]
        if len(gained):
            lines.append(
                f"| {title} | {gained.mean():+.1f} | {gained.min():+.1f} | {np.mean(gained > 0):.0%} | {len(gained)} |"
            )
    return lines


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
        measure_missing(data, work / QUICK_WORK, [QUICK_PAIR], [0], results, draws=2)
        print(table(results))
        return
    if not options.tables_only:
        measure_missing(data, work, options.pairs, options.seeds, RESULTS, DRAWS)
    write_between(HERE / "README.md", "few-classes", table(RESULTS))


if __name__ == "__main__":
    main()
