"""Ctrl-C while an engine is built, and who handles it afterwards."""

from __future__ import annotations

import ctypes
import os
import signal
from types import SimpleNamespace

import pytest

from crossmost.runtime import engine_interrupt
from crossmost.runtime.engine_interrupt import cancelling_on_interrupt

TRT = SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {}))


@pytest.fixture(autouse=True)
def own_handler():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_the_build_at_its_next_step_and_is_raised_after_it():
    config = SimpleNamespace()
    goes_on = []

    def build():
        with cancelling_on_interrupt(TRT, config):
            goes_on.append(config.progress_monitor.step_complete("phase", 0))
            os.kill(os.getpid(), signal.SIGINT)
            goes_on.append(config.progress_monitor.step_complete("phase", 1))

    with pytest.raises(KeyboardInterrupt):
        build()
    assert goes_on == [True, False]


def test_ctrl_c_is_raised_whatever_the_build_ended_with():
    def build():
        with cancelling_on_interrupt(TRT, SimpleNamespace()):
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("the builder gave up")

    with pytest.raises(KeyboardInterrupt):
        build()


def test_pythons_own_handler_is_back_afterwards():
    def handler(number, frame):
        pass

    signal.signal(signal.SIGINT, handler)
    with cancelling_on_interrupt(TRT, SimpleNamespace()):
        assert signal.getsignal(signal.SIGINT) is not handler
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.skipif(not hasattr(signal, "sigwait"), reason="no POSIX signals")
def test_a_handler_set_in_c_is_back_afterwards():
    """As rclpy sets one: past Python, which goes on believing in its own."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    ignore = 1
    libc.signal(signal.SIGINT, ignore)
    with cancelling_on_interrupt(TRT, SimpleNamespace()):
        pass
    assert libc.signal(signal.SIGINT, ignore) == ignore
    os.kill(os.getpid(), signal.SIGINT)  # nothing happens


def test_without_sigaction_python_restores_what_it_knows(monkeypatch):
    monkeypatch.setattr(engine_interrupt, "_read_action", lambda: None)
    handler = signal.default_int_handler
    signal.signal(signal.SIGINT, handler)
    with cancelling_on_interrupt(TRT, SimpleNamespace()):
        pass
    assert signal.getsignal(signal.SIGINT) is handler
