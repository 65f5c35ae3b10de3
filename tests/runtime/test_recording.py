import sqlite3
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.runtime.recording import POINT_CLOUD, InvalidRecording, is_recording, read_recording

pytest.importorskip("rosbags")

from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore

ROS1, ROS2 = get_typestore(Stores.ROS1_NOETIC), get_typestore(Stores.ROS2_JAZZY)
STRING = "std_msgs/msg/String"
Bz2OrLz4, Mode = rosbag1.Writer.CompressionFormat, rosbag2.CompressionMode
START = 1_700_000_000_000_000_000


def as_message(store, points, **changes):
    """A cloud of rows x, y, z, intensity."""
    types = store.types
    header = {"stamp": types["builtin_interfaces/msg/Time"](sec=1, nanosec=2), "frame_id": "lidar"}
    if store is ROS1:
        header["seq"] = 0
    rows = np.column_stack([points, np.zeros(len(points))]).astype(np.float32)
    field = types["sensor_msgs/msg/PointField"]
    layout = {
        "height": 1, "width": len(rows), "is_bigendian": False, "point_step": 16, "row_step": 16 * len(rows),
        "fields": [field(name=name, offset=4 * i, datatype=7, count=1) for i, name in enumerate(["x", "y", "z", "i"])],
        "data": rows.view(np.uint8).reshape(-1), "is_dense": True,
    }  # fmt: skip
    return types[POINT_CLOUD](header=types["std_msgs/msg/Header"](**header), **(layout | changes))


def write_bag(path, messages, compression=None):
    """Messages are (topic, type, timestamp, message)."""
    writer = rosbag1.Writer(path)
    if compression:
        writer.set_compression(compression)
    with writer:
        write_all(writer, ROS1, ROS1.serialize_ros1, messages)
    return path


def write_ros2(path, messages, plugin="mcap", compression=Mode.NONE, version=9, **options):
    writer = rosbag2.Writer(path, version=version, storage_plugin=rosbag2.StoragePlugin[plugin.upper()])
    writer.set_compression(compression, rosbag2.CompressionFormat.ZSTD)
    with writer:
        write_all(writer, ROS2, ROS2.serialize_cdr, messages, **options)
    return path


def write_all(writer, store, serialize, messages, strange_topic=False):
    if strange_topic:
        definition = {"msgdef": "@!? no definition", "rihs01": "RIHS01_00"}
        strange = writer.add_connection("/strange", "my_msgs/msg/Strange", **definition)
        writer.write(strange, START, b"\0\1\0\0strange")
    connections = {}
    for topic, kind, timestamp, message in messages:
        if (topic, kind) not in connections:
            connections[topic, kind] = writer.add_connection(topic, kind, typestore=store)
        if message is not None:
            writer.write(connections[topic, kind], timestamp, serialize(message, kind))


def only_file(folder):
    (path,) = (entry for entry in folder.iterdir() if entry.suffix != ".yaml")
    return path


WRITERS = {
    "bag": (ROS1, lambda path, messages: write_bag(path.with_suffix(".bag"), messages)),
    "bag bz2": (ROS1, lambda path, messages: write_bag(path.with_suffix(".bag"), messages, Bz2OrLz4.BZ2)),
    "bag lz4": (ROS1, lambda path, messages: write_bag(path.with_suffix(".bag"), messages, Bz2OrLz4.LZ4)),
    "mcap": (ROS2, lambda path, messages: only_file(write_ros2(path, messages))),
    "mcap folder": (ROS2, write_ros2),
    "mcap zstd": (
        ROS2,
        lambda path, messages: only_file(write_ros2(path, messages, compression=Mode.STORAGE)),
    ),
    "db3": (ROS2, lambda path, messages: only_file(write_ros2(path, messages, "sqlite3"))),
    "sqlite3 folder": (ROS2, lambda path, messages: write_ros2(path, messages, "sqlite3")),
    "version 8": (ROS2, lambda path, messages: write_ros2(path, messages, "sqlite3", version=8)),
    "zstd messages": (ROS2, lambda path, messages: write_ros2(path, messages, "sqlite3", Mode.MESSAGE)),
    "zstd file": (ROS2, lambda path, messages: write_ros2(path, messages, "sqlite3", Mode.FILE)),
}


@pytest.fixture
def clouds(rng):
    return [rng.normal(size=(count, 3)).astype(np.float32) for count in (5, 0, 40)]


def as_messages(store, clouds, topic="/points"):
    for index, cloud in enumerate(clouds):
        yield "/chatter", STRING, START + index, store.types[STRING](data="hello")
        yield topic, POINT_CLOUD, START + index, as_message(store, cloud)


def assert_recorded(read, clouds):
    assert [recorded.time for recorded in read] == [START + index for index in range(len(clouds))]
    for (_, cloud, stamp, frame_id), expected in zip(read, clouds, strict=True):
        assert (stamp, frame_id) == (1_000_000_002, "lidar")
        assert cloud.dtype == np.float32
        np.testing.assert_array_equal(cloud, expected)


