"""A thread that is given work: answers, errors, interrupts that wait for what is under way, the end of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from functools import partial

import pytest

from crossmost.runtime.own_thread import OwnThread


def interrupt():
    """As Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interruptible():
    """Ctrl-C is an error, also in a process that was started in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def own():
    found = OwnThread("of-its-own")
    yield found
    found.close()
    found.close()


def test_everything_is_done_in_the_one_thread_whoever_asks(own):
    names = [own.run(lambda: threading.current_thread().name)]
    others = [threading.Thread(target=lambda: names.append(own.run(threading.get_ident))) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert names[0] == "of-its-own"
    assert len(set(names[1:])) == 1
    assert threading.get_ident() not in names


def test_an_error_is_the_askers_and_the_next_piece_is_done(own):
    with pytest.raises(ZeroDivisionError):
        own.run(lambda: 1 / 0)
    assert own.run(lambda: 2) == 2


def test_nothing_of_a_piece_of_work_is_kept(own):
    class Big:
        """What a piece of work holds."""

    def give(big):
        return id(big)

    held = Big()
    gone = weakref.ref(held)
    own.run(partial(give, held))
    own.run(lambda: None)  # the thread has let go of the one before
    del held
    assert gone() is None


@pytest.mark.parametrize("interrupts", [1, 3])
def test_interrupted_it_waits_until_the_work_is_done(own, interruptible, interrupts):
    done = []

    def work():
        for _ in range(interrupts):
            time.sleep(0.05)
            interrupt()
        time.sleep(0.1)
        done.append(True)

    with pytest.raises(KeyboardInterrupt):
        own.run(work)
    assert done == [True]
    assert own.run(lambda: 3) == 3


def test_work_that_has_not_begun_is_never_done_once_its_asker_was_interrupted(own, interruptible):
    busy, done = threading.Event(), []
    first = threading.Thread(target=lambda: own.run(lambda: busy.wait(30)))
    first.start()
    time.sleep(0.05)
    threading.Timer(0.1, interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        own.run(lambda: done.append(True))
    busy.set()
    first.join()
    assert own.run(lambda: 4) == 4
    assert done == []


def test_threads_may_ask_after_the_main_one_ended_and_it_keeps_no_process_alive():
    code = """
import threading, time
from crossmost.runtime.own_thread import OwnThread
own = OwnThread("t")
own.run(lambda: None)
def later():
    time.sleep(0.3)
    print(own.run(lambda: 5))
threading.Thread(target=later).start()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.stdout.strip(), ended.returncode) == ("5", 0), ended.stderr
