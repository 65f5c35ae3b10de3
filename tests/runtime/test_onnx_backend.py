"""The encoder in ONNX Runtime: the same as torch, in any batch, within bounds, and honest about CUDA."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from crossmost.runtime import cuda_device, gpu_sampling, onnx_backend
from crossmost.runtime.backend import BackendUnavailable
from crossmost.runtime.cuda_driver import CudaDriver, Gpu
from crossmost.runtime.encoder_engine import EngineFailed
from crossmost.runtime.errors import RuntimeFailure
from crossmost.runtime.manifest import INT8, InvalidBundle, load_manifest
from crossmost.runtime.onnx_backend import OnnxBackend
from crossmost.runtime.preprocess import prepare
from crossmost.runtime.sampling import group


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
    session, sizes = backend._passes._session, []

    def run(outputs, feed):
        sizes.append(len(feed["patches"]))
        return session.run(outputs, feed)

    backend._passes._session = SimpleNamespace(run=run)
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
    (bundle / INT8).write_bytes(b"no graph")
    manifest = replace(manifest, files={**manifest.files, INT8: manifest.files["encoder.onnx"]})
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


@pytest.mark.parametrize(
    "entries",
    [{"groups": 7}, {"neighbors": 3}, {"channels": 6}, {"dim": 15}],
    ids=lambda each: next(iter(each)),
)
def test_a_manifest_that_contradicts_the_graph_is_one_line(altered, entries):
    bundle = altered(**entries)
    with pytest.raises(
        InvalidBundle, match=r"encoder\.onnx: expected the inputs .* found .* again"
    ) as caught:
        opened(bundle)
    assert "\n" not in str(caught.value)


def test_a_pass_that_fails_is_work_that_failed(exported, clouds):
    class Exhausted(Exception):
        """As ONNX Runtime's own, of no common class."""

    def run(*_):
        raise Exhausted("Failed to allocate\nmemory")

    backend = opened(exported)
    backend._passes._session = SimpleNamespace(run=run)
    with pytest.raises(RuntimeFailure, match=r"^ONNX Runtime's pass failed: Failed to allocate memory$"):
        backend.embed(clouds)


class PlayedRuntime(SimpleNamespace):
    """An onnxruntime with CUDA whose sessions end up where `provider` says."""

    def __init__(self, provider, failing=None):
        super().__init__(__version__="1.0", preloaded=0, severities=[])
        self.set_default_logger_severity = self.severities.append
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


class BoundRuntime(PlayedRuntime):
    """A played onnxruntime whose sessions work on a stream of the GPU that is NumPy, if they are given one."""

    def __init__(self, driver, encode):
        super().__init__("CUDAExecutionProvider")
        self.driver, self.encode, self.host_runs, self.runs, self.ended = driver, encode, 0, [], []
        self.RunOptions = lambda: SimpleNamespace(add_run_config_entry=self._check_option)
        self.session.io_binding = lambda: Binding(driver)
        self.session.run_with_iobinding = self._run_bound
        self.stream = None

    def _check_option(self, name, value):
        assert (name, value) == ("disable_synchronize_execution_providers", "1")

    def _run(self, outputs, feed):
        self._fail()
        self.host_runs += 1
        return [self.encode(feed["patches"], feed["centers"])]

    def _fail(self):
        """A fresh error: one that is raised again keeps the frames of the time before."""
        if self.failing:
            raise RuntimeError(self.failing)

    def _run_bound(self, binding, options):
        self._fail()
        patches, centers, embedding = (binding.arrays[name] for name in ("patches", "centers", "embedding"))
        self.runs.append((threading.get_ident(), binding.devices, len(patches)))

        def work():
            embedding[:] = self.encode(patches, centers)

        self.driver.enqueue(self.stream, work)


class Session:
    """`InferenceSession`, whose end can be seen."""


class Binding:
    """`IOBinding`: arrays where they are on the GPU."""

    def __init__(self, driver):
        self.driver, self.arrays, self.devices = driver, {}, set()

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        assert device_type == "cuda"
        self.devices.add(device_id)
        self.arrays[name] = self.driver.device(buffer_ptr, shape, element_type)

    bind_output = bind_input


ADA, ORIN = Gpu("NVIDIA RTX 6000 Ada", "8.9"), Gpu("NVIDIA Orin", "8.7")


