"""Training throughput: crossmost's trainer, by stage, against a plain implementation of the published step.

    python benchmarks/throughput.py --data DATA --work WORK [--device cuda] [--quick] [--tables-only]

Every way has a process of its own (throughput_worker.py) and they take turns, a whole training step each, so that
whatever else the machine does meets all of them. Time does not depend on the values of weights: the networks are in
full size with random ones. The clouds are real. What is in results/throughput/ already is not measured again. `--quick`
measures the small card for a few steps and writes neither results nor the README.

`--device cuda` measures the published setting on a GPU, crossmost also in bfloat16 and with loading processes, and
writes a result of its own, each time anew. As many ways are at work at once as fit into its memory, and a way that has
had its time takes no further turns. Where a way fails, the others' result is written all the same and the exit code is
1; where there is no GPU, it is 2.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from adaptation import machine
from tables import write_between
from throughput_table import WAYS, table
from throughput_worker import ARCHIVE, BASE, CLASSES, LOADING, PICTURES, VIEWS, Job
from turns import PAUSE, keep, spread

from crossmost.adaptation.devices import choose_device
from crossmost.checkpoints.base import Architecture, save_base
from crossmost.data.meshes import read_mesh
from crossmost.data.samples import usual_workers
from crossmost.data.views import render_views
from crossmost.errors import InputError
from crossmost.models.image_tower import ImageCard, build_image_tower
from crossmost.models.point_cards import load_point_card
from crossmost.models.student import DualEncoder
from crossmost.pretraining import tiny_image_tower
from crossmost.runtime.preprocess import normalize
from crossmost.runtime.vocabulary import Vocabulary

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "throughput"
WORKER = HERE / "throughput_worker.py"
DIM, COUNT_OF_CLASSES = 512, 15
TEXT = "random directions"
THREADS = 2
PATIENCE = {"cpu": threading.TIMEOUT_MAX, "cuda": 90.0}
"""Seconds after which a process that does not answer is taken for stuck."""
SHARE = {"cpu": math.inf, "cuda": 12.0}
"""Seconds of turns after which a way takes no further one: a machine with a GPU is lent for minutes."""


class Setting(NamedTuple):
    """What is trained, on what; `clouds` is the source of the clouds."""

    name: str
    card: str
    image: str
    clouds: str
    points: int
    batch: int
    turns: int


SETTINGS = (
    Setting("tiny", "point-tiny", "tiny", "modelnet10_vox30_1024", 512, 64, 8),
    Setting("small-tower", "point-bert-64x32", "tiny", "modelnet40_airplane_bathtub_2048", 2048, 16, 6),
    Setting("published", "point-bert-64x32", "ViT-B-16-quickgelu", "meshes", 8192, 4, 6),
)
GPU_SETTING = Setting("published-64", "point-bert-64x32", "ViT-B-16-quickgelu", "meshes", 8192, 64, 3)


def image_card(name: str) -> ImageCard:
    """The small tower that `crossmost pretrain` makes, or one of open_clip's."""
    return tiny_image_tower(DIM) if name == "tiny" else ImageCard(clip=name)


