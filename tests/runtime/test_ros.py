import array
import struct
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.runtime.ros import FORMATS, InvalidMessage, cloud_from_message

LETTERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 8: "d"}
SIZES = {datatype: struct.calcsize(f"<{letter}") for datatype, letter in LETTERS.items()}
XYZ = [("x", 7), ("y", 7), ("z", 7)]
EXTREMES = {"b": 8, "h": 16, "i": 32}


def make_message(layout, points, *, gaps=(), tail=0, row_tail=0, height=1, big=False):
    """Pack points (n, fields) value by value, with gaps before the fields, after the points and the rows."""
    fields, end = [], 0
    for index, (name, datatype) in enumerate(layout):
        end += gaps[index] if index < len(gaps) else 0
        fields.append(SimpleNamespace(name=name, offset=end, datatype=datatype, count=1))
        end += SIZES[datatype]
    point_step, width = end + tail, len(points) // height
    row_step = width * point_step + row_tail
    data = bytearray(b"\xaa" * (row_step * height))
    for index, point in enumerate(points):
        start = index // width * row_step + index % width * point_step
        for field, value in zip(fields, point, strict=True):
            code = ("<>"[big]) + LETTERS[field.datatype]
            struct.pack_into(code, data, start + field.offset, value)
    return SimpleNamespace(
        height=height, width=width, fields=fields, is_bigendian=big, point_step=point_step, row_step=row_step,
        data=bytes(data), is_dense=True,
    )  # fmt: skip


def values_of(datatype):
    letter = LETTERS[datatype]
    if letter in "fd":
        return st.floats(width=32 if letter == "f" else 64)
    bits = EXTREMES.get(letter.lower(), 8)
    return (
        st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
        if letter.islower()
        else st.integers(0, (1 << bits) - 1)
    )


@st.composite
def layouts_with_points(draw):
    """A shuffled layout with coordinates of any types and strangers between them, and its points."""
    kinds = st.sampled_from(sorted(LETTERS))
    strangers = draw(st.lists(st.sampled_from(["intensity", "ring", "_", "time"]), max_size=3))
    layout = draw(st.permutations([(name, draw(kinds)) for name in ["x", "y", "z", *strangers]]))
    height, width = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    point = st.tuples(*(values_of(datatype) for _, datatype in layout))
    points = draw(st.lists(point, min_size=height * width, max_size=height * width))
    padding = st.integers(0, 5)
    options = {
        "gaps": draw(st.lists(padding, min_size=len(layout), max_size=len(layout))),
        "tail": draw(padding),
        "row_tail": draw(padding),
        "height": height,
        "big": draw(st.booleans()),
    }
    return layout, points, options


