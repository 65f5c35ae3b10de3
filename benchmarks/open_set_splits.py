"""A pair's classes parted into known and unknown ones, and one network measured with the known ones alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from networks import Network, embed
from numpy.typing import NDArray
from open_set_measures import by_rule, chosen, detection

ROUNDS, PARTS = 3, 3
"""Every round draws the classes anew and holds each part of them out once."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Clouds with their classes' positions in the whole vocabulary, -1 for a class outside it."""

    clouds: Sequence[NDArray[np.floating]]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Seen:
    """What one network makes of them: unit rows of the test, threshold and foreign clouds."""

    network: Network
    test: NDArray[np.float32]
    some: NDArray[np.float32]
    foreign: NDArray[np.float32] | None


def target_clouds(folder: Path, classes: Sequence[str], split: str) -> Labelled:
    """A split of a pair's target."""
    with np.load(folder / "target.npz") as archive:
        chosen = archive["split"] == split
        names = archive["class_names"][archive["labels"][chosen]]
        return Labelled(archive["points"][chosen], np.array([list(classes).index(name) for name in names]))


def spread(clouds: Labelled, most: int) -> Labelled:
    """So many clouds, evenly spaced, as a run keeps them for its export."""
    rows = np.unique(np.linspace(0, len(clouds.labels) - 1, most).round().astype(int))
    return Labelled([clouds.clouds[row] for row in rows], clouds.labels[rows])


def held_out(classes: int) -> list[list[int]]:
    """The classes that are unknown in each split: every class once a round."""
    return [
        sorted(int(one) for one in part)
        for seed in range(ROUNDS)
        for part in np.array_split(np.random.default_rng(seed).permutation(classes), PARTS)
    ]


def look(networks: Sequence[Network], test: Labelled, some: Labelled, foreign: Labelled | None) -> list[Seen]:
    """Embed everything with every network, in one go."""
    parts = [test, some] if foreign is None else [test, some, foreign]
    edges = np.cumsum([len(part.labels) for part in parts])[:-1]
    rows = embed(networks, [cloud for part in parts for cloud in part.clouds])
    return [
        Seen(network, *[*np.split(found, edges), None][:3])
        for network, found in zip(networks, rows, strict=True)
    ]


def measure_split(
    seen: Seen, test: Labelled, some: Labelled, classes: Sequence[str], unknown: Sequence[int]
) -> dict[str, Any]:
    """One network with some classes taken out of its vocabulary, unless it never had them."""
    names = [name for index, name in enumerate(classes) if index not in unknown]
    bank = chosen(seen.network.bank, names)
    position = np.array([names.index(name) if name in names else -1 for name in classes])
    labels = position[test.labels]
    known, others = seen.test[labels >= 0], seen.test[labels < 0]
    return {
        "accuracy of known": float((bank.scores(known).argmax(axis=1) == labels[labels >= 0]).mean()),
        "scores": detection(bank, known, others),
        "rules": by_rule(bank, known, labels[labels >= 0], others, (seen.some, position[some.labels])),
    }
