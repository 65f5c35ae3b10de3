"""A GPU with the sampling kernels loaded for one encoder: what every backend on a GPU begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.backend import BackendUnavailable
from crossmost.runtime.cuda_calls import CudaError
from crossmost.runtime.cuda_device import CudaDevice
from crossmost.runtime.cuda_driver import Gpu
from crossmost.runtime.cuda_exclusion import EXCLUSIVE
from crossmost.runtime.cuda_kernels import KERNELS, InvalidLaunch, SamplingKernels, ptx_name
from crossmost.runtime.manifest import Encoder


class GpuSampling:
    """The GPU and the kernels, for any number of threads.

    Attributes:
        device: the GPU; its context must be current wherever the kernels are used.
        kernels: with the encoder's sizes.
        encoder: of the bundle.
    """

    def __init__(self, encoder: Encoder, gpu: Gpu, index: int) -> None:
        """Take the GPU and load the kernels.

        Args:
            encoder: of the bundle.
            gpu: as the driver names it.
            index: of it.

        Raises:
            BackendUnavailable: cuda-python is missing, or the driver or the kernels refuse.
        """
        self.encoder = encoder
        self._least = encoder.least
        self._most = max(encoder.points, self._least)
        self.device = _open_device(index)
        with ExitStack() as undo:
            undo.callback(self.device.close)
            self.kernels = _open_kernels(self.device, encoder, gpu)
            undo.pop_all()

    @property
    def points(self) -> tuple[int, int]:
        """The fewest and the most points of a prepared cloud."""
        return self._least, self._most

    def check(self, clouds: Sequence[NDArray[np.float32]]) -> None:
        """Refuse clouds that are not prepared: the kernels trust sizes, and a float64 would be read as two numbers.

        Raises:
            ValueError: says what was expected and what was found.
        """
        channels = self.encoder.channels
        expected = f"prepared clouds: float32 of {channels} channels, {self._least} to {self._most} points"
        if not len(clouds):
            raise ValueError(f"expected {expected}, found none")
        for cloud in clouds:
            fits = cloud.ndim == 2 and cloud.shape[1] == channels and cloud.dtype == np.float32
            if not fits or not self._least <= len(cloud) <= self._most:
                raise ValueError(f"expected {expected}, found {cloud.dtype} of shape {cloud.shape}")

    def in_context(self, close: Callable[[], None]) -> None:
        """Close something in the GPU's context; after an error of the GPU there is nothing left to close."""
        with suppress(CudaError), EXCLUSIVE, self.device.current():
            close()

    def close(self) -> None:
        """Unload the kernels and give the GPU back. Further calls do nothing."""
        self.in_context(self.kernels.close)
        self.device.close()


def _open_device(index: int) -> CudaDevice:
    try:
        return CudaDevice(index)
    except (ImportError, CudaError) as error:
        raise BackendUnavailable(str(error)) from error


def _open_kernels(device: CudaDevice, encoder: Encoder, gpu: Gpu) -> SamplingKernels:
    try:
        major, minor = map(int, gpu.compute_capability.split("."))
        ptx = (KERNELS / ptx_name((major, minor))).read_bytes()
        with device.current():
            return SamplingKernels(
                ptx,
                groups=encoder.groups,
                neighbors=encoder.neighbors,
                channels=encoder.channels,
                radius=encoder.radius,
                driver=device.driver,
            )
    except (CudaError, InvalidLaunch, OSError) as error:
        raise BackendUnavailable(f"the sampling kernels cannot run on {gpu}: {error}") from error
