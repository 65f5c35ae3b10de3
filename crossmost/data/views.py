"""Depth images of a cloud: a software z-buffer in NumPy, the same on a workstation, a robot and in a test.

The camera is orthographic, so a cloud in the unit sphere always fits the frame and the scale of the picture
is the same from every side. Each point lights one pixel, the nearest point of a pixel wins, and the gaps
between neighbouring samples are closed by a grey morphological closing: dilated by a disc as wide as the
gaps, then eroded by a slightly smaller one, so that surfaces close while thin legs stay thin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from crossmost.errors import InputError

ELEVATION = math.radians(30.0)
FIRST_AZIMUTH = math.radians(30.0)
"""Three-quarter views show more of a shape than views along its axes."""
MARGIN = 0.96
"""Half the frame's width is `1 / MARGIN` units of the normalised cloud."""
NEAR, FAR = 255, 60
"""Grey of depth +1 (towards the camera) and -1; the background is 0."""
GAP = 1.25
"""Radius of the closing disc in multiples of the spacing of the samples (see `sample_spacing`)."""
LINE = 0.3
"""Radius, in the same unit, of what a single point looks like once the gaps are closed."""


def view_directions(count: int, azimuth: float = 0.0) -> NDArray[np.float64]:
    """Place `count` cameras evenly around an upright object, 30 degrees above the horizon.

    The first stands 30 degrees (plus `azimuth`) from the x axis, the others follow counter-clockwise.

    Args:
        count: V, at least 1.
        azimuth: radians that all cameras are moved by, about the z axis.

    Returns:
        (V, 3) float64 unit vectors from the object to the camera.

    Raises:
        InputError: `count` is below 1.
    """
    if count < 1:
        raise InputError(f"expected at least 1 view, found {count}")
    angles = FIRST_AZIMUTH + azimuth + 2 * np.pi * np.arange(count) / count
    level = math.cos(ELEVATION)
    height = np.full(count, math.sin(ELEVATION))
    return np.stack([level * np.cos(angles), level * np.sin(angles), height], axis=1)


