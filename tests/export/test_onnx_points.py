from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.export.onnx_points import sampling_model
from crossmost.models.point_bert import load_point_card
from crossmost.runtime.onnx_session import create_session
from crossmost.runtime.preprocess import normalize
from crossmost.runtime.sampling import farthest_point_indices, group


def open_sampling(card, folder):
    """A session that gives patches, centers, the chosen indices and the normalised points."""
    model = sampling_model(card)
    model.graph.output.append(onnx.helper.make_tensor_value_info("indices", 7, ["batch", card.groups]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("unit_xyz", 1, ["batch", "points", 3]))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "sampling.onnx")
    return create_session(folder / "sampling.onnx", threads=1)


@pytest.fixture(scope="module")
def card():
    return load_point_card("point-bert-64x32").model_copy(update={"groups": 16, "neighbors": 8})


@pytest.fixture(scope="module")
def sampling(card, tmp_path_factory):
    return open_sampling(card, tmp_path_factory.mktemp("sampling"))


def cut(session, clouds):
    return session.run(["patches", "centers", "indices", "unit_xyz"], {"points": np.stack(clouds)})


def check_identical(session, card, clouds):
    """Every number as NumPy has it, bit for bit, given the same float32 cloud."""
    patches, centers, indices, normalized = cut(session, clouds)
    for row, _ in enumerate(clouds):
        cloud = normalized[row]
        expected_patches, expected_centers = group(cloud, card.groups, card.neighbors)
        assert (indices[row] == farthest_point_indices(cloud, card.groups)).all()
        assert (patches[row] == expected_patches).all()
        assert (centers[row] == expected_centers).all()


def grid():
    axis = np.linspace(-1, 1, 5)
    return normalize(np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3))


@pytest.mark.parametrize("count", [16, 17, 100, 1000])
def test_random_clouds(sampling, card, rng, count):
    check_identical(sampling, card, [normalize(rng.standard_normal((count, 3))) for _ in range(3)])


def test_ties_go_to_the_lowest_index(sampling, card):
    lattice = grid()
    check_identical(sampling, card, [lattice, lattice[::-1].copy(), np.roll(lattice, 7, axis=0)])


def test_duplicates_and_equal_points(sampling, card, rng):
    few = normalize(rng.standard_normal((4, 3)))
    check_identical(sampling, card, [np.repeat(few, 8, axis=0), np.zeros((32, 3), np.float32)])
    assert all(np.isfinite(each).all() for each in cut(sampling, [np.full((32, 3), 7.5, np.float32)]))


def test_real_clouds_and_the_512_groups_of_ulip(tmp_path, shared_data):
    card = load_point_card("point-bert-512x32")
    with np.load(shared_data / "modelnet10_vox30_1024.npz") as data:
        clouds = [normalize(cloud) for cloud in data["points"][::1500].astype(np.float32)]
    check_identical(open_sampling(card, tmp_path), card, clouds)


def test_a_normalized_cloud_passes_through_bit_for_bit(sampling, rng):
    cloud = normalize(rng.standard_normal((200, 3)))
    assert (cut(sampling, [cloud])[3][0] == cloud).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(1e-3, 1e3),
    offset=st.tuples(*[st.floats(-100, 100)] * 3),
)
@settings(max_examples=25, deadline=None)
def test_a_raw_cloud_is_normalized_as_the_runtime_does_it(sampling, seed, scale, offset):
    cloud = np.random.default_rng(seed).standard_normal((64, 3))
    raw = (cloud * scale + offset).astype(np.float32)
    # Half a unit in the last place of the raw coordinates, in units of the cloud's size, is lost before we begin.
    lost = 4 * np.spacing(np.abs(raw).max()) / scale
    np.testing.assert_allclose(cut(sampling, [raw])[3][0], normalize(raw), atol=float(lost) + 1e-6)


@pytest.mark.parametrize("count", [1, 2, 15])
def test_too_few_points_are_repeated_in_turn(sampling, card, rng, count):
    cloud = normalize(rng.standard_normal((count, 3)))
    filled = cloud[np.arange(max(card.groups, card.neighbors)) % count]
    patches, centers, _, _ = cut(sampling, [cloud])
    expected_patches, expected_centers = group(filled, card.groups, card.neighbors)
    assert (patches[0] == expected_patches).all()
    assert (centers[0] == expected_centers).all()


def test_colors_pass_through(tmp_path, rng):
    card = load_point_card("point-bert-512x32-rgb").model_copy(update={"groups": 16, "neighbors": 8})
    colored = np.concatenate(
        [normalize(rng.standard_normal((50, 3))), rng.random((50, 3), dtype=np.float32)], axis=1
    )
    patches, _, _, _ = cut(open_sampling(card, tmp_path), [colored])
    assert (patches[0] == group(colored, 16, 8)[0]).all()


def test_a_plug_in_finds_farthest_point_sampling(card):
    model = sampling_model(card)
    assert [entry.name for entry in model.functions] == [
        "Normalize",
        "Fill",
        "FarthestPointSampling",
        "Group",
    ]
    (node,) = (node for node in model.graph.node if node.op_type == "FarthestPointSampling")
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    assert attributes == {"num_samples": 16, "plugin_namespace": b"crossmost", "plugin_version": b"1"}
    function = model.functions[2]
    assert set(function.attribute) == set(attributes)  # ONNX Runtime refuses undeclared ones
