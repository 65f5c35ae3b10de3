"""One training of the adaptation benchmark, in a process of its own, and what labels say of it afterwards.

    python adaptation_run.py --pair p1-moderate --training joint --seed 0 --work WORK --results RESULTS

Both networks of every epoch are kept beside the run until it is measured. Labels are read after the last epoch: the
test split's for the accuracies, the training split's for those of the pseudo-labels.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from adaptation import is_measured, machine
from adaptation_rows import BRANCHES, ROWS, Row
from paired import pack
from pairs import LIDAR, MODELNET10
from true_labels import taught

from crossmost.adaptation import run as runs
from crossmost.adaptation.diagnosis import Diagnosis, diagnose
from crossmost.adaptation.selection import collapsed
from crossmost.checkpoints.base import fill_weights, load_architecture
from crossmost.checkpoints.run import METRICS, NAMES, Run, build_student, is_run, load_run
from crossmost.checkpoints.store import has_generation, load_generation, load_weights, save_weights
from crossmost.config import TrainConfig
from crossmost.data.dataset import CloudDataset
from crossmost.data.reading import Reading
from crossmost.data.samples import PlainSamples, plain_batches
from crossmost.evaluation.evaluate import pseudo_label_accuracy
from crossmost.evaluation.metrics import both_branches, softmax
from crossmost.models.student import Student
from crossmost.runtime.vocabulary import load_vocabulary

KEPT = "epochs"
ZERO_SHOT = (-1, "as trained")
"""The base at the temperatures it was trained with, as it is used where no run has calibrated it."""
CPU = torch.device("cpu")
Right = dict[str, NDArray[np.bool_]]  # branch -> (n,) whether its answer is right


def train(
    row: Row, config: TrainConfig, base: Path, target: Path, folder: Path, *, keep: bool = True
) -> float | None:
    """Train a run to its end, or go on with it; seconds, None where they are not those of a whole training.

    With `keep` the networks of every epoch are kept, for their accuracies.
    """
    started = time.monotonic()
    whole = not is_run(folder)
    clouds = Reading().open(target, load_architecture(base).point, "train")

    def end_of_epoch(record: Mapping[str, Any]) -> None:
        if keep:
            keep_networks(folder)
        print(f"{folder.name} epoch {record['epoch'] + 1} kept {record['watched/kept']:.2f}", flush=True)

    watching = {"on_batch": lambda _: None, "on_epoch": end_of_epoch}
    vocabulary = load_vocabulary(target.with_name("target-classes.npz"))
    with taught(clouds, vocabulary.names) if row.taught else nullcontext():
        if whole:
            runs.train(clouds, base, vocabulary, config, folder, **watching)
        else:
            if keep:
                keep_networks(folder)
            runs.resume(clouds, folder, runs.check_resumable(folder), **watching)
    return time.monotonic() - started if whole else None


def keep_networks(folder: Path) -> None:
    """Copy the networks out of what was saved at the end of an epoch; the next one's save replaces it."""
    if not has_generation(folder):
        return
    state = load_generation(folder, NAMES).state
    if state["progress"]["batch"] == 0:
        epoch = state["progress"]["records"][-1]["epoch"]
        for name in NAMES:
            (folder / KEPT).mkdir(exist_ok=True)
            save_weights(folder / KEPT / f"{name}-{epoch}.safetensors", state[name], {})


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether a run has trained to its end."""
    if not is_run(folder) or not has_generation(folder) or not (folder / runs.PSEUDO_LABELS).is_file():
        return False
    progress = load_generation(folder, NAMES).state["progress"]
    return progress["epoch"] >= epochs or progress["stopped"] is not None


class TestSplit:
    """The labelled clouds of the report, read and rendered once."""

    def __init__(
        self,
        clouds: CloudDataset,
        names: Sequence[str],
        *,
        image_size: int | None,
        views: int,
        device: torch.device = CPU,
        workers: int | None = 0,
    ):
        samples = PlainSamples(clouds, image_size=image_size, views=views)
        self.batches = list(plain_batches(samples, 64, workers))
        self.labels = clouds.label_indices(names)
        self.device = device

    def look(self, network: Student) -> Diagnosis:
        """The logits of a network, which is moved to the device."""
        return diagnose(network.to(self.device), self.batches, self.device)

    def right(self, found: Diagnosis, temperatures: tuple[float, float]) -> Right:
        """Which clouds each branch, and both together, name rightly."""
        assert found.image is not None
        point = softmax(found.point.numpy() / temperatures[0])
        image = softmax(found.image.numpy() / temperatures[1])
        labels = self.labels[found.indices.numpy()]
        answers = zip(BRANCHES, (point, image, both_branches(point, image)), strict=True)
        return {branch: posterior.argmax(axis=1) == labels for branch, posterior in answers}


def networks(run: Run, records: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], Student]:
    """The adapted networks that are still there, by epoch and name: all of them, or the chosen and the last."""
    stored: dict[tuple[int, str], Mapping[str, Tensor]] = {}
    generation = load_generation(run.folder, NAMES)
    for name in NAMES:
        stored[records[-1]["epoch"], name] = generation.state[name]
        stored[records[-1]["chosen_epoch"], name] = generation.weights[name].tensors
        for record in records:
            path = run.folder / KEPT / f"{name}-{record['epoch']}.safetensors"
            if path.is_file():
                stored[record["epoch"], name] = load_weights(path).tensors
    found = {}
    for (epoch, name), weights in stored.items():
        network = build_student(run.zero_shot, run.architecture, run.vocabulary, run.config)
        fill_weights(network, dict(weights), run.folder)
        found[epoch, name] = network
    return found


def chosen_epoch(records: Sequence[Mapping[str, Any]], config: TrainConfig) -> int:
    """The epoch whose networks a run with these options keeps, from what it saw without labels; -1: none was better.

    A run that was trained with other read-out options saw the same, up to the epoch at which these would have ended it.
    """
    best, epoch = float("-inf"), -1
    at_zero_shot = torch.tensor(records[0]["histogram"])
    for record in records:
        if config.collapse == "stop" and collapsed(torch.tensor(record["histogram"]), at_zero_shot):
            break
        if config.selection == "last" or record["selection_score"] >= best:
            best, epoch = record["selection_score"], record["epoch"]
    return epoch


def shares(right: Right) -> dict[str, float]:
    """Accuracy of each branch."""
    return {branch: round(float(each.mean()), 6) for branch, each in right.items()}


def measure(
    folder: Path, target: Path, device: torch.device = CPU, workers: int | None = 0
) -> tuple[list[dict[str, Any]], dict[tuple[int, str], Right]]:
    """What labels say of a finished run: its records, and which test clouds each network names rightly."""
    run = load_run(folder)
    records = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    test = TestSplit(
        Reading().open(target, run.architecture.point, "test"), run.vocabulary.names,
        image_size=run.zero_shot.image_size, views=run.config.views, device=device, workers=workers,
    )  # fmt: skip
    dials = {
        record["epoch"]: (record["temperature/point"], record["temperature/image"]) for record in records
    }
    right = {
        (epoch, name): test.right(test.look(network), dials[epoch])
        for (epoch, name), network in networks(run, records).items()
    }
    before = test.look(run.zero_shot)
    right[ZERO_SHOT] = test.right(before, (1.0, 1.0))
    kept_right = pseudo_label_accuracy(
        folder, Reading().open(target, run.architecture.point, "train"), run.vocabulary.names
    )
    for record in records:
        record["kept_right"] = kept_right.get(record["epoch"])
    return records, right


def by_epoch(
    records: Sequence[Mapping[str, Any]], right: Mapping[tuple[int, str], Right]
) -> list[dict[str, Any]]:
    """The curves of a run; epoch 0 is before training. An accuracy is None where the networks were not kept."""
    curves = []
    for record in records:
        seen = {
            "epoch": record["epoch"] + 1,
            "kept": record["watched/kept"],
            "kept_right": record["kept_right"],
        }
        seen |= {"agreement": record["watched/agreement"], "kappa": record.get("watched/kappa")}
        seen["selection_score"] = record["selection_score"]
        for name in NAMES:
            found = right.get((record["epoch"], name))
            seen[name] = None if found is None else shares(found)
        curves.append(seen)
    return curves


def result(
    row: Row,
    config: TrainConfig,
    records: Sequence[Mapping[str, Any]],
    right: Mapping[tuple[int, str], Right],
) -> dict[str, Any]:
    """The result of one row, from the training it shares or has to itself."""
    epoch, network = chosen_epoch(records, config), config.exported
    if row.name == row.training and epoch != records[-1]["chosen_epoch"]:
        raise SystemExit(f"{row.name}: chose epoch {records[-1]['chosen_epoch']}, expected {epoch}")
    if (epoch, network) not in right:
        raise SystemExit(f"{row.name}: the {network} of epoch {epoch + 1} was not kept; train the run again")
    before, after = right[ZERO_SHOT], right[epoch, network]
    return {
        "row": row.name, "training": row.training, "mode": config.mode, "recipe": config.recipe,
        "options": {name: value for name, value in row.options.items() if name not in ("mode", "recipe")},
        "n": len(after["point"]), "split": "test", "zero_shot": shares(before), "adapted": shares(after),
        "network": network, "chosen_epoch": epoch + 1, "epochs": config.epochs, "stopped": records[-1].get("stopped"),
        "right": {
            "zero_shot": {branch: pack(each) for branch, each in before.items()},
            "adapted": {branch: pack(each) for branch, each in after.items()},
        },
        "by_epoch": by_epoch(records, right),
    }  # fmt: skip


def target_set(pair: str) -> str:
    """What a pair is adapted to and tested on."""
    if pair.startswith("p1-"):
        return f"{MODELNET10}, scanned, {pair.removeprefix('p1-')} severity"
    return MODELNET10 if pair == "p2" else LIDAR


def write_results(
    pair: str, training: str, shared: dict[str, Any], work: Path, out: Path, seconds: float | None
) -> None:
    """Measure a finished run and write the results that are missing of the rows that read from it."""
    seed = shared["seed"]
    records, right = measure(work / pair / f"{training}-{seed}", work / pair / "target.npz")
    command = " ".join(f"--set {name}={value}" for name, value in shared.items())
    facts = {"pair": pair, "seed": seed, "data": target_set(pair), "command": command}
    facts["seconds"] = seconds and round(seconds)
    out.mkdir(parents=True, exist_ok=True)
    for row in ROWS.values():
        path = out / f"{pair}_{row.name}_{seed}.json"
        if row.training == training and not is_measured(path):
            found = {**facts, **result(row, row.config(shared), records, right), "machine": machine()}
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", required=True)
    parser.add_argument("--training", required=True, choices=sorted({row.training for row in ROWS.values()}))
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--set", type=json.loads, required=True, help="JSON: the options that all rows share")
    options = parser.parse_args()
    folder = options.work / options.pair / f"{options.training}-{options.set['seed']}"
    row = ROWS[options.training]
    config = row.config(options.set)
    seconds = None
    if not is_finished(folder, config.epochs):
        seconds = train(row, config, options.base, options.work / options.pair / "target.npz", folder)
    write_results(options.pair, options.training, options.set, options.work, options.results, seconds)
    shutil.rmtree(folder / KEPT, ignore_errors=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the run is saved: the next start goes on with it
        sys.exit(130)
