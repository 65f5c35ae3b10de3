"""From a `sensor_msgs/PointCloud2` to an array, without ROS.

Any object with the message's attributes will do: those of rclpy, rospy and rosbags alike.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.colors import NotColors, unit_colors
from crossmost.runtime.errors import InvalidInput

FORMATS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""NumPy's names of the datatypes of `sensor_msgs/PointField`."""

SEPARATE_COLORS = (("r", "g", "b"), ("red", "green", "blue"))
PACKED_COLORS = ("rgb", "rgba")
MEANINGFUL = {"x", "y", "z", *PACKED_COLORS, *SEPARATE_COLORS[0], *SEPARATE_COLORS[1]}

LARGEST = 2**32 - 1
"""The counts and steps of the message are uint32."""

NAMES_SHOWN = 12


class InvalidMessage(InvalidInput):
    """A message that holds no cloud; the message says what was expected and what was found."""


@dataclass(frozen=True)
class Field:
    """One field of the points: where it lies in a point and of what type it is."""

    name: str
    offset: int
    datatype: int
    count: int


@dataclass(frozen=True, eq=False)
class Grid:
    """The bytes of a cloud and how they are laid out.

    Attributes:
        data: every byte of the message, uint8.
        height: rows; 1 where the cloud is not organised.
        width: points a row.
        point_step: bytes from a point to the next one.
        row_step: bytes from a row to the next one.
        order: ">" for big endian, "<" for little endian.
    """

    data: NDArray[np.uint8]
    height: int
    width: int
    point_step: int
    row_step: int
    order: str

    def values(self, field: Field, bits_as: str | None = None) -> NDArray[Any]:
        """Look at one field of every point, without copying.

        Args:
            field: the field.
            bits_as: read the field's bits as this type instead of its own.

        Returns:
            (height, width) in the message's byte order.

        Raises:
            InvalidMessage: an unknown datatype, several values a point, or a place outside the point.
        """
        if field.datatype not in FORMATS:
            raise InvalidMessage(
                f"expected a datatype of 1 to 8 for field {field.name!r}, found {field.datatype}"
            )
        # Some drivers leave the count at 0 where they mean 1.
        if field.count > 1:
            raise InvalidMessage(f"expected one {field.name!r} a point, found a count of {field.count}")
        kind = np.dtype(self.order + (bits_as or FORMATS[field.datatype]))
        if field.offset + kind.itemsize > self.point_step:
            raise InvalidMessage(
                f"expected field {field.name!r} inside the {self.point_step} bytes of a point, "
                f"found it at bytes {field.offset} to {field.offset + kind.itemsize}"
            )
        if not self.height * self.width:
            return np.empty((0, 0), kind)
        steps = (self.row_step, self.point_step)
        return np.ndarray((self.height, self.width), kind, self.data, field.offset, steps)


def cloud_from_message(message: Any, *, drop_invalid: bool = False, colors: bool = True) -> NDArray[Any]:
    """Turn a `sensor_msgs/PointCloud2` into an array of points, row by row.

    Fields other than coordinates and colors are passed over, whatever is in them, and `is_dense` is not
    relied on.

    Args:
        message: has `height`, `width`, `fields` (each with `name`, `offset`, `datatype`, `count`),
            `is_bigendian`, `point_step`, `row_step` and `data` (any bytes, or a list of them).
        drop_invalid: leave out the points whose coordinates hold NaN or infinity, or are (0, 0, 0), where the sensor
            itself is: that is how drivers write that nothing came back.
        colors: read them where there are some; an encoder of xyz has no use for them, whatever they are.

    Returns:
        (n, 3) xyz in the message's units, or (n, 6) xyz and red, green, blue in [0, 1] where the message
        has colors that are wanted; float32 where that keeps every digit, else float64 (float64, int32, uint32
        coordinates).

    Raises:
        InvalidMessage: no x, y or z, less data than announced, or a layout that contradicts itself.
    """
    fields = _meaningful_fields(_attribute(message, "fields"))
    grid = _grid(message)
    coordinates = [grid.values(fields[axis]) for axis in "xyz"]
    found = _colors(grid, fields, coordinates) if colors else None
    columns = coordinates if found is None else [*coordinates, *found]
    dtype = np.result_type(np.float32, *(column.dtype for column in coordinates))
    cloud = np.empty((*coordinates[0].shape, len(columns)), dtype)
    # Widening a signalling NaN raises the processor's invalid flag.
    with np.errstate(invalid="ignore"):
        for index, column in enumerate(columns):
            cloud[..., index] = column
    cloud = cloud.reshape(-1, len(columns))
    if not drop_invalid:
        return cloud
    # Column by column: NumPy is slow at reducing rows of three.
    usable = np.isfinite(cloud[:, 0]) & np.isfinite(cloud[:, 1]) & np.isfinite(cloud[:, 2])
    usable &= (cloud[:, 0] != 0) | (cloud[:, 1] != 0) | (cloud[:, 2] != 0)
    return cloud if usable.all() else cloud[usable]


