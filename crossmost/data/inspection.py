"""What is in a file or data set, and what about it would make accuracy bad."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from crossmost.data.catalog import printable
from crossmost.data.cloud_facts import CloudFacts, measure
from crossmost.data.dataset import CloudDataset, open_dataset
from crossmost.data.folder import VIEWS, FolderSource
from crossmost.data.official import HdfSource
from crossmost.data.upright import UNSURE, UpGuess, decide
from crossmost.errors import InputError

FEW = 0.1
"""The share of clouds from which on something is a matter of the data set and not of a few clouds."""

REPEATED = 0.05
"""The share of repeated points from which on a cloud counts as one with duplicates."""

FAR = 100.0
"""Distance from the origin, in extents of the cloud, from which on float32 software loses visible detail."""

IMBALANCE = 10.0
"""Ratio of the largest class to the smallest from which on one accuracy for all says little."""


@dataclass(frozen=True)
class Inspection:
    """What `inspect_path` found; lengths in the file's own unit.

    Attributes:
        path: what was inspected.
        clouds: how many it holds.
        measured: how many of them were read and measured, evenly spaced.
        points: smallest, median and largest number of usable points.
        extent: median size of the bounding box along x, y, z.
        centroid_offset: median distance of the centroid from the origin.
        up: the likely up axis; "unsure" where the shapes do not tell.
        unit: the likely unit: "m", "mm", "cm or mm", "none: normalised" or "unsure".
        duplicates: mean share of repeated points.
        invalid: points with NaN or infinity, or zeros far from the cloud, in all measured clouds.
        colors: smallest and largest stored colour, or None.
        classes: clouds by class folder or label; empty where there are no labels.
        pictured: clouds with pictures of the user's in `views/`.
        bad: reason by id of clouds that could not be read.
        warnings: what is likely to cost accuracy, and what to do about it.
    """

    path: str
    clouds: int
    measured: int
    points: tuple[int, int, int]
    extent: tuple[float, float, float]
    centroid_offset: float
    up: UpGuess
    unit: str
    duplicates: float
    invalid: int
    colors: tuple[float, float] | None
    classes: dict[str, int] = field(default_factory=dict)
    pictured: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for the screen."""
        share = ", ".join(f"{axis} {value:.2f}" for axis, value in self.up.share.items())
        colors = "none" if self.colors is None else f"{self.colors[0]:g} to {self.colors[1]:g} as stored"
        lines = [
            f"path         {self.path}",
            f"clouds       {self.clouds}"
            + (f" ({self.measured} measured)" if self.measured < self.clouds else ""),
            "points       min {}, median {}, max {}".format(*self.points),
            "extent       {:.4g} x {:.4g} x {:.4g} (x, y, z; median)".format(*self.extent),
            f"centroid     {self.centroid_offset:.4g} from the origin (median)",
            f"up axis      {self.up.axis} ({share})",
            f"unit         {self.unit}",
            f"duplicates   {self.duplicates:.1%} of the points",
            f"invalid      {self.invalid} points (NaN, infinite, or zeros far from the cloud)",
            f"colour       {colors}",
            f"classes      {len(self.classes) or 'none: no labels'}",
        ]
        lines += [f"  {name:<24} {count}" for name, count in self.classes.items()]
        if self.pictured:
            lines.append(f"pictures     of {self.pictured} of the clouds, in {VIEWS}/")
        lines += [f"bad          {reason}" for reason in self.bad.values()]
        return lines + [f"warning      {warning}" for warning in self.warnings]


def inspect_path(
    path: Path | str,
    *,
    split: str | None = None,
    points: int = 1024,
    least: int = 64,
    up_axis: str = "z",
    columns: str | None = None,
    most: int = 256,
) -> Inspection:
    """Measure a cloud or an evenly spaced sample of a data set, and warn of what makes accuracy bad.

    Args:
        path: any form that `dataset.open_dataset` takes.
        split: as there.
        points: the card's N, which sparser clouds are warned about.
        least: the larger of the card's G and K.
        up_axis: the axis the user takes to point up; another likely one is warned about.
        columns: as in `open_dataset`.
        most: clouds read.

    Raises:
        InputError: nothing to inspect: see `open_dataset`; or no cloud of it can be read.
    """
    dataset = open_dataset(path, split=split, points=points, least=least, up_axis=up_axis, columns=columns)
    facts = []
    chosen = dataset.spread(most)
    for index in chosen:
        try:
            facts.append(measure(dataset.read(index), up_axis))
        except InputError as error:
            dataset.bad[dataset.ids[index]] = str(error)
    if not facts:
        reason = next(iter(dataset.bad.values()))
        raise InputError(f"{path}: expected a cloud that can be read, none of {len(chosen)} can: {reason}")
    return _summarise(path, dataset, facts)


