"""The memory of `ptx_machine`: global allocations with fences around them, shared memory that notices races."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WARP = 32
FENCE = 64  # words between allocations that nothing may touch
Array = NDArray[Any]


class BadAccess(Exception):
    """An access that a GPU would not report: outside an allocation, unaligned, or a race."""


class GlobalMemory:
    """Device memory in 4-byte words. Only what is allocated as writable may be stored to."""

    def __init__(self) -> None:
        self.words = np.zeros(FENCE, dtype=np.uint32)
        self.readable = np.zeros(FENCE, dtype=bool)
        self.writable = np.zeros(FENCE, dtype=bool)
        self.start_launch()

    def start_launch(self) -> None:
        """Forget which words the launch before stored, and which it took to be constant."""
        self.stored, self.constant = np.zeros((2, len(self.words)), dtype=bool)

    def allocate(self, array: Array, *, writable: bool = False) -> int:
        """Copy an array of 4-byte numbers in and return its address."""
        words = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
        start, blank = len(self.words), np.zeros(FENCE, dtype=np.uint32)
        self.words = np.concatenate([self.words, words, blank])
        inside = np.concatenate([np.ones(len(words), dtype=bool), blank.astype(bool)])
        self.readable = np.concatenate([self.readable, inside])
        self.writable = np.concatenate([self.writable, inside & writable])
        return 4 * start

    def fetch(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        """Copy an array out."""
        count = int(np.prod(shape))
        return self.words[address // 4 : address // 4 + count].view(dtype).reshape(shape).copy()

    def load(self, address: Array, *, constant: bool) -> Array:
        """Words at (n,) addresses; `constant` loads are only for what no thread of the launch stores to."""
        place = self._places(address, self.readable)
        self.constant[place] |= constant
        self._check_constant(place)
        return self.words[place]

    def store(self, address: Array, value: Array) -> None:
        """Words to (n,) addresses."""
        place = self._places(address, self.writable)
        if len(np.unique(place)) != len(place):
            raise BadAccess("two threads store to the same place of global memory at once")
        self.stored[place] = True
        self._check_constant(place)
        self.words[place] = value.view(np.uint32)

    def _check_constant(self, place: Array) -> None:
        if (self.constant[place] & self.stored[place]).any():
            raise BadAccess("ld.global.nc of memory that the same launch stores to")

    def _places(self, address: Array, allowed: Array) -> Array:
        place = (address >> np.uint64(2)).astype(np.int64)
        if (address & np.uint64(3)).any() or (place >= len(allowed)).any() or not allowed[place].all():
            raise BadAccess("global memory: outside every allocation, read-only or unaligned")
        return place


class SharedMemory:
    """Every block's shared memory, and who touched each word since when.

    Two accesses of different threads, one of them a write, must have a barrier between them: bar.sync, or
    bar.warp.sync within a warp.
    """

    def __init__(self, blocks: int, threads: int, size: int) -> None:
        self.words = np.zeros((blocks, -(-size // 8) * 2), dtype=np.uint32)
        shape = self.words.shape
        self.size, self.warps = size, threads // WARP
        self.block_epoch = np.ones(blocks, dtype=np.int64)
        self.warp_epoch = np.ones((blocks, self.warps), dtype=np.int64)
        self.writer = np.full(shape, -1)
        self.first_reader, self.last_reader = np.full(shape, -1), np.full(shape, -1)
        self.written, self.written_in_warp, self.read, self.read_in_warp = np.zeros(
            (4, *shape), dtype=np.int64
        )

    def barrier(self, blocks: Array) -> None:
        """bar.sync of some blocks, (B,) bool."""
        self.block_epoch[blocks] += 1
        self.warp_epoch[blocks] += 1

    def warp_barrier(self, warps: Array) -> None:
        """bar.warp.sync of some warps, (B * W,) bool."""
        self.warp_epoch[warps.reshape(-1, self.warps)] += 1

    def load(self, block: Array, thread: Array, address: Array, words: int) -> Array:
        """(n,) values of one or two words."""
        found = []
        for word in range(words):
            at = (block, self._places(address, words) + word)
            self._check(at, block, thread, self.writer[at], self.written[at], self.written_in_warp[at])
            self._note_read(at, block, thread)
            found.append(self.words[at])
        return np.stack(found, axis=-1).reshape(-1).view(np.uint32 if words == 1 else np.uint64)

    def store(self, block: Array, thread: Array, address: Array, value: Array) -> None:
        """(n,) values of one or two words."""
        parts = np.ascontiguousarray(value).view(np.uint32).reshape(len(value), -1)
        place = self._places(address, parts.shape[1])
        if len(np.unique(block * self.words.shape[1] + place)) != len(place):
            raise BadAccess("race: two threads store to the same place of shared memory at once")
        for word in range(parts.shape[1]):
            at = (block, place + word)
            self._check(at, block, thread, self.writer[at], self.written[at], self.written_in_warp[at])
            for reader in (self.first_reader[at], self.last_reader[at]):
                self._check(at, block, thread, reader, self.read[at], self.read_in_warp[at])
            self.words[at] = parts[:, word]
            self.writer[at], self.written[at] = thread, self.block_epoch[block]
            self.written_in_warp[at] = self.warp_epoch[block, thread // WARP]

    def _check(
        self, at: tuple[Array, Array], block: Array, thread: Array, other: Array, epoch: Array, in_warp: Array
    ) -> None:
        together = (other >= 0) & (other != thread) & (epoch == self.block_epoch[block])
        ordered = (other // WARP == thread // WARP) & (in_warp != self.warp_epoch[block, thread // WARP])
        if (together & ~ordered).any():
            which = int(np.flatnonzero(together & ~ordered)[0])
            pair = f"threads {other[which]} and {thread[which]}"
            raise BadAccess(f"race: {pair} touch shared word {at[1][which]} with no barrier between")

    def _note_read(self, at: tuple[Array, Array], block: Array, thread: Array) -> None:
        warp = thread // WARP
        # Earlier reads of the same warp alone, before its last barrier, matter no longer: whoever must not store
        # because of them must not because of this one either.
        alone = (self.first_reader[at] // WARP == warp) & (self.last_reader[at] // WARP == warp)
        ordered = alone & (self.read_in_warp[at] != self.warp_epoch[block, warp])
        stale = (self.read[at] != self.block_epoch[block]) | ordered
        old = (at[0][stale], at[1][stale])
        self.first_reader[old], self.last_reader[old] = np.iinfo(np.int64).max, -1
        np.minimum.at(self.first_reader, at, thread)
        np.maximum.at(self.last_reader, at, thread)
        self.read[at] = self.block_epoch[block]
        self.read_in_warp[at] = self.warp_epoch[block, warp]

    def _places(self, address: Array, words: int) -> Array:
        address = address.astype(np.int64)
        if (address % (4 * words)).any() or (address < 0).any() or (address + 4 * words > self.size).any():
            raise BadAccess("shared memory: outside the block's or unaligned")
        return address // 4
