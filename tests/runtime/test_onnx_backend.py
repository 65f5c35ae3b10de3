"""The encoder in ONNX Runtime: the same as torch, in any batch, within bounds, and honest about CUDA."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from crossmost.runtime import onnx_backend
from crossmost.runtime.backend import BackendUnavailable
from crossmost.runtime.manifest import load_manifest
from crossmost.runtime.onnx_backend import OnnxBackend
from crossmost.runtime.preprocess import prepare


def opened(bundle, **options):
    return OnnxBackend(bundle, load_manifest(bundle), threads=1, **options)


@pytest.fixture(scope="module")
def clouds(shapes_of):
    return [prepare(points, most=64, least=8) for points in shapes_of(20)]


def test_it_gives_what_torch_gives(exported, finished_run, clouds):
    import torch

    from crossmost.export.source import load_exportable
    from crossmost.models.grouping import group

    source = load_exportable(finished_run, None)
    found = opened(exported).embed(clouds).embedding
    for cloud, row in zip(clouds, found, strict=True):
        patches, centers = group(torch.from_numpy(cloud)[None], 8, 4)
        with torch.no_grad():
            expected = source.head(source.encoder(patches, centers).feature)[0].numpy()
        np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.mark.parametrize("which", ["exported", "half"])
def test_the_answer_does_not_depend_on_the_batch(request, clouds, which, monkeypatch):
    bundle = request.getfixturevalue(which)
    alone = np.concatenate([opened(bundle).embed([cloud]).embedding for cloud in clouds[:6]])
    backend = opened(bundle)
    np.testing.assert_allclose(backend.embed(clouds).embedding[:6], alone, atol=1e-5)
    monkeypatch.setitem(onnx_backend.POINTS_AT_ONCE, "cpu", 3 * 8 * 4)
    cut = opened(bundle)
    assert cut.info()["clouds_at_once"] == 3
    np.testing.assert_allclose(cut.embed(clouds).embedding[:6], alone, atol=1e-5)


def test_a_large_batch_is_cut(exported, clouds, monkeypatch):
    monkeypatch.setitem(onnx_backend.POINTS_AT_ONCE, "cpu", 3 * 8 * 4)
    backend = opened(exported)
    session, sizes = backend._session, []

    def run(outputs, feed):
        sizes.append(len(feed["patches"]))
        return session.run(outputs, feed)

    backend._session = SimpleNamespace(run=run)
    found = backend.embed(clouds)
    assert sizes == [3] * 6 + [2]
    assert found.embedding.shape == (20, 16)
    assert set(found.seconds) == {"group", "encode"}
    np.testing.assert_allclose(np.linalg.norm(found.embedding, axis=1), 1, atol=1e-5)


def test_a_closed_one_says_so(exported, clouds):
    backend = opened(exported)
    backend.close()
    backend.close()
    with pytest.raises(ValueError, match="closed"):
        backend.embed(clouds)


def test_the_graph_that_is_asked_for_goes_before_the_one_for_cpus(altered, clouds):
    """A reference is the exported encoder, not its 8-bit integers, where the bundle has both."""
    bundle = altered()
    manifest = load_manifest(bundle)
    (bundle / onnx_backend.INT8).write_bytes(b"no graph")
    manifest = replace(manifest, files={**manifest.files, onnx_backend.INT8: manifest.files["encoder.onnx"]})
    exact = OnnxBackend(bundle, manifest, threads=1, graph=onnx_backend.GRAPH)
    assert exact.info()["graph"] == "encoder.onnx"
    assert exact.embed(clouds).embedding.shape == (20, 16)
    with pytest.raises(BackendUnavailable, match=r"cannot open .*encoder\.int8\.onnx"):
        OnnxBackend(bundle, manifest, threads=1)


def test_bf16_needs_another_backend_or_bundle(altered):
    with pytest.raises(BackendUnavailable, match="no bf16 on the CPU: export the bundle with --fp16"):
        opened(altered(precision="bf16"))


def test_without_onnxruntime_both_pip_lines_are_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "crossmost\[cpu\]", or .*"crossmost\[gpu\]"'):
        opened(exported)


def test_a_graph_that_is_none_is_one_line(altered):
    bundle = altered()
    (bundle / "encoder.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendUnavailable, match="cannot open") as caught:
        opened(bundle)
    assert "\n" not in str(caught.value)


class PlayedRuntime(SimpleNamespace):
    """An onnxruntime with CUDA whose sessions end up where `provider` says."""

    def __init__(self, provider, failing=None):
        super().__init__(__version__="1.0", preloaded=0)
        self.session = SimpleNamespace(get_providers=lambda: [provider], run=self._run)
        self.failing = failing
        self.number = 0.0

    def get_available_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self):
        self.preloaded += 1
        print("libcudnn.so.9 was\nnot found")

    def _run(self, outputs, feed):
        if self.failing:
            raise self.failing
        return [np.full((len(feed["patches"]), 16), self.number, np.float32)]


@pytest.fixture
def play(monkeypatch):
    """Make ONNX Runtime a played one; gives what sessions were asked for."""
    asked = []

    def make(runtime):
        def create(path, *, providers=(), threads=None):
            asked.append(providers)
            return runtime.session

        monkeypatch.setattr(onnx_backend, "import_onnxruntime", lambda: runtime)
        monkeypatch.setattr(onnx_backend, "create_session", create)
        return asked

    return make


def test_a_silent_fallback_from_cuda_is_refused_with_what_was_said(exported, play, capsys):
    play(PlayedRuntime("CPUExecutionProvider"))
    with pytest.raises(BackendUnavailable, match=r"fell back .* libcudnn\.so\.9 was not found") as caught:
        opened(exported, provider="cuda")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_cuda_that_fails_in_its_first_pass_is_refused(exported, play):
    play(PlayedRuntime("CUDAExecutionProvider", RuntimeError("CUDNN_STATUS:\n missing")))
    with pytest.raises(BackendUnavailable, match="first pass on the GPU failed: CUDNN_STATUS: missing"):
        opened(exported, provider="cuda")


def test_cuda_that_embeds_as_nan_is_refused(exported, play):
    runtime = PlayedRuntime("CUDAExecutionProvider")
    runtime.number = np.nan
    play(runtime)
    with pytest.raises(
        BackendUnavailable, match="first pass on the GPU failed: onnxruntime-cuda embedded 1 of 1"
    ):
        opened(exported, provider="cuda")


def test_cuda_works_on_the_gpu_asked_for_without_tf32(exported, play, clouds):
    runtime = PlayedRuntime("CUDAExecutionProvider")
    asked = play(runtime)
    backend = opened(exported, provider="cuda", device=1)
    assert runtime.preloaded == 1
    assert asked == [(("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"}),)]
    assert backend.name == "onnxruntime-cuda"
    assert backend.embed(clouds).embedding.shape == (20, 16)


def test_the_cpu_build_of_onnxruntime_has_no_cuda(exported):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed here")
    with pytest.raises(BackendUnavailable, match=r'has no CUDA: .* pip install "crossmost\[gpu\]"'):
        opened(exported, provider="cuda")
