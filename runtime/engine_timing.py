"""TensorRT's timing cache: kernel timings kept from one build to the next, for one GPU, version and driver each."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossmost.runtime.cuda_driver import Gpu
from crossmost.runtime.engine_errors import EngineBuildFailed
from crossmost.runtime.engine_packages import TensorRt
from crossmost.runtime.file_locks import locked
from crossmost.runtime.whole_files import write_whole

LOCK_SECONDS = 60
"""Others hold the lock while they read or write a file of some megabytes."""


@dataclass(frozen=True)
class TimingCache:
    """The file `<folder>/<key>.cache`."""

    folder: Path
    key: str

    def attach(self, config: Any) -> None:
        """Give a build the timings known so far; a damaged or missing file counts as empty.

        Raises:
            EngineBuildFailed: the folder or the file cannot be used.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                known = self._read()
        except OSError as error:
            raise EngineBuildFailed(
                f"cannot use the timing cache in {self.folder}: {error.strerror or error}; leave out --timing-cache"
            ) from error
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def store(self, config: Any) -> tuple[str, ...]:
        """Add the timings of a build to those that others added meanwhile.

        Returns:
            Why they could not be written, or nothing; the engine is finished and worth more than its timings.
        """
        cache = config.get_timing_cache()
        try:
            with self._lock():
                others = config.create_timing_cache(self._read())
                if others is not None:
                    cache.combine(others, False)
                write_whole(self._path, bytes(cache.serialize()))
        except OSError as error:
            return (f"the timing cache was not updated: {self._path}: {error.strerror or error}",)
        return ()

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.key}.cache"

    def _lock(self) -> AbstractContextManager[None]:
        return locked(self.folder / f"{self.key}.lock", LOCK_SECONDS)

    def _read(self) -> bytes:
        return self._path.read_bytes() if self._path.exists() else b""


def timing_key(tensorrt: TensorRt) -> str:
    """Name of the timings that hold for this GPU, compute capability, TensorRT version and driver."""
    assert tensorrt.gpu is not None
    gpu = f"{gpu_word(tensorrt.gpu)}-{tensorrt.gpu.compute_capability}"
    return f"{tensorrt.package}-{tensorrt.version}-{gpu}-cuda{tensorrt.driver}"


def gpu_word(gpu: Gpu) -> str:
    """The name of a GPU as a part of a file name, such as `nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