def read_clouds(source: str, points: int, count: int, data: Path) -> NDArray[np.float32]:
    """Clouds (count, points, 3): of an archive, or sampled from DATA's meshes as the published code does."""
    if source == "meshes":
        meshes = sorted((data / "raw").iterdir())
        times = -(-count // len(meshes))
        drawn = [read_mesh(mesh, times * points).xyz.reshape(points, times, 3) for mesh in meshes]
        return np.concatenate([cloud.transpose(1, 0, 2) for cloud in drawn])[:count].astype(np.float32)
    with np.load(data / f"{source}.npz") as archive:
        rows = np.linspace(0, len(archive["points"]) - 1, count).astype(int)
        return archive["points"][rows][:, :points].astype(np.float32)


def prepare(setting: Setting, data: Path, work: Path) -> Path:
    """Base, class vectors, clouds for one epoch without a repetition, and their pictures; once."""
    folder = work / "throughput" / setting.name
    if (folder / BASE).is_file():
        return folder
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tower = build_image_tower(image_card(setting.image))
    clouds = read_clouds(setting.clouds, setting.points, setting.batch * (setting.turns + 1), data)
    np.savez(folder / ARCHIVE, points=clouds)
    for row, cloud in enumerate(clouds):
        for view, picture in enumerate(render_views(normalize(cloud), count=VIEWS, size=tower.size)):
            Image.fromarray(picture).save(folder / PICTURES / f"{row}_{view}.png")
    rows = np.random.default_rng(0).standard_normal((COUNT_OF_CLASSES, DIM))
    names = [f"class {index}" for index in range(COUNT_OF_CLASSES)]
    Vocabulary.create(names, rows, logit_scale=100.0, tag=TEXT).save(folder / CLASSES)
    card = load_point_card(setting.card)
    architecture = Architecture(card, image_card(setting.image), DIM, TEXT)
    save_base(folder / BASE, DualEncoder(card, architecture.image, DIM), architecture, {})
    return folder


class Failed(Exception):
    """A process ended early, or is stuck."""


class Trainee:
    """A process that trains in one way; see throughput_worker.py."""

    def __init__(self, job: Job):
        self.job, self.had = job, 0.0  # seconds of its turns
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(job._asdict())],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self) -> None:
        """Let it go on.

        Raises:
            Failed: it has ended.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Failed from error

    def hear(self) -> str:
        """The next line it says.

        Raises:
            Failed: it ends or is stuck instead.
        """
        assert self.process.stdout is not None
        timer = threading.Timer(PATIENCE[self.job.device], self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:  # or an interrupted measurement would not end before it
            timer.cancel()
        if not line:
            raise Failed
        return line

    def turn(self) -> Any:
        """One turn's answer; None for one that has had its share of the time."""
        if self.had > SHARE[self.job.device]:
            return None
        time.sleep(PAUSE)  # until the threads of the turn before no longer spin
        began = time.perf_counter()
        self.ask()
        answer = json.loads(self.hear())
        self.had += time.perf_counter() - began
        return answer

    def close(self) -> None:
        """Let it end by itself, or its loading processes would outlive it and hold the GPU's memory."""
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


Answers = dict[str, list[dict[str, Any]]]


def take_turns(groups: list[list[Job]]) -> Iterator[tuple[Answers, list[str]]]:
    """One step of each way of a group in turn, group after group; after each, all answers and what failed so far."""
    answers: Answers = {}
    failed: list[str] = []

    def each(trainees: list[Trainee], do: Callable[[Trainee], Any]) -> list[tuple[Trainee, Any]]:
        """Do it with each of them; gives those with whom it worked, and what came of it."""
        worked = []
        for trainee in trainees:
            try:
                worked.append((trainee, do(trainee)))
            except (Failed, ValueError):  # or it says something else than an answer
                failed.append(trainee.job.name)
        return worked

    with ExitStack() as stack:
        waiting = [[Trainee(job) for job in group] for group in groups]
        for trainee in itertools.chain(*waiting):
            stack.enter_context(trainee.process)
            stack.callback(trainee.process.kill)
        # All load at once, before the first begins.
        waiting = [[trainee for trainee, _ in each(group, Trainee.hear)] for group in waiting]
        for group in waiting:
            group = [trainee for trainee, _ in each(group, Trainee.ask)]
            group = [trainee for trainee, _ in each(group, Trainee.hear)]
            for _ in range(groups[0][0].turns):
                taken = each(group, Trainee.turn)
                group = [trainee for trainee, _ in taken]
                for trainee, answer in taken:
                    answers.setdefault(trainee.job.name, []).extend([answer] if answer else [])
            for trainee in group:
                trainee.close()
            yield answers, failed


def cpu_groups(make: Callable[..., Job]) -> list[list[Job]]:
    """The ways on a CPU, all at once."""
    return [[make(recipe) for recipe in WAYS]]


def gpu_groups(make: Callable[..., Job], workers: int) -> list[list[Job]]:
    """The ways on a GPU, so many at once as fit into 80 GB; those with loading processes take all the CPU has."""
    ours = [recipe for recipe in WAYS if recipe != "plain"]
    narrow = partial(make, precision="bfloat16")
    loading = [how(recipe, workers=workers) for how in (make, narrow) for recipe in ours]
    return [
        [make(recipe) for recipe in WAYS],
        [narrow(recipe) for recipe in ours],
        *([job] for job in loading),
    ]