@pytest.fixture
def gpu_world(altered, fake_gpu, monkeypatch):
    """A played onnxruntime beside a GPU that is NumPy, and `bundle`, whose encoder has the GPU's three dimensions."""
    driver = fake_gpu.FakeDriver()
    runtime = BoundRuntime(driver, fake_gpu.encode)
    runtime.bundle = altered()
    manifest = load_manifest(runtime.bundle)
    runtime.manifest = replace(manifest, encoder=replace(manifest.encoder, dim=3))

    def create(path, *, providers=(), threads=None):
        ((_, options),) = providers
        runtime.stream = int(options.get("user_compute_stream", 0))
        session = Session()
        vars(session).update(vars(runtime.session))
        stream = runtime.stream
        weakref.finalize(session, lambda: runtime.ended.append(not stream or stream in driver._queues))
        return session

    monkeypatch.setattr(onnx_backend, "import_onnxruntime", lambda: runtime)
    monkeypatch.setattr(onnx_backend, "create_session", create)
    monkeypatch.setattr(onnx_backend, "probe_cuda", lambda: CudaDriver("13.0", (ADA, ORIN), ""))
    monkeypatch.setattr(cuda_device, "import_driver", lambda: driver)
    monkeypatch.setattr(gpu_sampling, "SamplingKernels", fake_gpu.FakeKernels)
    gc.disable()  # what only the collector would end has been kept too long
    yield runtime
    gc.enable()
    assert all(runtime.ended), "a session ended after its stream"


def on_gpu(world, **options):
    return OnnxBackend(world.bundle, world.manifest, provider="cuda", **options)


def by_numpy(clouds, fake_gpu):
    groups = [group(cloud, 8, 4) for cloud in clouds]
    return fake_gpu.encode(np.stack([p for p, _ in groups]), np.stack([c for _, c in groups]))


def test_on_a_gpu_a_batch_is_one_graph_from_clouds_to_embeddings(gpu_world, clouds, fake_gpu):
    backend = on_gpu(gpu_world, device=1)
    for part in (clouds[:1], clouds, clouds[3:8], clouds[::-1], clouds[2:7]):
        found = backend.embed(part)
        np.testing.assert_allclose(found.embedding, by_numpy(part, fake_gpu), atol=1e-6)
        assert set(found.seconds) == {"fill", "group", "encode", "launch"}
    info = backend.info()
    assert info["sampling"] == "CUDA kernels"
    assert info["workers"] == 1
    assert info["notes"] == []
    assert {"batch": 24, "points": 64, "cuda_graph": True} in info["shapes"]
    runs = len(gpu_world.runs)
    gpu_world.driver.order.clear()
    np.testing.assert_allclose(
        backend.embed(clouds[5:10]).embedding, by_numpy(clouds[5:10], fake_gpu), atol=1e-6
    )
    assert [name for name in gpu_world.driver.order if not name.startswith(("cuCtx", "cuEvent"))] == [
        "cuGraphLaunch",
        "cuStreamSynchronize",
    ]
    assert len(gpu_world.runs) == runs
    assert gpu_world.host_runs == 0
    assert {device for _, devices, _ in gpu_world.runs for device in devices} == {1}
    backend.close()
    backend.close()
    assert gpu_world.driver.alive == {}
    with pytest.raises(ValueError, match="closed"):
        backend.embed(clouds)


def test_a_session_ends_while_its_stream_is_there(gpu_world, clouds):
    """It has work for the stream when it ends; on a destroyed one CUDA failed with error 709."""
    backend = on_gpu(gpu_world)
    backend.embed(clouds)
    assert gpu_world.ended == []
    backend.close()
    assert gpu_world.ended == [True]


def test_a_pass_that_may_still_allocate_is_not_the_one_that_is_captured(gpu_world, clouds):
    """Of a new shape there are two passes, and only then the one that becomes the graph."""
    backend = on_gpu(gpu_world)
    gpu_world.runs.clear()
    captures = gpu_world.driver.calls["cuStreamBeginCapture"]
    backend.embed(clouds[:5])
    assert [count for _, _, count in gpu_world.runs] == [6, 6, 6]
    assert gpu_world.driver.calls["cuStreamBeginCapture"] == captures + 1


def test_onnxruntime_works_in_one_thread_whoever_asks(gpu_world, clouds, fake_gpu):
    """What a graph uses of cuBLAS belongs to the thread that ran it, and goes with it."""
    backend = on_gpu(gpu_world)
    parts = [clouds[at : at + 1 + at % 5] for at in range(12)]
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda part: backend.embed(part).embedding, parts)
        for part, found in zip(parts, answers, strict=True):
            np.testing.assert_allclose(found, by_numpy(part, fake_gpu), atol=1e-6)
    assert len({thread for thread, _, _ in gpu_world.runs}) == 1
    assert threading.get_ident() not in {thread for thread, _, _ in gpu_world.runs}
    assert backend.info()["workers"] == 1
    backend.close()
    assert gpu_world.driver.alive == {}