def camera_axes(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Complete camera directions to right-handed frames whose second axis points up in the picture.

    Args:
        directions: (V, 3) unit vectors from the object to the camera; straight up or down is allowed.

    Returns:
        (V, 3, 3) float64: the rows right, up and towards the camera.
    """
    right = np.stack([-directions[:, 1], directions[:, 0], np.zeros(len(directions))], axis=1)
    length = np.linalg.norm(right, axis=1, keepdims=True)
    right = np.where(length > 1e-9, right / np.maximum(length, 1e-9), [[0.0, 1.0, 0.0]])
    return np.stack([right, np.cross(directions, right), directions], axis=1)


def project(xyz: NDArray[np.float32], axes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Express points in camera frames, each point by the same arithmetic wherever it stands in the cloud.

    A matrix product may round differently from row to row; the pictures must not depend on the order.

    Args:
        xyz: (N, 3) float32.
        axes: (V, 3, 3) rows right, up, towards the camera.

    Returns:
        (V, 3, N) float32: right, up, depth (larger is nearer).
    """
    rows = axes.astype(np.float32)[..., None]
    x, y, z = np.ascontiguousarray(xyz.T)
    return rows[:, :, 0] * x + rows[:, :, 1] * y + rows[:, :, 2] * z


def sample_spacing(xyz: NDArray[np.floating]) -> float:
    """Estimate how far apart the samples of a surface are, from the number of voxels they fall into.

    Unlike distances to the nearest neighbours it is cheap, and repeated points do not drive it to zero.

    Args:
        xyz: (N, 3), N at least 1.

    Returns:
        About sqrt(surface area / N), in units of the cloud.
    """
    side = min(6 / math.sqrt(len(xyz)), 0.5)
    cells = np.floor(xyz / side).astype(np.int64) @ np.array([1, 1 << 20, 1 << 40])
    return side * math.sqrt(len(np.unique(cells)) / len(xyz))


def render_views(
    xyz: NDArray[np.float32], *, count: int, size: int, azimuth: float = 0.0
) -> NDArray[np.uint8]:
    """Render depth images of a cloud from all around it.

    Args:
        xyz: (N, 3) float32, normalised, z up; what leaves the frame is cut off.
        count: V, at least 1.
        size: H = W in pixels, at least 1.
        azimuth: radians the cameras are moved by about the z axis (see `view_directions`).

    Returns:
        (V, size, size) uint8: 255 nearest, 60 farthest, background 0. Independent of the order of the points.

    Raises:
        InputError: `count` or `size` is below 1.
    """
    if size < 1:
        raise InputError(f"expected a view size of at least 1 pixel, found {size}")
    spacing = sample_spacing(xyz) * MARGIN * size / 2
    wide = max(round(GAP * spacing), 1)
    narrow = round(LINE * spacing)
    axes = camera_axes(view_directions(count, azimuth))
    # The border keeps what the closing does beyond the frame out of the picture.
    dilated = _dilate(_nearest_points(project(xyz, axes), size, border=wide), wide)
    # Erosion is the dilation of the negative.
    closed = ~_dilate(~dilated, wide - narrow)
    return closed[:, wide : wide + size, wide : wide + size].copy()


def _nearest_points(projected: NDArray[np.float32], size: int, border: int) -> NDArray[np.uint8]:
    """Light the pixel of each point, the nearest winning: (V, 3, N) to (V, S, S) with S = size + 2 border."""
    views, side = len(projected), size + 2 * border
    pixel = np.floor((projected[:, :2] * MARGIN + 1) * (size / 2)).astype(np.int64)
    column, row = pixel[:, 0] + border, size - 1 - pixel[:, 1] + border
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    grey = np.rint(FAR + (NEAR - FAR) / 2 * (np.clip(projected[:, 2], -1, 1) + 1)).astype(np.int64)
    cell = (np.arange(views)[:, None] * side + row) * side + column
    # Sorted by pixel, then grey: of several writes to one pixel NumPy keeps the last, which is the nearest.
    keys = np.sort((cell << 8 | grey)[inside])
    buffer = np.zeros(views * side * side, dtype=np.uint8)
    buffer[keys >> 8] = keys & 0xFF
    return buffer.reshape(views, side, side)


def _dilate(images: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """Replace each pixel of (V, H, W) by the brightest of the disc around it.

    A disc is a stack of runs: runs are widened step by step and each width is used at the rows where the
    disc has it, so the cost grows with the radius and not with the area.
    """
    height, width = images.shape[1:]
    padded = np.pad(images, ((0, 0), (radius, radius), (radius, radius)))
    run = padded[:, :, radius : radius + width].copy()
    result = np.zeros_like(images)
    half = 0
    for distance in range(radius, -1, -1):
        while half < radius and (half + 1) ** 2 + distance**2 <= (radius + 0.5) ** 2:
            half += 1
            for left in (radius - half, radius + half):
                np.maximum(run, padded[:, :, left : left + width], out=run)
        for top in (radius - distance, radius + distance):
            np.maximum(result, run[:, top : top + height], out=result)
    return result


def contact_sheet(images: NDArray[np.uint8], captions: Sequence[str], columns: int) -> Image.Image:
    """Lay pictures out in a grid, each above its caption.

    Args:
        images: (M, h, w) or (M, h, w, 3) uint8, M at least 1.
        captions: M strings; one too long for its cell is cut.
        columns: pictures in a row, at least 1.

    Returns:
        An RGB picture.

    Raises:
        InputError: no picture, no column, or not one caption a picture.
    """
    if len(images) == 0 or columns < 1 or len(captions) != len(images):
        raise InputError(
            f"expected at least one picture and column and one caption a picture, "
            f"found {len(images)} pictures, {len(captions)} captions, {columns} columns"
        )
    columns = min(columns, len(images))
    height, width = images.shape[1:3]
    gap, line = 4, 14
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + line + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for index, (picture, caption) in enumerate(zip(images, captions, strict=True)):
        left = gap + index % columns * (width + gap)
        top = gap + index // columns * (height + line + gap)
        sheet.paste(Image.fromarray(picture), (left, top))
        while caption and draw.textlength(caption, font=font) > width:
            caption = caption[:-1]
        draw.text((left, top + height + 1), caption, fill="black", font=font)
    return sheet
