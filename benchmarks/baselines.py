"""Baselines from elsewhere on the bases and targets of adaptation.py: caches, TENT, class means, supervised ceilings.

    python benchmarks/baselines.py --data DATA --work WORK                    # everything that is still missing
    python benchmarks/baselines.py --data DATA --work WORK --pairs p2 --seeds 0 --baselines tent-stream

A baseline is one function of baseline_embeddings.py, baseline_networks.py or baseline_fine_tuning.py. Embeddings of a
frozen base are computed once for a base and a target and kept in WORK; results in results/baselines/, one file a
baseline, pair and seed: an interrupted measurement goes on where it stopped. The table is written from the result
files alone. `--quick` works on a few clouds with a base of one epoch and writes to WORK only.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
import baseline_embeddings as embeddings
import baseline_fine_tuning as fine_tuning
import baseline_networks as networks
from adaptation import PRETRAIN_EPOCHS, base_of, machine, make_base
from baseline_features import BRANCHES, Frozen, frozen_features, load_student, open_target
from baseline_table import table, write_tables
from paired import pack
from pairs import PAIRS, prepare

from crossmost.evaluation.metrics import both_branches, branch_metrics
from crossmost.runtime.test_time_cache import TestTimeCache
from crossmost.runtime.vocabulary import load_vocabulary

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "baselines"
QUICK_SOURCE = 400
"""Clouds of the source that a quick base is made of."""
Posteriors = dict[str, embeddings.Posterior]
OnEmbeddings = Callable[[Frozen, str, int], embeddings.Posterior]
OnNetworks = Callable[[networks.Target, int], Posteriors]


@dataclass(frozen=True)
class Settings:
    """Where a measurement takes place, and how small it is.

    Attributes:
        work: folder for archives, bases and embeddings.
        results: folder for result files.
        most: clouds of each split; None for all.
        pretrain_epochs: of a base that has to be made.
        steps: of fine-tuning.
    """

    work: Path
    results: Path = RESULTS
    most: int | None = None
    pretrain_epochs: int = PRETRAIN_EPOCHS
    steps: int = fine_tuning.STEPS


@dataclass(frozen=True)
class Baseline:
    """One row of the table: a function, what it sees of the target, and the numbers it is set to."""

    sees: str
    settings: dict[str, Any]
    on_embeddings: OnEmbeddings | None = None
    on_networks: OnNetworks | None = None
    supervised: bool = False


CACHE = TestTimeCache().settings()
MEANS = {"kept_share": embeddings.KEPT_SHARE, "rounds": embeddings.ROUNDS}
PUBLISHED = {
    "capacity": embeddings.PUBLISHED_CAPACITY,
    "alpha": embeddings.PUBLISHED_ALPHA,
    "beta": embeddings.PUBLISHED_BETA,
}
TENT = {"rate": networks.TENT_RATE, "batch": networks.BATCH, "passes": 1}
TUNING = {
    "rate": fine_tuning.RATE,
    "weight_decay": fine_tuning.WEIGHT_DECAY,
    "batch": networks.BATCH,
}
STREAM, TRAIN, LABELS = "test stream", "train split, unlabelled", "train split with its labels"
BASELINES = {
    "zero-shot": Baseline("nothing", {}, embeddings.zero_shot),
    "cache": Baseline(STREAM, CACHE, embeddings.runtime_cache),
    "cache-published": Baseline(STREAM, PUBLISHED, embeddings.published_cache),
    "cache-filled": Baseline(f"{TRAIN}, then {STREAM}", CACHE, embeddings.filled_cache),
    "tent-stream": Baseline(STREAM, TENT, on_networks=networks.tent_stream),
    "tent-train": Baseline(TRAIN, TENT, on_networks=networks.tent_train),
    "means": Baseline(TRAIN, MEANS, embeddings.class_means),
    "means-text": Baseline(TRAIN, MEANS, embeddings.class_means_with_text),
    "normalized": Baseline(TRAIN, {"share of the mean": embeddings.HALF}, embeddings.normalized),
    "centered": Baseline(TRAIN, {"share of the mean": 1.0}, embeddings.centered),
    "centered-stream": Baseline(STREAM, {"share of the mean": 1.0}, embeddings.centered_stream),
    "probe": Baseline(LABELS, {"C": embeddings.PROBE_C}, embeddings.linear_probe, supervised=True),
    "fine-tuned": Baseline(LABELS, TUNING, on_networks=fine_tuning.fine_tuned, supervised=True),
}


def with_both(found: Posteriors) -> Posteriors:
    """The branches' posteriors, and their mean as "both"."""
    return {**found, "both": both_branches(found["point"], found["image"])}


def answers(baseline: Baseline, frozen: Frozen, seed: int) -> Posteriors:
    """What a baseline on embeddings says of the test split, branch by branch and both together."""
    assert baseline.on_embeddings is not None
    return with_both({branch: baseline.on_embeddings(frozen, branch, seed) for branch in BRANCHES})


