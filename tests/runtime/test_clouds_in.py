"""Arrays of every kind, one cloud or many, colors, axes: what the encoder gets in the end."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.runtime.clouds_in import CloudsIn, as_array, split_clouds
from crossmost.runtime.manifest import Encoder
from crossmost.runtime.orientation import AXES, turn
from crossmost.runtime.preprocess import InvalidCloud, prepare

FEW = settings(max_examples=40, deadline=None)


def encoder(channels=3, up_axis="z"):
    return Encoder("test", 64, 8, 4, channels, up_axis, 0.4, 16)


def cloud(count=50, columns=3, seed=0):
    return np.random.default_rng(seed).random((count, columns)).astype(np.float32)


def test_one_cloud_a_list_and_a_batch_are_told_apart():
    one = cloud()
    assert len(split_clouds(one)) == 1
    assert len(split_clouds(one.tolist())) == 1
    assert [len(each) for each in split_clouds([one, one[:7]])] == [50, 7]
    assert [len(each) for each in split_clouds((one.tolist(), one[:7].tolist()))] == [50, 7]
    assert [each.shape for each in split_clouds(np.stack([one, one, one]))] == [(50, 3)] * 3
    assert split_clouds([]) == split_clouds(np.zeros((0, 50, 3))) == []


def test_nothing_is_copied_that_the_cpu_can_read():
    import torch

    one = cloud()
    assert as_array(one) is one
    tensor = torch.zeros(4, 3)
    assert np.shares_memory(as_array(tensor), tensor.numpy())
    assert np.shares_memory(as_array(SimpleNamespace(__array__=None) and memoryview(one)), one)


class Dlpack:
    """An array that is known by DLPack alone, and says where it lies."""

    def __init__(self, array, kind=1):
        self.array, self.kind = array, kind

    def __dlpack_device__(self):
        return (self.kind, 0)

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


def test_dlpack_arrays_are_read_where_the_cpu_can():
    one = cloud()
    np.testing.assert_array_equal(as_array(Dlpack(one)), one)
    with pytest.raises(InvalidCloud, match="DLPack device 2: copy them to the CPU"):
        as_array(Dlpack(one, kind=2))


def test_a_tensor_that_numpy_cannot_read_is_refused_in_one_line():
    import torch

    for tensor in (torch.zeros(4, 3, requires_grad=True), torch.zeros(4, 3, dtype=torch.bfloat16)):
        with pytest.raises(InvalidCloud, match="found a Tensor that is no array") as caught:
            as_array(tensor)
        assert "\n" not in str(caught.value)


def test_an_array_on_a_gpu_without_cuda_python_says_what_to_do(monkeypatch):
    from crossmost.runtime import device_arrays

    def missing():
        raise ModuleNotFoundError('pip install "crossmost[gpu]"')

    monkeypatch.setattr(device_arrays.to_host, "__defaults__", (missing,))
    interface = {"shape": (4, 3), "typestr": "<f4", "data": (4096, False), "version": 3}
    with pytest.raises(InvalidCloud, match=r"on a GPU .*crossmost\[gpu\].*copy them to the CPU"):
        as_array(SimpleNamespace(__cuda_array_interface__=interface))


def test_a_bare_encoder_leaves_further_columns_out():
    wide = cloud(columns=6)
    wide[3, 4] = np.nan
    expected = prepare(wide[:, :3], most=64, least=8)
    for columns in (4, 5, 6):
        found = CloudsIn(encoder(), "z").prepare(wide[:, :columns])
        np.testing.assert_array_equal(found.points, expected)
        assert found.dropped == 0


def test_invalid_points_are_dropped_and_counted():
    bad = cloud()
    bad[[3, 9], 1] = np.nan, np.inf
    found = CloudsIn(encoder(), "z").prepare(bad)
    assert found.dropped == 2
    np.testing.assert_array_equal(found.points, prepare(np.delete(bad, [3, 9], 0), most=64, least=8))


def test_masked_points_are_dropped_and_counted():
    points = np.ma.masked_greater(cloud(), 1e5)
    points[7] = 1e6
    points[7, 1] = np.ma.masked
    found = CloudsIn(encoder(), "z").prepare(points)
    assert found.dropped == 1
    np.testing.assert_array_equal(
        found.points, CloudsIn(encoder(), "z").prepare(np.delete(cloud(), 7, 0)).points
    )


@pytest.mark.parametrize("columns", [3, 4, 5])
def test_a_colored_encoder_sees_its_filler_where_there_is_no_color(columns):
    found = CloudsIn(encoder(6), "z").prepare(cloud(columns=columns)).points
    assert found.shape == (50, 6)
    assert (found[:, 3:] == np.float32(0.4)).all()


def test_colors_are_left_out_where_asked_for():
    colored = cloud(columns=6)
    found = CloudsIn(encoder(6), "z", "none").prepare(colored)
    np.testing.assert_array_equal(found.points, CloudsIn(encoder(6), "z").prepare(colored[:, :3]).points)
    with pytest.raises(InvalidCloud, match="expected color as auto or none, found 'red'"):
        CloudsIn(encoder(6), "z", "red")


def test_colors_pass_and_those_that_are_missing_are_filled():
    colored = cloud(columns=9)
    colored[3, 4] = np.nan
    found = CloudsIn(encoder(6), "z").prepare(colored)
    expected = colored[:, 3:6].copy()
    expected[3, 1] = 0.4
    np.testing.assert_allclose(found.points[:, 3:], expected, rtol=1e-6)
    assert found.dropped == 0
    assert np.isnan(colored[3, 4])  # the input is left as it is


def test_normals_are_no_colors():
    points = cloud(columns=6)
    points[0, 3] = -1
    with pytest.raises(InvalidCloud, match=r"expected colors .* found -1.* in columns 3 to 5: leave out"):
        CloudsIn(encoder(6), "z").prepare(points)


@pytest.mark.parametrize("axis", AXES)
def test_axes_turn_as_the_trainer_turns_them(axis):
    from crossmost.data.orientation import rotate_to_z_up

    points = cloud().astype(np.float64)
    np.testing.assert_array_equal(turn(points, axis, "z"), rotate_to_z_up(points, axis))
    np.testing.assert_array_equal(turn(turn(points, axis, "z"), "z", axis), points)


@given(seed=st.integers(0, 1000), up=st.sampled_from(AXES), wanted=st.sampled_from(AXES))
@FEW
def test_whatever_the_axes_the_top_of_the_cloud_ends_on_top(seed, up, wanted):
    points = cloud(seed=seed)
    found = CloudsIn(encoder(up_axis=wanted), up).prepare(points).points

    def height(xyz, axis):
        return xyz[:, "xyz".index(axis[-1])] * (-1 if axis[0] == "-" else 1)

    assert height(found, wanted).argmax() == height(points, up).argmax()
    lengths = np.linalg.norm(points[:, None] - points[None], axis=2)
    turned = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.testing.assert_allclose(turned / turned.max(), lengths / lengths.max(), atol=1e-5)


@pytest.mark.parametrize("wanted", AXES)
@pytest.mark.parametrize("radius", [None, 0.3])
def test_the_same_points_are_kept_in_the_same_order_whatever_the_axes(wanted, radius):
    points = cloud(200)
    for count in (200, 6):  # thinned out, and filled up
        z_up = CloudsIn(replace(encoder(), radius=radius), "z").prepare(points[:count]).points
        for up in AXES:
            found = CloudsIn(replace(encoder(up_axis=wanted), radius=radius), up)
            np.testing.assert_allclose(
                found.prepare(turn(points[:count], "z", up)).points, turn(z_up, "z", wanted), atol=1e-6
            )


def test_unsigned_numbers_turn_too():
    points = np.array([[0, 0, 0], [10, 0, 0], [0, 200, 0], [0, 0, 30]], np.uint8)
    np.testing.assert_array_equal(
        CloudsIn(encoder(), "y").prepare(points).points, CloudsIn(encoder(), "y").prepare(points * 1.0).points
    )


def test_an_axis_that_is_none_is_refused():
    with pytest.raises(InvalidCloud, match="expected an up axis out of x, y, z, -x, -y, -z, found 'w'"):
        CloudsIn(encoder(), "w")


@pytest.mark.parametrize("shape", [(3, 500), (4, 500), (6, 1000)])
def test_a_transposed_cloud_is_not_cut_to_its_first_columns(shape):
    with pytest.raises(InvalidCloud, match="transpose it"):
        CloudsIn(encoder(), "z").prepare(np.zeros(shape))


@pytest.mark.parametrize("junk", [-1.0, 65535.0, 300.0])
def test_the_colour_of_what_is_no_point_says_nothing_of_the_others(junk):
    points = np.concatenate([cloud(), cloud(seed=1)], axis=1)
    spoilt = np.concatenate([points, [[np.nan, 0, 0, junk, junk, junk]]]).astype(np.float32)
    expected = CloudsIn(encoder(6), "z").prepare(points)
    found = CloudsIn(encoder(6), "z").prepare(spoilt)
    np.testing.assert_array_equal(found.points, expected.points)
    assert found.dropped == 1


def test_what_leaves_the_range_of_float64_is_no_point():
    points = cloud().astype(np.longdouble)
    expected = CloudsIn(encoder(), "z").prepare(points)
    wide = np.concatenate([points, np.full((2, 3), np.longdouble(10) ** 400)])
    found = CloudsIn(encoder(), "z").prepare(wide)
    np.testing.assert_array_equal(found.points, expected.points)
    assert found.dropped == 2
    with pytest.raises(InvalidCloud, match="all 50 hold NaN or infinity"):
        CloudsIn(encoder(), "z").prepare(points * np.longdouble(10) ** 400)


def test_times_are_no_coordinates():
    with pytest.raises(InvalidCloud, match="expected real numbers, found dtype timedelta64"):
        CloudsIn(encoder(), "z").prepare(np.ones((20, 3), "timedelta64[ns]"))
