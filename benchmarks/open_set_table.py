"""Tables and figures of `open_set.py`, from its result files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detection import CALIBRATED, SCORES
from networks import NAMES, ZERO_SHOT
from open_set_figures import draw
from open_set_measures import ORACLE_RULE, RATES, SUPERVISED_RULE
from summaries import cell, table
from tables import write_between

HERE = Path(__file__).resolve().parent
STRICT = "strict_"
BESIDE = "joint"
"""What the rows of a strict adaptation are compared with."""
MOMENTS = ("trained", "label-free", "oracle")
RULES = {
    **{f"max logit, {rate:.0%} of unlabelled": f"unlabelled {rate:g}" for rate in RATES},
    **{f"max softmax, {rate:.0%} of unlabelled": f"max softmax, unlabelled {rate:g}" for rate in RATES},
    "max logit, 5% of known classes (oracle)": ORACLE_RULE,
    "max logit, greatest Youden's J (supervised)": SUPERVISED_RULE,
}
Row = dict[str, Any]
Results = dict[str, list[Row]]
"""Pair to the rows of its seeds; with `STRICT` before it, those of the adaptation without the names."""


def read(results: Path) -> Results:
    """All result files, the seeds in order."""
    found: Results = {}
    for path in sorted(results.glob("*.json")):
        found.setdefault(path.stem.rpartition("_")[0], []).append(
            json.loads(path.read_text(encoding="utf-8"))
        )
    return found


def per_seed(rows: list[Row], name: str, measure: Callable[[Row], float]) -> list[float]:
    """Each seed's mean over the splits."""
    return [statistics.mean(measure(split) for split in row["networks"][name]["splits"]) for row in rows]


def detection_table(rows: list[Row]) -> list[str]:
    """AUROC and FPR95 of every network and score."""
    found = []
    for name in NAMES:
        for score in SCORES:
            line = [name, score]
            for measure in ("auroc", "fpr95"):
                line.append(cell(per_seed(rows, name, lambda s, q=score, m=measure: s["scores"][q][m])))
            for measure in ("auroc", "fpr95"):
                foreign = [row["networks"][name]["foreign"] for row in rows]
                line.append(cell([each["scores"][score][measure] for each in foreign if each]))
            found.append(line)
    head = ["network", "score", "held out: AUROC", "held out: FPR95", "foreign: AUROC", "foreign: FPR95"]
    return table(head, found)


def rule_table(rows: list[Row]) -> list[str]:
    """What the threshold of each rule calls unknown."""
    groups = ("known and right", "known and wrong", "unknown")
    names = (ZERO_SHOT, BESIDE)
    found = []
    for title, rule in RULES.items():
        cells = [
            cell(per_seed(rows, name, lambda split, r=rule, g=group: split["rules"][r][g]))
            for name in names
            for group in groups
        ]
        found.append([title, *cells])
    return table(["threshold", *(f"{name}: {group}" for name in names for group in groups)], found)


def calibration_table(rows: list[Row]) -> list[str]:
    """Calibration error, risk and likelihood at each temperature."""
    found = []
    for name in NAMES:
        for moment in MOMENTS:
            measured = [row["networks"][name]["calibration"][moment] for row in rows]
            found.append([
                name, "best on the test labels (oracle)" if moment == "oracle" else moment,
                cell([each["temperature"] for each in measured], percent=False),
                cell([each["ece"] for each in measured]),
                cell([each["nll"] for each in measured], percent=False),
                cell([each["aurc"] for each in measured]),
                cell([at_coverage(each, 0.8) for each in measured]),
                cell([1 - each["top1"] for each in measured]),
            ])  # fmt: skip
    head = ["network", "temperature", "T", "ECE", "NLL, nats", "AURC", "risk at 80% coverage", "risk at 100%"]
    return table(head, found)


def at_coverage(measured: Row, share: float) -> float:
    """Risk at the coverage nearest to a share."""
    places = range(len(measured["coverage"]))
    return float(measured["risk"][min(places, key=lambda at: abs(measured["coverage"][at] - share))])


def strict_table(rows: list[Row]) -> list[str]:
    """The same split, answered by networks that knew all names while they adapted, and by one that did not."""
    names = list(rows[0]["networks"])
    found = []
    for name in names:
        measured = [row["networks"][name] for row in rows]
        found.append([
            name,
            cell([each["accuracy of known"] for each in measured]),
            *(cell([each["scores"][score]["auroc"] for each in measured]) for score in (CALIBRATED, "max logit")),
            *(cell([each["rules"]["unlabelled 0.05"][group] for each in measured])
              for group in ("known and right", "unknown")),
        ])  # fmt: skip
    head = [
        "network", "accuracy of known", f"AUROC, {CALIBRATED}", "AUROC, max logit", "5% rule: known and right",
        "5% rule: unknown",
    ]  # fmt: skip
    return table(head, found)


def tables(results: Results) -> str:
    """All of them with their figures."""
    lines = []
    for pair, rows in results.items():
        if pair.startswith(STRICT):
            continue
        foreign = f"; {rows[0]['n_foreign']} foreign clouds" if rows[0]["n_foreign"] else ""
        lines += [
            f"### {pair}", "",
            f"{rows[0]['n']} test clouds, seeds {', '.join(str(row['seed']) for row in rows)}, "
            f"{len(rows[0]['held_out'])} splits of {len(rows[0]['classes'])} classes{foreign}; thresholds from "
            f"{rows[0]['n_threshold']} unlabelled clouds; {rows[0]['machine']}", "",
            "**Unknown classes**: how well a score tells them from the known ones", "", *detection_table(rows), "",
            "**Called unknown**: share of the clouds below the threshold", "", *rule_table(rows), "",
            "**Calibration**, all classes known", "", *calibration_table(rows), "",
        ]  # fmt: skip
        if STRICT + pair in results:
            strict = results[STRICT + pair]
            lines += [
                f"**Adapted without the names**: one split a seed, {strict[0]['options']['epochs']} epochs", "",
                *strict_table(strict), "",
            ]  # fmt: skip
    lines += [
        "![risk by coverage](figures/open_set_risk.png)", "",
        "![scores of known and unknown clouds](figures/open_set_detection.png)",
    ]  # fmt: skip
    return "\n".join(lines)


def write(results: Path) -> None:
    """Write tables and figures."""
    found = read(results)
    draw(found, HERE / "figures")
    write_between(HERE / "README.md", "open-set", tables(found))
