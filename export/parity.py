"""What a verification found: checks against gates, for the manifest, the screen and the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from crossmost.export.precision import Precision

RUNS = "runs"
FINITE = "finite"
SAME_UNIT = "unit_clouds_same"
SAME_INDICES = "fps_identical"
DIFFERENCE = "max_abs_difference"
COSINE_MIN = "cosine_min"
COSINE_MEAN = "cosine_mean"
TOP1 = "top1_agreement"

TITLES = {
    RUNS: "runs", FINITE: "finite", SAME_UNIT: "same unit cloud", SAME_INDICES: "same FPS", DIFFERENCE: "max|d|",
    COSINE_MIN: "cosine min", COSINE_MEAN: "cosine mean", TOP1: "same top-1",
}  # fmt: skip
"""The metrics in the order of the table. Shares are of the compared clouds; all but `DIFFERENCE` want to be high."""

SHARES = (RUNS, FINITE, SAME_UNIT, SAME_INDICES, TOP1)


@dataclass(frozen=True)
class Gate:
    """The value a metric must reach, or for `DIFFERENCE` must not exceed, and who says so.

    Of a share, `spared` clouds may always be on the wrong side: a few clouds cannot measure a percent.
    """

    limit: float
    source: str
    spared: int = 0

    def among(self, clouds: int) -> float:
        """The limit where so many clouds are judged."""
        return min(self.limit, 1.0 - self.spared / clouds) if self.spared else self.limit


EVERY_PRECISION = {
    RUNS: Gate(1.0, "a graph that a backend refuses is no graph"),
    FINITE: Gate(1.0, "where numbers are not finite no other metric means anything"),
    SAME_UNIT: Gate(1.0, "clouds in any unit, anywhere, are what `model.onnx` is fed on a robot"),
    SAME_INDICES: Gate(1.0, "coordinates stay float32 in every precision"),
    TOP1: Gate(
        0.995, "half a percent of the answers, between MLPerf's 99 and 99.9 % of the float32 accuracy"
    ),
}

REDUCED_PRECISION = {
    **EVERY_PRECISION,
    # Of a cloud whose two best classes float32 itself can hardly tell apart, rounding may turn the answer.
    TOP1: replace(EVERY_PRECISION[TOP1], spared=1),
}

GATES: dict[Precision, dict[str, Gate]] = {
    "fp32": {
        **EVERY_PRECISION,
        DIFFERENCE: Gate(1e-4, "the same sums in another order; optimum warns from 1e-5 on, and is ignored"),
        COSINE_MIN: Gate(0.99999, "the same, for a whole row"),
    },
    "fp16": {
        **REDUCED_PRECISION,
        COSINE_MIN: Gate(0.999, "a third of what polygraphy's default of 0.997 allows"),
        COSINE_MEAN: Gate(
            0.9999, "a tenth of the smallest: NVIDIA's quick start judges half precision by the mean"
        ),
    },
    "bf16": {
        **REDUCED_PRECISION,
        COSINE_MIN: Gate(0.99, "ten times fp16's distance from 1; trained encoders were above 0.9999"),
        COSINE_MEAN: Gate(0.999, "ten times fp16's distance from 1; trained encoders were above 0.9999"),
    },
}


def passes(metric: str, value: float, limit: float) -> bool:
    """Whether a value is on the right side of its limit; NaN never is."""
    return bool(value <= limit if metric == DIFFERENCE else value >= limit)


@dataclass(frozen=True)
class Check:
    """One metric of one graph at one batch size.

    Attributes:
        name: how the numbers were computed.
        graph: the file, or what stands for it.
        precision: of the bundle.
        batch: the largest one really used.
        metric: a key of `TITLES`.
        value: what was found.
        gate: the limit of the value.
        passed: the verdict.
        worst: id of the cloud that is farthest from torch, or "".
        clouds: how many were compared.
        failing: ids of the clouds beyond the gate, the worst first.
        note: why a graph did not run, or "".
    """

    name: str
    graph: str
    precision: Precision
    batch: int
    metric: str
    value: float
    gate: float
    passed: bool
    worst: str = ""
    clouds: int = 0
    failing: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Parity:
    """The report of a verification.

    Attributes:
        clouds: {"name", "count", "points": [fewest, most]} of what was compared.
        checks: in the order they were made.
        seconds: they took.
        failure: one line about the first failed check, or "".
        accuracy: share of labelled clouds classified right, by what computed it; empty without labels.
    """

    clouds: dict[str, Any]
    checks: tuple[Check, ...]
    seconds: float
    failure: str = ""
    accuracy: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there are checks and each of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest; the numbers are finite, so that it is JSON."""
        report: dict[str, Any] = {
            "verdict": "passed" if self.passed else "failed",
            "clouds": self.clouds,
            "checks": [asdict(check) | {"failing": list(check.failing)} for check in self.checks],
            "seconds": round(self.seconds, 1),
        }
        if self.failure:
            report["failure"] = self.failure
        if self.accuracy:
            report["accuracy"] = self.accuracy
        return report

    def lines(self) -> list[str]:
        """For the screen: a table of values, each kind of comparison under its gates."""
        fewest, most = self.clouds["points"]
        points = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        verdict = "passed" if self.passed else "FAILED"
        about = f"{self.clouds['count']} clouds of {self.clouds['name']} ({points} points)"
        lines = [f"Verification {verdict}: {about}, {self.seconds:.0f} s"]
        lines += align(self._table())
        lines += [f"Accuracy of {name}: {share:.1%}" for name, share in self.accuracy.items()]
        return lines

    def _table(self) -> list[list[str]]:
        metrics = [metric for metric in TITLES if any(check.metric == metric for check in self.checks)]
        rows = [["", "batch", "clouds", *(TITLES[metric] for metric in metrics)]]
        for name in dict.fromkeys(check.name for check in self.checks):
            named = [check for check in self.checks if check.name == name]
            limits = {check.metric: limit_text(check.metric, check.gate) for check in named}
            rows.append([name, "", "", *(limits.get(metric, "") for metric in metrics)])
            for graph, batch in dict.fromkeys((check.graph, check.batch) for check in named):
                found = {
                    check.metric: check for check in named if (check.graph, check.batch) == (graph, batch)
                }
                cells = [cell_text(found[metric]) if metric in found else "-" for metric in metrics]
                clouds = str(max(check.clouds for check in found.values()))
                rows.append([f"  {graph}", str(batch), clouds, *cells])
        return rows


def limit_text(metric: str, limit: float) -> str:
    """A gate as the table shows it."""
    if metric in SHARES:
        return f">= {limit:.1%}"
    return f"<= {limit:g}" if metric == DIFFERENCE else f">= {limit:g}"


def value_text(metric: str, value: float) -> str:
    """A value as the table shows it."""
    if metric in SHARES:
        return f"{value:.2%}"
    return f"{value:.1e}" if metric == DIFFERENCE else f"{value:.7f}"


def cell_text(check: Check) -> str:
    """A value, marked where it failed."""
    text = value_text(check.metric, check.value)
    return text if check.passed else f"{text} FAILED"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
