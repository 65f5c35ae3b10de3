from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
import torch

from crossmost.checkpoints.base import load_base, save_base
from crossmost.data.dataset import open_dataset
from crossmost.errors import InputError, WorkFailed
from crossmost.export import workflow
from crossmost.export.clouds import sample_clouds, spread
from crossmost.export.graph_files import METADATA
from crossmost.export.source import load_exportable
from crossmost.export.workflow import EngineRequest, ExportOptions, export
from crossmost.runtime import Classifier
from crossmost.runtime.class_bank import ClassBank, load_class_bank
from crossmost.runtime.engine_options import EngineOptions, Profile
from crossmost.runtime.engine_packages import Unavailable
from crossmost.runtime.manifest import check_files, load_manifest
from crossmost.runtime.preprocess import normalize, prepare


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.fixture
def source(finished_run):
    return load_exportable(finished_run, None)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_bundle_is_whole_and_verified(bundle, precision):
    manifest = load_manifest(bundle(precision))
    check_files(bundle(precision), manifest)
    kernels = {"sampling_75.ptx", "sampling_80.ptx"}
    assert set(manifest.files) == {"model.onnx", "encoder.onnx", "weights.bin", "classes.npz", *kernels}
    assert (manifest.precision, manifest.opset, manifest.ir_version) == (precision, 18, 10)
    assert manifest.parity["verdict"] == "passed"
    assert manifest.parity["clouds"]["name"].endswith("kept by the run")
    assert {check["graph"] for check in manifest.parity["checks"]} >= {"encoder.onnx", "model.onnx"}
    assert manifest.provenance["network"] == "teacher"


@pytest.mark.parametrize("name", ["encoder.onnx", "model.onnx"])
def test_a_graph_says_what_it_is(bundle, name):
    model = onnx.load(bundle("fp16") / name, load_external_data=False)
    onnx.checker.check_model(str(bundle("fp16") / name), full_check=True)
    note = {entry.key: entry.value for entry in model.metadata_props}[METADATA]
    assert '"precision": "fp16"' in note
    assert f'"graph": "{name}"' in note
    assert '"up_axis": "z"' in note