@pytest.mark.parametrize("topic", [None, "/points"])
@pytest.mark.parametrize("kind", WRITERS)
def test_the_clouds_of_every_kind_of_recording_are_those_put_in(kind, topic, clouds, tmp_path):
    store, write = WRITERS[kind]
    path = write(tmp_path / "recording", as_messages(store, clouds))
    assert_recorded(list(read_recording(path, topic)), clouds)


@pytest.mark.parametrize("kind", ["bag", "mcap", "db3"])
def test_of_several_topics_one_must_be_chosen(kind, clouds, tmp_path):
    store, write = WRITERS[kind]
    other = [cloud + 1 for cloud in clouds]
    messages = [*as_messages(store, clouds, "/front"), *as_messages(store, other, "/rear")]
    path = write(tmp_path / "recording", messages)
    assert_recorded(list(read_recording(path, "/rear")), other)
    for topic in (None, "/chatter", "rear", ""):
        with pytest.raises(InvalidRecording, match=r"found /front, /rear$") as caught:
            next(read_recording(path, topic))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["bag", "mcap", "db3"])
def test_a_recording_without_clouds_says_what_is_in_it(kind, tmp_path):
    store, write = WRITERS[kind]
    path = write(tmp_path / "recording", [("/chatter", STRING, START, store.types[STRING](data="hello"))])
    with pytest.raises(InvalidRecording, match=rf"found the topics /chatter \({STRING}\)$"):
        next(read_recording(path))
    with pytest.raises(InvalidRecording, match=r"found the topics none$"):
        next(read_recording(write(tmp_path / "empty", [])))


def test_a_topic_on_which_nothing_was_sent_gives_nothing(tmp_path):
    path = write_ros2(tmp_path / "recording", [("/points", POINT_CLOUD, 0, None)])
    assert list(read_recording(path)) == []


@pytest.mark.parametrize("plugin", ["mcap", "sqlite3"])
def test_another_topic_with_a_definition_nobody_can_parse_is_no_hindrance(plugin, clouds, tmp_path):
    messages = as_messages(ROS2, clouds)
    path = write_ros2(tmp_path / "recording", messages, plugin, strange_topic=True)
    assert_recorded(list(read_recording(path)), clouds)


@pytest.mark.parametrize("kind", ["bag", "mcap", "db3"])
def test_a_message_that_holds_no_cloud_is_named_after_the_good_ones(kind, clouds, tmp_path):
    store, write = WRITERS[kind]
    bad = ("/points", POINT_CLOUD, START + 99, as_message(store, clouds[0], width=6))
    path = write(tmp_path / "recording", [*as_messages(store, clouds), bad])
    recording = read_recording(path)
    assert_recorded([next(recording) for _ in clouds], clouds)
    with pytest.raises(
        InvalidRecording, match=rf"message on /points at {START + 99} ns: expected a row_step"
    ):
        next(recording)


def test_a_message_of_damaged_bytes_is_passed_over_and_the_rest_is_read(clouds, tmp_path):
    """Cut off within its row of the database, which is sound itself."""
    path = only_file(write_ros2(tmp_path / "recording", as_messages(ROS2, clouds), "sqlite3"))
    with sqlite3.connect(path) as database:
        database.execute(
            "update messages set data = substr(data, 1, 60) where timestamp = ? and length(data) > 60",
            (START + 1,),
        )
    told = {}
    read = list(read_recording(path, None, told.__setitem__))
    assert [recorded.time for recorded in read] == [START, START + 2]
    assert list(told) == [START + 1]
    assert told[START + 1].startswith("expected a whole message, found ")
    with pytest.raises(InvalidRecording, match=f"at {START + 1} ns: expected a whole message"):
        list(read_recording(path))


