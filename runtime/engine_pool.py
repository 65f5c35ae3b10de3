"""A bounded number of workers that threads borrow: as many batches are on the GPU at once, the others wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from crossmost.runtime.engine_worker import EngineWorker


class WorkerPool:
    """Workers, made when all others are busy, the one used last taken first."""

    def __init__(self, make: Callable[[], EngineWorker], most: int) -> None:
        """Take note of how to make workers; none is made yet.

        Args:
            make: a worker; called by one thread at a time.
            most: workers there can be.
        """
        self._make, self._most = make, most
        self._workers: list[EngineWorker] = []
        self._idle: list[EngineWorker] = []
        self._changed = threading.Condition()
        self._closed = False

    @property
    def workers(self) -> tuple[EngineWorker, ...]:
        """All there are, busy ones as well."""
        return tuple(self._workers)

    @contextmanager
    def borrow(self) -> Iterator[EngineWorker]:
        """Have a worker for oneself, if need be after waiting for one.

        Raises:
            ValueError: the pool is closed.
        """
        worker = self._take()
        try:
            yield worker
        finally:
            with self._changed:
                self._idle.append(worker)
                self._changed.notify_all()

    def close(self, close: Callable[[EngineWorker], None] = EngineWorker.close) -> bool:
        """Wait until all are back and close them, or do nothing where that was done; no new ones are given out.

        Args:
            close: closes one.

        Returns:
            Whether this call closed the pool.
        """
        with self._changed:
            if self._closed:
                return False
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._idle) == len(self._workers))
            workers, self._workers, self._idle = self._workers, [], []
        for worker in workers:
            close(worker)
        return True

    def _take(self) -> EngineWorker:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._idle or len(self._workers) < self._most)
            if self._closed:
                raise ValueError("expected an open backend, found a closed one: load the bundle again")
            if not self._idle:
                self._workers.append(self._make())
                return self._workers[-1]
            return self._idle.pop()
