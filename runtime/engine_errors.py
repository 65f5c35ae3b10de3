"""The two ways a TensorRT engine cannot be built; the command line gives them the exit codes 2 and 1."""

from __future__ import annotations

from crossmost.runtime.errors import InvalidInput, RuntimeFailure


class InvalidEngineRequest(InvalidInput):
    """Sizes or options that no engine can be built with: says what was expected, what was found and what to do."""


class EngineBuildFailed(RuntimeFailure):
    """What was asked for was fine and TensorRT, or the disk, failed: says what happened."""
