"""Workers that threads borrow: never more than allowed, and none waits for a pool that is closed."""

from __future__ import annotations

import threading
import time

import pytest

from crossmost.runtime.engine_pool import WorkerPool
from crossmost.runtime.errors import InvalidCall

PATIENCE = 30
"""Seconds until a thread counts as waiting for ever."""


def test_there_are_as_many_workers_as_allowed_and_the_last_one_used_comes_first() -> None:
    pool = WorkerPool(object, 2)
    with pool.borrow() as one, pool.borrow() as other:
        assert one is not other
    with pool.borrow() as again:
        assert again is one  # the outer one was given back last
    assert set(pool.workers) == {one, other}


def test_whoever_waits_while_the_pool_is_closed_is_told_so() -> None:
    pool, ended = WorkerPool(object, 1), []

    def wait() -> None:
        try:
            with pool.borrow():
                ended.append("had a worker")
        except InvalidCall as error:
            ended.append(str(error))

    closed: list[object] = []
    with pool.borrow() as worker:
        waiting = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
        closing = threading.Thread(target=pool.close, args=(closed.append,), daemon=True)
        for thread in waiting:
            thread.start()
        while len(pool._changed._waiters) < len(waiting):  # type: ignore[attr-defined]
            time.sleep(0.01)
        closing.start()
        for thread in waiting:  # while the worker is still lent
            thread.join(PATIENCE)
        assert ended == ["expected an open backend, found a closed one: load the bundle again"] * 3
        assert closed == []
    closing.join(PATIENCE)
    assert closed == [worker]
    assert not pool.close(closed.append)


def test_a_closed_pool_lends_nothing() -> None:
    pool = WorkerPool(object, 1)
    assert pool.close(lambda _: None)
    with pytest.raises(InvalidCall, match="closed"), pool.borrow():
        pass
