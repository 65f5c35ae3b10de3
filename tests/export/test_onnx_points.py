from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.export.onnx_points import sampling_model
from crossmost.models.point_cards import load_point_card
from crossmost.runtime.onnx_session import create_session
from crossmost.runtime.preprocess import normalize
from crossmost.runtime.sampling import RADII, farthest_point_indices, group, squared_radius


def open_sampling(card, folder):
    """A session that gives patches, centers, the chosen indices and the normalised points."""
    model = sampling_model(card)
    model.graph.output.append(onnx.helper.make_tensor_value_info("indices", 7, ["batch", card.groups]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("unit_xyz", 1, ["batch", "points", 3]))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "sampling.onnx")
    return create_session(folder / "sampling.onnx", threads=1)


@pytest.fixture(scope="module", params=[None, 0.5], ids=["nearest", "balls"])
def card(request):
    sizes = {"groups": 16, "neighbors": 8, "radius": request.param}
    return load_point_card("point-bert-64x32").model_copy(update=sizes)


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
        expected_patches, expected_centers = group(cloud, card.groups, card.neighbors, card.radius)
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


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"groups": 384, "neighbors": 64, "radius": 0.2},
        {"groups": 64, "neighbors": 256, "radius": 0.4},
        {"neighbors": 64, "radius": 0.05},
    ],
    ids=["ULIP", "OpenShape", "OpenShape, smaller", "lonely centers"],
)
def test_real_clouds(tmp_path, shared_data, sizes):
    card = load_point_card("point-bert-512x32").model_copy(update=sizes)
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
    expected_patches, expected_centers = group(filled, card.groups, card.neighbors, card.radius)
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
        "Group" if card.radius is None else "BallGroup",
    ]
    (node,) = (node for node in model.graph.node if node.op_type == "FarthestPointSampling")
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    assert attributes == {"num_samples": 16, "plugin_namespace": b"crossmost", "plugin_version": b"1"}
    function = model.functions[2]
    assert set(function.attribute) == set(attributes)  # ONNX Runtime refuses undeclared ones


@given(radius=st.floats(*RADII) | st.floats(-41, 41).map(math.exp))
@settings(max_examples=25, deadline=None)
def test_the_graph_compares_with_the_number_numpy_compares_with(radius):
    model = sampling_model(load_point_card("point-bert-64x32").model_copy(update={"radius": radius}))
    (node,) = (node for node in model.graph.node if node.op_type == "BallGroup")
    (found,) = (entry.f for entry in node.attribute if entry.name == "squared_radius")
    assert found == squared_radius(radius)


def test_a_point_at_the_radius_is_inside(tmp_path):
    """The distances of the lattice are exact: 0.5 is the second step along an axis."""
    steps = {"groups": 16, "neighbors": 64, "radius": 0.5}
    card = load_point_card("point-bert-64x32").model_copy(update=steps)
    axis = np.linspace(-1, 1, 9)[1:-1] / 2
    lattice = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    tips = np.concatenate([np.eye(3), -np.eye(3)])
    cloud = np.concatenate([lattice, tips]).astype(np.float32)
    check_identical(open_sampling(card, tmp_path), card, [cloud])


def test_tensorrt_rtx_builds_it(card):
    """What a TensorRT backend would need to take `model.onnx` as a whole; building needs no GPU."""
    trt = pytest.importorskip("tensorrt_rtx")
    model = onnx.shape_inference.infer_shapes(sampling_model(card), strict_mode=True)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [
        parser.get_error(index).desc() for index in range(parser.num_errors)
    ]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("points", (1, 16, 3), (4, 64, 3), (8, 1000, 3))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
