"""The user's clouds: which of them a report is of, and what to say about them."""

from __future__ import annotations

from pathlib import Path

from crossmost.data.dataset import CloudDataset
from crossmost.data.folder import FolderSource, is_split
from crossmost.data.reading import Reading
from crossmost.errors import InputError
from crossmost.evaluation.report import check_report_extra
from crossmost.models.point_cards import PointCard
from crossmost.runtime.vocabulary import Vocabulary
from crossmost.split_choice import measured_clouds


def shown_clouds(
    reading: Reading, data: Path, test: Path | None, clouds: CloudDataset, card: PointCard
) -> CloudDataset:
    """The clouds of the report: --test, or the test split beside a train split, or the training clouds."""
    if test is not None:
        return measured_clouds(reading, test, card, None)
    if clouds.split == "train" and "test" in clouds.splits:
        return reading.open(data, card, "test")
    return clouds


def check_before_training(clouds: CloudDataset, shown: CloudDataset, vocabulary: Vocabulary) -> None:
    """Find out what would fail after the training: class folders that are no classes, a missing extra.

    Raises:
        InputError: names the folder and the nearest class, or the extra.
    """
    for dataset in (clouds, shown):
        if dataset.labels is not None:
            try:
                dataset.label_indices(vocabulary.names)
            except InputError as error:
                raise InputError(f"{error}; {advice(dataset)}") from error
    check_report_extra()


def advice(dataset: CloudDataset) -> str:
    """What to do about a class that no vocabulary has."""
    names = dataset.class_names if isinstance(dataset.source, FolderSource) else None
    if split := next(filter(is_split, names or ()), None):  # without labels all splits would be trained on
        return f"{split}/ is taken for a class because of the folders beside it: give {split}/ itself"
    return "--ignore-labels takes no folder or label for a class"
