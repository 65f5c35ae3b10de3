"""Which clouds a run watches, and how it has its samples made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from crossmost.config import TrainConfig
from crossmost.data.augment import STRONG, PointAugment
from crossmost.data.samples import Clouds, SampleSettings
from crossmost.models.student import Student


class WatchedClouds:
    """At most `most` clouds, evenly spaced over a dataset: the same ones in every epoch."""

    def __init__(self, clouds: Clouds, most: int):
        self.clouds = clouds
        count = min(most, len(clouds))
        self.indices = [index * len(clouds) // count for index in range(count)]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def bad(self) -> dict[str, str]:
        """Why, by name, for each file that could not be read so far."""
        return self.clouds.bad

    def try_load(self, index: int) -> Any:
        """The cloud, or None where the file is bad."""
        return self.clouds.try_load(self.indices[index])

    def views(self, index: int) -> Any:
        """The user's own pictures of the cloud."""
        return self.clouds.views(self.indices[index])


def sample_settings(student: Student, config: TrainConfig) -> SampleSettings:
    """How a run's samples are made."""
    return SampleSettings(
        seed=config.seed,
        image_size=student.image_size,
        views=config.views,
        least=student.point_encoder.card.least,
        teacher_sees=config.views if config.teacher_views == "mean" else 1,
        strong=strong_augment(config),
        scan_severity=config.scan_augment,
        photometric=config.rendered_views == "photometric",
        looked_at=config.mode != "point-only",
    )


def strong_augment(config: TrainConfig) -> PointAugment:
    """The student's point augmentation.

    As published, dropped points are overwritten with the first one and every cloud is filled up to 8192 points
    with local means. Patches make clouds of different sizes one batch, so neither is needed.
    """
    published = config.dropped_points == "repeated"
    return replace(
        STRONG,
        scale=config.strong_scale,
        translation=config.strong_translation,
        dropout=config.strong_dropout,
        drop_mode="first" if published else "remove",
        upsample_to=STRONG.upsample_to if published else 0,
    )
