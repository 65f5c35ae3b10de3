"""Torch's clouds through the runtime's kernels: what they are handed, what comes back, when torch does it itself."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crossmost.models import grouping, grouping_kernels
from crossmost.models.grouping_kernels import KernelGrouping, Sizes, kernel_grouping
from crossmost.runtime import sampling
from crossmost.runtime.cuda_calls import CudaError

SIZES = Sizes(16, 8, 3, None)


def at(address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


class HostDevice:
    """`CudaDevice`, which has to be current at a launch."""

    held = 0
    driver = None

    def __init__(self, index: int = 0) -> None:
        assert index == 0

    @contextmanager
    def current(self) -> Iterator[None]:
        HostDevice.held += 1
        yield
        HostDevice.held -= 1


class HostKernels:
    """`SamplingKernels` whose addresses are the host's, computed by NumPy; `wrong` spoils a patch."""

    def __init__(self, sizes: Sizes) -> None:
        self.groups, self.neighbors, self.channels, self.radius = sizes
        self.launches: list[int] = []
        self.wrong = False

    def sampler(self, points: int) -> str:
        return "small" if points <= 100 else "large"

    def workspace_bytes(self, batch: int, points: int) -> int:
        return 4 * batch * points if points > 100 else 0

    def launch(
        self, points_ptr: int, sizes_ptr: int, patches_ptr: int, centers_ptr: int, batch: int, points: int,
        stream: int, *, workspace_ptr: int,
    ) -> None:  # fmt: skip
        assert stream == 7
        assert HostDevice.held
        self.launches.append(batch)
        if points > 100:
            at(workspace_ptr, (batch, points), np.float32)[:] = np.nan
        clouds = at(points_ptr, (batch, points, self.channels), np.float32)
        counts = at(sizes_ptr, (batch,), np.int32) if sizes_ptr else np.full(batch, points)
        patches = at(patches_ptr, (batch, self.groups, self.neighbors, self.channels), np.float32)
        centers = at(centers_ptr, (batch, self.groups, 3), np.float32)
        for row, count in enumerate(counts):
            found = sampling.group(clouds[row, :count].copy(), self.groups, self.neighbors, self.radius)
            patches[row], centers[row] = found
        if self.wrong:
            patches[0, 0, 0, 0] += 1


@pytest.fixture(autouse=True)
def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))


def grouping_of(kernels: Any) -> KernelGrouping:
    return KernelGrouping(kernels, HostDevice())  # type: ignore[arg-type]


def clouds(count: int, points: int, channels: int = 3) -> torch.Tensor:
    made = np.random.default_rng(count).uniform(-1, 1, (count, points, channels)).astype(np.float32)
    return torch.from_numpy(made)


@pytest.mark.parametrize("sizes", [SIZES, Sizes(16, 8, 6, None), Sizes(9, 12, 3, 0.6)])
@pytest.mark.parametrize("points", [40, 130])
@pytest.mark.parametrize("uneven", [False, True])
def test_patches_are_torchs_to_the_bit(sizes: Sizes, points: int, uneven: bool) -> None:
    batch = clouds(5, points, sizes.channels)
    # As a slice of wider rows: the kernels take points in one piece.
    batch = torch.cat([batch, batch], dim=-1)[..., : sizes.channels]
    counts = torch.tensor([points, 16, 20, 33, points]) if uneven else None
    in_torch = partial(grouping.group_in_torch, sizes)
    found = grouping_of(HostKernels(sizes))(batch, counts, in_torch)
    assert found is not None
    for right, part in zip(in_torch(batch, counts), found, strict=True):
        assert torch.equal(right, part)
        assert right.shape == part.shape


def test_torch_is_asked_once_and_about_few_clouds() -> None:
    kernels, asked = HostKernels(SIZES), []

    def in_torch(points: torch.Tensor, counts: torch.Tensor | None) -> Any:
        asked.append(len(points))
        return grouping.group_in_torch(SIZES, points, counts)

    on_gpu = grouping_of(kernels)
    for _ in range(3):
        on_gpu(clouds(5, 50), None, in_torch)
    assert asked == [grouping_kernels.COMPARED]
    assert kernels.launches == [5, 5, 5]


def test_kernels_that_are_wrong_are_told_and_never_asked_again() -> None:
    kernels = HostKernels(SIZES)
    kernels.wrong = True
    on_gpu, in_torch = grouping_of(kernels), partial(grouping.group_in_torch, SIZES)
    with pytest.warns(RuntimeWarning, match="small is wrong on cpu: torch does its work"):
        assert on_gpu(clouds(3, 50), None, in_torch) is None
    kernels.wrong = False
    assert on_gpu(clouds(3, 50), None, in_torch) is None
    assert kernels.launches == [3]
    assert on_gpu(clouds(3, 130), None, in_torch) is not None  # another kernel samples from so many


def test_each_kernel_is_compared_before_it_is_trusted() -> None:
    kernels = HostKernels(SIZES)
    on_gpu, in_torch = grouping_of(kernels), partial(grouping.group_in_torch, SIZES)
    assert on_gpu(clouds(3, 50), None, in_torch) is not None
    kernels.wrong = True
    with pytest.warns(RuntimeWarning, match="large is wrong"):
        assert on_gpu(clouds(3, 130), None, in_torch) is None


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("cuda"), CudaError("an old driver"), OSError("no PTX")]
)
def test_where_kernels_cannot_be_loaded_torch_does_their_work(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(grouping_kernels, "CudaDevice", refuse)
    kernel_grouping.cache_clear()
    with pytest.warns(RuntimeWarning, match=f"torch samples on cuda:0, which is slower: {error}"):
        assert kernel_grouping(torch.device("cuda:0"), SIZES) is None
    assert kernel_grouping(torch.device("cuda:0"), SIZES) is None  # and says so once
    kernel_grouping.cache_clear()


def test_kernels_are_loaded_once_for_a_gpu_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[dict[str, Any]] = []

    def load(ptx: bytes, **sizes: Any) -> HostKernels:
        assert b".entry" in ptx
        assert HostDevice.held
        del sizes["driver"]
        loaded.append(sizes)
        return HostKernels(Sizes(**sizes))

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(grouping_kernels, "SamplingKernels", load)
    monkeypatch.setattr(grouping_kernels, "CudaDevice", HostDevice)
    kernel_grouping.cache_clear()
    device = torch.device("cuda:0")
    first = kernel_grouping(device, SIZES)
    assert first is kernel_grouping(device, SIZES)
    assert first is not kernel_grouping(device, SIZES._replace(radius=0.2))
    assert [sizes["radius"] for sizes in loaded] == [None, 0.2]
    kernel_grouping.cache_clear()


def test_kernels_that_do_not_fit_leave_it_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four channels, and more neighbours than a warp's lists hold: the real class refuses before it asks the driver."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(grouping_kernels, "CudaDevice", HostDevice)
    kernel_grouping.cache_clear()
    for sizes in (Sizes(16, 8, 4, None), Sizes(16, 65, 3, None)):
        assert kernel_grouping(torch.device("cuda:0"), sizes) is None
    kernel_grouping.cache_clear()


def test_on_a_cpu_no_kernels_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "kernel_grouping", None)
    assert grouping.group(clouds(2, 50), 16, 8).patches.shape == (2, 16, 8, 3)
