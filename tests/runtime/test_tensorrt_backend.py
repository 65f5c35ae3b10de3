"""The TensorRT backend on a GPU that is NumPy: results, call order, memory, graphs, errors, threads."""

from __future__ import annotations

import gc
import hashlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import parser

from crossmost.runtime import cuda_device, engine_worker, gpu_sampling, tensorrt_backend
from crossmost.runtime.backend import BackendUnavailable
from crossmost.runtime.cuda_calls import CudaError
from crossmost.runtime.cuda_driver import CudaDriver, Gpu
from crossmost.runtime.cuda_exclusion import EXCLUSIVE
from crossmost.runtime.device_arrays import to_host
from crossmost.runtime.engine_builder import Engine, write_engine
from crossmost.runtime.engine_errors import EngineBuildFailed
from crossmost.runtime.engine_facts import EngineFacts, EngineFlags, EngineRecipe, TensorFacts, this_platform
from crossmost.runtime.engine_loading import EngineFailed
from crossmost.runtime.engine_packages import find_tensorrt
from crossmost.runtime.manifest import Encoder, InvalidBundle, Manifest, hash_file
from crossmost.runtime.sampling import group
from crossmost.runtime.tensorrt_backend import FirstPassFailed, TensorRtBackend

G, K, N, D = 8, 4, 600, 3
ADA, ORIN, HOPPER = Gpu("NVIDIA RTX 6000 Ada", "8.9"), Gpu("NVIDIA Orin", "8.7"), Gpu("NVIDIA H100", "9.0")
GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
encoder (float[batch, 8, 4, 3] patches, float[batch, 8, 3] centers) => (float[batch, 3] embedding) {
  inner = Constant <value_ints = [1, 2]> ()
  one = Constant <value_ints = [1]> ()
  p = ReduceMean <keepdims = 0> (patches, inner)
  c = ReduceMean <keepdims = 0> (centers, one)
  embedding = Add (p, c)
}
"""


@dataclass
class World:
    """A bundle, a machine with a fake GPU, and what the backend sees of them."""

    bundle: Path
    manifest: Manifest
    cache: Path
    driver: Any
    trt: Any

    def facts(self, plan: bytes = b"a plan", **changes: Any) -> EngineFacts:
        """Of an engine that fits."""
        flags = changes.pop("flags", EngineFlags())
        recipe = EngineRecipe(
            graph="encoder.onnx",
            onnx_sha256=self.manifest.files["encoder.onnx"].sha256,
            weights={"weights.bin": self.manifest.files["weights.bin"].sha256},
            package="tensorrt",
            version=self.trt.__version__,
            gpu=ADA,
            targets=(),
            platform=this_platform(),
            flags=flags,
            profile={"batch": (1, 4, 8)},
        )
        patches = TensorFacts("patches", "float32", (-1, G, K, 3))
        centers = TensorFacts("centers", "float32", (-1, G, 3))
        output = TensorFacts("embedding", "float32", (-1, D))
        digest = hashlib.sha256(plan).hexdigest()
        return EngineFacts(
            replace(recipe, **changes), "fp32", (patches, centers), (output,), "13.0", "", len(plan), digest
        )

    def add(self, folder: Path | None = None, plan: bytes = b"a plan", **changes: Any) -> Path:
        """Write an engine, into the bundle unless told otherwise."""
        return write_engine(folder or self.bundle / "engines", Engine(plan, self.facts(plan, **changes)))

    def open(self, package: Any = "tensorrt", **options: Any) -> TensorRtBackend:
        """The backend."""
        options = {"cache_folder": self.cache, **options}
        return TensorRtBackend(self.bundle, self.manifest, package=package, **options)


@pytest.fixture
def world(tmp_path: Path, fake_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> World:
    bundle = tmp_path / "a.bundle"
    bundle.mkdir()
    (bundle / "encoder.onnx").write_bytes(parser.parse_model(GRAPH).SerializeToString())
    (bundle / "weights.bin").write_bytes(b"weights")
    encoder = Encoder("test", N, G, K, 3, "z", 0.4, D)
    files = {name: hash_file(bundle / name) for name in ("encoder.onnx", "weights.bin")}
    driver = fake_gpu.FakeDriver()
    trt = fake_gpu.FakeTensorRt(driver)
    made = World(
        bundle, Manifest(1, "0.1.0", encoder, "fp32", 18, 10, files), tmp_path / "cache", driver, trt
    )
    monkeypatch.setattr(cuda_device, "import_driver", lambda: driver)
    monkeypatch.setattr(gpu_sampling, "SamplingKernels", fake_gpu.FakeKernels)
    monkeypatch.setattr(tensorrt_backend, "probe_cuda", lambda: CudaDriver("13.0", (ADA, ORIN), ""))
    monkeypatch.setattr(
        tensorrt_backend, "find_tensorrt", lambda *a, **k: find_tensorrt(*a, **k, load=lambda name: made.trt)
    )
    return made


def make_clouds(*sizes: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, (size, 3)).astype(np.float32) for size in sizes]


def expected(clouds: list[Any], fake_gpu: ModuleType, radius: float | None = None) -> Any:
    groups = [group(cloud, G, K, radius) for cloud in clouds]
    return fake_gpu.encode(np.stack([p for p, _ in groups]), np.stack([c for _, c in groups]))


def test_clouds_of_different_sizes_are_embedded_again_and_again(world, fake_gpu):
    world.add()
    backend = world.open()
    for seed in range(4):
        clouds = make_clouds(8, 300, 17, 600, 256, seed=seed)
        found = backend.embed(clouds)
        np.testing.assert_allclose(found.embedding, expected(clouds, fake_gpu), atol=1e-6)
        assert found.embedding.shape == (5, D)
        assert set(found.seconds) == {"fill", "group", "encode", "launch"}
        assert found.seconds["group"] == found.seconds["encode"] == pytest.approx(1e-3)
    assert backend.info()["shapes"] == [{"batch": 6, "points": 600, "cuda_graph": True}]
    backend.close()
    assert world.driver.alive == {}


def test_an_encoder_of_balls_gets_balls(world, fake_gpu):
    world.manifest = replace(world.manifest, encoder=replace(world.manifest.encoder, radius=0.5))
    world.add()
    backend, clouds = world.open(), make_clouds(8, 300, 17)
    balls = expected(clouds, fake_gpu, 0.5)
    np.testing.assert_allclose(backend.embed(clouds).embedding, balls, atol=1e-6)
    assert np.abs(balls - expected(clouds, fake_gpu)).max() > 1e-3
    backend.close()


def test_a_shape_is_enqueued_twice_and_from_then_on_one_launch(world):
    world.add()
    backend = world.open()
    before, launches = world.trt.enqueued, backend.info()["graph_launches"]
    backend.embed(make_clouds(300))
    assert world.trt.enqueued == before + 2  # once for real, once for the capture
    assert backend.info()["graph_launches"] == launches
    world.driver.order.clear()
    backend.embed(make_clouds(320, seed=1))
    calls = [name for name in world.driver.order if not name.startswith(("cuCtx", "cuEvent"))]
    assert calls == ["cuGraphLaunch", "cuStreamSynchronize"]
    assert world.trt.enqueued == before + 2
    assert backend.info()["graph_launches"] == launches + 1


def test_the_order_of_the_work_of_a_batch(world):
    """Of the first one, which `open` embeds twice to try everything out."""
    world.add()
    world.open()
    others = ("cuInit", "cuDevice", "cuCtx", "cuEvent")
    calls = [name for name in world.driver.order if not name.startswith(others)]
    copies = ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"]
    first = ["cuMemAlloc", "cuMemHostAlloc", "cuMemHostAlloc", *copies, "cuStreamSynchronize"]
    captured = ["cuStreamBeginCapture", *copies, "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy"]
    launched = ["cuGraphLaunch", "cuStreamSynchronize"]
    assert calls == ["cuStreamCreate", *first, *captured, *launched]


def test_an_older_driver_without_the_function_that_takes_the_time_costs_only_the_times(world, monkeypatch):
    def unknown(*_: Any) -> float:
        raise CudaError("no such function")

    world.driver.missing.add("cuEventElapsedTime")
    monkeypatch.setattr(cuda_device, "elapsed_milliseconds", unknown)
    world.add()
    backend = world.open()
    assert set(backend.embed(make_clouds(100)).seconds) == {"fill", "gpu"}
    monkeypatch.setattr(cuda_device, "elapsed_milliseconds", lambda first, second: 1000.0 * (second - first))
    seconds = backend.embed(make_clouds(100)).seconds
    assert (seconds["group"], seconds["encode"]) == (1.0, 1.0)


def test_more_clouds_than_the_engine_takes_are_cut(world, fake_gpu):
    world.add()
    backend = world.open()
    clouds = make_clouds(*range(20, 39))
    np.testing.assert_allclose(backend.embed(clouds).embedding, expected(clouds, fake_gpu), atol=1e-6)
    assert [shape["batch"] for shape in backend.info()["shapes"]] == [8, 3]


def test_a_result_stays_when_the_next_batch_comes(world):
    world.add()
    backend = world.open()
    first = backend.embed(make_clouds(50)).embedding
    kept = first.copy()
    backend.embed(make_clouds(50, seed=9))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("when", ["at once", "after a capture"])
def test_a_refused_batch_is_an_error_and_never_the_last_result(world, fake_gpu, when):
    world.add()
    backend = world.open()
    if when == "after a capture":
        backend.embed(make_clouds(300, 300))
    world.trt.refuse = True
    with pytest.raises(
        EngineFailed, match=r"^TensorRT 10\S+ refused a batch of 1 .*: Error Code 1: no such kernel$"
    ):
        backend.embed(make_clouds(400))
    world.trt.refuse = False
    clouds = make_clouds(400, seed=3)
    np.testing.assert_allclose(backend.embed(clouds).embedding, expected(clouds, fake_gpu), atol=1e-6)


def test_a_launch_that_fails_is_an_error_and_the_shape_starts_anew(world, fake_gpu):
    world.add()
    backend = world.open()
    backend.embed(make_clouds(100))
    world.driver.failing["cuGraphLaunch"] = fake_gpu.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(CudaError, match=r"^cuGraphLaunch failed with CUDA_ERROR_ILLEGAL_ADDRESS$"):
        backend.embed(make_clouds(100, seed=1))
    world.driver.failing.clear()
    clouds = make_clouds(100, seed=2)
    np.testing.assert_allclose(backend.embed(clouds).embedding, expected(clouds, fake_gpu), atol=1e-6)


@pytest.mark.parametrize("name", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_what_cannot_be_captured_is_enqueued_each_time_with_a_note(world, fake_gpu, name):
    world.add()
    world.driver.failing[name] = fake_gpu.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    backend = world.open()
    for seed in range(4):
        clouds = make_clouds(100, seed=seed)
        np.testing.assert_allclose(backend.embed(clouds).embedding, expected(clouds, fake_gpu), atol=1e-6)
    assert world.driver.calls["cuStreamBeginCapture"] == engine_worker.MOST_CAPTURES
    (note,) = backend.info()["notes"]
    assert note.startswith("no CUDA graph for 1 clouds of 256 points")
    assert name in note


def test_a_capture_that_another_library_disturbed_is_tried_again(world, fake_gpu):
    world.add()
    backend = world.open()
    world.driver.failing["cuStreamEndCapture"] = fake_gpu.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    clouds = make_clouds(300)
    for _ in range(2):
        np.testing.assert_allclose(backend.embed(clouds).embedding, expected(clouds, fake_gpu), atol=1e-6)
    world.driver.failing.clear()
    for _ in range(2):
        np.testing.assert_allclose(backend.embed(clouds).embedding, expected(clouds, fake_gpu), atol=1e-6)
    assert {"batch": 1, "points": 512, "cuda_graph": True} in backend.info()["shapes"]
    assert backend.info()["notes"] == []


def test_an_array_that_is_fetched_meanwhile_does_not_spoil_a_capture(world, fake_gpu, monkeypatch):
    """Waiting for the whole context is what fetching a tensor of torch takes, and what no capture survives."""
    world.add()
    backend = world.open()
    with backend._pipeline._sampling.device.current():
        memory = cuda_device.DeviceMemory(backend._pipeline._sampling.device, 12)
    held = world.driver.device(memory.address, (3,))
    held[:] = (1, 2, 3)
    facts = {"shape": (3,), "typestr": "<f4", "data": (memory.address, False), "version": 2}
    array = SimpleNamespace(__cuda_array_interface__=facts)
    fetched: list[Any] = []
    fetching = threading.Thread(target=lambda: fetched.append(to_host(array, lambda: world.driver)))
    execute = fake_gpu.FakeContext.execute_async_v3

    def slowly(context: Any, stream: int) -> bool:
        if stream in world.driver._captures:
            fetching.start()
            fetching.join(0.2)  # it has to wait for the capture, or it would end at once
            assert not fetched
        return execute(context, stream)

    captures = world.driver.calls["cuStreamBeginCapture"]
    monkeypatch.setattr(fake_gpu.FakeContext, "execute_async_v3", slowly)
    backend.embed(make_clouds(300))
    fetching.join(5)
    np.testing.assert_array_equal(fetched, [held])
    assert world.driver.calls["cuStreamBeginCapture"] == captures + 1
    assert {"batch": 1, "points": 512, "cuda_graph": True} in backend.info()["shapes"]


def test_only_one_thread_at_a_time_touches_the_whole_context(world, fake_gpu, monkeypatch):
    """Contexts of TensorRT are made and dropped, and memory is had and freed, while nothing is captured."""
    monkeypatch.setattr(engine_worker, "MOST_SHAPES", 2)
    world.add()
    outside: list[str] = []

    def watched(name: str, call: Any) -> Any:
        def run(*arguments: Any) -> Any:
            if not EXCLUSIVE._is_owned():  # type: ignore[attr-defined]
                outside.append(name)
            return call(*arguments)

        return run

    for owner, name in (
        (fake_gpu.FakeTensorRt, "_make_context"),
        (engine_worker.Plan, "close"),
        (engine_worker.DeviceMemory, "__init__"),
        (engine_worker.DeviceMemory, "close"),
        (engine_worker.PinnedMemory, "close"),
        (fake_gpu.FakeKernels, "close"),
    ):
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    backend = world.open()
    for count in (1, 2, 3, 8):
        backend.embed(make_clouds(*[300] * count))
    with backend._pipeline._pool.borrow() as worker, backend._pipeline._sampling.device.current():
        worker.close()
    backend.close()
    assert outside == []
    assert world.driver.alive == {}


def test_an_engine_that_refuses_the_capture_runs_without(world, fake_gpu, monkeypatch):
    world.add()
    monkeypatch.setattr(fake_gpu.FakeContext, "is_stream_capturable", lambda *_: False, raising=False)
    backend = world.open()
    clouds = make_clouds(100)
    for _ in range(2):
        np.testing.assert_allclose(backend.embed(clouds).embedding, expected(clouds, fake_gpu), atol=1e-6)
    assert world.driver.calls["cuStreamBeginCapture"] == 0
    assert "rebuild it" in backend.info()["notes"][0]


def test_changing_shapes_do_not_grow_memory(world, fake_gpu, monkeypatch):
    monkeypatch.setattr(engine_worker, "MOST_SHAPES", 3)
    world.add()
    backend = world.open()
    backend.embed(make_clouds(*[600] * 8))
    held = backend.info()["bytes"]
    for _ in range(3):
        for count in (1, 2, 3, 4, 5, 7):
            clouds = make_clouds(*[100 * count] * count, seed=count)
            if 100 * count <= N:
                np.testing.assert_allclose(
                    backend.embed(clouds).embedding, expected(clouds, fake_gpu), atol=1e-6
                )
    assert len(backend.info()["shapes"]) == 3
    assert backend.info()["bytes"] == held
    assert list(world.driver.alive.values()).count("graph") == 3
    assert list(world.driver.alive.values()).count("memory") == 1


def test_a_shape_in_use_outlives_those_that_are_not(world, monkeypatch):
    monkeypatch.setattr(engine_worker, "MOST_SHAPES", 2)
    world.add()
    backend = world.open()
    before = world.trt.contexts
    for count in (8, 1, 8, 2, 8):
        backend.embed(make_clouds(*[600] * count))
    assert [shape["batch"] for shape in backend.info()["shapes"]] == [2, 8]
    assert world.trt.contexts == before + 3


def test_a_full_gpu_is_one_line_and_smaller_batches_go_on(world, fake_gpu):
    world.add()
    backend = world.open()
    small = make_clouds(100)
    backend.embed(small)
    world.driver.room = 20_000
    with pytest.raises(
        CudaError, match=r"^cuMemAlloc failed with CUDA_ERROR_OUT_OF_MEMORY: the GPU is full: .*batches"
    ):
        backend.embed(make_clouds(*[600] * 8))
    np.testing.assert_allclose(backend.embed(small).embedding, expected(small, fake_gpu), atol=1e-6)
    backend.close()
    assert world.driver.alive == {}


def test_threads_share_a_bounded_number_of_workers(world, fake_gpu):
    world.add()
    backend = world.open(workers=2)

    def work(seed: int) -> bool:
        clouds = make_clouds(*np.random.default_rng(seed).integers(8, 600, 1 + seed % 5), seed=seed)
        return np.allclose(backend.embed(clouds).embedding, expected(clouds, fake_gpu), atol=1e-6)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(60)))
    assert 1 <= backend.info()["workers"] <= 2
    backend.close()
    assert world.driver.alive == {}


def test_close_waits_for_work_and_ends_everything_once(world):
    world.add()
    backend = world.open(workers=1)
    entered, release = threading.Event(), threading.Event()

    def hold() -> None:
        with backend._pipeline._pool.borrow():
            entered.set()
            release.wait(5)

    threads = [threading.Thread(target=hold), threading.Thread(target=backend.close)]
    threads[0].start()
    entered.wait(5)
    threads[1].start()
    assert world.driver.alive
    release.set()
    for thread in threads:
        thread.join(5)
    assert world.driver.alive == {}
    backend.close()
    with pytest.raises(ValueError, match="closed"):
        backend.embed(make_clouds(100))
    assert backend.info()["workers"] == 0


@pytest.mark.parametrize("held", [False, True])
def test_the_engine_is_freed_in_the_context_of_the_gpu(world, held):
    """Also where an error that is still at hand holds on to the objects it came through."""
    world.add()
    backend = world.open()
    if held:
        world.trt.refuse = True
        with pytest.raises(EngineFailed) as caught:
            backend.embed(make_clouds(300))
    gc.disable()
    try:
        backend.close()
        assert world.trt.freed[-1] == ("engine", True)
        assert world.driver.order[-1] == "cuDevicePrimaryCtxRelease"
    finally:
        gc.enable()
    assert not held or caught.value.__traceback__


@pytest.mark.parametrize(
    "cloud",
    [
        np.zeros((7, 3), np.float32),
        np.zeros((N + 1, 3), np.float32),
        np.zeros((100, 6), np.float32),
        np.zeros((100, 3), np.float64),
        np.zeros(100, np.float32),
    ],
)
def test_clouds_that_are_not_prepared_never_reach_the_gpu(world, cloud):
    world.add()
    backend = world.open()
    before = world.trt.enqueued
    with pytest.raises(ValueError, match="expected prepared clouds: float32 of 3 channels, 8 to 600 points"):
        backend.embed([cloud])
    assert world.trt.enqueued == before


def test_another_gpu_can_be_asked_for(world):
    world.add(gpu=ORIN)
    assert str(ORIN) == world.open(device=1).info()["gpu"]
    with pytest.raises(BackendUnavailable, match="built for NVIDIA Orin"):
        world.open(device=0)
    with pytest.raises(BackendUnavailable, match="expected GPU 2, found 2"):
        world.open(device=2)


# What is refused.


def test_without_a_gpu_tensorrt_is_not_touched(world, monkeypatch):
    world.add()
    monkeypatch.setattr(tensorrt_backend, "probe_cuda", lambda: CudaDriver("", (), "no CUDA driver here"))
    monkeypatch.setattr(tensorrt_backend, "find_tensorrt", lambda *_, **__: pytest.fail("imported"))
    for package in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(BackendUnavailable, match=r"^no CUDA driver here$"):
            world.open(package)


def test_no_engine_at_all_says_what_to_type(world):
    command = r"crossmost export RUN --out \S*a\.bundle --overwrite --tensorrt; or on this machine: "
    command += r"crossmost doctor \S*a\.bundle --rebuild, in Python load with rebuild=True"
    with pytest.raises(BackendUnavailable, match=command):
        world.open()
    assert world.driver.alive == {}


def test_what_to_type_makes_a_bundle_with_the_same_files(world):
    graph = world.manifest.files["encoder.onnx"]
    files = {**world.manifest.files, "encoder.int8.onnx": graph, "text_encoder.onnx": graph}
    world.manifest = replace(world.manifest, files=files)
    with pytest.raises(BackendUnavailable, match="--overwrite --int8 --text-encoder --tensorrt;"):
        world.open()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": "10.12.0.36"}, "needs TensorRT 10.12.0.36 exactly"),
        ({"gpu": HOPPER}, "built for NVIDIA H100"),
        ({"package": "tensorrt-rtx"}, "needs TensorRT-RTX"),
        ({"weights": {"weights.bin": "0" * 64}}, "built from another weights.bin"),
        ({"platform": "linux-aarch64" if this_platform() != "linux-aarch64" else "win32-amd64"}, "needs "),
    ],
)
def test_an_engine_of_elsewhere_is_refused_with_reason_and_command(world, changes, why):
    world.add(**changes)
    with pytest.raises(BackendUnavailable) as caught:
        world.open()
    assert why in str(caught.value)
    assert "--tensorrt --batch 1:4:8" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_with_a_byte_flipped_never_reaches_tensorrt(world):
    path = world.add()
    path.write_bytes(b"a plaN")
    world.trt.Runtime = lambda logger: pytest.fail("loaded")
    with pytest.raises(BackendUnavailable, match="expected sha256"):
        world.open()


def test_a_plan_that_the_manifest_lists_must_be_that_one(world):
    path = world.add()
    listed = {**world.manifest.files, f"engines/{path.name}": replace(hash_file(path), sha256="0" * 64)}
    world.manifest = replace(world.manifest, files=listed)
    with pytest.raises(BackendUnavailable, match="expected the plan of the manifest"):
        world.open()


def test_an_engine_with_other_tensors_is_refused(world):
    world.add()
    world.manifest = replace(world.manifest, encoder=replace(world.manifest.encoder, groups=16))
    with pytest.raises(BackendUnavailable, match="expected float32 tensors"):
        world.open()


def test_damaged_facts_are_a_reason(world):
    world.add().with_suffix(".json").write_text("{")
    with pytest.raises(BackendUnavailable, match="expected JSON"):
        world.open()


def test_a_plan_that_tensorrt_cannot_load_gives_its_last_error(world):
    world.add()
    world.trt.broken = True
    with pytest.raises(
        BackendUnavailable, match=r"could not load the plan for engine \S+: Error Code 4: magic tag"
    ):
        world.open()
    assert world.driver.alive == {}


@pytest.mark.parametrize(
    ("most", "why"),
    [(8, "refused a batch of 1 .*: Error Code 1: no such kernel$"), (0, "does not take patches")],
)
def test_an_engine_that_fails_at_its_first_batch_is_no_backend(world, most, why):
    world.add()
    world.trt.refuse, world.trt.most = True, most
    gc.disable()
    try:
        with pytest.raises(
            FirstPassFailed, match=rf"first pass on NVIDIA RTX 6000 Ada .* failed: .*{why}"
        ) as caught:
            world.open()
        assert world.trt.freed == [("context", True), ("engine", True)]
    finally:
        gc.enable()
    assert "\n" not in str(caught.value)
    assert world.driver.alive == {}


def test_a_graph_that_cannot_be_launched_is_no_backend(world, fake_gpu):
    world.add()
    world.driver.failing["cuGraphLaunch"] = fake_gpu.CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(BackendUnavailable, match=r"first pass on .* failed: cuGraphLaunch failed with"):
        world.open()
    assert world.driver.alive == {}


def test_the_engine_of_this_gpu_alone_goes_first(world, monkeypatch):
    monkeypatch.setenv("CROSSMOST_TRUST_ENGINES", "1")
    wide = world.add(plan=b"wide", flags=EngineFlags(hardware="ampere+", version_compatible=True))
    narrow = world.add(world.cache, plan=b"narrow")
    assert world.open().info()["engine"] == str(narrow)
    narrow.unlink()
    assert world.open().info()["engine"] == str(wide)
    assert world.trt.runtime.engine_host_code_allowed is True


def test_an_engine_tuned_on_another_gpu_goes_last_and_says_so(world):
    other = world.add(plan=b"other", gpu=Gpu("NVIDIA RTX 4090", ADA.compute_capability))
    info = world.open().info()
    assert info["engine"] == str(other)
    assert info["notes"] == [
        "the engine was tuned on NVIDIA RTX 4090 (compute capability 8.9): one built here may be faster"
    ]
    wide = world.add(plan=b"wide", flags=EngineFlags(hardware="ampere+"))
    assert world.open().info()["engine"] == str(wide)


def test_an_engine_that_embeds_as_nan_is_no_backend(world, monkeypatch):
    world.add()

    def overflow(self, clouds, shape):
        return np.full((len(clouds), world.manifest.encoder.dim), np.nan, np.float32), {}

    monkeypatch.setattr(engine_worker.EngineWorker, "embed", overflow)
    with pytest.raises(
        FirstPassFailed, match=r"first pass on .* failed: tensorrt embedded 1 of 1 clouds as NaN"
    ):
        world.open()
    assert world.driver.alive == {}


def test_host_code_is_allowed_for_version_compatible_engines_only(world):
    world.add()
    world.open()
    assert world.trt.runtime.engine_host_code_allowed is False


@pytest.mark.parametrize("trust", [None, "0", "", "false"])
def test_a_bundle_runs_no_code_of_its_own_unless_it_is_trusted(world, monkeypatch, trust):
    if trust is not None:
        monkeypatch.setenv("CROSSMOST_TRUST_ENGINES", trust)
    flags = EngineFlags(version_compatible=True)
    world.add(flags=flags)
    with pytest.raises(BackendUnavailable, match="CROSSMOST_TRUST_ENGINES=1 if you trust"):
        world.open()
    world.add(world.cache, flags=flags)  # built on this machine
    assert world.open().info()["engine"].startswith(str(world.cache))
    assert world.trt.runtime.engine_host_code_allowed is True


@pytest.mark.parametrize("other", [{"onnx_sha256": "0" * 64}, {"weights": {"weights.bin": "0" * 64}}])
def test_engines_of_other_bundles_in_the_cache_are_passed_over(world, other):
    """One of an earlier training has the same graph, and other weights."""
    world.add(world.cache, **other)
    with pytest.raises(BackendUnavailable, match=r"there is no engine of encoder\.onnx"):
        world.open()


def test_weights_that_were_left_out_come_from_the_graph(world):
    world.add(flags=EngineFlags(strip_weights=True))
    world.open()
    assert world.trt.told == [str(world.bundle / "encoder.onnx"), "refit"]


def test_a_refit_that_fails_or_cannot_be_is_a_reason(world):
    world.add(flags=EngineFlags(strip_weights=True))
    world.trt.refuse = True
    with pytest.raises(BackendUnavailable, match=r"could not refit encoder\.onnx"):
        world.open()
    world.trt.OnnxParserRefitter = None
    del world.trt.OnnxParserRefitter
    world.trt = SimpleNamespace(
        **{name: getattr(world.trt, name) for name in ("__version__", "ILogger", "Runtime")}
    )
    with pytest.raises(BackendUnavailable, match="has no weights, and TensorRT"):
        world.open()


def test_the_weights_of_a_refit_are_checked(world):
    world.add(flags=EngineFlags(strip_weights=True))
    (world.bundle / "weights.bin").write_bytes(b"weight5")
    with pytest.raises(BackendUnavailable, match=r"weights\.bin: expected sha256"):
        world.open()


# Engines that are built here.


@pytest.fixture
def rtx(world: World, fake_gpu: ModuleType) -> World:
    """The real builder of TensorRT-RTX, which needs no GPU, with a runtime that is fake."""
    module = pytest.importorskip("tensorrt_rtx")
    fake = fake_gpu.FakeTensorRt(world.driver, module.__version__)
    world.trt = FakeRuntimeOf(module, fake, fake_gpu.FakeRuntimeCache)
    return world


class FakeRuntimeOf:
    """TensorRT-RTX, but for what loads and runs engines."""

    def __init__(self, module: Any, fake: Any, make_cache: Any) -> None:
        self._module, self._fake, self.make_cache = module, fake, make_cache
        self.ILogger, self.__version__ = module.ILogger, module.__version__
        self.builds = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def Runtime(self, logger: Any) -> Any:
        fake, module = self._fake, self._module
        fake.ILogger, fake.ExecutionContextAllocationStrategy = (
            module.ILogger,
            module.ExecutionContextAllocationStrategy,
        )
        fake._make_config = self._make_config
        return fake.Runtime(logger)

    def Builder(self, logger: Any) -> Any:
        self.builds += 1
        return self._module.Builder(logger)

    @property
    def kernels(self) -> Any:
        """The runtime cache of the engine that was loaded last."""
        return self._fake.kernels

    def _make_config(self) -> Any:
        self._fake.kernels = self.make_cache()
        self.config = Config(self._fake.kernels)
        return self.config


class Config(str):
    """`IRuntimeConfig`; equals what the fake engine expects."""

    cache = None

    def __new__(cls, made: Any) -> Config:
        config = super().__new__(cls, "configured")
        config.made = made
        return config

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy.name

    def create_runtime_cache(self) -> Any:
        return self.made

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


def test_an_engine_is_built_once_and_kept(rtx, fake_gpu):
    backend = rtx.open("tensorrt-rtx", rebuild=True)
    clouds = make_clouds(20, 300)
    np.testing.assert_allclose(backend.embed(clouds).embedding, expected(clouds, fake_gpu), atol=1e-6)
    assert backend.info()["notes"] == []
    assert backend.info()["batch"] == [1, 8, 64]
    config = rtx.trt.config
    assert (config.strategy, config.cache) == ("USER_MANAGED", rtx.trt.kernels)
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    (plan,) = rtx.cache.glob("*.engine")
    assert plan.with_suffix(".json").is_file()
    assert rtx.open("tensorrt-rtx", rebuild=True).info()["engine"] == str(plan)
    assert rtx.open("tensorrt-rtx").info()["engine"] == str(plan)
    assert rtx.trt.builds == 1


def test_a_rebuild_replaces_an_engine_tuned_on_another_gpu(rtx):
    rtx.add(
        package="tensorrt-rtx",
        version=rtx.trt.__version__,
        gpu=Gpu("NVIDIA RTX 4090", ADA.compute_capability),
    )
    rtx.open("tensorrt-rtx")
    assert rtx.trt.builds == 0
    info = rtx.open("tensorrt-rtx", rebuild=True).info()
    assert info["engine"].startswith("built from ")
    assert info["batch"] == [1, 4, 8]  # as whoever exported wanted
    (plan,) = rtx.cache.glob("*.engine")
    assert rtx.open("tensorrt-rtx").info()["engine"] == str(plan)
    assert rtx.trt.builds == 1


def test_a_rebuild_that_fails_leaves_the_engine_of_another_gpu(rtx, monkeypatch):
    other = rtx.add(
        package="tensorrt-rtx",
        version=rtx.trt.__version__,
        gpu=Gpu("NVIDIA RTX 4090", ADA.compute_capability),
    )

    def fail(*_: Any, **__: Any) -> None:
        raise EngineBuildFailed("out of memory")

    monkeypatch.setattr("crossmost.runtime.engine_rebuild.build_engine", fail)
    info = rtx.open("tensorrt-rtx", rebuild=True).info()
    assert info["engine"] == str(other)
    assert "no engine could be built here: out of memory" in info["notes"]


def test_the_batches_of_an_engine_that_does_not_fit_are_taken_over(rtx):
    rtx.add(package="tensorrt", version="10.13.3.9")
    info = rtx.open("tensorrt-rtx", rebuild=True).info()
    assert info["batch"] == [1, 4, 8]
    assert info["engine"].startswith("built from ")


def test_a_full_disk_or_no_folder_costs_nothing_but_the_copy(rtx, full_disk):
    with full_disk(2000):
        backend = rtx.open("tensorrt-rtx", rebuild=True)
    (note,) = backend.info()["notes"]
    assert "built and not kept" in note
    assert "\n" not in note
    assert list(rtx.cache.glob("*.engine")) == []
    assert len(backend.embed(make_clouds(20)).embedding) == 1
    (rtx.cache.parent / "file").write_text("")
    notes = rtx.open("tensorrt-rtx", rebuild=True, cache_folder=rtx.cache.parent / "file" / "x").info()[
        "notes"
    ]
    assert "not kept" in notes[0]


def test_without_filelock_an_engine_is_built_and_not_kept(rtx, monkeypatch):
    monkeypatch.setitem(sys.modules, "filelock", None)
    engine, kernels = rtx.open("tensorrt-rtx", rebuild=True).info()["notes"]
    assert engine.startswith("the engine was built and not kept")
    assert kernels.startswith("the kernels compiled here are not kept")
    assert "filelock" in engine
    assert "filelock" in kernels


# Kernels that are compiled here.


def test_kernels_that_rtx_compiled_are_there_for_the_next_process(rtx, fake_gpu):
    """Whether the first one closed its backend or was killed."""
    for clouds, compiled in (((20,), [1]), ((20, 300), [2]), ((20, 300), [])):
        backend = rtx.open("tensorrt-rtx", rebuild=True)
        made = make_clouds(*clouds)
        np.testing.assert_allclose(backend.embed(made).embedding, expected(made, fake_gpu), atol=1e-6)
        assert rtx.trt.kernels.compiled == compiled
    (engine,), (path,) = (list(rtx.cache.glob(f"*.{suffix}")) for suffix in ("engine", "rtxcache"))
    assert path.name == f"{engine.stem}-nvidia-rtx-6000-ada-cuda13.0.rtxcache"
    written = path.stat().st_mtime_ns
    backend.close()
    assert path.stat().st_mtime_ns == written  # nothing new


def test_what_was_compiled_before_the_end_is_kept_at_the_end(rtx):
    backend = rtx.open("tensorrt-rtx", rebuild=True)
    rtx.trt.kernels.compile(64)
    backend.close()
    rtx.open("tensorrt-rtx")
    assert 64 in rtx.trt.kernels.known


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "words", "foreign", "folder"])
def test_kernels_that_cannot_be_used_are_compiled_again(rtx, fake_gpu, damage):
    rtx.open("tensorrt-rtx", rebuild=True).close()
    (path,) = rtx.cache.glob("*.rtxcache")
    content, foreign = path.read_bytes(), b"another GPU 1 2 4"
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        changed = {
            "cut": content[:-1],
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "empty": b"",
            "words": b"no kernels",
            "foreign": hashlib.sha256(foreign).digest() + foreign,
        }
        path.write_bytes(changed[damage])
    backend = rtx.open("tensorrt-rtx")
    clouds = make_clouds(20)
    np.testing.assert_allclose(backend.embed(clouds).embedding, expected(clouds, fake_gpu), atol=1e-6)
    assert rtx.trt.kernels.compiled == [1]
    if damage == "folder":
        (note,) = backend.info()["notes"]
        assert note.startswith("the kernels compiled here are not kept")
        assert "\n" not in note
    else:
        assert backend.info()["notes"] == []
        assert path.read_bytes() == content


def test_threads_that_start_together_build_once(rtx):
    with ThreadPoolExecutor(3) as pool:
        backends = list(pool.map(lambda _: rtx.open("tensorrt-rtx", rebuild=True), range(3)))
    assert rtx.trt.builds == 1
    for backend in backends:
        backend.close()
    assert rtx.driver.alive == {}


def test_a_gpu_that_rtx_does_not_build_for_is_refused_before_the_build(rtx, monkeypatch):
    monkeypatch.setattr(tensorrt_backend, "probe_cuda", lambda: CudaDriver("13.0", (HOPPER,), ""))
    with pytest.raises(BackendUnavailable, match=r"found NVIDIA H100 .*: use TensorRT"):
        rtx.open("tensorrt-rtx", rebuild=True)
    assert rtx.trt.builds == 0


def test_nothing_is_built_from_a_graph_that_was_changed(rtx):
    graph = rtx.bundle / "encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(InvalidBundle, match=r"encoder\.onnx: expected sha256"):
        rtx.open("tensorrt-rtx", rebuild=True)
    assert not rtx.cache.exists()


def test_the_backend_imports_neither_torch_nor_onnx_nor_tensorrt():
    code = (
        "import sys, crossmost.runtime.tensorrt_backend as b;"
        "heavy = {'torch', 'onnx', 'tensorrt', 'tensorrt_rtx', 'cuda', 'filelock', 'onnxruntime'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
