"""A data set of clouds, whatever it is stored as: `open_dataset` finds the form, `CloudDataset` loads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossmost.data.archive import catalog_archive, is_archive
from crossmost.data.catalog import UNKNOWN, Catalog, Source, printable
from crossmost.data.class_names import positions_in
from crossmost.data.columns import Cloud, check_columns
from crossmost.data.evidence import digest_of, files_evidence
from crossmost.data.folder import VIEWS, FolderSource, catalog_file, catalog_folder
from crossmost.data.official import catalog_official, is_official
from crossmost.data.orientation import check_up_axis, rotate_to_z_up
from crossmost.data.pictures import Pictures, picture_paths
from crossmost.errors import InputError
from crossmost.runtime.colors import MISSING_COLOR
from crossmost.runtime.preprocess import InvalidCloud, prepare

MESH_SAMPLES = 8192
"""Points drawn from a mesh before thinning, at least: many, thinned, cover a surface more evenly than few."""

BAD_SHARE = 0.1
"""The share of bad files above which a data set is refused instead of thinned out."""


@dataclass(frozen=True)
class Preparation:
    """How a file's points become the encoder's input; see `open_dataset` for the fields."""

    points: int = 1024
    least: int = 64
    up_axis: str = "z"
    columns: str | None = None  # done by whoever reads the file
    color: str = "auto"
    channels: int = 3
    scattered: bool = False

    def __post_init__(self) -> None:
        check_up_axis(self.up_axis)
        if self.color not in ("auto", "none"):
            raise InputError(f"expected colour auto or none, found {self.color!r}")
        if self.channels not in (3, 6):
            raise InputError(f"expected 3 channels (xyz) or 6 (xyz and rgb), found {self.channels}")
        if self.points < 1 or self.least < 1:
            raise InputError(f"expected at least one point a cloud, found {self.points} and {self.least}")

    def apply(self, cloud: Cloud) -> NDArray[np.float32]:
        """Turn, normalise and thin: (n, 3 or 6) float32; raises InvalidCloud."""
        return prepare(self.turn(cloud), most=self.points, least=self.least, scattered=self.scattered)

    def turn(self, cloud: Cloud) -> NDArray[np.float64]:
        """Rotate to z up and colour: (N, 3 or 6) float64, all points there are, in the file's own unit."""
        points = rotate_to_z_up(cloud.xyz, self.up_axis)
        if self.channels == 3:
            return points
        rgb = cloud.rgb if self.color == "auto" and cloud.rgb is not None else None
        colors = np.full(points.shape, MISSING_COLOR) if rgb is None else rgb.astype(np.float64)
        return np.concatenate([points, colors], axis=1)