@given(layouts_with_points())
def test_every_layout_gives_back_the_coordinates_exactly(case):
    layout, points, options = case
    names = [name for name, _ in layout]
    columns = [names.index(axis) for axis in "xyz"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cloud = cloud_from_message(make_message(layout, points, **options))
    expected = np.array([[point[column] for column in columns] for point in points], dtype=np.float64)
    wide = any(layout[column][1] in (5, 6, 8) for column in columns)
    assert cloud.dtype == (np.float64 if wide else np.float32)
    assert cloud.dtype.isnative
    np.testing.assert_array_equal(cloud.astype(np.float64), expected)


@given(
    st.lists(st.tuples(*[st.integers(0, 255)] * 4), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([5, 6, 7]),
)
def test_packed_colors_are_found_in_every_type_and_byte_order(colors, big, datatype):
    words = [alpha << 24 | red << 16 | green << 8 | blue for red, green, blue, alpha in colors]
    name = "rgba" if datatype == 6 else "rgb"
    message = make_message([*XYZ, (name, 6)], [(1, 2, 3, word) for word in words], big=big)
    message.fields[3].datatype = datatype
    cloud = cloud_from_message(message, drop_invalid=True)
    assert cloud.shape == (len(colors), 6)
    np.testing.assert_array_equal(cloud[:, :3], [(1, 2, 3)] * len(colors))
    np.testing.assert_array_equal(cloud[:, 3:], (np.array(colors)[:, :3] / 255.0).astype(np.float32))


@pytest.mark.parametrize(
    ("datatype", "stored", "expected"),
    [
        (2, (0, 51, 255), (0, 0.2, 1)),
        (4, (0, 51, 255), (0, 0.2, 1)),
        (4, (0, 13107, 65535), (0, 0.2, 1)),
        (7, (0, 0.25, 1), (0, 0.25, 1)),
        (7, (0, 51, 255), (0, 0.2, 1)),
        (8, (0, float("nan"), 1), (0, 0.4, 1)),
        (7, (float("nan"),) * 3, (0.4, 0.4, 0.4)),
    ],
)
@pytest.mark.parametrize("names", [("r", "g", "b"), ("red", "green", "blue")])
def test_separate_colors_come_out_in_zero_to_one(names, datatype, stored, expected):
    layout = [*((name, datatype) for name in names), *XYZ]
    cloud = cloud_from_message(make_message(layout, [(*stored, 1, 2, 3)]), drop_invalid=True)
    assert cloud.dtype == np.float32
    np.testing.assert_allclose(cloud, [(1, 2, 3, *expected)], rtol=1e-6)


def test_what_came_back_from_nowhere_is_no_point():
    """Drivers without NaN write zeros; the sensor sees no point where it is itself."""
    points = [(1, 2, 3), (0, 0, 0), (0, 0, 4), (-0.0, 0, 0), (np.nan, 0, 0), (0, 5, 0)]
    message = make_message(XYZ, points)
    np.testing.assert_array_equal(
        cloud_from_message(message, drop_invalid=True), [(1, 2, 3), (0, 0, 4), (0, 5, 0)]
    )
    assert len(cloud_from_message(message)) == len(points)


def test_colors_that_nobody_wants_are_not_looked_at():
    message = make_message([*XYZ, ("rgb", 2)], [(1, 2, 3, 9)])
    with pytest.raises(InvalidMessage, match="'rgb' as packed"):
        cloud_from_message(message)
    np.testing.assert_array_equal(cloud_from_message(message, colors=False), [(1, 2, 3)])


def test_colors_where_no_point_is_say_nothing():
    layout = [*XYZ, ("r", 7), ("g", 7), ("b", 7)]
    cloud = cloud_from_message(make_message(layout, [(1, 2, 3, 0, 51, 255), (np.nan, 2, 3, -1, -1, -1)]))
    np.testing.assert_allclose(cloud[0], (1, 2, 3, 0, 0.2, 1), rtol=1e-6)
    np.testing.assert_allclose(cloud[1, 3:], 0.4, rtol=1e-6)
    for datatype in (3, 7):
        layout = [*XYZ, *((name, datatype) for name in "rgb")]
        points = [(1, 2, 3, 0, 51, 255), (np.nan, 2, 3, -1, -1, -1), (0, 0, 0, -1, 0, 0)]
        found = cloud_from_message(make_message(layout, points), drop_invalid=True)
        np.testing.assert_allclose(found, [(1, 2, 3, 0, 0.2, 1)], rtol=1e-6)


@pytest.mark.parametrize("stored", [(-1, 0, 0), (70000, 0, 0)])
def test_colors_that_are_none_are_refused(stored):
    message = make_message([*XYZ, ("r", 7), ("g", 7), ("b", 7)], [(1, 2, 3, *stored)])
    with pytest.raises(InvalidMessage, match=r"expected colors in 0\.\.1"):
        cloud_from_message(message)


def test_georeferenced_float64_coordinates_keep_their_digits_beside_float32_colors():
    point = (4_650_123.456789012, 512_345.678901234, 123.456789012345)
    message = make_message([("x", 8), ("y", 8), ("z", 8), ("rgb", 6)], [(*point, 0xFF0000)])
    cloud = cloud_from_message(message)
    assert cloud.dtype == np.float64
    assert tuple(cloud[0]) == (*point, 1, 0, 0)


def test_invalid_points_are_kept_or_dropped_whatever_is_dense_says():
    nan, infinity = float("nan"), float("inf")
    points = [(1, 2, 3), (nan, 2, 3), (1, 2, infinity), (4, 5, 6)]
    message = make_message(XYZ, points, height=2)
    np.testing.assert_array_equal(cloud_from_message(message), np.array(points, np.float32))
    np.testing.assert_array_equal(cloud_from_message(message, drop_invalid=True), [(1, 2, 3), (4, 5, 6)])


def test_signalling_nans_are_nans_without_a_warning():
    signalling = 0x7F800001  # as bits: a float on its way through Python would turn quiet
    message = make_message(
        [("x", 8), ("y", 6), ("z", 6), ("r", 6), ("g", 6), ("b", 6)], [(1.5, *[signalling] * 5)]
    )
    for field in message.fields[1:]:
        field.datatype = 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cloud = cloud_from_message(message)
    np.testing.assert_array_equal(cloud, [(1.5, np.nan, np.nan, *[np.float32(0.4)] * 3)])


@pytest.mark.parametrize(
    "store",
    [
        bytes, bytearray, memoryview, list, tuple,
        lambda data: array.array("B", data),
        lambda data: array.array("b", data),
        lambda data: np.frombuffer(data, np.uint8),
        lambda data: np.frombuffer(data, np.int8),
        lambda data: np.repeat(np.frombuffer(data, np.uint8), 2)[::2],
    ],
)  # fmt: skip
def test_the_data_may_be_stored_in_anything_that_holds_bytes(store):
    points = np.arange(12, dtype=np.float32).reshape(4, 3)
    message = make_message(XYZ, points, tail=3)
    message.data = store(message.data)
    cloud = cloud_from_message(message)
    np.testing.assert_array_equal(cloud, points)
    cloud[:] = 0  # the array is the caller's own
    np.testing.assert_array_equal(cloud_from_message(message), points)


@pytest.mark.parametrize("height", [0, 1, 7])
def test_a_cloud_of_no_points_is_an_empty_array(height):
    message = make_message(XYZ, [])
    message.height = height
    assert cloud_from_message(message, drop_invalid=True).shape == (0, 3)
    message.fields.append(SimpleNamespace(name="rgb", offset=0, datatype=7, count=1))
    assert cloud_from_message(message).shape == (0, 6)


def test_numpy_scalars_count_as_numbers():
    message = make_message(XYZ, [(1, 2, 3)], big=True)
    message.is_bigendian, message.width, message.fields[0].offset = np.True_, np.uint32(1), np.uint32(0)
    np.testing.assert_array_equal(cloud_from_message(message), [(1, 2, 3)])


@pytest.mark.parametrize(
    "change",
    [{"row_step": 0}, {"fields[0].count": 0}, {"data": b"\0" * 4 + b"\0\0\x80?" * 6}],
    ids=["row_step unset", "count unset", "more data than needed"],
)
def test_what_careless_drivers_send_is_read_all_the_same(change):
    message = make_message(XYZ, [(0, 1, 1), (1, 1, 1)])
    edit(message, change)
    np.testing.assert_array_equal(cloud_from_message(message), [(0, 1, 1), (1, 1, 1)])


def test_the_padding_after_the_last_row_may_be_missing():
    points = np.arange(12, dtype=np.float32).reshape(4, 3)
    message = make_message(XYZ, points, height=2, row_tail=5)
    message.data = message.data[:-5]
    np.testing.assert_array_equal(cloud_from_message(message), points)
    message.data = message.data[:-1]
    with pytest.raises(InvalidMessage, match="bytes of data"):
        cloud_from_message(message)


def edit(message, changes):
    """Change attributes: `{"width": 3, "fields[0].count": 2}`."""
    for path, value in changes.items():
        owner, _, name = path.rpartition(".")
        target = message.fields[int(owner[len("fields[") : -1])] if owner else message
        setattr(target, name, value)


FAULTS = {
    "no z": ({"fields[2].name": "intensity"}, r"found x, y, intensity.*: z missing"),
    "no fields": ({"fields": []}, "fields x, y and z, found none"),
    "x twice": ({"fields[3].name": "x"}, "found it twice"),
    "fields are a number": ({"fields": 3}, "list of fields, found int"),
    "fields are an array without rows": ({"fields": np.array(3)}, "list of fields, found ndarray"),
    "no field": ({"fields": [None]}, "found NoneType without name"),
    "datatype": ({"fields[1].datatype": 9}, "datatype of 1 to 8 for field 'y', found 9"),
    "datatype 0": ({"fields[1].datatype": 0}, "datatype of 1 to 8"),
    "count": ({"fields[1].count": 3}, "found a count of 3"),
    "offset": ({"fields[2].offset": 13}, "inside the 16 bytes of a point, found it at bytes 13 to 17"),
    "far offset": ({"fields[2].offset": 2**32 - 1}, "inside the 16 bytes"),
    "negative offset": ({"fields[2].offset": -4}, "expected offset in"),
    "color offset": ({"fields[3].offset": 14}, "field 'rgb' inside"),
    "color datatype": ({"fields[3].datatype": 8}, "field 'rgb' as packed into"),
    "short data": ({"data": b"1234567"}, "expected 64 bytes of data for 2 x 2 points of 16 bytes, found 7"),
    "no data": ({"data": b""}, "found 0"),
    "wide": ({"width": 2**32 - 1, "row_step": 2**32 - 1}, "row_step of at least"),
    "absurd": ({"width": 2**28, "row_step": 2**32 - 1, "height": 2**32 - 1}, "row_step of at least"),
    "high": ({"height": 2**32 - 1}, "bytes of data for 4294967295 x 2"),
    "beyond uint32": ({"height": 10**30}, r"height in 0\.\.4294967295"),
    "row_step": ({"row_step": 31}, "row_step of at least 32 for 2 points of 16 bytes, found 31"),
    "row_step 0": ({"row_step": 0}, "row_step of at least 32"),
    "one row": ({"height": 1, "width": 4, "row_step": 63}, "row_step of at least 64"),
    "long rows": ({"row_step": 2**32 - 1}, "bytes of data"),
    "point_step 0": ({"point_step": 0}, "inside the 0 bytes"),
    "text as size": ({"width": "2"}, "whole number as width, found str"),
    "fraction as size": ({"width": 2.0}, "whole number as width, found float"),
    "data of a number": ({"data": 64}, "data as bytes, found int"),
    "data of text": ({"data": "x" * 64}, "data as bytes, found str"),
    "data of large numbers": ({"data": [300] * 64}, "data as bytes, found list"),
    "data of floats": ({"data": np.zeros(64, np.float32)}, "items of 4 bytes"),
    "data of rows": ({"data": np.zeros((8, 8), np.uint8)}, "in 2 dimensions"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_message_that_holds_no_cloud_is_refused_in_one_line(fault):
    changes, expected = FAULTS[fault]
    message = make_message([*XYZ, ("rgb", 6)], [(1, 2, 3, 0)] * 4, height=2)
    edit(message, changes)
    with pytest.raises(InvalidMessage, match=expected) as caught:
        cloud_from_message(message)
    assert "\n" not in str(caught.value)


def test_another_message_is_refused_and_long_lists_of_fields_are_cut():
    with pytest.raises(InvalidMessage, match="found Image without"):
        cloud_from_message(type("Image", (), {})())
    names = ["a\nb" * 1000] * 500
    message = make_message(XYZ, [])
    message.fields = [SimpleNamespace(name=name, offset=0, datatype=7, count=1) for name in names]
    with pytest.raises(InvalidMessage) as caught:
        cloud_from_message(message)
    assert len(str(caught.value)) < 1500
    assert "\n" not in str(caught.value)


SMALL = st.integers(-1, 40)
ANYTHING = st.one_of(SMALL, st.integers(), st.none(), st.text(max_size=3), st.floats(), st.binary(max_size=9))
FIELDS = st.builds(
    SimpleNamespace,
    name=st.sampled_from(["x", "y", "z", "rgb", "rgba", "r", "g", "b", "other"]) | ANYTHING,
    offset=SMALL | ANYTHING,
    datatype=st.integers(0, 9) | ANYTHING,
    count=st.integers(0, 2) | ANYTHING,
)
MESSAGES = st.builds(
    SimpleNamespace,
    height=SMALL | ANYTHING,
    width=SMALL | ANYTHING,
    fields=st.lists(FIELDS, max_size=8) | ANYTHING,
    is_bigendian=st.booleans() | ANYTHING,
    point_step=SMALL | ANYTHING,
    row_step=SMALL | ANYTHING,
    data=st.binary(max_size=400) | st.lists(st.integers(-1, 256), max_size=40) | ANYTHING,
)


@settings(max_examples=300)
@given(MESSAGES, st.booleans())
def test_no_message_of_any_making_fails_otherwise(message, drop_invalid):
    check_outcome(message, drop_invalid)


LAYOUT = ("height", "width", "point_step", "row_step", "is_bigendian")
PLACES = [
    *LAYOUT,
    *(f"fields[{index}].{name}" for index in range(6) for name in ("offset", "datatype", "count")),
]


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(PLACES), SMALL, max_size=3), st.binary(max_size=64), st.booleans())
def test_no_edit_of_a_good_message_fails_otherwise(changes, start, drop_invalid):
    layout = [*XYZ, ("r", 7), ("g", 7), ("b", 7)]
    message = make_message(layout, [(0, 0, 0, 0, 0, 0)] * 4, height=2, row_tail=3)
    message.data = start + message.data[len(start) :]
    edit(message, changes)
    check_outcome(message, drop_invalid)


def check_outcome(message, drop_invalid):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            cloud = cloud_from_message(message, drop_invalid=drop_invalid)
        except InvalidMessage as error:
            refusal = str(error)
            cloud = None
    if cloud is None:
        assert len(refusal.splitlines()) == 1
        return
    assert cloud.shape == (len(cloud), 6 if cloud.shape[1] == 6 else 3)
    assert drop_invalid or len(cloud) == message.height * message.width
    assert np.isfinite(cloud if drop_invalid else cloud[:, 3:]).all()


def as_rosbags_message(types, plain):
    header, time = types["std_msgs/msg/Header"], types["builtin_interfaces/msg/Time"]
    sequence = {"seq": 3} if "seq" in header.__dataclass_fields__ else {}
    fields = [types["sensor_msgs/msg/PointField"](**vars(field)) for field in plain.fields]
    changed = {"fields": fields, "data": np.frombuffer(plain.data, np.uint8)}
    stamped = header(stamp=time(sec=1, nanosec=2), frame_id="map", **sequence)
    return types["sensor_msgs/msg/PointCloud2"](header=stamped, **(vars(plain) | changed))


@pytest.mark.parametrize("wire", ["ROS 1", "CDR little endian", "CDR big endian"])
@pytest.mark.parametrize("big", [False, True])
def test_messages_of_the_rosbags_library_are_read_as_they_were_made(wire, big, rng):
    typesys = pytest.importorskip("rosbags.typesys")
    store = typesys.get_typestore(
        typesys.Stores.ROS1_NOETIC if wire == "ROS 1" else typesys.Stores.ROS2_HUMBLE
    )
    points = rng.normal(size=(12, 3)).astype(np.float32)
    colors = rng.integers(0, 256, size=(12, 3))
    words = (colors << (16, 8, 0)).sum(axis=1)
    layout = [("intensity", 4), *XYZ, ("rgb", 6), ("ring", 2)]
    rows = [(7, *point, int(word), 9) for point, word in zip(points, words, strict=True)]
    plain = make_message(layout, rows, gaps=[0, 2, 0, 0, 4], tail=1, row_tail=6, height=3, big=big)
    message, name = as_rosbags_message(store.types, plain), "sensor_msgs/msg/PointCloud2"
    if wire == "ROS 1":
        received = store.deserialize_ros1(store.serialize_ros1(message, name), name)
    else:
        received = store.deserialize_cdr(
            store.serialize_cdr(message, name, little_endian=wire == "CDR little endian"), name
        )
    cloud = cloud_from_message(received)
    np.testing.assert_array_equal(cloud[:, :3], points)
    np.testing.assert_array_equal(cloud[:, 3:], (colors / 255.0).astype(np.float32))


def test_the_formats_are_those_of_point_field():
    typesys = pytest.importorskip("rosbags.typesys")
    kind = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE).types["sensor_msgs/msg/PointField"]
    long = {"i": "INT", "u": "UINT", "f": "FLOAT"}
    for datatype, short in FORMATS.items():
        assert getattr(kind, f"{long[short[0]]}{8 * int(short[1])}") == datatype
