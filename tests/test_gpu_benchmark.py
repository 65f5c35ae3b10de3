"""benchmarks/gpu.py without a GPU: it refuses; on a GPU that is NumPy it proves, notices what is wrong, and writes."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossmost.runtime import Classifier
from crossmost.runtime import cuda_device as runtime_device
from crossmost.runtime.backend import BackendUnavailable
from crossmost.runtime.cuda_calls import call
from crossmost.runtime.cuda_driver import CudaDriver, Gpu
from crossmost.runtime.cuda_kernels import SamplingKernels
from crossmost.runtime.manifest import load_manifest
from crossmost.runtime.onnx_backend import INT8
from crossmost.runtime.sampling import farthest_point_indices, group
from crossmost.runtime.tensorrt_backend import FirstPassFailed

ROOT = Path(__file__).parents[1]
ADA = Gpu("NVIDIA RTX 6000 Ada", "8.9")
MARKS = "# Benchmarks\n\n<!-- gpu -->\nold\n<!-- /gpu -->\nrest\n"


def load(folder: Path, name: str) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


# The names under which the script finds its modules, too.
(
    gpu, gpu_backends, gpu_bundle, gpu_checks, gpu_clouds, gpu_kernels, gpu_parity, gpu_reference, gpu_table,
    gpu_timing,
) = (
    importlib.import_module(name)
    for name in (
        "gpu", "gpu_backends", "gpu_bundle", "gpu_checks", "gpu_clouds", "gpu_kernels", "gpu_parity", "gpu_reference",
        "gpu_table", "gpu_timing",
    )
)  # fmt: skip
fake_gpu = load(ROOT / "tests" / "runtime", "fake_gpu")
ptx_machine = load(ROOT / "tests" / "runtime", "ptx_machine")
Sizes = gpu_clouds.Sizes


class Driver(fake_gpu.FakeDriver):  # type: ignore[misc, name-defined]
    """The fake driver, with what the benchmark asks besides."""

    def cuMemGetInfo(self) -> int:
        return int(self.room - sum(map(len, self._device.values())))

    def cuMemcpyDtoDAsync(self, to: int, source: int, size: int, stream: int) -> None:
        target, read = self.device(to, (size,), np.uint8), self.device(source, (size,), np.uint8)
        self.enqueue(stream, lambda: np.copyto(target, read))

    def cuModuleLoadData(self, image: bytes) -> Any:
        return ptx_machine.parse_module(image[:-1].decode())

    def cuModuleGetFunction(self, module: Any, name: bytes) -> Any:
        assert name.decode() in module
        return lambda: None

    def cuModuleUnload(self, module: Any) -> None:
        pass

    def cuLaunchKernel(self, function: Callable[[], None], *arguments: Any) -> None:
        self.enqueue(arguments[7], function)


class Kernels:
    """`SamplingKernels` in two steps, as the real ones; `wrong` spoils what they write, `spilled` is what they say."""

    spilled = 0
    wrong = ""

    def __init__(
        self, ptx: bytes, *, groups: int, neighbors: int, channels: int, radius: float | None, driver: Any
    ) -> None:
        assert b".entry" in ptx
        self.sizes, self.radius, self.driver = (groups, neighbors, channels), radius, driver

    def workspace_bytes(self, batch: int, points: int) -> int:
        return 0 if points <= 16384 else 4 * batch * points

    def local_bytes(self) -> dict[str, int]:
        return {"farthest_points_4": self.spilled, "group_32": 0}

    def launch(
        self, points_ptr: int, sizes_ptr: int, patches_ptr: int, centers_ptr: int, batch: int, points: int, stream: int,
        *, indices_ptr: int, workspace_ptr: int,
    ) -> None:  # fmt: skip
        groups, neighbors, channels = self.sizes
        device = self.driver.device
        clouds, sizes = device(points_ptr, (batch, points, channels)), device(sizes_ptr, (batch,), np.int32)
        written = {
            "indices": device(indices_ptr, (batch, groups), np.int32),
            "patches": device(patches_ptr, (batch, groups, neighbors, channels)),
            "centers": device(centers_ptr, (batch, groups, 3)),
        }
        capturing = stream in self.driver._captures

        def sample() -> None:
            for row, size in enumerate(sizes):
                cloud = clouds[row, :size].copy()
                written["indices"][row] = farthest_point_indices(cloud, groups)
                written["centers"][row] = cloud[written["indices"][row], :3]

        def cut() -> None:
            for row, size in enumerate(sizes):
                cloud = clouds[row, :size].copy()
                written["patches"][row] = group(cloud, groups, neighbors, self.radius)[0]
            if self.wrong in written:
                written[self.wrong].reshape(-1)[-1] += 1

        nothing = self.wrong == "graph" and capturing
        for work in (sample, cut):
            call(
                self.driver,
                "cuLaunchKernel",
                (lambda: None) if nothing else work,
                1,
                1,
                1,
                1,
                1,
                1,
                0,
                stream,
                0,
                0,
            )

    def close(self) -> None:
        pass


class Engine:
    """A classifier on the CPU that says it is TensorRT's; `spoil` changes answers by the number of the call."""

    def __init__(
        self,
        bundle: Path,
        spoil: Callable[[int, Any], Any] = lambda call, rows: rows,
        backend: str = "tensorrt",
    ) -> None:
        self.real = Classifier.load(bundle, "onnxruntime-cpu", threads=1)
        self.spoil, self.calls, self.seen = spoil, itertools.count(), {}  # type: ignore[var-annotated]
        self.captures, self.launches, self.backend = True, 0, backend

    def embed(self, clouds: Any) -> NDArray[np.float32]:
        # A batch of its own each, which makes an answer depend on its cloud alone, as a padded shape does.
        rows = np.concatenate([self.real.embed(cloud) for cloud in clouds])
        self.launches += self.seen.get(len(clouds), False)
        self.seen.setdefault(len(clouds), self.captures)
        return self.spoil(next(self.calls), rows)

    def __call__(self, clouds: Any) -> Any:
        return self.real(clouds)

    def info(self) -> dict[str, Any]:
        made = [
            {"batch": batch, "points": 64, "cuda_graph": captured} for batch, captured in self.seen.items()
        ]
        device = {"shapes": made, "batch": [1, 4, 8], "notes": [] if self.captures else ["not captured: why"]}
        device["graph_launches"] = self.launches
        found = self.real.info()
        return found | {
            "backend": self.backend,
            "device": device if self.backend == "tensorrt" else found["device"],
        }

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.real.close()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Driver()
    monkeypatch.setattr(runtime_device, "import_driver", lambda: made)
    monkeypatch.setattr(gpu_kernels, "SamplingKernels", Kernels)
    return made


