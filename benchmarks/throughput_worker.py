"""A process of benchmarks/throughput.py that trains in one way, a step for each line it reads.

    python benchmarks/throughput_worker.py JOB

JOB is a `Job` as JSON. Recipes: `plain` (plain_step.py), `reference` and `crossmost` (crossmost's own trainer with
that recipe). The folder is made by throughput.py. The process says "here" when its networks are loaded, and begins at a
line, so that all can load at once and take turns on the device. After "ready" each answer is a line of JSON: seconds by
stage, and the peak memory of the process so far, on a GPU also that of the GPU. A GPU is waited for at both ends of a
stage, since it only takes note of what it is told.

With loading processes there are no stages, and nothing is waited for. A step that took turns with others would find its
batch loaded in the meantime: all steps are made in one run, what was loaded ahead during the first ones is thrown away,
and each answer is about as many steps, back to back, as there are processes: they begin together and are done together.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

BASE, CLASSES, ARCHIVE, PICTURES = "base.safetensors", "classes.npz", "clouds.npz", "pictures"
VIEWS = 2
"""Pictures of a cloud on the disk, for the plain way."""
QUEUED = 2
"""Batches that torch has each loading process load ahead."""
WARM_UP = 2
"""Steps before what was loaded ahead is thrown away."""
WATCHED = 8
"""Clouds that crossmost's trainer looks at before the first step, at most: few, for no step depends on how many."""
FIRST_ROWS = 4
"""Read for the plain way's first step on a GPU, which only warms up: there a whole batch is half a minute."""
LOADING = "loading"


class Job(NamedTuple):
    """What a process does, in words that JSON has."""

    recipe: str
    folder: str
    batch: int
    turns: int
    threads: int
    device: str = "cpu"
    precision: str = "float32"
    workers: int = 0  # processes that load

    @property
    def name(self) -> str:
        """Of the way to train, in the result."""
        extras = [] if self.precision == "float32" else [self.precision]
        return "-".join([self.recipe, *extras, *([LOADING] if self.workers else [])])

    @property
    def thrown_away(self) -> range:
        """Which batches are not trained by: what can have been loaded ahead."""
        return range(WARM_UP, WARM_UP + QUEUED * self.workers)

    @property
    def batches(self) -> int:
        """All that are loaded, those of the first steps included."""
        return WARM_UP + 1 + QUEUED * self.workers + self.turns * max(1, self.workers)


def waiting_for(device: str) -> Callable[[], None]:
    """What waits until a device has done what it was told."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


class Stages:
    """Seconds by stage of functions that call each other: the time within an inner one is not the outer one's."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []
        self._wait = wait

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Count what a function of a module or class takes as `stage`, from now on."""
        function = getattr(owner, name)

        @wraps(function)
        def watched(*given: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            self._wait()
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self._wait()
                took = time.perf_counter() - began
                self.seconds[stage] = self.seconds.get(stage, 0.0) + took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took

        setattr(owner, name, watched)

    def watch_trainer(self) -> None:
        """Tell the stages of crossmost's trainer apart, without a change to it."""
        from crossmost.adaptation import diagnosis, step, trainer
        from crossmost.data import dataset, samples

        self.watch(dataset.CloudDataset, "try_load", "read")
        self.watch(samples, "render_views", "render")
        self.watch(samples.TrainingSamples, "__getitem__", "augment")
        self.watch(samples, "collate_training", "augment")
        self.watch(diagnosis, "cut", "group")
        self.watch(step, "cut", "group")
        self.watch(trainer.Trainer, "_label", "teacher")
        self.watch(trainer.Trainer, "_train_batch", "student")
        self.watch(trainer.Trainer, "_optimizer_step", "student")


Begin = Callable[[], None]
Answer = Callable[[dict[str, float]], None]


