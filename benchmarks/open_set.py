"""Unknown classes and calibration: what the score of a classifier is worth, before and after adaptation.

    python benchmarks/open_set.py --data DATA --work WORK                     # everything that is still missing
    python benchmarks/open_set.py --data DATA --work WORK --strict OWN        # and runs that never saw those names
    python benchmarks/open_set.py --data DATA --work WORK --quick             # seed 0, fewer clouds, README untouched

The networks are those of `adaptation.py` in WORK. Classes of the target are taken out of the vocabulary, and their
test clouds are the unknown ones. Results are kept in results/open_set/, one file a pair and seed; tables and figures
are made from them alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation import QUICK_PAIR, QUICK_WORK, machine
from networks import Network, embed, load_networks
from open_set_measures import RATES, by_rule, calibration, chosen, detection, temperatures
from pairs import LOW_POLY, MODELNET10, load, scanned, select

from crossmost.export.workflow import CALIBRATION_CLOUDS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "open_set"
PAIRS = ("p1-moderate", "p2")
ROUNDS, PARTS = 3, 3
"""Every round draws the classes anew and holds each part of them out once."""
FOREIGN_SEVERITY = "moderate"
QUICK_STRIDE = 4


@dataclass(frozen=True, eq=False)
class Labelled:
    """Clouds with their classes' positions in the whole vocabulary, -1 for a class outside it."""

    clouds: Sequence[NDArray[np.floating]]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Seen:
    """What one network makes of them: unit rows of the test, threshold and foreign clouds."""

    network: Network
    test: NDArray[np.float32]
    some: NDArray[np.float32]
    foreign: NDArray[np.float32] | None


def target_clouds(folder: Path, classes: Sequence[str], split: str) -> Labelled:
    """A split of a pair's target."""
    with np.load(folder / "target.npz") as archive:
        chosen = archive["split"] == split
        names = archive["class_names"][archive["labels"][chosen]]
        return Labelled(archive["points"][chosen], np.array([list(classes).index(name) for name in names]))


def foreign_clouds(data: Path) -> Labelled:
    """Scans of low-poly models whose class shares no text embedding with a class of ModelNet10."""
    clouds, target = load(data, LOW_POLY), load(data, MODELNET10)
    own = [clouds.rows[name] in target.rows.values() for name in clouds.names]
    found = scanned(select(clouds, ~np.array(own)), FOREIGN_SEVERITY)
    return Labelled(found.points, np.full(len(found.ids), -1))


def held_out(classes: int) -> list[list[int]]:
    """The classes that are unknown in each split: every class once a round."""
    return [
        sorted(int(one) for one in part)
        for seed in range(ROUNDS)
        for part in np.array_split(np.random.default_rng(seed).permutation(classes), PARTS)
    ]


def measure_split(
    seen: Seen, test: Labelled, some: Labelled, classes: Sequence[str], unknown: Sequence[int]
) -> dict[str, Any]:
    """One network with some classes taken out of its vocabulary, unless it never had them."""
    names = [name for index, name in enumerate(classes) if index not in unknown]
    bank = chosen(seen.network.bank, names)
    position = np.array([names.index(name) if name in names else -1 for name in classes])
    labels = position[test.labels]
    known, others = seen.test[labels >= 0], seen.test[labels < 0]
    return {
        "accuracy of known": float((bank.scores(known).argmax(axis=1) == labels[labels >= 0]).mean()),
        "scores": detection(bank, known, others),
        "rules": by_rule(bank, known, labels[labels >= 0], others, (seen.some, position[some.labels])),
    }


def measure_foreign(seen: Seen) -> dict[str, Any]:
    """One network with its whole vocabulary against clouds of other classes altogether."""
    assert seen.foreign is not None
    return {"scores": detection(seen.network.bank, seen.test, seen.foreign)}