def _summarise(path: Path | str, dataset: CloudDataset, facts: list[CloudFacts]) -> Inspection:
    counts = [one.points for one in facts]
    extent = np.median([one.extent for one in facts], axis=0)
    stored = [one.colors for one in facts if one.colors is not None]
    up = decide(np.array([one.up for one in facts]))
    pictured = dataset.pictured()
    misnamed = [pictures_note(dataset, 0)] if pictured == 0 else []
    return Inspection(
        path=printable(str(path)),
        clouds=len(dataset),
        measured=len(facts) + len(dataset.bad),
        points=(min(counts), int(np.median(counts)), max(counts)),
        extent=(float(extent[0]), float(extent[1]), float(extent[2])),
        centroid_offset=float(np.median([one.offset for one in facts])),
        up=up,
        unit=_unit(facts),
        duplicates=float(np.mean([one.duplicates for one in facts])),
        invalid=sum(one.invalid for one in facts),
        colors=(min(one.low for one in stored), max(one.high for one in stored)) if stored else None,
        classes=_class_counts(dataset),
        pictured=pictured or 0,
        bad=dict(dataset.bad),
        warnings=[*_set_warnings(dataset, up), *misnamed, *_cloud_warnings(facts, dataset)],
    )


def _class_counts(dataset: CloudDataset) -> dict[str, int]:
    if dataset.labels is None or dataset.class_names is None:
        return {}
    count = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    return {name: int(count[label]) for label, name in enumerate(dataset.class_names) if count[label]}


def _unit(facts: list[CloudFacts]) -> str:
    """The unit in which everyday objects, centimetres to metres large, have this size; or normalised."""
    largest = np.array([one.extent.max() for one in facts])
    radius = np.array([one.radius for one in facts])
    if (
        np.allclose(radius, 1, atol=0.02)
        or np.allclose(largest, 1, atol=0.01)
        or np.allclose(largest, 2, atol=0.01)
    ):
        return "none: normalised"
    size = float(np.median(largest))
    known = ((0.02, 6.0, "m"), (20.0, 300.0, "cm or mm"), (300.0, 6000.0, "mm"))
    return next((unit for low, high, unit in known if low <= size < high), UNSURE)


def _set_warnings(dataset: CloudDataset, up: UpGuess) -> list[str]:
    """What is wrong with the data set as a whole."""
    given, warnings = dataset.preparation.up_axis, list(dataset.left_out)
    if dataset.bad:
        warnings.append(f"{len(dataset.bad)} clouds cannot be read: skipped, and refused above a tenth")
    if isinstance(dataset.source, HdfSource) and given == "z":
        warnings.append("ModelNet40 and ScanObjectNN distribute y-up clouds, read as z-up: give --up-axis y")
    elif up.axis not in (UNSURE, given):
        warnings.append(f"the shapes look {up.axis}-up but are read as {given}-up: try --up-axis {up.axis}")
    if isinstance(dataset.source, FolderSource):
        warnings += _folder_warnings(dataset, dataset.source)
    counts = _class_counts(dataset)
    if counts and max(counts.values()) >= IMBALANCE * min(counts.values()):
        few, many = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
        found = f"{counts[many]} {many}, {counts[few]} {few}"
        warnings.append(f"classes are unbalanced ({found}): read the accuracy per class")
    if lost := lost_labels(dataset):
        warnings.append(lost)
    return warnings