def run_trainer(job: Job, begin: Begin, answer: Answer) -> None:
    """Train with crossmost's trainer, each step answered; the first one warms up."""
    from crossmost.adaptation.trainer import Trainer
    from crossmost.checkpoints.base import load_base
    from crossmost.checkpoints.run import build_student
    from crossmost.config import make_config
    from crossmost.data.dataset import open_dataset
    from crossmost.runtime.vocabulary import load_vocabulary

    options: dict[str, Any] = {
        "recipe": job.recipe, "batch_size": job.batch, "watched": min(job.batch, WATCHED), "device": job.device,
        "precision": job.precision, "workers": job.workers,
    }  # fmt: skip
    # As published a random one of the views on the disk is opened, so only that one is rendered.
    config = make_config(options | ({"views": 1} if job.recipe == "reference" else {}))
    folder = Path(job.folder)
    base, architecture = load_base(folder / BASE)
    card = architecture.point
    clouds = open_dataset(folder / ARCHIVE, points=card.points, least=card.least).unlabelled()
    # An epoch that ended before the last step would be reviewed in between: clouds come again instead.
    needed = max(len(clouds), job.batches * job.batch)
    clouds = clouds.subset(np.arange(needed) % len(clouds))
    student = build_student(base, architecture, load_vocabulary(folder / CLASSES), config)
    begin()
    trainer = Trainer(student, clouds, config)
    stages = Stages(waiting_for(job.device))
    if job.workers:
        throw_away(trainer, job.thrown_away)
    else:
        stages.watch_trainer()

    def on_batch(_: dict[str, Any]) -> None:
        answer(stages.seconds)
        stages.seconds = {}

    trainer.fit(on_batch, lambda _: stages.seconds.clear())


def throw_away(trainer: Any, which: range) -> None:
    """Let a trainer skip some batches, by their numbers, as if none of their clouds could be read."""
    train_batch, numbers = trainer._train_batch, itertools.count()
    trainer._train_batch = lambda batch: None if next(numbers) in which else train_batch(batch)


def run_plain(job: Job, begin: Begin, answer: Answer) -> None:
    """The same with the plain step."""
    from plain_networks import PlainNetwork
    from plain_samples import PlainSamples
    from plain_step import train

    from crossmost.checkpoints.base import load_base
    from crossmost.checkpoints.run import build_student
    from crossmost.config import make_config
    from crossmost.runtime.vocabulary import load_vocabulary

    config = make_config({"recipe": "reference"})
    folder = Path(job.folder)
    base, architecture = load_base(folder / BASE)
    student = build_student(base, architecture, load_vocabulary(folder / CLASSES), config)
    tower = student.images()
    samples = PlainSamples(folder / ARCHIVE, folder / PICTURES, VIEWS, tower.size, tower.grid)
    begin()
    steps = train(
        PlainNetwork(student).to(job.device), samples, job.batch, architecture.point.learning_rate,
        wait=waiting_for(job.device), first_rows=job.batch if job.device == "cpu" else FIRST_ROWS,
    )  # fmt: skip
    for made in steps:
        answer(made["seconds"])


class Answers:
    """Says "ready" after the first step, and of each later one what it took; waits for a line after each."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.began: float | None = None

    def begin(self) -> None:
        """Say that the networks are loaded, and wait for the line to begin."""
        say("here")
        self.next_line()

    def __call__(self, stages: dict[str, float]) -> None:
        """Answer a step and wait until the next one is asked for."""
        if self.began is None:
            say("ready")
        else:
            self.say_seconds(stages | {"total": time.perf_counter() - self.began})
        self.next_line()
        self.began = time.perf_counter()

    def say_seconds(self, seconds: dict[str, float]) -> None:
        """An answer."""
        answer: dict[str, Any] = {
            "seconds": seconds,
            "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        if self.job.device == "cuda":
            answer["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        say(json.dumps(answer))

    @staticmethod
    def next_line() -> None:
        """Wait for a line; where there will be none, the process ends."""
        if not sys.stdin.readline():
            raise SystemExit


class RunAnswers(Answers):
    """Says "ready" after the steps that warm up, and of each turn of later ones what a step took; waits for nobody."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.made = -WARM_UP - 1

    def __call__(self, stages: dict[str, float]) -> None:
        """Count a step; after the last one, wait until no more is asked for, and end."""
        self.made += 1
        if self.made < 0 or self.made % self.job.workers:
            return
        now = time.perf_counter()
        if self.began is None:
            say("ready")
        else:
            self.say_seconds({"total": (now - self.began) / self.job.workers})
        self.began = now
        while self.made == self.job.turns * self.job.workers:
            self.next_line()


def say(line: str) -> None:
    """Say a line to benchmarks/throughput.py."""
    print(line, flush=True)


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    answers = RunAnswers(job) if job.workers else Answers(job)
    run = run_plain if job.recipe == "plain" else run_trainer
    run(job, answers.begin, answers)


if __name__ == "__main__":
    main()