class WholeCloud(NamedTuple):
    """What `CloudDataset.load_whole` gives, and at which index."""

    row: int
    points: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CloudDataset:
    """Clouds by index, loaded one at a time; small enough to hand to a worker process.

    A file that cannot be read is found out when it is loaded. `load` raises; a loop over many clouds calls
    `try_load`, which names the file in `bad` and returns None, and calls `probe` before it starts, so that a
    data set with many bad files ends the run there. A worker process has a `bad` of its own, which `samples.load`
    brings to the process that reports. Subsets share `bad` with the whole.

    Attributes:
        name: of the data set, for reports.
        split: the selected split, or "all".
        ids: one per cloud, unique.
        class_names: of the whole data set, or None.
        labels: (len,) int64 into `class_names`, or None where any cloud's class is unknown. For reporting
            only: training is given `unlabelled()`.
        splits: all splits of the data set, whichever is selected; empty where it has none.
        left_out: what lies there and is no part of the data set, a line each.
        bad: reason by id of the clouds that could not be loaded so far.
    """

    name: str
    split: str
    ids: tuple[str, ...]
    class_names: tuple[str, ...] | None
    labels: NDArray[np.int64] | None
    source: Source
    rows: NDArray[np.int64]
    folder: Path
    preparation: Preparation
    splits: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    bad: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Cloud:
        """Read a cloud as it is stored: not rotated, normalised or thinned.

        Raises:
            InputError: it cannot be read.
        """
        try:
            return self.source.read(int(self.rows[index]))
        except InputError as error:
            if self.ids[index] in str(error):
                raise  # the reader of a file names it; rows of one file are told apart by their ids
            raise InputError(f"{self.ids[index]}: {error}") from error

    def load(self, index: int) -> NDArray[np.float32]:
        """Read a cloud and prepare it for the encoder.

        Returns:
            (n, 3 or 6) float32: z up, in the unit sphere, thinned to `points`, filled up to `least`; colours
            in [0, 1] in columns 3 to 5.

        Raises:
            InputError: it cannot be read or holds no usable point.
        """
        try:
            return self.preparation.apply(self.read(index))
        except InvalidCloud as error:
            raise InputError(f"{self.ids[index]}: {error}") from error

    def load_whole(self, index: int) -> NDArray[np.float64]:
        """Read a cloud for somebody who prepares it, as a classifier does.

        Returns:
            (N, 3 or 6) float64: z up, in the file's own unit, with all its points; colours in columns 3 to 5.

        Raises:
            InputError: it cannot be read or holds no usable point.
        """
        return self.preparation.turn(self.read(index))

    def whole(self) -> Iterator[WholeCloud]:
        """The index of each cloud, and what `load_whole` gives; those that cannot be read are recorded in `bad`."""
        for index, name in enumerate(self.ids):
            try:
                points = self.load_whole(index)
            except InputError as error:
                self.bad[name] = str(error)
            else:
                yield WholeCloud(index, points)

    def try_load(self, index: int) -> NDArray[np.float32] | None:
        """Load a cloud, or record in `bad` why it cannot be and return None."""
        try:
            return self.load(index)
        except InputError as error:
            self.bad[self.ids[index]] = str(error)
            return None

    def spread(self, most: int) -> list[int]:
        """At most `most` indices, evenly spaced from the first to the last."""
        if len(self) <= most:
            return list(range(len(self)))
        return [int(index) for index in np.linspace(0, len(self) - 1, most).round()]

    def probe(self, most: int = 512) -> None:
        """Load clouds to see whether the data set is sound: all of a small one, else `most`, evenly spaced.

        Raises:
            InputError: more than a tenth of them are bad; it names the first three.
        """
        chosen = self.spread(most)
        bad = [self.ids[index] for index in chosen if self.try_load(index) is None]
        if len(bad) > BAD_SHARE * len(chosen):
            first = "; ".join(self.bad[one] for one in bad[:3])
            found = f"expected at most a tenth of bad files, found {len(bad)} of {len(chosen)} tried"
            raise InputError(f"{self.name}: {found}: {first}")

    def views(self, index: int) -> Pictures | None:
        """The pictures the user put in `views/<id>/`, .png or .jpg, 2.png before 10.png; None where there are none.

        They are opened one by one as they are looked at; one that cannot be read is None and recorded in `bad`.
        """
        paths = picture_paths(self.folder / VIEWS / self.ids[index])

        def note(path: Path, reason: str) -> None:
            name = f"{VIEWS}/{self.ids[index]}/{printable(path.name)}"
            self.bad[name] = f"{printable(str(path))}: expected a picture, found {printable(reason)}"

        return Pictures(paths, note) if paths else None

    def pictured(self) -> int | None:
        """How many clouds the user has pictures of in `views/`; None where there is no such folder."""
        folder = self.folder / VIEWS
        return sum(bool(picture_paths(folder / name)) for name in self.ids) if folder.is_dir() else None

    def contents(self) -> str:
        """A digest of what the clouds are made of, the same for a copy; see `evidence` of the source."""
        return digest_of(self.source.evidence(self.rows.tolist()))

    def views_contents(self) -> str:
        """A digest of the user's pictures of the clouds: names, sizes and some contents; "" where there are none."""
        folder = self.folder / VIEWS
        files = (
            [path for name in self.ids for path in picture_paths(folder / name)] if folder.is_dir() else []
        )
        if not files:
            return ""
        names = (os.fsencode(path.relative_to(folder).as_posix()) for path in files)
        return digest_of(chain(names, files_evidence(files)))

    def subset(self, indices: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]) -> CloudDataset:
        """The clouds at some indices, in that order, or where a mask is true."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, ids=tuple(self.ids[i] for i in chosen), labels=labels, rows=self.rows[chosen])

    def unlabelled(self) -> CloudDataset:
        """The same clouds without labels and class names: what training may see."""
        return replace(self, labels=None, class_names=None)

    def label_indices(self, vocabulary: Sequence[str]) -> NDArray[np.int64]:
        """The labels as positions in a vocabulary; see `class_names.positions_in`.

        Args:
            vocabulary: class names, C of them.

        Returns:
            (len,) int64 in 0..C-1.

        Raises:
            InputError: no labels, a class that the vocabulary lacks, or two of its names that read alike.
        """
        if self.labels is None or self.class_names is None:
            raise InputError(f"{self.name}: expected class folders or labels to compare with, found none")
        present = np.unique(self.labels)
        try:
            positions = positions_in(vocabulary, [self.class_names[label] for label in present])
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error
        return positions[np.searchsorted(present, self.labels)]


def open_dataset(
    path: Path | str,
    *,
    split: str | None = None,
    points: int | None = 1024,
    least: int = 64,
    up_axis: str = "z",
    columns: str | None = None,
    color: str = "auto",
    channels: int = 3,
    scattered: bool = False,
    labelled: bool = True,
) -> CloudDataset:
    """Open clouds stored in any of the forms that README lists, without reading them.

    Args:
        path: a folder of clouds and meshes (`folder.catalog_folder`), official .h5 files
            (`official.catalog_official`), one .npz of many clouds (`archive.catalog_archive`), or one cloud.
        split: e.g. "train" or "test"; None for all of it.
        points: points kept of a larger cloud: the card's N; None keeps all.
        least: points a smaller cloud is filled up to: the larger of the card's G and K.
        up_axis: the axis that points up in the files; clouds are rotated so that it is z.
        columns: meaning of unnamed columns, e.g. "xyz__rgb"; see `readers.read_cloud`.
        color: "auto" takes colours where a file has them, "none" never; what is missing is `MISSING_COLOR`.
        channels: 3 for xyz, 6 for xyz and rgb.
        scattered: order the points as `crossmost.runtime.preprocess.scatter` does, for an encoder of balls.
        labelled: whether labels and class folders are looked at; False takes none of them for a class.

    Raises:
        InputError: nothing there, no clouds in it, no such split, or options that make no sense.
    """
    check_columns(columns)
    preparation = Preparation(
        sys.maxsize if points is None else points, least, up_axis, columns, color, channels, scattered
    )
    catalog = _catalog(Path(path), columns, max(MESH_SAMPLES, points or 0), labelled)
    rows = catalog.rows_of(split)
    if len(rows) == 0:
        raise InputError(f"{path}: expected at least one cloud, found none in it")
    labels = catalog.labels[rows] if labelled and catalog.class_names else None
    left_out = catalog.left_out
    lacking = 0 if labels is None else int((labels == UNKNOWN).sum())
    if lacking:
        labels = None
    # Of folders of clouds `lost_labels` tells.
    if 0 < lacking < len(rows) and not isinstance(catalog.source, FolderSource):
        left_out = (*left_out, f"no labels: {lacking} of {len(rows)} clouds lack one")
    return CloudDataset(
        name=catalog.name,
        split=split or "all",
        ids=tuple(catalog.ids[row] for row in rows),
        class_names=None if labels is None else catalog.class_names,
        labels=labels,
        source=catalog.source,
        rows=rows,
        folder=catalog.folder,
        preparation=preparation,
        splits=tuple(sorted(set(catalog.splits) - {""})),
        left_out=left_out,
    )


def _catalog(path: Path, columns: str | None, samples: int, labelled: bool) -> Catalog:
    """Find the form of what lies at a path."""
    if is_official(path):
        return catalog_official(path, columns=columns, labelled=labelled)
    if path.is_dir():
        return catalog_folder(path, columns=columns, samples=samples)
    if not path.exists():
        raise InputError(f"{path}: expected a folder or file of clouds, found nothing there")
    if is_archive(path):
        return catalog_archive(path, columns=columns, labelled=labelled)
    return catalog_file(path, columns=columns, samples=samples)
