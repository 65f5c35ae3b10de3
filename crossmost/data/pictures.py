"""The user's own pictures of a cloud: found by name, opened when they are looked at, 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossmost.data.catalog import natural_key

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


def picture_paths(folder: Path) -> list[Path]:
    """The pictures in a folder, 2.png before 10.png; none where there is no such folder."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]
    return sorted(paths, key=lambda path: natural_key(path.name))


class Pictures(Sequence[Any]):
    """Pictures by number: RGB, or None for one that cannot be read. Each is opened anew when it is asked for."""

    def __init__(self, paths: Sequence[Path], note: Callable[[Path, str], None]):
        """Take the files, without opening one.

        Args:
            paths: of the pictures, in their order.
            note: called with the path of a picture that cannot be read, and the reason.
        """
        self.paths = paths
        self.note = note

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: Any) -> Any:
        """Open one picture."""
        from PIL import Image, ImageOps

        path = self.paths[number]
        try:
            with Image.open(path) as picture:
                # As the camera was held.
                ImageOps.exif_transpose(picture, in_place=True)
                return to_rgb(picture)
        # Pillow meets damage anywhere in a file, the camera's notes included, and raises anything at all.
        except Exception as error:
            self.note(path, " ".join(str(error).split()) or type(error).__name__)
            return None


def to_rgb(picture: Image) -> Image:
    """Bring a picture to 8-bit RGB.

    One of 16 or 32 bits or of floats, such as a depth image, is stretched: its smallest value becomes black and its
    largest white, NaN and infinity black. What its numbers measure differs from camera to camera.
    """
    from PIL import Image

    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture).astype(np.float64)
        finite = np.isfinite(values)
        low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
        share = np.where(finite, values - low, 0.0) / max(high - low, np.finfo(np.float64).tiny)
        picture = Image.fromarray(np.rint(share * 255).astype(np.uint8))
    return picture.convert("RGB")
