"""Adaptation that never sees the names of the held-out classes, while their clouds are among its unlabelled ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from adaptation import machine
from networks import Network, load_networks
from open_set_splits import PARTS, held_out, look, measure_split, spread, target_clouds

from crossmost.checkpoints.run import load_run
from crossmost.export.source import trained_bank
from crossmost.export.workflow import CALIBRATION_CLOUDS
from crossmost.runtime.vocabulary import load_vocabulary

PAIR, MODE = "p1-moderate", "joint"
STRICT = f"{MODE}, known names only"


def unlabelled(target: Path, path: Path) -> None:
    """Write a target's archive without its labels."""
    with np.load(target) as archive:
        np.savez(path, **{name: archive[name] for name in ("points", "split", "ids")})


def train(folder: Path, own: Path, seed: int, known: Sequence[str]) -> Path:
    """Adapt the base of a seed with some of the class names, with the options of the run with all of them."""
    run = own / f"{PAIR}-{MODE}-{seed}"
    if not (run / "student.safetensors").is_file() or not (run / "finished").is_file():
        own.mkdir(parents=True, exist_ok=True)
        classes, clouds = own / f"classes-{seed}.npz", own / "target.npz"
        load_vocabulary(folder / "target-classes.npz").select(known).save(classes)
        unlabelled(folder / "target.npz", clouds)
        model = folder / f"{MODE}-{seed}"
        config = load_run(model).config
        same = ("epochs", "views", "watched", "kept_share")
        given = {name: getattr(config, name) for name in same} | {"seed": seed}
        again = ["--resume"] if (run / "config.yaml").is_file() else [
            "--base", model / "base.safetensors", "--vocabulary", classes]  # fmt: skip
        command = [sys.executable, "-m", "crossmost", "train", clouds, "--out", run, "--mode", MODE]
        settings = [f"--set={name}={value}" for name, value in given.items()]
        subprocess.run([str(part) for part in [*command, *settings, *again]], check=True)
        (run / "finished").touch()
    return run


def measure(work: Path, own: Path, seed: int, out: Path) -> None:
    """Train and measure one seed with one split of the classes, and write its result, once."""
    path = out / f"strict_{PAIR}_{seed}.json"
    if path.is_file():
        return
    folder = work / PAIR
    networks = load_networks(folder, [seed], [MODE])
    classes = networks[0].bank.vocabulary.names
    unknown = held_out(len(classes))[seed * PARTS]
    known = [name for index, name in enumerate(classes) if index not in unknown]
    run = load_run(train(folder, own, seed, known))
    bank = trained_bank(run.adapted, run.vocabulary, run.temperatures["adapted"][0])
    networks.append(Network(STRICT, seed, run.adapted, bank))
    test = target_clouds(folder, classes, "test")
    some = spread(target_clouds(folder, classes, "train"), CALIBRATION_CLOUDS)
    found = {
        "pair": PAIR, "data": "target.npz of the pair", "split": "test", "seed": seed, "n": len(test.labels),
        "n_threshold": len(some.labels), "held_out": [classes[index] for index in unknown],
        "options": {"mode": MODE, "epochs": run.config.epochs}, "machine": machine(),
        "networks": {
            seen.network.name: measure_split(seen, test, some, classes, unknown)
            for seen in look(networks, test, some, None)
        },
    }  # fmt: skip
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(path.name, flush=True)
