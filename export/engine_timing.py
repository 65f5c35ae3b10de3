"""TensorRT's timing cache: kernel timings kept from one build to the next, for one GPU, version and driver each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from crossmost.checkpoints.atomic import failing_as_work, replacing, sync
from crossmost.errors import WorkFailed
from crossmost.export.engine_packages import TensorRt

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
            WorkFailed: the folder or the file cannot be used.
        """
        with failing_as_work(f"cannot use the timing cache in {self.folder}", "leave out --timing-cache"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                known = self._read()
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
            with (
                failing_as_work(f"cannot lock {self._path}", "what was there before is untouched"),
                self._lock(),
            ):
                others = config.create_timing_cache(self._read())
                if others is not None:
                    cache.combine(others, False)
                with replacing(self._path) as partial, open(partial, "wb") as file:
                    file.write(bytes(cache.serialize()))
                    sync(file)
        except WorkFailed as error:
            return (f"the timing cache was not updated: {error}",)
        return ()

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.key}.cache"

    def _lock(self) -> FileLock:
        return FileLock(self.folder / f"{self.key}.lock", timeout=LOCK_SECONDS)

    def _read(self) -> bytes:
        return self._path.read_bytes() if self._path.exists() else b""


def timing_key(tensorrt: TensorRt) -> str:
    """Name of the timings that hold for this GPU, compute capability, TensorRT version and driver."""
    assert tensorrt.gpu is not None
    gpu = re.sub(r"[^a-z0-9]+", "-", tensorrt.gpu.name.lower()).strip("-")
    return (
        f"{tensorrt.package}-{tensorrt.version}-{gpu}-{tensorrt.gpu.compute_capability}-cuda{tensorrt.driver}"
    )