def measure(setting: Setting, groups: list[list[Job]], facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All ways of one setting: quartiles by stage, and ratios to the plain way; anew after each group.

    Args:
        setting: what is trained.
        groups: what each process does.
        facts: of the place, for the result.
    """
    load = os.getloadavg()[0]
    first = groups[0][0]
    for answers, failed in take_turns(groups):
        yield summary(answers) | {
            **setting._asdict(), "turns": first.turns, "threads": first.threads, "load_before": round(load, 2),
            "machine": machine(), "failed": failed, **facts,
        }  # fmt: skip


def summary(answers: Answers) -> dict[str, Any]:
    """Quartiles of each way's seconds by stage, of how many times faster than the plain way it is, and memory.

    What has loading processes is not compared with the plain way, which has none.
    """
    seconds: dict[str, dict[str, NDArray[np.float64]]] = {}
    for way, found in answers.items():
        stages = sorted({stage for each in found for stage in each["seconds"]})
        seconds[way] = {
            stage: np.array([each["seconds"].get(stage, 0.0) for each in found]) for stage in stages
        }
    plain = seconds.get("plain", {})
    return {
        "seconds": {
            way: {stage: spread(found) for stage, found in by.items()} for way, by in seconds.items()
        },
        "faster": {
            way: {stage: spread(ratios(plain[stage], found)) for stage, found in by.items() if stage in plain}
            for way, by in seconds.items()
            if plain and way != "plain" and not way.endswith(LOADING)
        },
        "taken": {way: len(found) for way, found in answers.items()},
        **{
            peak: {way: found[-1][peak] for way, found in answers.items()}
            for peak in ("peak_bytes", "peak_gpu_bytes")
            if all(peak in found[-1] for found in answers.values())
        },
    }


def ratios(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn by turn, as long as both took part."""
    both = min(len(one), len(other))
    return one[:both] / other[:both]


def measure_cpu(setting: Setting, turns: int, data: Path, work: Path) -> dict[str, Any]:
    """The result of one setting on the CPU, which is whole or none."""
    folder = prepare(setting, data, work)
    make = partial(Job, folder=str(folder), batch=setting.batch, turns=turns, threads=THREADS)
    (found,) = measure(setting, cpu_groups(make), {})
    if found["failed"]:
        raise SystemExit(f"{setting.name}: failed: {', '.join(found['failed'])}")
    return found


def measure_gpu(setting: Setting, turns: int, data: Path, work: Path, results: Path) -> list[str]:
    """Write the result of one setting on the GPU, anew after each group of ways; gives what failed."""
    folder = prepare(setting, data, work)
    gpu, workers = torch.cuda.get_device_name(), usual_workers(torch.device("cuda"))
    make = partial(
        Job, folder=str(folder), batch=setting.batch, turns=turns, threads=os.cpu_count() or 1, device="cuda"
    )
    return write_each(
        measure(setting, gpu_groups(make, workers), {"gpu": gpu, "workers": workers}),
        results / result_name(setting, gpu),
    )


def result_name(setting: Setting, gpu: str) -> str:
    """The file of a setting's result on a GPU."""
    return f"{setting.name}-{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def write_each(found: Iterator[dict[str, Any]], path: Path) -> list[str]:
    """Write each result over the one before, so that what was measured outlives what comes after; gives what failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    for result in found:
        path.write_text(json.dumps(result, indent=1) + "\n")
        failed = result["failed"]
    return failed


def main() -> int:
    quick = "the small card, few steps; print the table only"
    parser = common.parser(__doc__, work="bases, clouds and pictures", quick=quick)
    parser.add_argument("--device", choices=list(SHARE), default="cpu", help="what trains; cuda: a GPU")
    parser.add_argument("--prepare-only", action="store_true", help="make what is measured, measure nothing")
    common.add_tables_only(parser)
    arguments = parser.parse_args()
    try:
        choose_device(arguments.device)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    data, work = arguments.data, arguments.work
    results = work / "throughput-quick" if arguments.quick else RESULTS
    settings = SETTINGS if arguments.device == "cpu" else (GPU_SETTING,)
    failed: list[str] = []
    for setting in () if arguments.tables_only else SETTINGS[:1] if arguments.quick else settings:
        turns = 3 if arguments.quick else setting.turns
        if arguments.prepare_only:
            prepare(setting, data, work)
        elif arguments.device == "cpu":
            keep(setting.name, results, partial(measure_cpu, setting, turns, data, work))
        else:
            failed += measure_gpu(setting, turns, data, work, results)
    if arguments.prepare_only:
        return 0
    if arguments.quick or failed:
        print(table(results))
    else:
        write_between(HERE / "README.md", "throughput", table(results))
    for way in failed:
        print(f"FAILED: {way}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
