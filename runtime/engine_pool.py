"""A bounded number of workers that threads borrow: as many batches are on the GPU at once, the others wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from crossmost.runtime.errors import InvalidCall

Worker = TypeVar("Worker")


class WorkerPool(Generic[Worker]):
    """Workers, made when all others are busy, the one used last taken first."""

    def __init__(self, make: Callable[[], Worker], most: int) -> None:
        """Take note of how to make workers; none is made yet.

        Args:
            make: a worker; called by one thread at a time.
            most: workers there can be.
        """
        self._make, self._most = make, most
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._changed = threading.Condition()
        self._closed = False

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All there are, busy ones as well."""
        return tuple(self._workers)

    @contextmanager
    def borrow(self) -> Iterator[Worker]:
        """Have a worker for oneself, if need be after waiting for one.

        Raises:
            InvalidCall: the pool is closed, also while this waited.
        """
        worker = self._take()
        try:
            yield worker
        finally:
            with self._changed:
                self._idle.append(worker)
                self._changed.notify_all()

    def close(self, close: Callable[[Worker], None]) -> bool:
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

    def _take(self) -> Worker:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._idle or len(self._workers) < self._most)
            if self._closed:
                raise InvalidCall("expected an open backend, found a closed one: load the bundle again")
            if not self._idle:
                self._workers.append(self._make())
                return self._workers[-1]
            return self._idle.pop()
