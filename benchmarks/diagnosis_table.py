"""The tables of diagnosis.py."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pairs import PAIRS
from summaries import cell
from summaries import table as markdown

from crossmost.adaptation.up_axis import likelier_axis

MOMENTS = {"zero-shot": "zero-shot", "centered": "about the center", "joint": "joint training"}
BRANCHES = {"point": "points", "image": "images", "both": "both"}
Found = Sequence[dict[str, Any]]
UP = "z"


def table(results: Path) -> str:
    """All tables, from the result files there are."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    found = {pair: [each for each in files if each["pair"] == pair] for pair in PAIRS}
    found = {pair: each for pair, each in found.items() if each}
    if not found:
        return ""
    seeds = ", ".join(sorted({str(each["seed"]) for each in files}))
    return "\n".join(
        [
            f"Training split of the target, seeds {seeds}; {files[0]['machine']}",
            "",
            "**Pseudo-labels**: how many of the kept ones are right, of all in brackets",
            "",
            *label_lines(found),
            "",
            "**Confidence**: its mean less accuracy, expected calibration error in brackets; agreement of the branches",
            "",
            *confidence_lines(found),
            "",
            "**Confusions**: where most clouds are lost (both branches), with the share of the class",
            "",
            *confusion_lines(found),
            "",
            "**Shape**: medians, as the encoder gets the clouds",
            "",
            *shape_lines(found),
            "",
            "**Up axis**: the label-free score of the base with each axis taken as up; the target's is z",
            "",
            *axis_lines(found),
        ]
    )


def label_lines(found: dict[str, Found]) -> list[str]:
    """How right each branch's pseudo-labels are."""
    rows = [
        [
            pair,
            MOMENTS[moment],
            *(_kept([each["moments"][moment]["labels"][branch] for each in files]) for branch in BRANCHES),
        ]
        for pair, files in found.items()
        for moment in MOMENTS
    ]
    return markdown(["pair", "teacher", *BRANCHES.values()], rows)


def _kept(labels: Found) -> str:
    everything = 100 * sum(each["right"] for each in labels) / len(labels)
    return f"{cell([each['kept_right'] for each in labels])} ({everything:.1f})"


def confidence_lines(found: dict[str, Found]) -> list[str]:
    """How far confidence is from accuracy, and how often the branches agree."""
    rows = []
    for pair, files in found.items():
        for moment in MOMENTS:
            seen = [each["moments"][moment] for each in files]
            branches = [_excess([each["labels"][branch] for each in seen]) for branch in BRANCHES]
            rows.append([pair, MOMENTS[moment], *branches, cell([each["agreement"] for each in seen])])
    return markdown(["pair", "teacher", *BRANCHES.values(), "branches agree"], rows)


def _excess(labels: Found) -> str:
    error = 100 * sum(each["ece"] for each in labels) / len(labels)
    return f"{cell([each['confidence'] - each['right'] for each in labels], signed=True)} ({error:.1f})"


def confusion_lines(found: dict[str, Found]) -> list[str]:
    """The worst confusions of each pair."""
    rows = []
    for pair, files in found.items():
        cells = [_worst([each["moments"][moment]["confused"] for each in files]) for moment in MOMENTS]
        rows.append([pair, *cells])
    return markdown(["pair", *MOMENTS.values()], rows)


def _worst(of_seeds: Sequence[Found]) -> str:
    """The confusions that most seeds have in common, the share averaged over those."""
    shares: dict[str, list[float]] = {}
    for confused in of_seeds:
        for each in confused:
            shares.setdefault(f"{each['is']} as {each['said']}", []).append(each["share"])
    common = Counter({name: len(values) for name, values in shares.items()}).most_common(3)
    return ", ".join(f"{name} {100 * sum(shares[name]) / len(shares[name]):.0f} %" for name, _ in common)


def shape_lines(found: dict[str, Found]) -> list[str]:
    """What the clouds of source and target are like."""
    rows = []
    for pair, files in found.items():
        for side in ("source", "target"):
            seen = files[0]["shape"][side]  # of the data: the same with every seed
            figures = [f"{seen['spacing']:.3f}", f"{seen['roughness']:.3f}", f"{seen['height']:.2f}"]
            rows.append([pair, side, f"{seen['points']:.0f}", *figures])
    head = ["pair", "side", "different points", "spacing", "off the local plane", "height by width"]
    return markdown(head, rows)


def axis_lines(found: dict[str, Found]) -> list[str]:
    """Scores by axis, and what a run would say: of clouds that stand as they should, and of clouds that do not."""
    modes = list(next(iter(found.values()))[0]["axes"])
    axes = list(next(iter(found.values()))[0]["axes"][modes[0]])
    rows = []
    for pair, files in found.items():
        for mode in modes:
            scores = [each["axes"][mode] for each in files]
            cells = [cell([each[axis] for each in scores], percent=False) for axis in axes]
            warned = sum(likelier_axis(each, UP) is not None for each in scores)
            wrong = [(each, axis) for each in scores for axis in axes if axis != UP]
            noticed = sum(likelier_axis(each, axis) == UP for each, axis in wrong)
            rows.append([pair, mode, *cells, f"{warned} of {len(scores)}", f"{noticed} of {len(wrong)}"])
    return markdown(["pair", "mode", *axes, "warned of z", "wrong axis named right"], rows)
