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
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
import open_set_strict
import open_set_table
from adaptation import QUICK_PAIR, QUICK_WORK, machine
from networks import load_networks
from open_set_measures import RATES, calibration, detection, temperatures
from open_set_splits import (
    PARTS,
    ROUNDS,
    Labelled,
    Seen,
    held_out,
    look,
    measure_split,
    spread,
    target_clouds,
)
from pairs import LOW_POLY, MODELNET10, load, scanned, select

from crossmost.export.workflow import CALIBRATION_CLOUDS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "open_set"
PAIRS = ("p1-moderate", "p2")
FOREIGN_SEVERITY = "moderate"
QUICK_STRIDE = 4


def foreign_clouds(data: Path) -> Labelled:
    """Scans of low-poly models whose class shares no text embedding with a class of ModelNet10."""
    clouds, target = load(data, LOW_POLY), load(data, MODELNET10)
    own = [clouds.rows[name] in target.rows.values() for name in clouds.names]
    found = scanned(select(clouds, ~np.array(own)), FOREIGN_SEVERITY)
    return Labelled(found.points, np.full(len(found.ids), -1))


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


def every(clouds: Labelled, stride: int) -> Labelled:
    """Every so many of the clouds."""
    return Labelled(clouds.clouds[::stride], clouds.labels[::stride])


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