def _meaningful_fields(described: Any) -> dict[str, Field]:
    """The fields that hold coordinates or colors, by name."""
    try:
        entries = list(described)
    except TypeError:
        raise InvalidMessage(f"expected a list of fields, found {type(described).__name__}") from None
    fields: dict[str, Field] = {}
    names: list[str] = []
    for entry in entries:
        name = _attribute(entry, "name")
        names.append(str(name))
        if not isinstance(name, str) or name not in MEANINGFUL:
            continue
        if name in fields:
            raise InvalidMessage(f"expected one field {name!r}, found it twice")
        fields[name] = Field(name, *(_size(entry, key) for key in ("offset", "datatype", "count")))
    missing = [axis for axis in "xyz" if axis not in fields]
    if missing:
        raise InvalidMessage(
            f"expected the fields x, y and z, found {listed(names)}: {', '.join(missing)} missing"
        )
    return fields


def _grid(message: Any) -> Grid:
    """The data of a message, once its layout is known to fit into it."""
    height, width, point_step, row_step = (
        _size(message, key) for key in ("height", "width", "point_step", "row_step")
    )
    row = width * point_step
    # Drivers of unorganised clouds sometimes leave row_step unset, and with one row it says nothing.
    if row_step < row and (height > 1 or (height == 1 and row_step != 0)):
        raise InvalidMessage(
            f"expected a row_step of at least {row} for {width} points of {point_step} bytes, "
            f"found {row_step}"
        )
    data = _bytes(_attribute(message, "data"))
    # The padding after the last row may be missing.
    needed = (height - 1) * row_step + row if height else 0
    if len(data) < needed:
        raise InvalidMessage(
            f"expected {needed} bytes of data for {height} x {width} points of {point_step} bytes, "
            f"found {len(data)}"
        )
    order = ">" if _size(message, "is_bigendian") else "<"
    return Grid(data, height, width, point_step, row_step, order)


def _colors(
    grid: Grid, fields: dict[str, Field], coordinates: list[NDArray[Any]]
) -> list[NDArray[Any]] | None:
    """Red, green and blue in [0, 1], each (height, width), or None; what stands where no point is says nothing."""
    for names in SEPARATE_COLORS:
        if all(name in fields for name in names):
            stored = np.stack([grid.values(fields[name]) for name in names])
            x, y, z = coordinates
            nowhere = ~(np.isfinite(x) & np.isfinite(y) & np.isfinite(z)) | ((x == 0) & (y == 0) & (z == 0))
            stored[:, nowhere] = np.nan if stored.dtype.kind == "f" else 0
            try:
                colors, _ = unit_colors(stored)
            except NotColors as error:
                raise InvalidMessage(str(error)) from None
            return list(colors)
    for name in PACKED_COLORS:
        if name in fields:
            if FORMATS.get(fields[name].datatype) not in ("f4", "u4", "i4"):
                raise InvalidMessage(
                    f"expected field {name!r} as packed into float32, uint32 or int32 (datatype 7, 6 or 5), "
                    f"found datatype {fields[name].datatype}"
                )
            # 0xAARRGGBB: a float32 is but a box for these bits, and with a full alpha it is a NaN.
            bits = grid.values(fields[name], bits_as="u4")
            return [(bits >> shift & 255) / 255.0 for shift in (16, 8, 0)]
    return None


def _bytes(data: Any) -> NDArray[np.uint8]:
    """The bytes of whatever a ROS binding stores them in, copied only where they are scattered."""
    try:
        # A list is how JSON bridges deliver them; bytes(7) would be seven zeros.
        view = memoryview(bytes(data) if isinstance(data, list | tuple) else data)
    except (TypeError, ValueError):
        raise InvalidMessage(
            f"expected data as bytes, found {type(data).__name__} that holds something else"
        ) from None
    if view.itemsize != 1 or view.ndim != 1:
        raise InvalidMessage(
            f"expected data as one row of bytes, found items of {view.itemsize} bytes in {view.ndim} dimensions"
        )
    return np.frombuffer(view if view.contiguous else view.tobytes(), np.uint8)


def _size(owner: Any, name: str) -> int:
    """An attribute that counts something."""
    value = _attribute(owner, name)
    try:
        # NumPy's bool is no index.
        size = operator.index(value.item() if isinstance(value, np.generic) else value)
    except TypeError:
        raise InvalidMessage(f"expected a whole number as {name}, found {type(value).__name__}") from None
    if not 0 <= size <= LARGEST:
        raise InvalidMessage(f"expected {name} in 0..{LARGEST}, found a number outside")
    return size


def _attribute(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        raise InvalidMessage(
            f"expected a sensor_msgs/PointCloud2, found {type(owner).__name__} without {name}"
        ) from None


def listed(names: Iterable[str]) -> str:
    """Write names into a one-line message: the first few, each shortened and in one line."""
    shown = [" ".join(name.split())[:60] for name in names]
    if not shown:
        return "none"
    rest = f" and {len(shown) - NAMES_SHOWN} more" if len(shown) > NAMES_SHOWN else ""
    return ", ".join(shown[:NAMES_SHOWN]) + rest
