"""Kernels that TensorRT-RTX compiled for an engine here, kept so that the next process need not compile them again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from crossmost.runtime.cuda_exclusion import EXCLUSIVE
from crossmost.runtime.engine_facts import EngineFacts
from crossmost.runtime.engine_packages import TensorRt
from crossmost.runtime.engine_timing import gpu_word
from crossmost.runtime.file_locks import locked
from crossmost.runtime.whole_files import write_whole

DIGEST_BYTES = 32
LOCK_SECONDS = 10
"""Others hold the lock while they write a file of some megabytes."""


class CompiledKernels:
    """TensorRT-RTX's runtime cache of one engine, and the file it comes from and goes to.

    The file is the SHA-256 of the serialized cache, then the cache: a damaged one never reaches TensorRT-RTX, which
    itself refuses those of another GPU, driver or version. No file is ever an error: what is missing is compiled.
    """

    def __init__(self, cache: Any, path: Path | None) -> None:
        """Take over what the file holds; the GPU's context must be current.

        Args:
            cache: an `IRuntimeCache`, empty.
            path: of the file; None to keep nothing.
        """
        self._cache, self._path = cache, path
        self._kept = b"" if path is None else self._read(path)
        self.note = ""

    def keep(self) -> None:
        """Write the file where kernels were compiled since; the GPU's context must be current.

        Where that fails `note` says why.
        """
        if self._path is None:
            return
        try:
            self._write(self._path)
        except Exception as error:  # a vendor's library may raise anything
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            why = " ".join(str(reason).split())
            self.note = f"the kernels compiled here are not kept, the next process compiles again: {self._path}: {why}"
        else:
            self.note = ""

    def _read(self, path: Path) -> bytes:
        """Load the file, and give its digest; empty where there is none that can be used."""
        try:
            content = path.read_bytes()
            digest, kernels = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
            fits = hashlib.sha256(kernels).digest() == digest and self._cache.deserialize(kernels)
        except Exception:  # as above
            return b""
        return digest if fits else b""

    def _write(self, path: Path) -> None:
        with EXCLUSIVE:  # kernels may be compiled while a context is made
            kernels = bytes(self._cache.serialize())
        digest = hashlib.sha256(kernels).digest()
        if digest == self._kept:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock"), LOCK_SECONDS):
            write_whole(path, digest + kernels)
        self._kept = digest


def compiled_file(folder: Path, facts: EngineFacts, tensorrt: TensorRt) -> Path:
    """The file of an engine's kernels for this GPU and driver, in the folder of engines built here."""
    assert tensorrt.gpu is not None
    return folder / f"{facts.key}-{gpu_word(tensorrt.gpu)}-cuda{tensorrt.driver}.rtxcache"
