"""The launcher of the CUDA kernels, the text of their PTX, and what NVIDIA's assembler makes of it for every GPU."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from crossmost.runtime import cuda_kernels
from crossmost.runtime.cuda_kernels import ARCHITECTURES, KERNELS, CudaError, InvalidLaunch, SamplingKernels

GPUS = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
PTX = {
    architecture: (KERNELS / f"sampling_{architecture}.ptx").read_text("utf-8")
    for architecture in ARCHITECTURES
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_rounding_is_spelled_out(architecture: int) -> None:
    text = PTX[architecture]
    arithmetic = set(re.findall(r"\b((?:add|sub|mul|mad|fma|div|sqrt|rcp)\.\S*f32)\b", text))
    assert arithmetic == {"add.rn.f32", "sub.rn.f32", "mul.rn.f32"}
    assert ".ftz" not in text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drivers_of_cuda_12_1_take_the_ptx(architecture: int) -> None:
    text = PTX[architecture]
    version = re.search(r"^\.version (\d+)\.(\d+)$", text, re.MULTILINE)
    assert version is not None
    assert (int(version[1]), int(version[2])) <= (8, 1)
    assert f".target sm_{architecture}\n" in text


def find_ptxas() -> str | None:
    """On the path, or in one of NVIDIA's wheels."""
    wheels = [Path(folder) / "nvidia" for folder in sys.path]
    found = [str(path) for wheel in wheels for path in wheel.glob("*/bin/ptxas")]
    return shutil.which("ptxas") or next(iter(found), None)


