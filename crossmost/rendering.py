"""What `crossmost render` does: a contact sheet of the views that training would see."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageOps

from crossmost.data.dataset import open_dataset
from crossmost.data.reading import Reading
from crossmost.data.samples import spread, views_of
from crossmost.data.views import contact_sheet
from crossmost.errors import InputError
from crossmost.skipped import say_skipped


def thumbnail(picture: Any, size: int) -> NDArray[np.uint8]:
    """A rendered view or a picture of the user's as (size, size, 3) uint8, its middle."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size)))


def render(
    path: Path,
    out: Path,
    reading: Reading,
    *,
    views: int,
    clouds: int,
    size: int,
    points: int,
    split: str | None,
) -> None:
    """Draw views of some clouds, thinned to so many points, as a contact sheet."""
    if out.suffix.lower() != ".png":
        raise InputError(f"expected a .png to write, found {out}")
    dataset = open_dataset(
        path, split=split, points=points, least=1, up_axis=reading.up_axis, columns=reading.columns
    )
    pictures, captions = [], []
    for index in dataset.spread(clouds):
        cloud = dataset.try_load(index)
        if cloud is None:
            continue
        seen = views_of(dataset, index, cloud, partial(spread, most=views), count=views, size=size)
        shown = [thumbnail(view, size) for view in seen]
        pictures += shown + [np.full_like(shown[0], 255)] * (views - len(shown))
        captions += [dataset.ids[index]] + [""] * (views - 1)
    if not pictures:
        raise InputError(f"{path}: none of the clouds can be read: {next(iter(dataset.bad.values()))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(np.stack(pictures), captions, columns=views * max(1, 8 // views)).save(out)
    say_skipped(dataset.bad)
    typer.echo(str(out))