def test_a_bare_script_gets_the_embedding_that_torch_gives(tmp_path, bundle, source):
    """Only numpy and onnxruntime, and none of ours."""
    cloud = normalize(source.sample.points[0])
    np.save(tmp_path / "cloud.npy", cloud)
    script = f"""
        import sys
        import numpy, onnxruntime
        session = onnxruntime.InferenceSession({str(bundle("fp32") / "model.onnx")!r})
        points = numpy.load("cloud.npy")[None]
        numpy.save("embedding.npy", session.run(["embedding"], {{"points": points}})[0])
        print([name for name in ("torch", "onnx", "crossmost") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    np.testing.assert_allclose(np.load(tmp_path / "embedding.npy"), source.embed([cloud]), atol=1e-4)


def test_the_threshold_is_found_on_the_clouds_of_the_run(bundle, source):
    bank = load_class_bank(bundle("fp32") / "classes.npz")
    unknown = bank.predict(source.embed(source.sample.points))[2]
    assert unknown.mean() == pytest.approx(0.05, abs=1 / len(unknown))
    assert bank.temperature == source.bank.temperature


def test_integers_for_cpus_are_verified_too_and_the_runtime_takes_them(tmp_path, source):
    manifest = export(source, tmp_path / "b", ExportOptions(int8=True, clouds=8), say=quiet)
    assert {"encoder.int8.onnx", "int8_weights.bin"} <= set(manifest.files)
    checks = [check for check in manifest.parity["checks"] if check["graph"] == "encoder.int8.onnx"]
    assert checks
    assert all(check["passed"] for check in checks)
    with Classifier.load(tmp_path / "b", backend="onnxruntime-cpu") as classifier:
        assert classifier.info()["device"]["graph"] == "encoder.int8.onnx"
        clouds = [normalize(cloud) for cloud in source.sample.points[:6]]
        cosines = (classifier.embed(clouds) * source.embed(clouds)).sum(axis=1)
    assert cosines.min() > 0.99


def test_ranges_of_integers_come_from_clouds_that_are_not_verified(tmp_path, source, monkeypatch):
    given = []
    real = workflow.quantize_encoder

    def quantize(folder, graph, calibration):
        given.extend(calibration)
        return real(folder, graph, calibration)

    monkeypatch.setattr(workflow, "quantize_encoder", quantize)
    export(source, tmp_path / "b", ExportOptions(int8=True, clouds=8), say=quiet)
    verified = spread(sample_clouds(source.sample), 8)
    assert len(given) == len(source.sample.points) - len(verified.points)
    assert not {cloud.tobytes() for cloud in given} & {cloud.tobytes() for cloud in verified.points}
    bare = dataclasses.replace(source, sample=None)
    told = []
    manifest = export(bare, tmp_path / "c", ExportOptions(int8=True, clouds=4), say=told.append)
    (note,) = manifest.notes
    assert "its ranges are of simulated clouds" in note
    assert note in told


def test_own_clouds_with_labels_give_accuracy_before_and_after(tmp_path, source, write_shapes, open_shapes):
    own = open_shapes(write_shapes(tmp_path / "own.npz", 16, seed=4))
    manifest = export(source, tmp_path / "b", ExportOptions(clouds=16), own=own, say=quiet)
    assert manifest.parity["clouds"]["name"] == own.name
    accuracy = manifest.parity["accuracy"]
    expected = (
        source.bank.logits(source.embed([own.load(i) for i in range(16)])).argmax(1) == own.labels
    ).mean()
    assert accuracy["torch"] == pytest.approx(expected, abs=0.07)
    assert accuracy["encoder.onnx"] == pytest.approx(accuracy["torch"], abs=0.07)


def test_labels_find_the_threshold_with_foreign_classes(tmp_path, source, write_shapes, tiny_architecture):
    renamed = np.array(["bottle", "chair", "monitor", "spaceship"])
    card = tiny_architecture.point
    labelled = open_dataset(
        write_shapes(tmp_path / "l.npz", 24, class_names=renamed), points=card.points, least=card.least
    )
    export(source, tmp_path / "b", ExportOptions(clouds=4), labelled=labelled, say=quiet)
    assert "24 labelled clouds" in load_class_bank(tmp_path / "b" / "classes.npz").unknown_rule


def test_labels_are_needed_for_a_threshold_from_labels(tmp_path, source, open_shapes, shapes_file):
    unlabelled = open_shapes(shapes_file).unlabelled()
    with pytest.raises(InputError, match="expected a class folder or a label for each cloud"):
        export(source, tmp_path / "b", ExportOptions(), labelled=unlabelled, say=quiet)
    assert not (tmp_path / "b").exists()


def test_a_base_is_verified_on_simulated_scans_and_has_no_threshold(tmp_path, tiny_base, tiny_vocabulary):
    base = load_exportable(tiny_base, lambda _: ClassBank.plain(tiny_vocabulary))
    manifest = export(base, tmp_path / "b", ExportOptions(clouds=4), say=quiet)
    assert "simulated" in manifest.parity["clouds"]["name"]
    assert load_class_bank(tmp_path / "b" / "classes.npz").unknown_similarity is None


def test_an_encoder_of_balls_cuts_balls_in_torch_the_graphs_and_the_runtime(
    tmp_path, tiny_base, tiny_vocabulary, source
):
    model, architecture = load_base(tiny_base)
    card = architecture.point.model_copy(update={"radius": 0.4})
    save_base(tmp_path / "balls.safetensors", model, architecture._replace(point=card), {})
    nearest, balls = (
        load_exportable(path, lambda _: ClassBank.plain(tiny_vocabulary))
        for path in (tiny_base, tmp_path / "balls.safetensors")
    )
    manifest = export(balls, tmp_path / "b", ExportOptions(clouds=8), say=quiet)
    assert manifest.parity["verdict"] == "passed"
    assert load_manifest(tmp_path / "b").encoder.radius == 0.4
    clouds = source.sample.points[:8]
    prepared = [
        prepare(cloud, most=card.points, least=card.least, scattered=card.scattered) for cloud in clouds
    ]
    with Classifier.load(tmp_path / "b", backend="onnxruntime-cpu") as classifier:
        np.testing.assert_allclose(classifier.embed(clouds), balls.embed(prepared), atol=1e-4)
    assert np.abs(balls.embed(prepared) - nearest.embed(prepared)).max() > 1e-2


def test_a_failed_gate_names_the_layer_and_leaves_nothing(tmp_path, source, monkeypatch):
    write = workflow.write_graphs

    def damaged(graph, *rest):
        with torch.no_grad():
            graph.encoder.blocks.blocks[0].mlp.fc1.weight *= 1.5
        write(graph, *rest)

    monkeypatch.setattr(workflow, "write_graphs", damaged)
    with pytest.raises(WorkFailed, match=r"no bundle was written: .*embedding.*clouds.*blocks\.0\.mlp\.fc1"):
        export(source, tmp_path / "b", ExportOptions(clouds=4), say=quiet)
    assert list(tmp_path.iterdir()) == []


def test_half_precision_halves_the_weights(bundle):
    sizes = {name: (bundle(name) / "weights.bin").stat().st_size for name in ("fp32", "fp16")}
    assert sizes["fp16"] < 0.9 * sizes["fp32"]  # the tiny encoder is nearly all alignment and float32 islands


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_both_graphs(tmp_path, source, precision):
    pytest.importorskip("tensorrt_rtx")
    request = EngineRequest("tensorrt-rtx", EngineOptions(), Profile(32, 64, 64))
    options = ExportOptions(precision=precision, clouds=2, batch=Profile(1, 2, 4), engine=request)
    manifest = export(source, tmp_path / "b", options, say=quiet)
    assert manifest.notes == ()
    assert len(manifest.engines) == 2
    check_files(tmp_path / "b", manifest)
    for name in manifest.engines:
        assert f"{name.removesuffix('.engine')}.json" in manifest.files


def test_where_no_engine_can_be_built_the_bundle_says_so(tmp_path, source, monkeypatch):
    monkeypatch.setattr(workflow, "find_tensorrt", lambda _: Unavailable("no driver"))
    said: list[str] = []
    options = ExportOptions(clouds=2, engine=EngineRequest())
    manifest = export(source, tmp_path / "b", options, say=said.append)
    assert manifest.engines == ()
    assert manifest.notes == ("no engine was built: no driver",)
    assert "no engine was built: no driver" in said
    check_files(tmp_path / "b", manifest)


def test_an_option_that_tensorrt_refuses_is_a_note(tmp_path, source):
    pytest.importorskip("tensorrt_rtx")
    request = EngineRequest("tensorrt-rtx", EngineOptions(version_compatible=True))
    manifest = export(source, tmp_path / "b", ExportOptions(clouds=2, engine=request), say=quiet)
    assert manifest.engines == ()
    assert "version-compatible" in manifest.notes[0]