def pseudo_labels(baseline: Baseline, frozen: Frozen, seed: int) -> dict[str, dict[str, float]]:
    """For reports: how good a baseline's answers on the training split would be as pseudo-labels."""
    found = answers(baseline, replace(frozen, test=frozen.train), seed)
    shares = {"all": 1.0, "surest half": 0.5}
    return {
        name: {
            branch: embeddings.kept_accuracy(frozen.train.labels, posterior, share)
            for branch, posterior in found.items()
        }
        for name, share in shares.items()
    }


def scores(found: Posteriors, frozen: Frozen) -> dict[str, Any]:
    """What the test split's labels say of a baseline's answers."""
    labels, names = frozen.test.labels, frozen.vocabulary.names
    metrics = {branch: branch_metrics(posterior, labels, names) for branch, posterior in found.items()}
    return {
        "n": len(labels),
        "split": "test",
        "top1": {branch: each.top1 for branch, each in metrics.items()},
        "mean_per_class": {branch: each.mean_per_class for branch, each in metrics.items()},
        "ece": {branch: each.ece for branch, each in metrics.items()},
        "names": list(names),
        "confusion_point": metrics["point"].confusion.tolist(),
        "right": {
            branch: pack(np.asarray(posterior.argmax(axis=1) == labels))
            for branch, posterior in found.items()
        },
    }


def measure(pair: str, name: str, seed: int, settings: Settings) -> None:
    """Measure one baseline on one base and target, once."""
    path = settings.results / f"{pair}_{name}_{seed}.json"
    if path.is_file():
        return
    baseline, folder = BASELINES[name], settings.work / pair
    base = settings.work / base_of(pair) / f"base-{seed}.safetensors"
    frozen = frozen_features(base, folder, settings.work / "features" / f"{pair}-{seed}.npz", settings.most)
    started = time.monotonic()
    further: dict[str, Any] = {}
    if baseline.on_embeddings is not None:
        found = answers(baseline, frozen, seed)
        if not baseline.supervised:
            further["pseudo_labels"] = pseudo_labels(baseline, frozen, seed)
    else:
        assert baseline.on_networks is not None
        run = baseline.on_networks
        if name == "fine-tuned":
            saved = settings.work / "fine-tuning" / f"{pair}-{seed}.pt"
            run = partial(fine_tuning.fine_tuned, steps=settings.steps, saved=saved)
            further["steps"] = settings.steps
        found = with_both(run(open_networks(base, folder, settings), seed))
    row = {
        "pair": pair, "baseline": name, "seed": seed, "data": "target.npz", "sees": baseline.sees,
        "supervised": baseline.supervised, "settings": baseline.settings, **further, **scores(found, frozen),
        "seconds": round(time.monotonic() - started, 1), "machine": machine(),
    }  # fmt: skip
    settings.results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    top1 = "  ".join(f"{branch} {100 * share:.1f}" for branch, share in row["top1"].items())
    print(f"{pair} {name} seed {seed}: {top1}", flush=True)


def open_networks(base: Path, folder: Path, settings: Settings) -> networks.Target:
    """A base with class names, and both splits of a target."""
    student = load_student(base, folder / "target-classes.npz")
    train, test = (
        open_target(student, folder / "target.npz", split, settings.most) for split in ("train", "test")
    )
    return networks.Target(student, train, test, load_vocabulary(folder / "target-classes.npz").names)


def thin_source(archive: Path) -> None:
    """Leave a few clouds of a source, for a base that is made quickly and knows little."""
    with np.load(archive) as stored:
        arrays = dict(stored)
    rows = np.linspace(0, len(arrays["labels"]) - 1, QUICK_SOURCE).astype(int)
    per_cloud = {name: arrays[name][rows] for name in ("points", "labels", "split", "ids")}
    np.savez(archive, class_names=arrays["class_names"], **per_cloud)


def main() -> None:
    quick = "a few clouds of p3, a base of one epoch"
    parser = common.parser(
        __doc__, work="archives, bases and embeddings", pairs=PAIRS, seeds=True, quick=quick
    )
    parser.add_argument("--baselines", nargs="+", choices=BASELINES, default=list(BASELINES))
    common.add_tables_only(parser)
    options = parser.parse_args()
    settings = Settings(options.work.resolve())
    if options.quick:
        folder = settings.work / "baselines-quick"
        settings = Settings(folder, folder / "results", most=128, pretrain_epochs=1, steps=10)
        shutil.rmtree(folder, ignore_errors=True)
        options.pairs, options.seeds = ["p3"], [0]
    if not options.tables_only:
        for seed in options.seeds:
            for pair in options.pairs:
                prepare(options.data.resolve(), pair, settings.work / pair)
                if options.quick:
                    thin_source(settings.work / pair / "source.npz")
                make_base(pair, seed, settings.work, settings.pretrain_epochs)
                for name in options.baselines:
                    measure(pair, name, seed, settings)
    if options.quick:
        print(table(settings.results))
    else:
        write_tables(RESULTS)


if __name__ == "__main__":
    main()
