"""Ctrl-C during an engine build: TensorRT swallows the exception in its callbacks, so it is asked to stop instead."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asked.is_set():
            raise KeyboardInterrupt


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