def pictures_note(dataset: CloudDataset, count: int) -> str:
    """One line about the folder of the user's own pictures, which has some of so many clouds."""
    if count == 0:
        named = printable(f"{VIEWS}/{dataset.ids[0]}/")
        return (
            f"no picture in {VIEWS}/ is of a cloud: its folders are named as the clouds are, such as {named}"
        )
    return f"own pictures of {count} of {len(dataset)} clouds, in {VIEWS}/"


def lost_labels(dataset: CloudDataset) -> str | None:
    """One line where clouds outside the class folders leave a data set without labels."""
    below = Counter("/" in one for one in dataset.ids)
    if dataset.labels is None and isinstance(dataset.source, FolderSource) and below[True] and below[False]:
        return f"no labels: {below[False]} of {len(dataset)} clouds lie outside the class folders"
    return None


def _folder_warnings(dataset: CloudDataset, source: FolderSource) -> list[str]:
    """What the names of files and folders tell of a wrong axis or a wrong folder."""
    given, warnings = dataset.preparation.up_axis, []
    suffixes = Counter(PurePath(source.files[row]).suffix.lower() for row in dataset.rows.tolist())
    glb, others = suffixes[".glb"], " ".join(sorted(set(suffixes) - {".glb"}))
    if glb and given != "y" and others:
        warnings.append(
            f"{glb} of {len(dataset)} files are .glb, y-up by specification and read as {given}-up like the {others}: "
            "unless those are y-up too, no --up-axis is right for all: give one folder at a time"
        )
    elif glb and given != "y":
        warnings.append(f".glb is y-up by specification, and read as {given}-up: give --up-axis y")
    only = dataset.class_names[0] if dataset.class_names and len(dataset.class_names) == 1 else None
    if only is not None and all(one.startswith(f"{only}/") for one in dataset.ids):
        inner = printable(str(source.folder / only))
        warnings.append(
            f"all clouds lie in {only}/, which is taken for their class: if it is none, give {inner}"
        )
    return warnings


def _cloud_warnings(facts: list[CloudFacts], dataset: CloudDataset) -> list[str]:
    """What is wrong with a good part of the clouds."""
    wanted, least, total = dataset.preparation.points, dataset.preparation.least, len(facts)
    sparse = sum(one.points < wanted for one in facts)
    tiny = sum(one.points < least for one in facts)
    invalid = sum(one.invalid > 0 for one in facts)
    repeated = sum(one.duplicates > REPEATED for one in facts)
    lumps = sum(one.extent.max() == 0 for one in facts)
    far = sum(one.offset > FAR * one.extent.max() > 0 for one in facts)
    floors = sum(one.floor for one in facts)
    warnings = []
    if sparse > total / 2:
        warnings.append(
            f"{sparse} of {total} clouds have fewer than {wanted} points (--points: your encoder's)"
        )
    if tiny:
        warnings.append(
            f"{tiny} clouds have fewer than {least} points, which are repeated: hard to tell apart"
        )
    if invalid:
        warnings.append(
            f"{invalid} clouds hold NaN, infinity or zeros far from the cloud: such points are dropped"
        )
    if repeated > FEW * total:
        warnings.append(
            f"{repeated} clouds repeat points, which leaves less shape in each patch: save each once"
        )
    if lumps:
        warnings.append(f"{lumps} clouds have all their points in one place")
    if far > FEW * total:
        warnings.append(
            f"{far} clouds lie far from the origin: float32 files lose detail there, centre first"
        )
    if floors > FEW * total:
        warnings.append(f"{floors} clouds seem to stand on a piece of floor or table: cut the plane off")
    return warnings + _color_warnings(facts)


def _color_warnings(facts: list[CloudFacts]) -> list[str]:
    warnings = []
    stored = [one.colors for one in facts if one.colors is not None]
    if any(colors.floating and not colors.unit for colors in stored):
        warnings.append("colours are floats above 1 and read as 0..255: see that they are colours")
    if stored and all(one.flat_color for one in facts if one.colors is not None):
        warnings.append("each cloud has one colour only, which tells nothing: --colour none leaves it out")
    if 0 < len(stored) < len(facts):
        without = len(facts) - len(stored)
        warnings.append(f"{without} of {len(facts)} clouds have no colour: --colour none treats all alike")
    return warnings