@pytest.mark.parametrize("gpu", GPUS)
def test_no_gpu_spills_registers(gpu: int, tmp_path: Path) -> None:
    ptxas = find_ptxas()
    if ptxas is None:
        pytest.skip("ptxas is not here: pip install nvidia-cuda-nvcc")
    source = KERNELS / cuda_kernels.ptx_name(divmod(gpu, 10))
    command = [ptxas, "-v", f"-arch=sm_{gpu}", str(source), "-o", str(tmp_path / "cubin")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    report = done.stdout + done.stderr
    if "is not defined for option 'gpu-name'" in report:
        pytest.skip(f"this ptxas does not know sm_{gpu}")
    assert done.returncode == 0, report
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert spills == [("0", "0", "0")] * PTX[80].count(".entry ")


# The launcher.


@pytest.fixture
def driver(ptx_driver: ModuleType) -> Any:
    return ptx_driver.EmulatedDriver()


def make(driver: Any, **changes: Any) -> SamplingKernels:
    sizes: dict[str, Any] = {"groups": 8, "neighbors": 4, "channels": 3} | changes
    return SamplingKernels(PTX[80].encode(), **sizes, driver=driver)


@pytest.mark.parametrize(("radius", "grouping"), [(None, "group_32"), (0.2, "group_ball")])
def test_a_launch_enqueues_two_kernels_and_nothing_else(
    driver: Any, radius: float | None, grouping: str
) -> None:
    kernels = make(driver, radius=radius)
    ready = len(driver.calls)
    cloud = driver.memory.allocate(np.random.default_rng(0).normal(size=(2, 32, 3)).astype(np.float32))
    patches = driver.memory.allocate(np.zeros((2, 8, 4, 3), dtype=np.float32), writable=True)
    centers = driver.memory.allocate(np.zeros((2, 8, 3), dtype=np.float32), writable=True)
    kernels.launch(cloud, 0, patches, centers, 2, 32, "a stream")
    assert driver.calls[ready:] == [
        ("cuLaunchKernel", ("farthest_points_4", (2, 1, 1), "a stream")),
        ("cuLaunchKernel", (grouping, (2, 2, 1), "a stream")),
    ]


@pytest.mark.parametrize("changes", [{"groups": 0}, {"neighbors": 0}, {"neighbors": 65}, {"channels": 4}])
def test_sizes_the_kernels_cannot_work_with(driver: Any, changes: dict[str, int]) -> None:
    with pytest.raises(
        InvalidLaunch, match="expected at least 1 group, 1 to 64 neighbors and 3 or 6 channels"
    ):
        make(driver, **changes)


@pytest.mark.parametrize(("radius", "most"), [(None, 64), (0.4, 256)])
def test_balls_hold_more_than_lists_of_the_nearest(driver: Any, radius: float | None, most: int) -> None:
    assert make(driver, radius=radius, neighbors=most).neighbors == most
    with pytest.raises(InvalidLaunch, match=f"1 to {most} neighbors"):
        make(driver, radius=radius, neighbors=most + 1)


def test_a_radius_that_is_none_leaves_nothing_loaded(driver: Any) -> None:
    with pytest.raises(ValueError, match="expected a radius"):
        make(driver, radius=0.0)
    assert driver.calls == []


@pytest.mark.parametrize(("batch", "points"), [(0, 100), (1, 7)])
def test_too_few_clouds_or_points(driver: Any, batch: int, points: int) -> None:
    with pytest.raises(InvalidLaunch, match="at least 1 cloud of at least 8 points"):
        make(driver).launch(1, 0, 1, 1, batch, points, 0)


def test_large_clouds_need_a_workspace(driver: Any) -> None:
    kernels = make(driver)
    assert kernels.workspace_bytes(3, 16384) == 0
    assert kernels.workspace_bytes(3, 16385) == 3 * 16385 * 4
    with pytest.raises(InvalidLaunch, match="workspace of 65540 bytes"):
        kernels.launch(1, 0, 1, 1, 1, 16385, 0)


def test_a_refusal_of_the_driver_is_one_line(driver: Any, ptx_driver: ModuleType) -> None:
    driver.failing["cuModuleLoadData"] = ptx_driver.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    with pytest.raises(
        CudaError, match=r"^cuModuleLoadData failed with \S+: update the NVIDIA driver .*12\.1 or newer$"
    ):
        make(driver)
    driver.failing.clear()
    kernels = make(driver)
    driver.failing["cuLaunchKernel"] = ptx_driver.CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(CudaError, match=r"^cuLaunchKernel failed with CUDA_ERROR_INVALID_VALUE$"):
        kernels.launch(1, 0, 1, 1, 1, 100, 0)


def test_closed_kernels_are_unloaded_once(driver: Any) -> None:
    kernels = make(driver)
    kernels.close()
    kernels.close()
    assert [name for name, _ in driver.calls].count("cuModuleUnload") == 1
    with pytest.raises(InvalidLaunch, match="closed"):
        kernels.launch(1, 0, 1, 1, 1, 100, 0)


def test_local_memory_of_every_kernel_can_be_asked_for(driver: Any) -> None:
    found = make(driver, neighbors=33).local_bytes()
    assert {"farthest_points_4", "farthest_points_64", "farthest_points_streamed", "group_64"} <= set(found)
    assert set(found.values()) == {0}


@pytest.mark.parametrize(
    ("capability", "name"),
    [((7, 5), "sampling_75.ptx"), ((8, 7), "sampling_80.ptx"), ((12, 1), "sampling_80.ptx")],
)
def test_each_gpu_has_its_file(capability: tuple[int, int], name: str) -> None:
    assert cuda_kernels.ptx_name(capability) == name
    assert (KERNELS / name).is_file()


def test_gpus_that_are_too_old() -> None:
    with pytest.raises(CudaError, match=r"7\.5 or newer, found 7\.2"):
        cuda_kernels.ptx_name((7, 2))


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(ModuleNotFoundError, match="pip install cuda-bindings"):
        SamplingKernels(b"", groups=1, neighbors=1, channels=3)


def test_without_a_driver() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    try:
        real.cuInit(0)
    except RuntimeError:
        with pytest.raises(CudaError, match=r"^the GPU kernels need an NVIDIA driver: [^\n]+$"):
            SamplingKernels(b"", groups=1, neighbors=1, channels=3)
    else:
        pytest.skip("this machine has an NVIDIA driver")