@pytest.fixture
def device(driver: Any) -> Any:
    return runtime_device.CudaDevice(0)


@pytest.fixture
def script(driver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a GPU, on which the script measures very little; the folder with its README and results."""

    def open_one(bundle: Path, backend: str, *, rebuild: bool) -> Any:
        assert rebuild
        if backend == "tensorrt":
            return Engine(bundle)
        raise BackendUnavailable(f"no {backend} on this machine, says {bundle.resolve().parent}/x")

    monkeypatch.setattr(gpu, "probe_cuda", lambda: CudaDriver("13.0", (ADA,), ""))
    monkeypatch.setattr(gpu_bundle, "Classifier", type("Opens", (), {"load": staticmethod(open_one)}))
    monkeypatch.setattr(gpu_timing, "COPIED", 2**12)
    monkeypatch.setattr(gpu_timing, "SENT", 2**12)
    monkeypatch.setattr(gpu_backends, "MOST_GROWTH", {"device": 2**20, "host": 2**28})
    monkeypatch.setattr(gpu_clouds, "COUNTS", (257,))
    monkeypatch.setattr(gpu, "FIXED_SIZES", (Sizes(5, 3, 6), Sizes(4, 6, 3, 0.2)))
    monkeypatch.setattr(gpu, "BATCHES", (1, 2))
    monkeypatch.setattr(gpu, "POINTS", (50, 100))
    full = {"soak": (40, 10), "turns": (12, 2), "clouds": (12, 6), "each": (4, 2)}
    monkeypatch.setattr(gpu, "CALLS", full)
    (tmp_path / "README.md").write_text(MARKS)
    monkeypatch.setattr(gpu, "README", tmp_path / "README.md")
    return tmp_path


def result_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_without_a_gpu_one_line_and_exit_2_before_anything_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "probe_cuda", lambda: CudaDriver("", (), "no CUDA driver on this machine"))
    assert gpu.main([str(tmp_path / "no bundle"), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "expected an NVIDIA GPU: no CUDA driver on this machine\n")
    assert list(tmp_path.iterdir()) == []


def test_the_script_starts_without_torch(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['gpu.py', 'no bundle']; "
        "import crossmost.runtime.cuda_driver as d; d.LIBRARIES = ('no-such-library.so',); "
        f"runpy.run_path({str(ROOT / 'benchmarks' / 'gpu.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        done.stderr
        == "expected an NVIDIA GPU: no CUDA driver on this machine (no-such-library.so not found)\n"
    )


def test_cuda_python_missing_is_one_line_and_exit_2(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Any:
        raise ModuleNotFoundError("the GPU kernels need cuda-python: pip install cuda-bindings")

    monkeypatch.setattr(runtime_device, "import_driver", missing)
    assert gpu.main(["x.bundle"]) == 2
    assert capsys.readouterr().err == "the GPU kernels need cuda-python: pip install cuda-bindings\n"


def test_bundles_and_data_that_cannot_be_used_end_it_before_a_kernel_runs(
    script: Path, driver: Any, bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(bundle("fp32"))
    (script / "bad").mkdir()
    (script / "bad" / "a.npz").write_bytes(b"PK\3\4 no archive")
    for words, said in (
        ([str(script / "none")], "none"),
        ([good, good], "twice"),
        ([good, "--data", str(script / "nowhere")], "expected archives"),
        ([good, "--data", str(script / "bad")], "a.npz cannot be read"),
    ):
        assert gpu.main([*words, "--out", str(script / "out")]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
    assert not (script / "out").exists()
    assert "cuLaunchKernel" not in driver.calls
    assert "context" not in driver.alive


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    full, quick = gpu.parse(["a", "b"]), gpu.parse(["a", "--quick"])
    assert full.bundles == [Path("a"), Path("b")]
    assert full.out == ROOT / "benchmarks" / "results" / "gpu"
    assert full.soak > quick.soak
    assert full.turns > quick.turns
    assert gpu.parse(["a", "--quick", "--soak", "12345"]).soak == 12345
    for words in ([], ["a", "--soak", "0"]):
        with pytest.raises(SystemExit) as ended:
            gpu.parse(words)
        assert ended.value.code == 2
    capsys.readouterr()


def test_all_of_it_on_a_fake_gpu(
    script: Path, driver: Any, bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = bundle("fp32"), script / "results"
    assert gpu.main([str(folder), "--out", str(out)]) == 0, capsys.readouterr()
    assert [path.name for path in out.iterdir()] == [f"nvidia-rtx-6000-ada-{result_of(out)['date']}.json"]
    result = result_of(out)
    assert result["proof"]["passed"]
    names = [check["name"] for check in result["proof"]["checks"]]
    for wanted in (
        "sampling_80.ptx, G=8, K=4, C=3: spilled registers", "sampling_75.ptx, G=5, K=3, C=6: a grid of 3000 points",
        "sampling_80.ptx, G=4, K=6, C=3, radius 0.2: duplicates of 3000 points",
        "tensorrt: within the gates, the clouds", "tensorrt: CUDA graph of 8 clouds", "tensorrt: 8 threads at once",
        "tensorrt: the same answers over 40 calls", "tensorrt: host memory over 40 calls", "the backends timed",
        "tensorrt: CUDA graphs over 40 calls", "tensorrt: the same answers over 10 calls of changing shapes",
    ):  # fmt: skip
        assert wanted in names
    assert set(result["refused"][folder.name]) == {"tensorrt-rtx", "onnxruntime-cuda"}
    assert str(folder.parent) not in json.dumps(result)
    assert result["limits"]["device_copy"]["rate"] == pytest.approx(2 * 2**12 / 1e-3)
    assert {(row["batch"], row["points"]) for row in result["kernels"]} == {
        (1, 50),
        (2, 50),
        (1, 100),
        (2, 100),
    }
    assert {stage: found["p50"] for stage, found in result["kernels"][0]["seconds"].items()}.keys() == {
        "copy", "sampling", "grouping", "total",
    }  # fmt: skip
    assert all(row["seconds"]["total"]["calls"] == 12 for row in result["backends"])
    readme = (script / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# Benchmarks\n\n<!-- gpu -->\n**NVIDIA RTX 6000 Ada** (compute capability 8.9)")
    assert readme.endswith("<!-- /gpu -->\nrest\n")
    assert "old" not in readme
    assert driver.alive == {}


def test_a_failure_is_named_and_written_and_leaves_the_readme(
    script: Path,
    bundle: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpu_backends, "MOST_GROWTH", {"device": 2**20, "host": -(2**40)})
    assert gpu.main([str(bundle("fp32")), "--out", str(script / "results"), "--quick"]) == 1
    proof = result_of(script / "results")["proof"]
    assert not proof["passed"]
    assert len(proof["failures"]) == 2
    assert all("host memory" in failure for failure in proof["failures"])
    out, err = capsys.readouterr()
    assert err.count("FAILED: ") == 2
    assert "checks FAILED; a short run" in out
    assert (script / "README.md").read_text("utf-8") == MARKS


def test_a_short_run_leaves_the_readme(script: Path, bundle: Callable[[str], Path]) -> None:
    assert gpu.main([str(bundle("fp32")), "--out", str(script / "results"), "--quick"]) == 0
    assert (script / "README.md").read_text("utf-8") == MARKS
    assert result_of(script / "results")["quick"]
    assert gpu_table.table(script / "results") == ""


def test_nothing_on_the_gpu_that_opens_is_a_failure(
    script: Path, bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(bundle: Path, backend: str, *, rebuild: bool) -> Any:
        if backend == "tensorrt":
            raise OSError("a library\nis broken")
        raise BackendUnavailable("missing")

    monkeypatch.setattr(gpu_bundle, "Classifier", type("Opens", (), {"load": staticmethod(nothing)}))
    assert gpu.main([str(bundle("fp32")), "--out", str(script / "results"), "--quick"]) == 1
    broken, none = result_of(script / "results")["proof"]["failures"]
    assert broken == "fp32.bundle: tensorrt opens: OSError: a library is broken"
    assert none.startswith("fp32.bundle: a backend on the GPU opens: none opened: tensorrt-rtx: missing")


def test_a_backend_that_opens_and_cannot_embed_is_a_failure(
    script: Path, bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(bundle: Path, backend: str, *, rebuild: bool) -> Any:
        if backend == "tensorrt":
            raise FirstPassFailed("the first pass failed: why")
        return Engine(bundle)

    monkeypatch.setattr(gpu_bundle, "Classifier", type("Opens", (), {"load": staticmethod(fails)}))
    assert gpu.main([str(bundle("fp32")), "--out", str(script / "results"), "--quick"]) == 1
    (failure,) = result_of(script / "results")["proof"]["failures"]
    assert failure == "fp32.bundle: tensorrt embeds: FirstPassFailed: the first pass failed: why"


def test_an_error_of_the_gpu_is_a_failure_and_loses_nothing(
    script: Path, driver: Any, bundle: Callable[[str], Path]
) -> None:
    driver.failing["cuMemcpyDtoDAsync"] = fake_gpu.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    assert gpu.main([str(bundle("fp32")), "--out", str(script / "results"), "--quick"]) == 1
    result = result_of(script / "results")
    expected = "times: CudaError: cuMemcpyDtoDAsync failed with CUDA_ERROR_ILLEGAL_ADDRESS"
    assert result["proof"]["failures"] == [expected]
    assert len(result["proof"]["checks"]) > 20


@pytest.mark.parametrize("wrong", ["indices", "patches", "centers"])
def test_kernels_that_are_off_by_one_number_are_noticed(
    device: Any, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(Kernels, "wrong", wrong)
    clouds = list(np.random.default_rng(0).normal(size=(2, 40, 3)).astype(np.float32))
    cases = [gpu_clouds.Case("two", clouds)]
    spills, two = gpu_kernels.prove_kernels(device, Sizes(8, 4, 3), 80, cases)
    assert not spills.failure
    assert two.failure.startswith(f"{wrong} of cloud 1 at (7")
    assert "(1 of " in two.failure


@pytest.mark.parametrize(("spilled", "said"), [(0, "none"), (16, "farthest_points_4 16 bytes a thread")])
def test_spilled_registers_are_reported_and_no_failure(
    device: Any, monkeypatch: pytest.MonkeyPatch, spilled: int, said: str
) -> None:
    monkeypatch.setattr(Kernels, "spilled", spilled)
    (check,) = gpu_kernels.prove_kernels(device, Sizes(8, 4, 3), 80, [])
    told: list[str] = []
    proof = gpu_checks.Proof(told.append)
    proof.add(check)
    assert told == [f"ok      sampling_80.ptx, G=8, K=4, C=3: spilled registers ({said})"]
    assert proof.to_dict()["passed"]
    assert proof.to_dict()["checks"][0]["values"] == {"bytes": {"farthest_points_4": 16} if spilled else {}}


def test_a_graph_that_does_nothing_is_noticed(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernels, "wrong", "graph")
    clouds = [np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)]
    *_, check = gpu_kernels.prove_kernels(device, Sizes(8, 4, 3), 75, [gpu_clouds.Case("one", clouds)])
    assert check.failure.startswith("as a graph, indices of cloud 0 at (0,)")


def test_sampling_ends_between_the_two_kernels_that_ship() -> None:
    """The real launcher and PTX, on the emulated driver."""
    emulated = load(ROOT / "tests" / "runtime", "ptx_driver").EmulatedDriver()
    marked = gpu_kernels.MarkedDriver(emulated)
    ptx = (gpu_kernels.KERNELS / "sampling_80.ptx").read_bytes()
    kernels = SamplingKernels(ptx, groups=4, neighbors=3, channels=3, driver=marked)
    points = np.random.default_rng(0).normal(size=(1, 20, 3)).astype(np.float32)
    patches, centers = (
        emulated.memory.allocate(np.zeros((1, 4, *rest), np.float32), writable=True)
        for rest in ((3, 3), (3,))
    )
    order: list[str] = []
    launched = len(emulated.calls)
    marked.after = lambda: order.extend(detail[0] for _, detail in emulated.calls[launched:])
    kernels.launch(emulated.memory.allocate(points), 0, patches, centers, 1, 20, 7)
    assert order == ["farthest_points_4"]
    assert [detail[0] for _, detail in emulated.calls[launched:]] == ["farthest_points_4", "group_32"]
    assert set(kernels.local_bytes().values()) == {0}


@pytest.mark.parametrize(("capability", "expected"), [("7.5", [75]), ("8.0", [80, 75]), ("12.0", [80, 75])])
def test_every_ptx_file_that_the_gpu_can_run_is_proved(capability: str, expected: list[int]) -> None:
    assert gpu_kernels.architectures(capability) == expected


def test_the_hard_cases_have_enough_points_and_reach_every_kernel() -> None:
    from crossmost.runtime.cuda_kernels import _slots

    for sizes in gpu_clouds.FIXED_SIZES:
        cases = list(
            gpu_clouds.kernel_cases(sizes, gpu_clouds.make_clouds(4, np.random.default_rng(0)), quick=False)
        )
        counts = [len(cloud) for case in cases for cloud in case.clouds]
        assert min(counts) == sizes.least
        assert max(counts) == 65536
        assert {_slots(count) for count in counts} >= {8, 16, 32, 64, 0}
        assert all(cloud.shape[1] == sizes.channels for case in cases for cloud in case.clouds)
        assert all(cloud.dtype == np.float32 for case in cases for cloud in case.clouds)
        assert any(len({len(cloud) for cloud in case.clouds}) > 3 for case in cases)


def test_real_clouds_are_spread_over_the_test_split(shared_data: Path) -> None:
    clouds = gpu_clouds.read_clouds(shared_data, 3)
    assert {len(cloud) for cloud in clouds} == {512, 1024, 2048}
    assert len(clouds) == 15
    assert all(cloud.dtype == np.float32 and np.isfinite(cloud).all() for cloud in clouds)


class Same:
    """A bank of two classes: the signs of the first number."""

    def logits(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([rows[:, 0], -rows[:, 0]], axis=1)


def rows(angle: float, count: int = 400) -> NDArray[np.float32]:
    """Unit rows, each turned by an angle from the first axis."""
    return np.tile(np.array([np.cos(angle), np.sin(angle)]), (count, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("precision", "angle", "missed"),
    [
        ("fp32", 0.004, []), ("fp32", 0.006, ["cosine_min"]), ("fp16", 0.006, []), ("fp16", 0.02, ["cosine_mean"]),
        ("fp16", 0.06, ["cosine_min", "cosine_mean"]), ("fp16", 3.0, ["cosine_min", "cosine_mean", "top1_agreement"]),
        ("bf16", 0.04, []), ("bf16", 0.06, ["cosine_mean"]), ("bf16", 0.2, ["cosine_min", "cosine_mean"]),
    ],
)  # fmt: skip
def test_gates(precision: str, angle: float, missed: list[str]) -> None:
    found = gpu_parity.metrics(rows(0.0), rows(angle), Same())
    said = gpu_parity.beyond_gates(found, precision)
    assert [part.split()[1] for part in said.split("; ") if said] == missed


def test_gates_are_those_of_export() -> None:
    parity = pytest.importorskip("crossmost.export.parity")
    assert gpu_parity.GATES.keys() == parity.GATES.keys()
    for precision, gates in gpu_parity.GATES.items():
        for metric, (limit, _) in gates.items():
            assert parity.GATES[precision][metric].limit == limit


def test_nan_meets_no_gate_and_its_result_is_json() -> None:
    found = rows(0.0)
    found[3, 0] = np.nan
    said = gpu_parity.beyond_gates(gpu_parity.metrics(rows(0.0), found, Same()), "fp32")
    assert "finite" in said
    assert "cosine_min" in said


def test_top1_of_one_in_200_may_differ_and_of_three_may_not() -> None:
    for flipped, passes in ((1, True), (3, False)):
        found = rows(0.0, 200)
        found[:flipped] *= -1
        said = gpu_parity.beyond_gates(
            gpu_parity.metrics(rows(0.0, 200), found, Same()), "fp32", ("cosine_min",)
        )
        assert (said == "") is passes


def references(clouds: list[Any], *bundles: Path) -> Any:
    return gpu_reference.References({path.name: (path, load_manifest(path)) for path in bundles}, clouds)


def test_the_reference_is_the_exported_encoder_and_not_its_8_bit_integers(
    bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    exact = bundle("fp32")
    with_int8 = tmp_path / "int8.bundle"
    shutil.copytree(exact, with_int8)
    (with_int8 / INT8).write_bytes(b"no graph")
    manifest = json.loads((with_int8 / "manifest.json").read_text("utf-8"))
    manifest["files"][INT8] = manifest["files"]["encoder.onnx"]
    (with_int8 / "manifest.json").write_text(json.dumps(manifest))
    clouds = gpu_clouds.make_clouds(40, np.random.default_rng(0))
    found = references(clouds, with_int8)
    part, hard = found.of("int8.bundle")
    assert part is found.of("int8.bundle")[0]
    assert (part.ungated, hard.ungated) == ((), ("top1_agreement",))
    with Classifier.load(exact, "onnxruntime-cpu", threads=1) as classifier:
        np.testing.assert_allclose(part.reference, classifier.embed(clouds), atol=1e-5)


def test_bf16_is_compared_with_the_fp32_bundle_of_the_same_weights(
    bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, half = bundle("fp32"), bundle("bf16")
    clouds = gpu_clouds.make_clouds(4, np.random.default_rng(0))
    both = references(clouds, half, exact)
    assert both.of("bf16.bundle") is both.of("fp32.bundle")
    (path, manifest) = both._bundles["bf16.bundle"]
    other = {**manifest.provenance, "weights_sha256": "of another network"}
    both = references(clouds, exact)
    both._bundles["bf16.bundle"] = (path, replace(manifest, provenance=other))
    assert [part.reference for part in both.of("bf16.bundle")] == [None, None]


def test_without_a_reference_bf16_is_reported_and_other_precisions_are_no_proof(
    bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    half, clouds = bundle("bf16"), gpu_clouds.make_clouds(4, np.random.default_rng(0))
    engine = Engine(bundle("fp32"))
    found = engine.info()
    monkeypatch.setattr(engine, "info", lambda: found | {"bundle": {"precision": "bf16"}})
    alone = functools.partial(references(clouds, half).of, "bf16.bundle")
    some, hard = gpu_parity.prove_parity(engine, alone, Same())
    assert (some.failure, some.values) == ("", {"finite": 1.0, "clouds": 4})
    assert "compared with nothing" in hard.note
    engine.spoil = lambda call, rows: rows * np.nan
    assert "found 0 of them" in next(iter(gpu_parity.prove_parity(engine, alone, Same()))).failure

    def missing() -> Any:
        raise BackendUnavailable("ONNX Runtime is not installed")

    proof = gpu_checks.Proof(lambda said: None)
    proof.collect("gates", lambda: gpu_parity.prove_parity(engine, missing, Same()))
    assert proof.failures == ["gates: BackendUnavailable: ONNX Runtime is not installed"]


def test_graphs_that_were_not_captured_or_answer_otherwise_are_noticed(bundle: Callable[[str], Path]) -> None:
    folder = bundle("fp32")
    assert [check.failure for check in gpu_backends.prove_graphs(Engine(folder))] == [""] * 4
    never = Engine(folder)
    never.captures = False
    assert all("not captured: why" in check.failure for check in gpu_backends.prove_graphs(never))
    stale = Engine(folder, lambda call, found: found + np.float32(1e-6 * (call % 3)))
    for check in gpu_backends.prove_graphs(stale):
        assert check.failure.startswith(
            "the graph's answers are not the enqueued ones: they differ by up to 2"
        )
    used = Engine(folder)
    used.embed(gpu_clouds.make_raw(8, 64))
    assert "expected a new shape" in next(iter(gpu_backends.prove_graphs(used))).failure


def test_a_loop_notices_a_changed_answer_and_growing_memory(bundle: Callable[[str], Path]) -> None:
    clouds = gpu_clouds.make_clouds(6, np.random.default_rng(0))
    batches = gpu_backends.uneven_batches(clouds, *gpu_backends.OFTEN)
    late = Engine(bundle("fp32"), lambda call, found: found + np.float32(1e-6 * (call == len(batches) + 20)))
    leak, level = itertools.count(0, 2**22), itertools.cycle([0, 2**22])
    memory = {"device": lambda: next(leak), "host": lambda: next(level)}
    answers, device, host = gpu_backends.prove_loop(late, batches, 30, "30 calls", memory)
    assert answers.failure.startswith("call 21, of ")
    assert device.failure == "28.0 MiB more at the end, expected at most 16"
    assert len(device.values["bytes"]) == gpu_backends.MARKS
    assert host.failure == ""


def test_the_long_loop_launches_graphs_and_a_shorter_one_changes_shapes(
    bundle: Callable[[str], Path],
) -> None:
    clouds = gpu_clouds.make_clouds(6, np.random.default_rng(0))
    engine = Engine(bundle("fp32"))
    answers, graphs, churn = gpu_backends.prove_soak(engine, clouds, 40, {})
    assert (answers.name, graphs.name) == (
        "tensorrt: the same answers over 40 calls",
        "tensorrt: CUDA graphs over 40 calls",
    )
    assert graphs.failure == ""
    assert graphs.values["launches"] == 40 + len(gpu_backends.uneven_batches(clouds, *gpu_backends.OFTEN))
    assert graphs.note == f"{graphs.values['launches']} launches"
    assert churn.name == "tensorrt: the same answers over 10 calls of changing shapes"
    never = Engine(bundle("fp32"))
    never.captures = False
    _, graphs, _ = gpu_backends.prove_soak(never, clouds, 10, {})
    assert graphs.failure == "expected a CUDA graph for every call, found 0"
    other = Engine(bundle("fp32"), backend="onnxruntime-cuda")
    assert [check.failure for check in gpu_backends.prove_soak(other, clouds, 10, {})] == ["", ""]


@pytest.mark.parametrize("points", [1024, 2048, 8192, 10000])
def test_a_worker_keeps_the_shapes_of_the_long_loop_and_not_all_of_the_other(points: int) -> None:
    from crossmost.runtime.engine_shapes import padded_batch, padded_points
    from crossmost.runtime.engine_worker import MOST_SHAPES

    clouds = gpu_clouds.make_clouds(16, np.random.default_rng(0))
    few, many = (
        {
            (padded_batch(len(batch), 1, 64), padded_points(min(points, max(map(len, batch))), points))
            for batch in gpu_backends.uneven_batches(clouds, *which)
        }
        for which in (gpu_backends.OFTEN, ())
    )
    assert len(few) == 8
    assert len(few) < MOST_SHAPES < len(many)


def test_onnxruntime_may_differ_in_the_last_bits_and_tensorrt_may_not(bundle: Callable[[str], Path]) -> None:
    clouds = gpu_clouds.make_clouds(6, np.random.default_rng(0))
    for backend, noise, passes in (
        ("tensorrt", 1e-7, False), ("onnxruntime-cuda", 1e-7, True), ("onnxruntime-cuda", 1e-2, False),
    ):  # fmt: skip
        sign = np.float32(noise) * np.tile(np.float32([1, -1]), 8)
        engine = Engine(
            bundle("fp32"), lambda call, found, sign=sign: found + sign * (call % 2), backend=backend
        )
        loop = gpu_backends.prove_loop(engine, gpu_backends.uneven_batches(clouds, (1,), (64,)), 11, "11", {})
        (threads,) = gpu_backends.prove_threads(engine, clouds)
        assert [check.failure == "" for check in (*loop, threads)] == [passes, passes]


def test_nan_is_no_answer_that_is_nearly_the_same() -> None:
    assert "found nan" in gpu_backends.changed(rows(0.0), rows(np.nan), exact=False)
    assert gpu_backends.changed(rows(0.0), rows(0.0, 3), exact=False) == "(3, 2) instead of (400, 2)"


def test_threads_that_get_the_answer_of_another_are_noticed(bundle: Callable[[str], Path]) -> None:
    clouds = gpu_clouds.make_clouds(6, np.random.default_rng(0))
    (good,) = gpu_backends.prove_threads(Engine(bundle("fp32")), clouds)
    assert good.failure == ""
    mixed = Engine(bundle("fp32"), lambda call, found: found[::-1] if call > 30 else found)
    (bad,) = gpu_backends.prove_threads(mixed, clouds)
    assert "differ by up to" in bad.failure


def test_what_others_use_for_a_moment_is_no_growth() -> None:
    assert gpu_backends.grown([5, 900, 5, 5, 5, 5, 5, 5, 900, 5]) == 0
    assert gpu_backends.grown([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]) == 7


def test_backends_take_turns_and_slow_ones_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def way(name: str) -> Callable[[], dict[str, float]]:
        return lambda: order.append(name) or {"total": 1.0}  # type: ignore[func-returns-value]

    found = gpu_timing.by_turns({"a": way("a"), "b": way("b")}, 20)
    assert order[2 * gpu_timing.WARMUP :] == ["a", "b"] * 20
    assert found == {"a": {"total": [1.0] * 20}, "b": {"total": [1.0] * 20}}
    monkeypatch.setattr(gpu_timing, "LONGEST", -1.0)
    assert len(gpu_timing.by_turns({"a": way("a")}, 20)["a"]["total"]) == gpu_timing.FEWEST


def test_the_empty_kernel_is_what_the_compiler_makes() -> None:
    """A driver that refused it would end the measurement."""
    ptx = pytest.importorskip("crossmost.export.ptx")
    try:
        made = ptx.compile_ptx('extern "C" __global__ void __launch_bounds__(32) empty() {}', 75)
    except ptx.InputError as error:
        pytest.skip(str(error))
    # It declares constants of its own between the two parts.
    head, entry = gpu_timing.EMPTY[:-1].decode().split(".visible")
    words = re.sub(r"//.*", "", made).split()
    assert words[: len(head.split())] == head.split()
    assert re.sub(r"//.*", "", made).partition(".visible")[2].split() == entry.split()


def test_summary() -> None:
    found = gpu_timing.summary([float(value) for value in range(1, 102)])
    assert found == {"p50": 51.0, "p90": 91.0, "p99": 100.0, "spread": pytest.approx(50 / 51), "calls": 101}


def made_up(**changes: Any) -> dict[str, Any]:
    """A result with round numbers that nothing ever measured."""

    def flat(seconds: float) -> dict[str, float]:
        return {"p50": seconds, "p90": 2 * seconds, "p99": 4 * seconds, "spread": 0.25, "calls": 7}

    encoder = {"points": 1024}
    result = {
        "gpu": "GPU A", "capability": "9.9", "date": "2001-01-01", "quick": False, "software": {"Made": "up"},
        "proof": {"passed": True, "failures": [], "checks": [{}, {}]},
        "bundles": {"x.bundle": {"precision": "fp16", "encoder": encoder, "weight_bytes": 2000}},
        "limits": {
            **{name: flat(1.0) | {"rate": 1e9} for name in gpu_table.COPIES},
            **{name: flat(1e-6) for name in gpu_table.LAUNCHES},
        },
        "kernels": [{
            "groups": 10, "neighbors": 5, "channels": 3, "radius": None, "batch": 8, "points": 2048,
            "bytes": {"copy": 1000, "grouping": 4000},
            "seconds": {"copy": flat(2e-6), "sampling": flat(1e-4), "grouping": flat(1.2e-5), "total": flat(2e-4)},
        }],
        "backends": [{
            "bundle": "x.bundle", "backend": "tensorrt", "batch": 8, "points": 2048,
            "seconds": {"prepare": flat(1e-3), "encode": flat(4e-6), "total": flat(4e-3)},
        }],
    }  # fmt: skip
    return result | changes


def test_the_table_of_a_made_up_result() -> None:
    text = gpu_table.section(made_up())
    assert text.startswith("**GPU A** (compute capability 9.9); Made up; 2001-01-01; all 2 checks passed\n")
    lines = text.splitlines()
    assert "| pinned host to device | 1 GB/s | 0 GB/s | 25.0% |" in lines
    assert "| 10 | 5 | 3 | 8 | 2048 | 2 (2.0x) | 100 | 10.00 | 12 (3.0x) | 200 (800) |" in lines
    balls = made_up()
    balls["kernels"][0]["radius"] = 0.25
    assert "| 10 | 5 within 0.25 | 3 | 8 | 2048 |" in gpu_table.section(balls)
    stages = "| 1.000 |  |  | 0.004 (2.0x) |  | 4.00 | 8.00 | 16.00 | 25.0% | 2000 |"
    assert f"| x.bundle | fp16 | tensorrt | 8 | 2048 (1024) {stages}" in lines
    for in_table, block in itertools.groupby(lines, lambda line: line.startswith("|")):
        assert not in_table or len({line.count("|") for line in block}) == 1


def test_the_table_holds_the_newest_result_of_each_gpu_that_passed(tmp_path: Path) -> None:
    failed = {"passed": False, "failures": ["x"], "checks": [{}]}
    results = [
        made_up(), made_up(date="2001-01-02"), made_up(date="2001-01-03", quick=True),
        made_up(date="2001-01-04", proof=failed), made_up(gpu="GPU B"),
    ]  # fmt: skip
    for index, result in enumerate(results):
        (tmp_path / f"{index}.json").write_text(json.dumps(result))
    heads = [line for line in gpu_table.table(tmp_path).splitlines() if line.startswith("**")]
    assert [head[2:7] for head in heads] == ["GPU A", "GPU B"]
    assert "2001-01-02" in heads[0]


def test_a_result_without_times_has_no_empty_tables() -> None:
    text = gpu_table.section(made_up(limits={}, kernels=[], backends=[]))
    assert text.count("\n") == 0


def test_the_file_is_named_after_the_gpu_and_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    bundle = tmp_path / "secret" / "x.bundle"
    why = {"tensorrt": f"no engine in {bundle.resolve()}/engines, nor in {Path.home()}/.cache"}
    path = gpu.write(made_up(gpu="NVIDIA  H100 (80GB)", refused=why), tmp_path / "out", [bundle])
    assert path == tmp_path / "out" / "nvidia-h100-80gb-2001-01-01.json"
    assert (
        json.loads(path.read_text("utf-8"))["refused"]["tensorrt"]
        == "no engine in x.bundle/engines, nor in .cache"
    )


def test_no_result_came_without_a_gpu() -> None:
    """Whatever is committed says which GPU it is from, and that the proof was made."""
    for path in (ROOT / "benchmarks" / "results" / "gpu").glob("*.json"):
        result = json.loads(path.read_text("utf-8"))
        assert result["gpu"]
        assert result["proof"]["checks"]
