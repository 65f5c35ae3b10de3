"""What the timing benchmarks share: bundles, clouds, processes that take turns, result files."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from adaptation import crossmost
from export_parity import PAIR, SIZES, adapt, make_bases
from pairs import prepare as prepare_pair

from crossmost.data.meshes import read_mesh

MESHES = 8
PAUSE, BURST = 0.25, 4
"""Seconds before each turn, until the threads of the turn before no longer spin; and calls a turn, the first of which
is not counted: it finds the caches full of another way's weights."""


def make_bundle(card: str, work: Path, data: Path) -> tuple[Path, Path]:
    """The run and the bundle of a card, once."""
    prepare_pair(data, PAIR, work / PAIR)
    run, bundle = adapt(card, make_bases(work)[card], work), work / f"{card}-runtime.bundle"
    if not (bundle / "manifest.json").is_file():
        verify = [
            "--verify",
            work / PAIR / "target.npz",
            "--split",
            "test",
            "--verify-clouds",
            SIZES[card][1],
        ]
        crossmost("export", run, "--int8", "--out", bundle, *verify)
    return run, bundle


def make_clouds(data: Path, points: int, work: Path) -> Path:
    """Some of the meshes as clouds (MESHES, points, 3) float32."""
    path = work / f"meshes-{points}.npy"
    meshes = sorted((data / "raw").iterdir())[:MESHES]
    np.save(path, np.stack([read_mesh(mesh, points).xyz.astype(np.float32) for mesh in meshes]))
    return path


def take_turns(processes: dict[str, subprocess.Popen[str]], turns: int) -> dict[str, list[dict[str, Any]]]:
    """Let each process answer a few times in turn, so often; gives all answers that count."""
    answers: dict[str, list[dict[str, Any]]] = {way: [] for way in processes}
    for _ in range(turns):
        for way, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            time.sleep(PAUSE)
            for call in range(BURST):
                process.stdin.write("\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
                if call:
                    answers[way].append(answer)
    return answers


def stage_spreads(answers: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Quartiles of each stage."""
    return {stage: spread([each["seconds"][stage] for each in answers]) for stage in answers[0]["seconds"]}


def spread(values: Any) -> list[float]:
    """First quartile, median and third quartile."""
    return [float(value) for value in np.percentile(np.asarray(values, dtype=float), [25, 50, 75])]


def keep(name: str, results: Path, measured: Callable[[], dict[str, Any]]) -> None:
    """Measure and write a result, once."""
    path = results / f"{name}.json"
    if not path.is_file():
        results.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measured(), indent=1) + "\n")
        print(f"{name}: done", file=sys.stderr)
