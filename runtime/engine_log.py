"""What TensorRT says: its calls return None or False, and only its logger knows why."""

from __future__ import annotations

from typing import Any

MOST_ERRORS = 16
"""Errors that are kept: a robot that meets one at every cloud must not fill its memory with them."""


class Messages:
    """The errors of one TensorRT logger."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def last_error(self) -> str:
        """The latest error in one line."""
        return " ".join(self.errors[-1].split()) if self.errors else "TensorRT gave no reason"


def make_logger(trt: Any, messages: Messages) -> Any:
    """A logger for TensorRT that keeps errors and prints nothing; it must outlive what is made with it."""

    class Logger(trt.ILogger):
        """Hands errors on."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.errors.append(message)
                del messages.errors[:-MOST_ERRORS]

    return Logger()
