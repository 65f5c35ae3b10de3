from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.data.shapes import make_shape
from crossmost.errors import InputError
from crossmost.export import graph_checks, verification_clouds
from crossmost.export.graph import EncoderGraph
from crossmost.export.graph_parts import open_part
from crossmost.export.onnx_encoder import encoder_model
from crossmost.export.onnx_points import points_model
from crossmost.export.parity import (
    COSINE_MEAN,
    COSINE_MIN,
    DIFFERENCE,
    FINITE,
    RUNS,
    SAME_INDICES,
    SAME_UNIT,
    TOP1,
)
from crossmost.export.verification_clouds import feed_clouds, plan_batches
from crossmost.export.verify import EAGER, VerificationClouds, verify
from crossmost.export.weights import save_with_weights
from crossmost.models.point_bert import PointBert
from crossmost.models.point_cards import load_point_card
from crossmost.models.student import Projection
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.preprocess import prepare
from crossmost.runtime.vocabulary import Vocabulary

BATCHES = (1, 4, 16)


def write_graphs(encoder, projection, precision, folder, center=None):
    """Both graphs and their weights, as a bundle has them."""
    folder.mkdir()
    model = encoder_model(EncoderGraph(encoder, Projection(projection, center), precision))
    joined = points_model(encoder.card, model)
    paths = [(model, folder / "encoder.onnx"), (joined, folder / "model.onnx")]
    save_with_weights(paths, folder / "weights.bin")
    return folder


def random_bank(dim):
    rows = np.random.default_rng(4).standard_normal((5, dim))
    return ClassBank.plain(Vocabulary.create("abcde", rows, logit_scale=100.0))


@pytest.fixture(scope="module")
def encoder(make_encoder):
    return make_encoder()


