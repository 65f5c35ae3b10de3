"""The clouds of `robustness.py`: what is changed, how much, and in which clouds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from corruptions import CORRUPTIONS, SEVERITIES, corrupt, generators_for, subset
from numpy.typing import NDArray
from pairs import MODELNET10, Clouds, load, scanned, select

from crossmost.data.meshes import read_mesh
from crossmost.data.parts import rotation_about
from crossmost.runtime.orientation import turn
from crossmost.runtime.preprocess import normalize

CHANGE_SEED = 0
"""The same changed clouds whatever the seed of the networks, as in ModelNet-C."""
ANY = "any"
TURNS = ("45", "90", "180", ANY)
WRONG_AXES = ("y", "x", "-x", "-y", "-z")
WHOLE = "1024"
"""Points of ModelNet10's clouds."""
FEW = ("64", "128", "256", "512")
MANY = (*FEW, WHOLE, "2048", "4096", "8192", "16384")
BATHTUBS = "modelnet40_airplane_bathtub_2048"
MESHES = "raw"
DRAWS = 8
"""Times that each mesh is sampled anew at each number of points."""
POOL = 1 << 17
"""Points drawn of a mesh, of which every cloud takes some."""
MESH_CLASSES = {
    "bedDouble": "bed", "chairDesk": "chair", "loungeSofa": "sofa", "tableRound": "table", "toilet": "toilet",
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Clouds to classify: (n, 3) each, NaN where there is no point; labels (M,) int64, -1: none of the classes."""

    clouds: Sequence[NDArray[np.floating]]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Change:
    """What is changed.

    Attributes:
        name: of the result files.
        levels: how much.
        make: of folder of the data, level, class names and stride: every so many clouds.
        data: name of the set.
        split: of the set.
        reference: level at which the same objects ought to get the same class; None: not compared.
    """

    name: str
    levels: tuple[str, ...]
    make: Callable[[Path, str, tuple[str, ...], int], Scene]
    data: str = MODELNET10
    split: str = "test"
    reference: str | None = None


@lru_cache(maxsize=8)
def tested_clouds(data: Path, name: str, stride: int, severity: str | None) -> Clouds:
    """Every so many of the test clouds of a set, scanned where a severity is given."""
    clouds = load(data, name)
    clouds = select(clouds, clouds.split == "test")
    clouds = select(clouds, np.arange(len(clouds.ids)) % stride == 0)
    return clouds if severity is None else scanned(clouds, severity)


def scene(clouds: Sequence[NDArray[np.floating]], names: Sequence[str], classes: Sequence[str]) -> Scene:
    """Clouds with the positions of their class names, -1 for those that are none of the classes."""
    position = {name: index for index, name in enumerate(classes)}
    return Scene(clouds, np.array([position.get(str(name), -1) for name in names], dtype=np.int64))


def on_tests(
    change: Callable[[Clouds, str], Sequence[NDArray[np.floating]]], severity: str | None = None
) -> Callable[[Path, str, tuple[str, ...], int], Scene]:
    """A change of ModelNet10's test clouds, clean or scanned."""

    def make(data: Path, level: str, classes: tuple[str, ...], stride: int) -> Scene:
        clouds = tested_clouds(data, MODELNET10, stride, severity)
        return scene(change(clouds, level), list(clouds.names), classes)

    return make


def corrupted(name: str, clouds: Clouds, level: str) -> list[NDArray[np.float64]]:
    """One of ModelNet-C's corruptions."""
    return corrupt(name, clouds.points, list(clouds.ids), int(level), CHANGE_SEED)


def turned_about_up(clouds: Clouds, level: str) -> list[NDArray[np.float64]]:
    """Turn about z by so many degrees, or by any angle."""
    generators = generators_for(list(clouds.ids), "yaw", 0, CHANGE_SEED)
    angles = [rng.uniform(0, 2 * np.pi) if level == ANY else np.radians(float(level)) for rng in generators]
    return [cloud @ rotation_about(2, angle).T for cloud, angle in zip(clouds.points, angles, strict=True)]


def with_wrong_axis(clouds: Clouds, level: str) -> list[NDArray[np.float64]]:
    """Clouds whose files have another axis up, read as if z were."""
    return [turn(cloud, "z", level) for cloud in clouds.points]


def thinned_at_random(clouds: Clouds, level: str) -> list[NDArray[np.float64]]:
    """A random subset of so many points."""
    generators = generators_for(list(clouds.ids), "points", int(level), CHANGE_SEED)
    return [subset(cloud, int(level), rng) for cloud, rng in zip(clouds.points, generators, strict=True)]


def thinned_evenly(clouds: Clouds, level: str) -> list[NDArray[np.float32]]:
    """The first so many: the sets are stored in farthest-point order."""
    return [cloud[: int(level)] for cloud in clouds.points]


def bathtubs(data: Path, level: str, classes: tuple[str, ...], stride: int) -> Scene:
    """Random subsets of real surface samples: the complete class that ModelNet10 shares with that set."""
    clouds = dense_bathtubs(data / f"{BATHTUBS}.npz", stride)
    generators = generators_for([str(row) for row in range(len(clouds))], "bathtubs", int(level), CHANGE_SEED)
    thinned = [subset(cloud, int(level), rng) for cloud, rng in zip(clouds, generators, strict=True)]
    return scene(thinned, ["bathtub"] * len(clouds), classes)


@lru_cache(maxsize=2)
def dense_bathtubs(path: Path, stride: int) -> NDArray[np.float32]:
    """Every so many of the test clouds, (n, 2048, 3), turned from y up, as that set is, to z up."""
    with np.load(path) as archive:
        named = archive["class_names"][archive["labels"]] == "bathtub"
        stored = archive["points"][named & (archive["split"] == "test")][::stride]
    return np.stack([turn(cloud, "y") for cloud in stored]).astype(np.float32)


def meshes(data: Path, level: str, classes: tuple[str, ...], stride: int) -> Scene:
    """Each mesh sampled several times; more points than an encoder takes are thinned by it."""
    clouds, names = [], []
    for path in sorted((data / MESHES).iterdir()):
        ids = [f"{path.stem} {draw}" for draw in range(0, DRAWS, min(stride, DRAWS))]
        for rng in generators_for(ids, "meshes", int(level), CHANGE_SEED):
            clouds.append(subset(pool(path), int(level), rng))
            names.append(MESH_CLASSES.get(path.stem, ""))
    return scene(clouds, names, classes)


@lru_cache(maxsize=32)
def pool(path: Path) -> NDArray[np.float32]:
    """Many points of a mesh, turned from y up, as their makers have it, to z up."""
    return normalize(turn(read_mesh(path, POOL).xyz, "y"))


def changes() -> list[Change]:
    """All of them."""
    found = [Change("clean", ("0",), on_tests(lambda clouds, _: list(clouds.points)))]
    for name in CORRUPTIONS:
        found.append(Change(name, tuple(map(str, SEVERITIES)), on_tests(partial(corrupted, name))))

    def scan(data: Path, level: str, classes: tuple[str, ...], stride: int) -> Scene:
        clouds = tested_clouds(data, MODELNET10, stride, level)
        return scene(list(clouds.points), list(clouds.names), classes)

    found.append(Change("scan", ("low", "moderate", "high"), scan))
    for prefix, severity in (("", None), ("scanned-", "moderate")):
        found += [
            Change(f"{prefix}yaw", TURNS, on_tests(turned_about_up, severity)),
            Change(f"{prefix}up-axis", WRONG_AXES, on_tests(with_wrong_axis, severity)),
        ]
    return [
        *found,
        Change("points", FEW, on_tests(thinned_at_random)),
        Change("even-points", FEW, on_tests(thinned_evenly)),
        Change("bathtub-points", MANY[:6], bathtubs, BATHTUBS, reference=WHOLE),
        Change("mesh-points", MANY, meshes, MESHES, "all", reference=WHOLE),
    ]


CHANGES = {change.name: change for change in changes()}
