"""Rotations are rotations: an object keeps its handedness whatever axis points up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossmost.data.orientation import check_up_axis, rotate_to_z_up
from crossmost.errors import InputError
from crossmost.runtime.orientation import AXES, MIRRORED, rotation, turn


def direction(axis: str) -> np.ndarray:
    unit = np.zeros(3)
    unit["xyz".index(axis[-1])] = -1.0 if axis.startswith("-") else 1.0
    return unit


@pytest.mark.parametrize("axis", AXES)
def test_takes_the_named_axis_to_z_by_a_proper_rotation(axis: str) -> None:
    matrix = rotation(axis)
    assert matrix.dtype == np.float64
    np.testing.assert_array_equal(matrix @ direction(axis), [0, 0, 1])
    np.testing.assert_array_equal(matrix @ matrix.T, np.eye(3))
    assert np.linalg.det(matrix) == pytest.approx(1.0)


def test_z_is_left_alone_and_y_turns_90_degrees_about_x() -> None:
    np.testing.assert_array_equal(rotation("z"), np.eye(3))
    np.testing.assert_array_equal(rotation("y") @ [1.0, 2.0, 3.0], [1.0, -3.0, 2.0])


@given(st.sampled_from(AXES), st.sampled_from(AXES))
def test_any_axis_goes_to_any_other_and_back(up: str, to: str) -> None:
    points = np.random.default_rng(0).normal(size=(5, 6))
    turned = turn(points, up, to)
    np.testing.assert_array_equal(turned[:, :3] @ direction(to), points[:, :3] @ direction(up))
    np.testing.assert_array_equal(turned[:, 3:], points[:, 3:])
    np.testing.assert_array_equal(turned[:, :3], points[:, :3] @ rotation(up, to).T)
    np.testing.assert_array_equal(turn(turned, to, up), points)


@given(st.sampled_from(AXES))
def test_the_mirrored_frame_is_that_of_a_y_up_cloud_with_two_axes_swapped(up: str) -> None:
    points = np.random.default_rng(0).normal(size=(5, 6))
    swapped = turn(points, up, "y")[:, [0, 2, 1, 3, 4, 5]]
    np.testing.assert_array_equal(turn(points, up, MIRRORED), swapped)
    np.testing.assert_array_equal(turn(swapped, MIRRORED, up), points)
    assert np.linalg.det(rotation(up, MIRRORED)) == pytest.approx(-1.0)


@given(st.sampled_from(AXES), st.integers(0, 2**32 - 1))
def test_a_rotated_cloud_keeps_distances_and_handedness(axis: str, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(4, 3))
    turned = rotate_to_z_up(points, axis)
    np.testing.assert_array_equal(turned, points @ rotation(axis).T)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(points, axis=1))
    # The signed volume of a tetrahedron changes sign under a swap of two axes.
    volume = [np.linalg.det(four[1:] - four[0]) for four in (points, turned)]
    assert volume[1] == pytest.approx(volume[0])


def test_an_invalid_coordinate_does_not_spread_to_the_others() -> None:
    turned = rotate_to_z_up(np.array([[np.nan, 1.0, 2.0], [np.inf, 1.0, 2.0]]), "y")
    np.testing.assert_array_equal(turned[:, 1:], [[-2.0, 1.0], [-2.0, 1.0]])


@pytest.mark.parametrize("axis", ["Z", "up", "", "+y", "yz"])
def test_another_axis_is_an_input_error_that_lists_the_six(axis: str) -> None:
    with pytest.raises(InputError, match="x, y, z, -x, -y, -z"):
        check_up_axis(axis)
