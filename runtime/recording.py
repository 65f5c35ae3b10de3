"""The clouds of a ROS 1 or ROS 2 recording, without ROS (needs the `rosbags` library)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from crossmost.runtime.errors import InvalidInput
from crossmost.runtime.ros import InvalidMessage, cloud_from_message, listed

POINT_CLOUD = "sensor_msgs/msg/PointCloud2"
ROSBAG2 = b"rosbag2_bagfile_information"
"""What the `metadata.yaml` of a recording begins with."""
SUFFIXES = (".mcap", ".db3", ".bag")

MOST_OF_REASON = 300
"""Letters kept of what the library says, which may quote the whole of a damaged file's names."""


class Recorded(NamedTuple):
    """A cloud of a recording.

    Attributes:
        time: when its message was recorded, in nanoseconds since 1970.
        points: see `cloud_from_message`.
        stamp: the message's own, of its header, in nanoseconds: what transforms and pictures are found by.
        frame_id: of its header.
    """

    time: int
    points: NDArray[Any]
    stamp: int
    frame_id: str


class InvalidRecording(InvalidInput):
    """A recording that cannot be read; the message names the file and says what was found."""


def is_recording(path: Path) -> bool:
    """Whether a path looks like a recording: by its suffix, or by what a folder's `metadata.yaml` is of."""
    described = path / "metadata.yaml"
    return path.suffix.lower() in SUFFIXES or (described.is_file() and ROSBAG2 in described.read_bytes())


def read_recording(
    path: Path,
    topic: str | None = None,
    on_invalid: Callable[[int, str], None] | None = None,
    *,
    colors: bool = True,
) -> Iterator[Recorded]:
    """Read the clouds of one topic in the order they were recorded, one message in memory at a time.

    The storage format decides how much is read for it: an .mcap and a .bag are unpacked chunk by chunk.

    Args:
        path: an .mcap, .db3 or .bag file, or the folder of a ROS 2 recording.
        topic: a topic of sensor_msgs/PointCloud2; may be None where the recording has only one.
        on_invalid: called with the time and the fault of a message that holds no cloud, which is then passed over;
            None makes it an error.
        colors: see `cloud_from_message`.

    Raises:
        InvalidRecording: no recording, a damaged one, or not one topic to read; on the first or any later step.
        ModuleNotFoundError: `rosbags` is not installed.
    """
    if not path.exists():
        raise InvalidRecording(f"{path}: expected a recording, found no such file or folder")
    if path.suffix.lower() in SUFFIXES and path.suffix not in SUFFIXES:  # rosbags tells formats apart by it
        raise InvalidRecording(f"{path}: expected {path.suffix.lower()} in small letters: rename the file")
    if not path.is_dir() and path.suffix not in SUFFIXES:
        raise InvalidRecording(
            f"{path}: expected {', '.join(SUFFIXES)} or the folder of a ROS 2 recording, found another file"
        )
    _check_sqlite_paths(path)
    open_reader, deserialize = _format_of(path)
    with _one_line_errors(path), open_reader() as reader:
        chosen = _choose_topic(path, reader.connections, topic)
        for connection, timestamp, data in reader.messages(connections=chosen):
            try:
                recorded = _decode(deserialize, data, timestamp, colors)
            except InvalidMessage as error:
                if on_invalid is not None:
                    on_invalid(timestamp, str(error))
                    continue
                where = f"the message on {listed([connection.topic])} at {timestamp} ns"
                raise InvalidRecording(f"{path}: {where}: {error}") from None
            yield recorded


def _decode(deserialize: Callable[[bytes], Any], data: bytes, time: int, colors: bool) -> Recorded:
    """The cloud in the bytes of a message.

    Raises:
        InvalidMessage: there is none in them.
    """
    try:
        message = deserialize(data)
        stamp, frame_id = message.header.stamp, str(message.header.frame_id)
    except Exception as error:  # damaged bytes make the library raise errors of any kind
        raise InvalidMessage(f"expected a whole message, found {_reason(error)}") from error
    points = cloud_from_message(message, colors=colors)
    return Recorded(time, points, 10**9 * int(stamp.sec) + int(stamp.nanosec), frame_id)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:MOST_OF_REASON]


def _check_sqlite_paths(path: Path) -> None:
    """Refuse paths that SQLite, which is given them as a URI, would take for those of other files."""
    for file in path.glob("*.db3") if path.is_dir() else [path]:
        if file.suffix == ".db3" and set("?#%") & set(str(file)):
            raise InvalidRecording(
                f"{file}: expected a path without ?, # and %: rename the file or its folder"
            )


def _format_of(path: Path) -> tuple[Callable[[], Any], Callable[[bytes], Any]]:
    """What opens a recording and what decodes a PointCloud2 in it.

    The message's own definition is built in, as it never changed. Those in the recording are left alone: older
    recordings have none, and one that cannot be parsed, of whatever topic, would stop the clouds from being read.
    """
    from rosbags.typesys import Stores, get_typestore

    if path.is_file() and path.suffix == ".bag":
        from rosbags.rosbag1 import Reader as Ros1Reader

        ros1 = get_typestore(Stores.ROS1_NOETIC)
        return lambda: Ros1Reader(path), lambda data: ros1.deserialize_ros1(data, POINT_CLOUD)
    from rosbags.rosbag2 import Reader as Ros2Reader

    ros2 = get_typestore(Stores.ROS2_HUMBLE)
    return lambda: Ros2Reader(path), lambda data: ros2.deserialize_cdr(data, POINT_CLOUD)


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Tell in one line what the library found; damaged bytes make it raise errors of any kind."""
    try:
        yield
    except InvalidRecording:
        raise
    except Exception as error:
        advice = "what was cut off may be mended by rosbag reindex, ros2 bag reindex or mcap recover"
        raise InvalidRecording(
            f"{path}: expected a whole recording, found {_reason(error)}; {advice}"
        ) from error


def _choose_topic(path: Path, connections: Collection[Any], topic: str | None) -> list[Any]:
    """The connections of the one topic to read."""
    topics = sorted({connection.topic for connection in connections if connection.msgtype == POINT_CLOUD})
    if not topics:
        others = sorted({f"{connection.topic} ({connection.msgtype})" for connection in connections})
        raise InvalidRecording(
            f"{path}: expected a topic of {POINT_CLOUD}, found the topics {listed(others)}"
        )
    if topic is None and len(topics) > 1:
        raise InvalidRecording(f"{path}: expected the choice of a topic (--topic), found {listed(topics)}")
    if topic is not None and topic not in topics:
        asked = listed([repr(topic)])
        raise InvalidRecording(
            f"{path}: expected a topic of {POINT_CLOUD}, {asked} is none; found {listed(topics)}"
        )
    wanted = topic or topics[0]
    return [entry for entry in connections if entry.topic == wanted and entry.msgtype == POINT_CLOUD]
