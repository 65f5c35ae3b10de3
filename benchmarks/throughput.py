"""Training throughput: crossmost's trainer, by stage, against a plain implementation of the published step.

    python benchmarks/throughput.py --data DATA --work WORK [--quick] [--tables-only]

Every way has a process of its own (throughput_worker.py) and they take turns, a whole training step each, so that
whatever else the machine does meets all of them. Time does not depend on the values of weights: the networks are in
full size with random ones. The clouds are real. What is in results/throughput/ already is not measured again. `--quick`
measures the small card for a few steps and writes neither results nor the README.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
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
from throughput_worker import ARCHIVE, BASE, CLASSES, PICTURES, VIEWS
from turns import PAUSE, keep, spread

from crossmost.checkpoints.base import Architecture, save_base
from crossmost.data.meshes import read_mesh
from crossmost.data.views import render_views
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
    Setting("published", "point-bert-64x32", "ViT-B-16-quickgelu", "meshes", 8192, 4, 3),
)


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


def start(way: str, folder: Path, batch: int) -> subprocess.Popen[str]:
    """A process that trains in one way; see throughput_worker.py."""
    command = [sys.executable, WORKER, way, folder, batch, THREADS]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    return subprocess.Popen(
        list(map(str, command)), env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line a process says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(map(str, process.args))} ended early")
    return line


def take_turns(setting: Setting, turns: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """One step of each way in turn, so often; gives all answers."""
    answers: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        processes = {way: stack.enter_context(start(way, folder, setting.batch)) for way in WAYS}
        for process in processes.values():
            stack.callback(process.terminate)
        for process in processes.values():
            read_line(process)
        for _ in range(turns):
            for way, process in processes.items():
                assert process.stdin is not None
                time.sleep(PAUSE)  # until the threads of the turn before no longer spin
                process.stdin.write("\n")
                process.stdin.flush()
                answers[way].append(json.loads(read_line(process)))
    return answers


def measure(setting: Setting, turns: int, data: Path, work: Path) -> dict[str, Any]:
    """All ways of one setting: quartiles by stage, and ratios to the plain way, turn by turn."""
    folder = prepare(setting, data, work)
    load = os.getloadavg()[0]
    answers = take_turns(setting, turns, folder)
    return summary(answers) | {
        **setting._asdict(), "turns": turns, "threads": THREADS, "load_before": round(load, 2), "machine": machine()
    }  # fmt: skip


def summary(answers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Quartiles of each way's seconds by stage, of how many times faster than the plain way it is, and memory."""
    seconds: dict[str, dict[str, NDArray[np.float64]]] = {}
    for way, found in answers.items():
        stages = sorted({stage for each in found for stage in each["seconds"]})
        seconds[way] = {
            stage: np.array([each["seconds"].get(stage, 0.0) for each in found]) for stage in stages
        }
    plain = seconds["plain"]
    return {
        "seconds": {
            way: {stage: spread(found) for stage, found in by.items()} for way, by in seconds.items()
        },
        "faster": {
            way: {stage: spread(plain[stage] / found) for stage, found in by.items() if stage in plain}
            for way, by in seconds.items()
            if way != "plain"
        },
        "peak_bytes": {way: found[-1]["peak_bytes"] for way, found in answers.items()},
    }


def main() -> None:
    quick = "the small card, few steps; print the table only"
    parser = common.parser(__doc__, work="bases, clouds and pictures", quick=quick)
    parser.add_argument("--prepare-only", action="store_true", help="make what is measured, measure nothing")
    common.add_tables_only(parser)
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    results = work / "throughput-quick" if arguments.quick else RESULTS
    for setting in () if arguments.tables_only else SETTINGS[:1] if arguments.quick else SETTINGS:
        if arguments.prepare_only:
            prepare(setting, data, work)
        else:
            turns = 3 if arguments.quick else setting.turns
            keep(setting.name, results, partial(measure, setting, turns, data, work))
    if arguments.prepare_only:
        return
    if arguments.quick:
        print(table(results))
    else:
        write_between(HERE / "README.md", "throughput", table(results))


if __name__ == "__main__":
    main()