@pytest.mark.parametrize("kind", ["bag", "mcap", "db3"])
def test_a_message_that_holds_no_cloud_is_passed_over_where_somebody_is_told(kind, clouds, tmp_path):
    store, write = WRITERS[kind]
    first, *others = as_messages(store, clouds)
    bad = ("/points", POINT_CLOUD, first[2] + 1, as_message(store, clouds[0], width=6))
    path, told = write(tmp_path / "recording", [first, bad, *others]), {}
    assert_recorded(list(read_recording(path, None, told.__setitem__)), clouds)
    assert list(told) == [first[2] + 1]
    assert "expected a row_step" in told[first[2] + 1]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.mcap", None, "no such file"),
        ("cloud.ply", b"ply", "found another file"),
        ("no_suffix", b"", "found another file"),
        ("drive.MCAP", b"", r"expected \.mcap in small letters: rename the file"),
        ("empty.mcap", b"", "empty"),
        ("empty.bag", b"", "empty"),
        ("empty.db3", b"", "missing tables"),
        ("other.mcap", b"#ROSBAG V2.0\n", "magic is invalid"),
        ("other.bag", b"\x89MCAP0\r\n", "expected a whole recording"),
        ("old.bag", b"#ROSBAG V1.2\n", "version 102 is not supported"),
        ("other.db3", b"no database" * 99, "not a database"),
    ],
)
def test_another_file_is_refused_in_one_line(name, content, expected, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRecording, match=expected) as caught:
        next(read_recording(path))
    assert str(caught.value).startswith(f"{path}: expected ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["run #3", "50%41", "a?b"])
def test_sqlite_is_given_no_path_that_it_would_take_for_another(name, clouds, tmp_path):
    folder = write_ros2(tmp_path / "recording", as_messages(ROS2, clouds), "sqlite3").rename(tmp_path / name)
    for path in (folder, only_file(folder)):
        with pytest.raises(InvalidRecording, match="expected a path without"):
            next(read_recording(path))
    folder = write_ros2(tmp_path / "recording", as_messages(ROS2, clouds)).rename(tmp_path / f"{name} mcap")
    assert_recorded(list(read_recording(folder)), clouds)


def test_a_folder_is_a_recording_by_what_its_metadata_is_of(clouds, tmp_path):
    path = write_ros2(tmp_path / "recording", as_messages(ROS2, clouds))
    assert is_recording(path)
    assert is_recording(only_file(path))
    (tmp_path / "metadata.yaml").write_text("license: CC0")
    assert not is_recording(tmp_path)
    assert not is_recording(tmp_path / "nowhere")


def test_a_folder_without_metadata_or_without_its_file_is_refused(clouds, tmp_path):
    path = write_ros2(tmp_path / "recording", as_messages(ROS2, clouds))
    only_file(path).unlink()
    with pytest.raises(InvalidRecording, match="files are missing"):
        next(read_recording(path))
    (path / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: [}")
    with pytest.raises(InvalidRecording, match="YAML") as caught:
        next(read_recording(path))
    assert len(str(caught.value).splitlines()) == 1
    (path / "metadata.yaml").unlink()
    with pytest.raises(InvalidRecording, match="metadata"):
        next(read_recording(path))


@pytest.fixture(scope="module")
def small_recordings(tmp_path_factory):
    """The bytes of a small recording of every kind of file."""
    clouds = [np.full((3, 3), index, np.float32) for index in range(3)]
    folder = tmp_path_factory.mktemp("small")
    made = {}
    for kind in ("bag", "bag lz4", "mcap", "mcap zstd", "db3"):
        store, write = WRITERS[kind]
        path = write(folder / kind.replace(" ", "_"), as_messages(store, clouds))
        made[kind] = (path.suffix, path.read_bytes())
    return SimpleNamespace(made=made, folder=folder)


@pytest.mark.parametrize("kind", ["bag", "bag lz4", "mcap", "mcap zstd", "db3"])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_damaged_files_give_clouds_or_a_line(kind, small_recordings, data):
    suffix, content = small_recordings.made[kind]
    damaged = bytearray(content)
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        damaged[place] = value
    damaged = damaged[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    path = small_recordings.folder / f"damaged{suffix}"
    path.write_bytes(damaged)
    line = "one"
    try:
        for timestamp, cloud, *_ in read_recording(path):
            assert isinstance(timestamp, int)
            assert cloud.shape[1] in (3, 6)
    except InvalidRecording as error:
        line = str(error)
    assert len(line.splitlines()) == 1
    assert len(line) < 2000


def peak_of_reading(path):
    tracemalloc.start()
    try:
        read = sum(len(recorded.points) for recorded in read_recording(path))
        return read, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["bag", "mcap", "db3"])
def test_a_longer_recording_takes_no_more_memory(kind, tmp_path, rng):
    store, write = WRITERS[kind]
    points = rng.normal(size=(60_000, 3))
    peaks = {}
    for count in (6, 24):
        path = write(tmp_path / f"{count}", as_messages(store, [points] * count))
        read, peaks[count] = peak_of_reading(path)
        assert read == count * len(points)
    # A tenth of what the further messages hold.
    assert peaks[24] < peaks[6] + 18 * 16 * len(points) / 10


def test_a_recording_may_be_left_halfway_and_the_readers_own_errors_stay_its_own(clouds, tmp_path):
    path = only_file(write_ros2(tmp_path / "recording", as_messages(ROS2, clouds)))
    recording = read_recording(path)
    next(recording)
    recording.close()

    def fail_on_the_first():
        for timestamp, *_ in read_recording(path):
            timestamp // 0

    with pytest.raises(ZeroDivisionError):
        fail_on_the_first()


def test_a_missing_library_is_said_to_be_missing(monkeypatch, tmp_path):
    path = tmp_path / "recording.mcap"
    path.touch()
    monkeypatch.setitem(sys.modules, "rosbags.typesys", None)
    with pytest.raises(ModuleNotFoundError, match="rosbags"):
        next(read_recording(path))


def test_the_module_alone_imports_no_rosbags():
    code = "import sys, crossmost.runtime.recording; sys.exit('rosbags' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
