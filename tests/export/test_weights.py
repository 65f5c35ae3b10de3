from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from crossmost.export.weights import ALIGNMENT, INLINE_BYTES, hollow, move_weights, refill, save_with_weights
from crossmost.runtime.onnx_session import create_session


def product(weight, name, *, raw=True):
    """A graph that multiplies its input with a weight and adds a small constant."""
    large = numpy_helper.from_array(weight, name)
    if not raw:
        large = helper.make_tensor(name, TensorProto.FLOAT, weight.shape, weight.ravel().tolist())
    small = numpy_helper.from_array(np.ones(1, np.float32), "small")
    nodes = [helper.make_node("MatMul", ["x", name], ["m"]), helper.make_node("Add", ["m", "small"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [large, small],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_equal_weights_are_stored_once_whatever_their_name_and_form(tmp_path, rng):
    weight = rng.standard_normal((64, 32)).astype(np.float32)
    other = rng.standard_normal((64, 16)).astype(np.float32)
    models = [product(weight, "a"), product(weight, "b", raw=False), product(other, "c")]
    paths = [tmp_path / f"{name}.onnx" for name in "abc"]
    save_with_weights(list(zip(models, paths, strict=True)), tmp_path / "weights.bin")

    assert (
        tmp_path / "weights.bin"
    ).stat().st_size == 2 * ALIGNMENT + other.nbytes  # 64 x 32 floats are two pages
    assert all(path.stat().st_size < 2 * INLINE_BYTES for path in paths)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    for path, expected in zip(paths, (weight, weight, other), strict=True):
        onnx.checker.check_model(str(path), full_check=True)
        (y,) = create_session(path, threads=1).run(None, {"x": x})
        np.testing.assert_allclose(y, x @ expected + 1, atol=1e-4)


def test_small_tensors_stay_in_the_graph(tmp_path, rng):
    save_with_weights(
        [(product(rng.standard_normal((64, 32)).astype(np.float32), "a"), tmp_path / "a.onnx")],
        tmp_path / "weights.bin",
    )
    inside = {each.name for each in onnx.load(tmp_path / "a.onnx", load_external_data=False).graph.initializer
              if each.data_location == TensorProto.DEFAULT}  # fmt: skip
    assert inside == {"small"}


def test_a_hollow_graph_can_be_worked_on_and_filled_again(tmp_path, rng):
    weight = rng.standard_normal((64, 32)).astype(np.float32)
    model = product(weight, "a")
    move_weights([model], tmp_path / "weights.bin")
    light = hollow(model)
    assert [value.name for value in light.graph.input] == ["x", "a"]
    assert light.ByteSize() < 2 * INLINE_BYTES
    onnx.checker.check_model(light, full_check=True)  # in memory, where the file would be looked for in vain

    inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True)
    refill(inferred, model)
    assert [value.name for value in inferred.graph.input] == ["x"]
    (tmp_path / "a.onnx").write_bytes(inferred.SerializeToString())
    x = rng.standard_normal((3, 64)).astype(np.float32)
    (y,) = create_session(tmp_path / "a.onnx", threads=1).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight + 1, atol=1e-4)