def test_a_session_ends_in_time_though_somebody_keeps_the_error(gpu_world, clouds):
    backend = on_gpu(gpu_world)
    gpu_world.failing = "out of memory"
    with pytest.raises(EngineFailed) as kept:
        backend.embed(clouds[:5])
    backend.close()
    assert gpu_world.ended == [True]
    assert "out of memory" in str(kept.value)


def test_interrupted_while_it_is_tried_out_it_frees_everything(gpu_world, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    threads = threading.active_count()
    monkeypatch.setattr(gpu_world.session, "run_with_iobinding", interrupt)
    with pytest.raises(KeyboardInterrupt):
        on_gpu(gpu_world)
    assert gpu_world.driver.alive == {}
    assert threading.active_count() == threads


def test_a_graph_that_reads_what_others_left_is_not_used(gpu_world, clouds, fake_gpu, monkeypatch):
    """As of a pass that ONNX Runtime computes partly on the host: its graph takes what the last pass left there."""
    left = np.zeros(1, np.float32)

    def encode(patches, centers):
        return fake_gpu.encode(patches, centers) + left

    def run(binding, options):
        left[:] = len(binding.arrays["patches"]) - 1
        gpu_world._run_bound(binding, options)

    gpu_world.encode = encode
    monkeypatch.setattr(gpu_world.session, "run_with_iobinding", run)
    backend = on_gpu(gpu_world)
    info = backend.info()
    assert info["sampling"] == "NumPy"
    assert "a CUDA graph's answers changed by up to 1" in info["notes"][0]
    left[:] = 0
    np.testing.assert_allclose(backend.embed(clouds).embedding, by_numpy(clouds, fake_gpu), atol=1e-6)


def test_a_pass_that_fails_is_an_error_and_never_the_last_result(gpu_world, clouds, fake_gpu):
    backend = on_gpu(gpu_world)
    backend.embed(clouds[:2])
    gpu_world.failing = "CUDA failure 2:\n out of memory"
    with pytest.raises(EngineFailed, match=r"^ONNX Runtime failed: CUDA failure 2: out of memory$"):
        backend.embed(clouds[:5])
    gpu_world.failing = None
    np.testing.assert_allclose(backend.embed(clouds[:5]).embedding, by_numpy(clouds[:5], fake_gpu), atol=1e-6)


def test_clouds_that_are_not_prepared_never_reach_a_kernel(gpu_world, clouds):
    backend = on_gpu(gpu_world)
    launched = gpu_world.driver.calls["cuGraphLaunch"]
    for wrong in (clouds[0].astype(float), clouds[0][:3], clouds[0][:, :2]):
        with pytest.raises(ValueError, match="expected prepared clouds: float32 of 3 channels, 8 to "):
            backend.embed([wrong])
    assert gpu_world.driver.calls["cuGraphLaunch"] == launched


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (
            lambda patch, world: world.driver.failing.update(
                cuInit=world.driver.CUresult.CUDA_ERROR_INVALID_VALUE
            ),
            "cuInit failed",
        ),
        (
            lambda patch, world: patch.setattr(
                onnx_backend, "probe_cuda", lambda: CudaDriver("", (), "none")
            ),
            "the driver names no GPU 0",
        ),
        (
            lambda patch, world: patch.setattr(gpu_sampling, "ptx_name", lambda capability: "no_such.ptx"),
            "the sampling kernels cannot run on",
        ),
        (
            lambda patch, world: setattr(world.session, "io_binding", None),
            "the first pass behind the kernels failed: 'NoneType'",
        ),
    ],
    ids=["driver", "no GPU named", "no kernels", "no stream of ours"],
)
def test_where_the_kernels_cannot_work_numpy_cuts_the_patches_and_says_why(
    gpu_world, clouds, fake_gpu, monkeypatch, break_it, why
):
    break_it(monkeypatch, gpu_world)
    backend = on_gpu(gpu_world)
    info = backend.info()
    assert info["sampling"] == "NumPy"
    (note,) = info["notes"]
    assert note.startswith(f"sampling and grouping stay on the CPU, which is slower: {why}")
    np.testing.assert_allclose(backend.embed(clouds).embedding, by_numpy(clouds, fake_gpu), atol=1e-6)
    assert gpu_world.host_runs > 0
    backend.close()
    assert gpu_world.driver.alive == {}


def test_a_first_pass_that_fails_either_way_frees_the_gpu(gpu_world):
    gpu_world.failing = "CUDNN_STATUS"
    with pytest.raises(BackendUnavailable, match="first pass on the GPU failed: CUDNN_STATUS"):
        on_gpu(gpu_world)
    assert gpu_world.driver.alive == {}


def test_what_onnxruntime_warns_about_is_silenced_while_a_session_opens_and_no_longer(gpu_world):
    on_gpu(gpu_world)
    assert gpu_world.severities == [onnx_backend.ERROR, onnx_backend.WARNING]
