"""Arrays on a GPU, played by memory of this process and a driver that copies it."""

from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace

import numpy as np
import pytest

from crossmost.runtime import device_arrays
from crossmost.runtime.device_arrays import UnreadableArray, to_host


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906


class Driver:
    """Copies host memory and notes the order of the calls; `failing` answers with an error, `times` often."""

    CUresult = CUresult
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9)

    def __init__(self, failing="", error=CUresult.CUDA_ERROR_INVALID_VALUE, times=1000):
        self.failing, self.error, self.times, self.calls = failing, error, times, []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            if name == self.failing and self.names().count(name) <= self.times:
                return (self.error,)
            if name == "cuMemcpyDtoH":
                ctypes.memmove(*arguments)
            return (CUresult.CUDA_SUCCESS, 0)

        return call

    def names(self):
        return [call[0] for call in self.calls]


def on_gpu(array, **further):
    facts = {
        "shape": array.shape,
        "typestr": array.dtype.str,
        "data": (array.ctypes.data, True),
        "version": 3,
    }
    return SimpleNamespace(__cuda_array_interface__={**facts, **further}, keep=array)


BASE = np.arange(60, dtype=np.float32).reshape(20, 3)


@pytest.mark.parametrize(
    "array",
    [BASE, BASE.T, BASE[::2], BASE[::-1], BASE[:, ::-1], BASE[5:6, 1:], BASE.astype(np.float16), BASE[:0]],
)
def test_every_layout_arrives(array):
    found = to_host(on_gpu(array, strides=array.strides), Driver)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
    assert not np.shares_memory(found, array)


def test_without_strides_it_is_contiguous():
    batch = BASE.reshape(2, 10, 3)
    np.testing.assert_array_equal(to_host(on_gpu(batch), Driver), batch)
    np.testing.assert_array_equal(to_host(on_gpu(batch, strides=None), Driver), batch)


def test_the_work_on_its_stream_is_waited_for():
    driver = Driver()
    to_host(on_gpu(BASE, stream=2), lambda: driver)
    names = driver.names()
    assert ("cuStreamSynchronize", 2) in driver.calls
    assert names.index("cuCtxPushCurrent") < names.index("cuStreamSynchronize") < names.index("cuMemcpyDtoH")


def test_an_array_that_names_no_stream_may_be_on_any():
    driver = Driver()
    to_host(on_gpu(BASE, version=2), lambda: driver)  # as torch describes its tensors
    names = driver.names()
    assert names.index("cuCtxPushCurrent") < names.index("cuCtxSynchronize") < names.index("cuMemcpyDtoH")


def test_nothing_is_waited_for_where_nothing_is_to_be():
    driver = Driver()
    to_host(on_gpu(BASE, stream=None), lambda: driver)
    assert not {"cuCtxSynchronize", "cuStreamSynchronize"} & set(driver.names())


@pytest.mark.parametrize("failing", ["cuMemcpyDtoH", "cuStreamSynchronize"])
def test_a_failed_copy_is_one_line_and_leaves_no_context_behind(failing):
    driver = Driver(failing)
    with pytest.raises(UnreadableArray, match=rf"{failing} failed .*copy them to the CPU") as caught:
        to_host(on_gpu(BASE, stream=1), lambda: driver)
    assert "\n" not in str(caught.value)
    assert driver.names()[-2:] == ["cuCtxPopCurrent", "cuDevicePrimaryCtxRelease"]


@pytest.mark.parametrize("error", list(CUresult)[2:])
def test_the_capture_of_another_library_is_waited_for(error, monkeypatch):
    monkeypatch.setattr(device_arrays, "PAUSE", 0)
    driver = Driver("cuCtxSynchronize", error, times=3)
    np.testing.assert_array_equal(to_host(on_gpu(BASE, version=2), lambda: driver), BASE)
    assert driver.names().count("cuCtxSynchronize") == 4
    assert driver.names()[-2:] == ["cuCtxPopCurrent", "cuDevicePrimaryCtxRelease"]


def test_a_capture_without_end_and_other_errors_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(device_arrays, "PAUSE", 0)
    for error, tries in (
        (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, device_arrays.TRIES),
        (CUresult.CUDA_ERROR_INVALID_VALUE, 1),
    ):
        driver = Driver("cuCtxSynchronize", error)
        with pytest.raises(UnreadableArray, match=error.name):
            to_host(on_gpu(BASE, version=2), lambda driver=driver: driver)
        assert driver.names().count("cuCtxSynchronize") == tries


@pytest.mark.parametrize(
    "facts",
    [
        None,
        {},
        {"shape": (3,)},
        {"shape": (3, 3), "typestr": "?!", "data": (0, False)},
        {"shape": (3, 3), "typestr": "<f4", "data": (0, False), "strides": (4,)},
        {"shape": (3, 3), "typestr": "<f4", "data": (0, False), "mask": object()},
        {"shape": "ab", "typestr": "<f4", "data": (0, False)},
    ],
)
def test_a_broken_interface_is_refused_before_the_driver_is_asked(facts):
    with pytest.raises(UnreadableArray, match="__cuda_array_interface__"):
        to_host(SimpleNamespace(__cuda_array_interface__=facts), lambda: pytest.fail("asked"))