def measure_network(seen: Seen, test: Labelled, some: Labelled) -> dict[str, Any]:
    """All that is measured of one network."""
    logits = seen.network.bank.logits(seen.test).astype(np.float64)
    classes = seen.network.bank.vocabulary.names
    return {
        "calibration": {
            name: calibration(logits, test.labels, temperature)
            for name, temperature in temperatures(seen.network.bank, logits, test.labels).items()
        },
        "splits": [measure_split(seen, test, some, classes, unknown) for unknown in held_out(len(classes))],
        "foreign": None if seen.foreign is None else measure_foreign(seen),
    }


def look(networks: Sequence[Network], test: Labelled, some: Labelled, foreign: Labelled | None) -> list[Seen]:
    """Embed everything with every network, in one go."""
    parts = [test, some] if foreign is None else [test, some, foreign]
    edges = np.cumsum([len(part.labels) for part in parts])[:-1]
    rows = embed(networks, [cloud for part in parts for cloud in part.clouds])
    return [
        Seen(network, *[*np.split(found, edges), None][:3])
        for network, found in zip(networks, rows, strict=True)
    ]


def every(clouds: Labelled, stride: int) -> Labelled:
    """Every so many of the clouds."""
    return Labelled(clouds.clouds[::stride], clouds.labels[::stride])


def spread(clouds: Labelled, most: int) -> Labelled:
    """So many clouds, evenly spaced, as a run keeps them for its export."""
    rows = np.unique(np.linspace(0, len(clouds.labels) - 1, most).round().astype(int))
    return Labelled([clouds.clouds[row] for row in rows], clouds.labels[rows])


def measure(pair: str, seed: int, options: argparse.Namespace, out: Path, stride: int) -> None:
    """Measure a pair and seed and write its result, once."""
    path = out / f"{pair}_{seed}.json"
    if path.is_file():
        return
    networks = load_networks(options.work / pair, [seed])
    classes = networks[0].bank.vocabulary.names
    test = every(target_clouds(options.work / pair, classes, "test"), stride)
    some = spread(target_clouds(options.work / pair, classes, "train"), CALIBRATION_CLOUDS)
    # The low-poly models are in the source of the other pair.
    foreign = foreign_clouds(options.data) if pair.startswith("p1") else None
    rows = look(networks, test, some, foreign)
    found = {
        "pair": pair, "data": "target.npz of the pair", "split": "test", "seed": seed, "n": len(test.labels),
        "n_threshold": len(some.labels), "n_foreign": 0 if foreign is None else len(foreign.labels),
        "options": {"rounds": ROUNDS, "parts": PARTS, "stride": stride, "rates": RATES},
        "machine": machine(), "classes": classes, "held_out": held_out(len(classes)),
        "networks": {seen.network.name: measure_network(seen, test, some) for seen in rows},
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(path.name, flush=True)


def main() -> None:
    quick = "a quarter of the clouds, one seed, in WORK only"
    parser = common.parser(__doc__, work="the runs of adaptation.py", pairs=PAIRS, seeds=True, quick=quick)
    parser.add_argument("--strict", type=Path, help="folder for runs trained without the held-out names")
    common.add_tables_only(parser)
    options = parser.parse_args()
    import open_set_strict
    import open_set_table

    if options.tables_only:
        open_set_table.write(RESULTS)
        return
    out, stride, seeds = RESULTS, 1, options.seeds
    if options.quick:
        out, stride, seeds = options.work / "open_set-quick", QUICK_STRIDE, options.seeds[:1]
        options.work, options.pairs = options.work / QUICK_WORK, [QUICK_PAIR]
    for pair in options.pairs:
        for seed in seeds:
            measure(pair, seed, options, out, stride)
    if options.strict:
        for seed in seeds:
            open_set_strict.measure(options.work, options.strict, seed, out)
    if options.quick:
        print(open_set_table.tables(open_set_table.read(out)))
    else:
        open_set_table.write(RESULTS)


if __name__ == "__main__":
    main()
