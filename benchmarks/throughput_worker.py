"""A process of benchmarks/throughput.py that trains in one way, a step for each line it reads.

    python benchmarks/throughput_worker.py WAY FOLDER BATCH THREADS

Ways: `plain` (plain_step.py), `reference` and `crossmost` (crossmost's own trainer with that recipe). FOLDER is made by
throughput.py. Each answer is a line of JSON: seconds by stage, and the peak memory of the process so far.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

BASE, CLASSES, ARCHIVE, PICTURES = "base.safetensors", "classes.npz", "clouds.npz", "pictures"
VIEWS = 2
"""Pictures of a cloud on the disk, for the plain way."""


class Stages:
    """Seconds by stage of functions that call each other: the time within an inner one is not the outer one's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Count what a function of a module or class takes as `stage`, from now on."""
        function = getattr(owner, name)

        @wraps(function)
        def watched(*given: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                took = time.perf_counter() - began
                self.seconds[stage] = self.seconds.get(stage, 0.0) + took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took

        setattr(owner, name, watched)


def watch_trainer() -> Stages:
    """Tell the stages of crossmost's trainer apart, without a change to it."""
    from crossmost.adaptation import diagnosis, step, trainer
    from crossmost.data import dataset, samples

    stages = Stages()
    stages.watch(dataset.CloudDataset, "try_load", "read")
    stages.watch(samples, "render_views", "render")
    stages.watch(samples.TrainingSamples, "__getitem__", "augment")
    stages.watch(samples, "collate_training", "augment")
    stages.watch(diagnosis, "cut", "group")
    stages.watch(step, "cut", "group")
    stages.watch(trainer.Trainer, "_label", "teacher")
    stages.watch(trainer.Trainer, "_train_batch", "student")
    stages.watch(trainer.Trainer, "_optimizer_step", "student")
    return stages


Answer = Callable[[dict[str, float]], None]


def run_trainer(recipe: str, folder: Path, batch: int, answer: Answer) -> None:
    """Train with crossmost's trainer, each step answered; the first one warms up."""
    from crossmost.adaptation.trainer import Trainer
    from crossmost.checkpoints.base import load_base
    from crossmost.checkpoints.run import build_student
    from crossmost.config import make_config
    from crossmost.data.dataset import open_dataset
    from crossmost.runtime.vocabulary import load_vocabulary

    options: dict[str, Any] = {"recipe": recipe, "batch_size": batch, "watched": batch, "device": "cpu"}
    # As published a random one of the views on the disk is opened, so only that one is rendered.
    config = make_config(options | ({"views": 1} if recipe == "reference" else {}))
    base, architecture = load_base(folder / BASE)
    card = architecture.point
    clouds = open_dataset(folder / ARCHIVE, points=card.points, least=card.least)
    student = build_student(base, architecture, load_vocabulary(folder / CLASSES), config)
    trainer = Trainer(student, clouds.unlabelled(), config)
    stages = watch_trainer()

    def on_batch(_: dict[str, Any]) -> None:
        answer(stages.seconds)
        stages.seconds = {}

    trainer.fit(on_batch, lambda _: stages.seconds.clear())


def run_plain(folder: Path, batch: int, answer: Answer) -> None:
    """The same with the plain step."""
    from plain_networks import PlainNetwork
    from plain_samples import PlainSamples
    from plain_step import train

    from crossmost.checkpoints.base import load_base
    from crossmost.checkpoints.run import build_student
    from crossmost.config import make_config
    from crossmost.runtime.vocabulary import load_vocabulary

    config = make_config({"recipe": "reference"})
    base, architecture = load_base(folder / BASE)
    student = build_student(base, architecture, load_vocabulary(folder / CLASSES), config)
    tower = student.images()
    samples = PlainSamples(folder / ARCHIVE, folder / PICTURES, VIEWS, tower.size, tower.grid)
    for made in train(PlainNetwork(student), samples, batch, architecture.point.learning_rate):
        answer(made["seconds"])


class Answers:
    """Says "ready" after the first step, and of each later one what it took; waits for a line after each."""

    def __init__(self) -> None:
        self.began: float | None = None

    def __call__(self, stages: dict[str, float]) -> None:
        """Answer a step and wait until the next one is asked for."""
        if self.began is None:
            print("ready", flush=True)
        else:
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            total = time.perf_counter() - self.began
            print(json.dumps({"seconds": stages | {"total": total}, "peak_bytes": peak}), flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self.began = time.perf_counter()


def main() -> None:
    way, folder, batch, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    if way == "plain":
        run_plain(Path(folder), int(batch), Answers())
    else:
        run_trainer(way, Path(folder), int(batch), Answers())


if __name__ == "__main__":
    main()
