"""A thread that does the work it is given, for a library that keeps things for each thread it is called from."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class OwnThread:
    """Does one piece of work after the other, whoever asks; it ends with the process, if not before."""

    def __init__(self, name: str) -> None:
        """Start it.

        Args:
            name: of the thread.
        """
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        # Not one of `concurrent.futures`, which end before the threads that may still ask.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], Answer]) -> Answer:
        """Have work done and wait for it, however often the wait is interrupted; then the interrupt is raised."""
        done: Future[Answer] = Future()
        try:
            self._work.put((done, work))
            return done.result()
        except BaseException:
            _settle(done)
            raise
        finally:
            del done  # it holds what was raised, which holds this frame

    def close(self) -> None:
        """Let it end, and wait for that. Further calls do nothing."""
        self._work.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (given := self._work.get()) is not None:
            done, work = given
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(work())
                except BaseException as error:
                    done.set_exception(error)
            del given, done, work  # or the last ones would live until the next


def _settle(work: Future[Any]) -> None:
    """Wait until a piece of work is done or will never begin: what it uses may be freed then."""
    while True:
        try:
            if work.cancel() or work.done():
                return
            wait([work])
        except BaseException:  # a further interrupt: the first one is raised in the end
            continue
