"""What is measured of one bank of classes: which clouds it refuses, and how well its confidence is calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detection import area_under_risk, familiarity, risk_coverage
from numpy.typing import NDArray

from crossmost.adaptation.diagnosis import fit_temperature
from crossmost.evaluation.detection import auroc, false_positive_rate
from crossmost.evaluation.metrics import branch_metrics, softmax
from crossmost.export.calibration import threshold_from_labels, threshold_without_labels
from crossmost.runtime.class_bank import ClassBank

RATES = (0.05, 0.1, 0.2, 0.3)
"""Of `--unknown-rate`; the first is the default."""
ORACLE_RULE = "known classes only 0.05 (oracle)"
SUPERVISED_RULE = "Youden (supervised)"
POINTS_OF_CURVE = 50
Floats = NDArray[np.float64]


def chosen(bank: ClassBank, names: Sequence[str]) -> ClassBank:
    """The bank with some of its classes, as a bundle of them has it."""
    rows = [bank.vocabulary.names.index(name) for name in names]
    return replace(bank, vocabulary=bank.vocabulary.select(names), lengths=bank.lengths[rows])


def detection(bank: ClassBank, known: NDArray[np.float32], unknown: NDArray[np.float32]) -> dict[str, Any]:
    """AUROC and FPR95 of every score."""
    of_known, of_unknown = (
        familiarity(bank.logits(rows).astype(np.float64), bank.temperature) for rows in (known, unknown)
    )
    return {
        score: {
            "auroc": auroc(of_known[score], of_unknown[score]),
            "fpr95": false_positive_rate(of_known[score], of_unknown[score]),
        }
        for score in of_known
    }


def thresholds(bank: ClassBank, some: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, ClassBank]:
    """The bank with the threshold of each rule; `labels` (n,) are positions in it, -1 for unknown classes."""
    rules = {f"unlabelled {rate:g}": threshold_without_labels(bank, some, rate) for rate in RATES}
    known = some[labels >= 0]
    rules[ORACLE_RULE] = threshold_without_labels(bank, known, RATES[0])
    rules[SUPERVISED_RULE] = threshold_from_labels(bank, some, labels)
    return rules


def called_unknown(
    right: NDArray[np.bool_], known: NDArray[np.bool_], unknown: NDArray[np.bool_]
) -> dict[str, float]:
    """Share of the known, the rightly and wrongly answered known and the unknown clouds that are called unknown.

    Args:
        right: (n,) answers of the known clouds.
        known: (n,) whether they are called unknown.
        unknown: (m,) whether the others are.
    """
    return {
        "known": float(known.mean()),
        "known and right": float(known[right].mean()),
        "known and wrong": float(known[~right].mean()),
        "unknown": float(unknown.mean()),
    }


def by_rule(
    bank: ClassBank,
    known: NDArray[np.float32],
    labels: NDArray[np.int64],
    unknown: NDArray[np.float32],
    some: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> dict[str, dict[str, float]]:
    """What each rule calls unknown: those of a bundle, and the same quantiles of the largest probability.

    Args:
        bank: of the known classes.
        known: (n, D) test clouds of known classes.
        labels: (n,) of them.
        unknown: (m, D) the other test clouds.
        some: the clouds the threshold is found with, and their labels, which only marked rules look at.
    """
    right = bank.scores(known).argmax(axis=1) == labels
    found = {}
    for rule, of_rule in thresholds(bank, *some).items():
        refused = [of_rule.predict(rows)[2] for rows in (known, unknown)]
        found[rule] = called_unknown(right, *refused)
    best, of_known, of_unknown = (bank.scores(rows).max(axis=1) for rows in (some[0], known, unknown))
    for rate in RATES:
        threshold = np.quantile(best, rate)
        found[f"max softmax, unlabelled {rate:g}"] = called_unknown(
            right, of_known < threshold, of_unknown < threshold
        )
    return found


def calibration(logits: Floats, labels: NDArray[np.int64], temperature: float) -> dict[str, Any]:
    """Accuracy, calibration error and risk of a network's answers at a temperature."""
    posteriors = softmax(logits / temperature)
    measured = branch_metrics(posteriors, labels, [str(column) for column in range(logits.shape[1])])
    confidence, right = posteriors.max(axis=1), posteriors.argmax(axis=1) == labels
    curve = risk_coverage(confidence, right)
    places = np.linspace(0, len(curve), POINTS_OF_CURVE + 1).round().astype(int)[1:] - 1
    return {
        "temperature": temperature, "top1": measured.top1, "ece": measured.ece, "nll": measured.nll,
        "confidence": float(confidence.mean()), "aurc": area_under_risk(confidence, right),
        "coverage": ((places + 1) / len(curve)).tolist(), "risk": curve[places].tolist(),
        "reliability": measured.reliability.to_dict(),
    }  # fmt: skip


def temperatures(bank: ClassBank, logits: Floats, labels: NDArray[np.int64]) -> dict[str, float]:
    """As trained, as fitted without labels, and the best there is, which needs the test labels."""
    truth = torch.nn.functional.one_hot(torch.from_numpy(labels), logits.shape[1])
    oracle = fit_temperature(torch.from_numpy(logits), truth)
    return {"trained": 1.0, "label-free": bank.temperature, "oracle": oracle}