@pytest.fixture(scope="module")
def projection(encoder):
    return torch.randn(2 * encoder.card.width, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def bundles(encoder, projection, tmp_path_factory):
    """The graphs in each precision asked for; to be left as they are."""
    made = {}

    def make(precision):
        if precision not in made:
            folder = tmp_path_factory.mktemp("bundles") / precision
            made[precision] = write_graphs(encoder, projection, precision, folder)
        return made[precision]

    return make


@pytest.fixture
def damaged(bundles, tmp_path):
    """A copy of a bundle with the model of one file changed."""

    def copy(precision, name, change):
        folder = shutil.copytree(bundles(precision), tmp_path / "damaged")
        model = onnx.load(folder / name, load_external_data=False)
        change(model)
        (folder / name).write_bytes(model.SerializeToString())
        return folder

    return copy


@pytest.fixture(scope="module")
def clouds():
    """Shapes of two sizes, some too small for eight groups."""
    rng = np.random.default_rng(2)
    sizes = [40] * 6 + [64, 64, 5]
    names = ("bottle", "chair", "table")
    shapes = [prepare(make_shape(names[row % 3], rng, size), most=64) for row, size in enumerate(sizes)]
    ids = tuple(f"shape{row}" for row in range(len(sizes)))
    return VerificationClouds("shapes", ids, tuple(shapes), np.arange(len(sizes)) % 5 - 1)


@pytest.fixture
def verified(encoder, projection, clouds):
    bank = random_bank(16)

    def run(folder, precision, encoder=encoder, projection=projection, clouds=clouds):
        return verify(
            folder, encoder, Projection(projection), precision, bank, clouds, batches=BATCHES, threads=1
        )

    return run


def shift(name):
    """A change of one inline weight, of each number by another amount: a norm undoes what is the same for all."""

    def change(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        values = np.frombuffer(tensor.raw_data, dtype)
        tensor.raw_data = (values + np.linspace(-1, 1, len(values))).astype(dtype).tobytes()

    return change


def failed(parity):
    return {(check.graph, check.metric) for check in parity.checks if not check.passed}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_faithful_graphs_pass_at_every_batch_and_nothing_changes(bundles, verified, precision):
    folder = bundles(precision)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    parity = verified(folder, precision)
    assert parity.passed, parity.failure
    assert parity.failure == ""
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    runs = {(check.graph, check.batch) for check in parity.checks if EAGER not in check.name}
    assert runs == {(graph, batch) for graph in ("encoder.onnx", "model.onnx") for batch in BATCHES}
    assert json.loads(json.dumps(parity.to_dict(), allow_nan=False))["verdict"] == "passed"
    assert parity.clouds == {"name": "shapes", "count": 9, "points": [5, 40]}


@pytest.mark.parametrize(
    ("precision", "in_runtime", "in_torch"),
    [
        ("fp32", {DIFFERENCE, COSINE_MIN}, None),
        ("fp16", {COSINE_MIN, COSINE_MEAN}, {COSINE_MIN, COSINE_MEAN}),
        ("bf16", {DIFFERENCE, COSINE_MIN}, {COSINE_MIN, COSINE_MEAN}),
    ],
)
def test_each_precision_is_checked_in_the_ways_it_can_be(bundles, verified, precision, in_runtime, in_torch):
    checks = verified(bundles(precision), precision).checks
    every = {FINITE, TOP1}
    for graph, further in (("encoder.onnx", set()), ("model.onnx", {SAME_UNIT, SAME_INDICES})):
        metrics = {check.metric for check in checks if check.graph == graph}
        assert metrics == in_runtime | every | further
    eager = {check.metric for check in checks if EAGER in check.name}
    assert eager == (set() if in_torch is None else in_torch | every)


def test_all_clouds_run_at_the_typical_batch_and_few_at_the_smallest(bundles, verified):
    checks = verified(bundles("fp32"), "fp32").checks
    assert {check.clouds for check in checks if check.batch == 1} == {4}
    assert {check.clouds for check in checks if check.batch == 4} == {9}
    # Nine clouds, of which eight have the same size and can share a batch of `model.onnx`, fill one of sixteen.
    assert {check.clouds for check in checks if check.batch == 16 and check.graph == "encoder.onnx"} == {9}
    assert {check.clouds for check in checks if check.batch == 16 and check.graph == "model.onnx"} == {8}


def test_labels_give_the_accuracy_before_and_after(bundles, verified, clouds, encoder, projection):
    parity = verified(bundles("bf16"), "bf16")
    fed = feed_clouds(clouds, encoder.card)
    with torch.no_grad():
        graph = EncoderGraph(encoder, Projection(projection), "fp32")
        embedding = graph(torch.from_numpy(fed.patches), torch.from_numpy(fed.centers)).numpy()
    known = clouds.labels >= 0
    right = random_bank(16).logits(embedding).argmax(axis=1) == clouds.labels
    assert parity.accuracy.keys() == {"torch", "encoder.onnx", "model.onnx"}
    assert parity.accuracy["torch"] == right[known].mean()
    unlabelled = VerificationClouds(clouds.name, clouds.ids, clouds.points)
    assert verified(bundles("bf16"), "bf16", clouds=unlabelled).accuracy == {}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_damaged_weight_fails_with_graph_output_clouds_and_layer(damaged, verified, precision):
    folder = damaged(precision, "encoder.onnx", shift("encoder.blocks.blocks.0.attn.proj.bias"))
    parity = verified(folder, precision)
    assert not parity.passed
    assert {graph for graph, _ in failed(parity)} == {"encoder.onnx"}
    for words in (
        "encoder.onnx", precision, "batch 1", "embedding", "of 4 clouds (shape", "expected",
        "first layer that departs: encoder.blocks.blocks.0.attn.proj",
    ):  # fmt: skip
        assert words in parity.failure
    assert "\n" not in parity.failure


def test_a_damaged_layer_of_the_joined_graph_alone_is_found_there(damaged, verified):
    parity = verified(damaged("fp32", "model.onnx", shift("encoder.reduce_dim.bias")), "fp32")
    assert {graph for graph, _ in failed(parity)} == {"model.onnx"}
    assert "first layer that departs: encoder.reduce_dim" in parity.failure


def other_start(model):
    """Let sampling begin at the point nearest to the centroid."""
    function = next(each for each in model.functions if each.name == "FarthestPointSampling")
    node = next(node for node in function.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_farthest_points_fail_and_name_the_sampling(damaged, verified, precision):
    parity = verified(damaged(precision, "model.onnx", other_start), precision)
    assert ("model.onnx", SAME_INDICES) in failed(parity)
    assert not any(graph == "encoder.onnx" for graph, _ in failed(parity))
    assert "model.onnx" in parity.failure
    assert "indices" in parity.failure
    assert "first layer that departs: FarthestPointSampling" in parity.failure


@pytest.mark.parametrize(("output", "other"), [("computed", "Mul"), ("moved", "Add"), ("norm", "Identity")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_wrong_step_that_normalised_clouds_skip_is_found(damaged, verified, precision, output, other):
    def change(model):
        function = next(each for each in model.functions if each.name == "Normalize")
        node = next(node for node in function.node if node.output[0] == output)
        node.op_type = other

    parity = verified(damaged(precision, "model.onnx", change), precision)
    assert ("model.onnx", SAME_UNIT) in failed(parity)
    assert "filled: same unit cloud" in parity.failure
    assert "first layer that departs: Normalize or Fill" in parity.failure


def test_other_neighbors_fail_and_name_the_grouping(damaged, verified):
    def farthest_neighbors(model):
        function = next(each for each in model.functions if each.name == "Group")
        node = next(node for node in function.node if node.op_type == "TopK")
        next(attribute for attribute in node.attribute if attribute.name == "largest").i = 1

    parity = verified(damaged("fp32", "model.onnx", farthest_neighbors), "fp32")
    assert "first layer that departs: Group" in parity.failure


def test_a_graph_that_refuses_a_batch_does_not_run(damaged, verified):
    def fix_batch(model):
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = 1

    parity = verified(damaged("fp16", "encoder.onnx", fix_batch), "fp16")
    assert failed(parity) == {("encoder.onnx", RUNS)}
    assert "encoder.onnx (fp16 in ONNX Runtime, batch 4) does not run: " in parity.failure
    assert [check.batch for check in parity.checks if check.graph == "encoder.onnx" and check.passed][-1] == 1
    assert {check.graph for check in parity.checks} >= {"model.onnx"}  # the others are checked all the same


@pytest.mark.parametrize("damage", ["no weights", "another output", "half of a file"])
def test_a_graph_that_cannot_be_used_is_a_failed_check(damaged, verified, damage):
    def rename(model):
        if damage == "another output":
            model.graph.output[0].name = "features"
            model.graph.node[-1].output[0] = "features"

    folder = damaged("fp32", "encoder.onnx", rename)
    if damage == "no weights":
        (folder / "weights.bin").unlink()
    if damage == "half of a file":
        content = (folder / "encoder.onnx").read_bytes()
        (folder / "encoder.onnx").write_bytes(content[: len(content) // 2])
    parity = verified(folder, "fp32")
    assert ("encoder.onnx", RUNS) in failed(parity)
    assert "encoder.onnx" in parity.failure
    assert "\n" not in parity.failure


def test_an_output_in_half_precision_is_refused(damaged, verified):
    def narrow(model):
        model.graph.node[-1].output[0] = "wide"
        model.graph.node.append(onnx.helper.make_node("Cast", ["wide"], ["embedding"], to=10))
        model.graph.output[0].type.tensor_type.elem_type = 10

    parity = verified(damaged("fp16", "encoder.onnx", narrow), "fp16")
    assert "expected an embedding (1, 16) float32, found (1, 16) float16" in parity.failure


def test_numbers_beyond_half_precision_fail_where_torch_rounds_every_operation(
    verified, make_encoder, projection, tmp_path
):
    """Activations of a million, scaled back by the next layer: right in float32, infinite in float16."""
    encoder = make_encoder()
    with torch.no_grad():
        first, second = encoder.encoder.first_conv[3], encoder.encoder.second_conv[0]
        for tensor in (first.weight, first.bias):
            tensor *= 1e6
        second.weight *= 1e-6
    parity = verified(write_graphs(encoder, projection, "fp16", tmp_path / "b"), "fp16", encoder=encoder)
    wrong = {check.metric for check in parity.checks if EAGER in check.name and not check.passed}
    assert wrong == {FINITE}
    (eager,) = (check for check in parity.checks if EAGER in check.name)
    assert len(eager.failing) == 4
    assert not parity.passed


def test_the_first_layer_that_torch_itself_cannot_hold_in_half_precision_is_named(
    bundles, verified, monkeypatch
):
    import crossmost.export.verify as module

    class Rounder(EncoderGraph):
        """A half-precision module whose last norm went wrong."""

        def __init__(self, encoder, projection, precision):
            super().__init__(encoder, projection, precision)
            if precision == "fp16":
                self.encoder.norm.bias += 10 * torch.arange(16, dtype=torch.float16)

    monkeypatch.setattr(module, "EncoderGraph", Rounder)
    parity = verified(bundles("fp16"), "fp16")
    assert all(EAGER in check.name for check in parity.checks if not check.passed)
    assert {check.metric for check in parity.checks if not check.passed} >= {COSINE_MIN, COSINE_MEAN}
    assert "first layer that departs: encoder.norm" in parity.failure


def test_a_batch_is_no_larger_than_memory_allows(bundles, verified, encoder, monkeypatch):
    per_cloud = encoder.card.groups * 2 * 40  # distances outweigh the patches of this card
    monkeypatch.setattr(graph_checks, "MOST_ELEMENTS", 6 * per_cloud)
    checks = verified(bundles("fp32"), "fp32").checks
    assert {check.batch for check in checks} == {1, 4, 6}


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.zeros((9, 6), np.float32), "expected points of shape (N, 3), found (9, 6)"),
        (np.zeros((0, 3), np.float32), "found (0, 3)"),
        (np.full((9, 3), np.nan, np.float32), "NaN"),
    ],
)
def test_clouds_the_encoder_cannot_read_are_an_input_error(bundles, verified, points, words):
    clouds = VerificationClouds("mine", ("mug",), (points,))
    with pytest.raises(InputError) as error:
        verified(bundles("fp32"), "fp32", clouds=clouds)
    assert str(error.value).startswith("mug: ")
    assert words in str(error.value)


def test_no_cloud_and_a_label_too_few_are_input_errors():
    with pytest.raises(InputError, match="at least one cloud"):
        VerificationClouds("mine", (), ())
    with pytest.raises(InputError, match="one label"):
        VerificationClouds("mine", ("a",), (np.zeros((9, 3), np.float32),), np.zeros(2, np.int64))


def test_colors_go_along(verified, make_encoder, projection, clouds, tmp_path, rng):
    encoder = make_encoder(channels=6)
    colored = tuple(
        np.concatenate([cloud, rng.random(cloud.shape, np.float32)], axis=1) for cloud in clouds.points
    )
    folder = write_graphs(encoder, projection, "fp32", tmp_path / "bundle")
    parity = verified(
        folder, "fp32", encoder=encoder, clouds=VerificationClouds("colored", clouds.ids, colored)
    )
    assert parity.passed, parity.failure


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    shift=st.floats(-1e3, 1e3),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 9),
)
def test_the_joined_graph_sees_the_very_patches_that_numpy_makes(bundles, encoder, sizes, shift, scale, seed):
    rng = np.random.default_rng(seed)
    points = tuple((rng.standard_normal((size, 3)) * scale + shift).astype(np.float32) for size in sizes)
    fed = feed_clouds(VerificationClouds("random", tuple(map(str, sizes)), points), encoder.card)
    session = open_part(
        bundles("fp32") / "model.onnx", ["points"], ["unit_xyz", "indices", "patches", "centers"]
    )
    for row, cloud in enumerate(fed.points):
        xyz, indices, patches, centers = session.run(None, {"points": cloud[None]})
        assert np.array_equal(xyz[0], cloud)
        assert np.array_equal(indices[0], fed.indices[row])
        assert np.array_equal(patches[0], fed.patches[row])
        assert np.array_equal(centers[0], fed.centers[row])
    median = sorted(sizes)[(len(sizes) - 1) // 2]
    assert [len(cloud) for cloud in fed.points] == [min(size, median) for size in sizes]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    batches=st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 40)),
    most=st.integers(1, 50),
)
def test_every_cloud_is_in_one_batch_of_a_run_and_no_batch_mixes_sizes(sizes, batches, most):
    ends = np.cumsum(sizes)
    groups = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    runs = plan_batches(groups, batches, most)
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    assert any(sorted(np.concatenate(run)) == list(range(ends[-1])) for run in runs)
    largest = [max(map(len, run)) for run in runs]
    assert len(set(largest)) == len(runs) <= 3
    assert max(largest) == min(max(batches), most)
    for run in runs:
        assert all(len(set(group_of[rows])) == 1 for rows in run)
        assert len(run) <= ends[-1]


