"""What a center costs or brings where a target holds few of the classes that the vocabulary names.

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
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation import QUICK_PAIR, QUICK_WORK, base_of, machine, make_base
from baseline_features import BRANCHES, Frozen, frozen_features
from pairs import PAIRS, prepare
from summaries import table as markdown
from tables import write_between

from crossmost.adaptation.centering import Seen, Way, place_centers

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "few_classes"
DRAWS = 10
WAYS: tuple[Way | Literal["target"], ...] = ("none", "mean", "balanced", "target")
"""No center, which is zero-shot, the two there are, and the one of them that the branches speak for."""
TITLES = {"none": "zero-shot", "mean": "mean", "balanced": "balanced", "target": "chosen"}
MEASURES = {"point": "points", "image": "images"}


def numbers_of_classes(classes: int) -> list[int]:
    """How many of C classes are there: all, half, two, one."""
    return sorted({classes, max(2, classes // 2), 2, 1}, reverse=True)


def measure(frozen: Frozen, seed: int, draws: int) -> dict[str, Any]:
    """What the base says of the target's own clouds about each center, by the number of classes there.

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


def look(frozen: Frozen, index: NDArray[np.int64], way: Way | Literal["target"]) -> dict[str, Any]:
    """The way that was taken, and the share of clouds that each branch names rightly."""
    theta = torch.from_numpy(frozen.vocabulary.embeddings).double().T
    labels = torch.from_numpy(frozen.train.labels[index])
    seen = {}
    for branch in BRANCHES:
        rows = torch.from_numpy(frozen.train.unit(branch)[index])
        seen[branch] = Seen(rows, rows.double() @ theta, frozen.vocabulary.logit_scale)
    taken, centers = place_centers(seen, theta, way)
    found: dict[str, Any] = {"way": taken}
    for branch, of in seen.items():
        rows = of.rows - centers[branch].place if branch in centers else of.rows
        found[branch] = float(((rows.double() @ theta).argmax(dim=1) == labels).float().mean())
    return found


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
    """A line for each pair and number of classes, means over seeds and draws; then the draws, centered or not."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    if not found:
        return ""
    head = ["pair", "classes there"]
    head += [f"{title}: {TITLES[way]}" for title in MEASURES.values() for way in WAYS]
    head += ["chosen: none, mean, balanced", "seeds"]
    rows = []
    for pair in PAIRS:
        of_pair = [each for each in found if each["pair"] == pair]
        for count in of_pair[0]["present"] if of_pair else ():
            looks = {way: [one for each in of_pair for one in each["present"][count][way]] for way in WAYS}
            row = [pair, f"{count} of {of_pair[0]['classes']}"]
            row += [
                f"{100 * statistics.mean(one[measure] for one in looks[way]):.1f}"
                for measure in MEASURES
                for way in WAYS
            ]
            taken = [one["way"] for one in looks["target"]]
            row += [
                ", ".join(str(taken.count(way)) for way in ("none", "mean", "balanced")),
                str(len(of_pair)),
            ]
            rows.append(row)
    source = f"Training split of the target; {found[0]['machine']}"
    return "\n".join([source, "", *markdown(head, rows), "", *markdown(*changes(found))])


def changes(found: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """What each center does to the accuracy of zero-shot, mean of the branches, over all pairs, seeds and draws."""
    head = ["classes there", "center", "mean change", "worst draw", "draws that lose", "draws"]
    rows = []
    for share in ("all", "some", "one"):
        for way in WAYS[1:]:
            gained = np.array(
                [
                    100 * sum(one[measure] - zero[measure] for measure in MEASURES) / len(MEASURES)
                    for each in found
                    for count, looks in each["present"].items()
                    if share
                    == ("all" if int(count) == each["classes"] else "one" if count == "1" else "some")
                    for zero, one in zip(looks["none"], looks[way], strict=True)
                ]
            )
            lost = f"{np.mean(gained < 0):.0%}"
            rows.append(
                [share, TITLES[way], f"{gained.mean():+.1f}", f"{gained.min():+.1f}", lost, str(len(gained))]
            )
    return head, rows


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
