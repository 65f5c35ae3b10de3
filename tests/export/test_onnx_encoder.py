from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from crossmost.export.graph import EncoderGraph
from crossmost.export.onnx_encoder import encoder_model, export_graph
from crossmost.models.student import Projection
from crossmost.runtime.onnx_session import create_session

FLOAT, HALF, BFLOAT = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16


@pytest.fixture(scope="module")
def graphs(make_encoder):
    projection = torch.randn(2 * make_encoder().card.width, 16, generator=torch.Generator().manual_seed(2))
    return {
        precision: EncoderGraph(make_encoder(depth=2), Projection(projection), precision)
        for precision in ("fp32", "fp16", "bf16")
    }


@pytest.fixture(scope="module")
def models(graphs):
    return {precision: encoder_model(graph) for precision, graph in graphs.items()}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_graph_is_standard_and_typed(models, precision):
    model = models[precision]
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 10
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LayerNormalization") == 2 * 2 + 1
    assert "BatchNormalization" not in kinds
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        FLOAT
    }
    wanted = {"fp32": FLOAT, "fp16": HALF, "bf16": BFLOAT}[precision]
    large = {each.data_type for each in model.graph.initializer if np.prod(each.dims) >= 16 * 16}
    assert wanted in large
    assert large <= {wanted, FLOAT}


@pytest.mark.parametrize("batch", [1, 2, 3, 17])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_any_batch_gives_what_torch_gives(graphs, models, tmp_path, precision, batch):
    onnx.save(models[precision], tmp_path / "encoder.onnx")
    card = graphs["fp32"].encoder.card
    patches = torch.randn(batch, card.groups, card.neighbors, 3) * 0.1
    centers = torch.randn(batch, card.groups, 3) * 0.5
    session = create_session(tmp_path / "encoder.onnx", threads=1)
    (found,) = session.run(["embedding"], {"patches": patches.numpy(), "centers": centers.numpy()})
    with torch.no_grad():
        expected = graphs[precision](patches, centers).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6 if precision == "fp32" else 2e-3)


def test_axes_have_names(models):
    for value in (*models["fp32"].graph.input, *models["fp32"].graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_nothing_of_the_exporting_machine_is_in_it(models):
    content = models["fp16"].SerializeToString()
    assert b".py" not in content
    assert str(Path(torch.__file__).parents[2]).encode() not in content
    assert all(
        note.key == "pkg.torch.onnx.name_scopes"
        for node in models["fp16"].graph.node
        for note in node.metadata_props
    )


def test_a_module_that_fixes_its_batch_is_refused():
    class Fixed(nn.Module):
        def forward(self, x):
            return x * len(x)

    with pytest.raises(Exception, match="batch"):
        export_graph(Fixed().eval(), {"x": torch.zeros(2, 3)}, output="y")