def test_the_smallest_batch_costs_a_few_clouds_only():
    smallest, typical, largest = plan_batches([np.arange(100)], (1, 8, 64), most=1000)
    assert len(smallest) == verification_clouds.PART
    assert {0, 99} <= {int(rows[0]) for rows in smallest}
    assert [len(rows) for rows in typical] == [8] * 12 + [4]
    assert [len(rows) for rows in largest] == [64]


def test_a_centered_encoder_is_verified_about_its_center(encoder, projection, clouds, tmp_path):
    center = torch.randn(projection.shape[1], generator=torch.Generator().manual_seed(3))
    folder = write_graphs(encoder, projection, "fp32", tmp_path / "b", center)
    bank, options = random_bank(16), {"batches": BATCHES, "threads": 1}
    assert verify(folder, encoder, Projection(projection, center), "fp32", bank, clouds, **options).passed
    assert not verify(folder, encoder, Projection(projection), "fp32", bank, clouds, **options).passed


def test_on_real_clouds(shared_data, tmp_path):
    torch.manual_seed(0)
    card = load_point_card("point-bert-64x32").model_copy(update={"depth": 3})  # all else as it ships
    encoder = PointBert(card).eval()
    projection = torch.randn(2 * card.width, 32) * 0.03
    folder = write_graphs(encoder, projection, "fp32", tmp_path / "bundle")
    with np.load(shared_data / "modelnet10_vox30_1024.npz") as file:
        rows = np.linspace(0, len(file["ids"]) - 1, 6).astype(int)
        points = tuple(prepare(cloud, most=card.points, least=card.least) for cloud in file["points"][rows])
        clouds = VerificationClouds("modelnet10", tuple(file["ids"][rows]), points)
    parity = verify(
        folder, encoder, Projection(projection), "fp32", random_bank(32), clouds, batches=(1, 2, 8), threads=1
    )
    assert parity.passed, parity.failure
    assert {check.batch for check in parity.checks} == {1, 2, 8}
