"""What a conversion did with every tensor, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossmost.checkpoints.base import Architecture

VERSION = "1"
"""Rises where a checkpoint would become another base than before: bases in the cache of the zoo are then made anew."""
DRAWN = "not in the file: as training from nothing starts"


@dataclass(frozen=True)
class Conversion:
    """A published checkpoint that became a base.

    Attributes:
        source: the checkpoint.
        sha256: of it.
        out: the base.
        network: which of the checkpoint's two, where it has two.
        title: what people call it.
        architecture: of the base.
        sources: keys of the checkpoint by the name of what was made of them.
        new: names of the base's tensors that no key was there for.
        left_out: reason by key of the checkpoint; its entries beside the network among them.
        classes: where the trained class vectors are, if they were asked for.
        parameters: of the base.
        image_origin: which CLIP's the image tower is, where it is not the checkpoint's: a tag, or a file's name.
        also: other cards whose layouts the checkpoint fits.
    """

    source: Path
    sha256: str
    out: Path
    network: str
    title: str
    architecture: Architecture
    sources: dict[str, tuple[str, ...]]
    new: tuple[str, ...]
    left_out: dict[str, str]
    classes: Path | None
    parameters: int
    image_origin: str | None
    also: tuple[str, ...]

    def notes(self) -> dict[str, str]:
        """What the base says about where it comes from."""
        made = {"file": self.source.name, "sha256": self.sha256, "model": self.title, "network": self.network}
        origin = {} if self.image_origin is None else {"image_tower": self.image_origin}
        return {"converted_from": json.dumps(made, sort_keys=True), "converter": VERSION, **origin}

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON types."""
        point, image, dim, text = self.architecture
        return {
            "file": str(self.source),
            "sha256": self.sha256,
            "model": self.title,
            "network": self.network,
            "out": str(self.out),
            "classes": None if self.classes is None else str(self.classes),
            "card": point.name,
            "also": list(self.also),
            "text": text,
            "dim": dim,
            "image": None if image is None else asdict(image),
            "image_origin": self.image_origin,
            "parameters": self.parameters,
            "used": {ours: list(keys) for ours, keys in self.sources.items()},
            "left_out": self.left_out,
            "new": list(self.new),
        }

    def lines(self) -> list[str]:
        """A short table."""
        point, image, dim, text = self.architecture
        lines = [
            f"{self.source}: {self.title}",
            f"card         {point.name}: {point.groups} patches of {point.neighbors} points, {point.channels} numbers "
            f"a point, up axis {point.up_axis}",
            f"aligned with {text}, {dim} numbers",
        ]
        if image is None:
            lines.append("image tower  none: the base trains on points alone")
        elif self.image_origin is not None:
            lines.append(f"image tower  {self.image_origin}, from --image: none of this file")
        lines += table("used", Counter({part: len(keys) for part, keys in self._used().items()}))
        lines += table("left out", Counter(self.left_out.values()))
        lines += table("new", Counter({f"{', '.join(parts(self.new))}: {DRAWN}": len(self.new)}))
        lines += [f"note         its weights fit {other} too: --as {other}" for other in self.also]
        if self.classes is not None:
            lines.append(f"classes      {self.classes}")
        return [*lines, f"base         {self.out}, {self.parameters / 1e6:.1f} M parameters"]

    def _used(self) -> dict[str, set[str]]:
        """Keys of the checkpoint by the part of the base they became."""
        used: dict[str, set[str]] = {}
        for ours, keys in self.sources.items():
            used.setdefault(ours.partition(".")[0], set()).update(keys)
        return used


def parts(names: Iterable[str]) -> list[str]:
    """The modules that names of tensors belong to, each once."""
    owners = (name.removesuffix(".weight").removesuffix(".bias") for name in names)
    return list(dict.fromkeys(owners))


def table(title: str, counts: Mapping[str, int]) -> list[str]:
    """A line for each group that is not empty, under one title."""
    rows = [(group, count) for group, count in counts.items() if count]
    return [f"{title if not row else '':<9}{count:>5}  {group}" for row, (group, count) in enumerate(rows)]
