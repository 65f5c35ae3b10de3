"""Ctrl-C during an engine build: TensorRT swallows the exception in its callbacks, so it is asked to stop instead."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGACTION_BYTES = 512
"""More than any system's `struct sigaction` takes: 152 bytes on Linux."""


@contextmanager
def cancelling_on_interrupt(trt: Any, config: Any) -> Iterator[None]:
    """Let Ctrl-C cancel the build that runs inside, at the builder's next step.

    Args:
        trt: the TensorRT module.
        config: of the build; gets a progress monitor.

    Raises:
        KeyboardInterrupt: there was one, whatever the build ended with.
    """
    if threading.current_thread() is not threading.main_thread():  # only there Python handles signals
        yield
        return
    asked = threading.Event()
    config.progress_monitor = _monitor(trt, asked)
    try:
        with _own_handler(asked.set):
            yield
    finally:
        if asked.is_set():
            raise KeyboardInterrupt


@contextmanager
def _own_handler(handle: Callable[[], None]) -> Iterator[None]:
    """Handle Ctrl-C; afterwards whoever handled it before does again, C code such as that of rclpy included.

    Python only knows the handlers that were set through it: putting its own back would undo one set in C since.
    """
    kernel_side = _read_action()
    before = signal.getsignal(signal.SIGINT)
    if before is None and kernel_side is None:  # set in C, and no way to put it back
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: handle())
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
        if kernel_side is not None:
            _sigaction(signal.SIGINT, kernel_side, None)


def _read_action() -> ctypes.Array[ctypes.c_char] | None:
    """The `struct sigaction` of SIGINT, which holds more than Python knows; None where there is none to be had."""
    action = ctypes.create_string_buffer(SIGACTION_BYTES)
    try:
        return action if _sigaction(signal.SIGINT, None, action) == 0 else None
    except (AttributeError, OSError, TypeError):  # no libc of POSIX
        return None


def _sigaction(number: int, new: object, old: object) -> int:
    return int(ctypes.CDLL(None).sigaction(int(number), new, old))


def _monitor(trt: Any, asked: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Answers TensorRT's question whether to go on."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            pass

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not asked.is_set()

    return Monitor()
