"""The two kinds of errors of the runtime, by which a caller tells wrong use from work that failed.

Every error of the runtime is one of them, its message one line: what was expected, and what was found.
"""

from __future__ import annotations


class InvalidInput(ValueError):
    """What was given cannot be used: a cloud, a bundle, class names, an option."""


class InvalidCall(InvalidInput):
    """A call that cannot be answered, such as one of a closed classifier."""


class RuntimeFailure(RuntimeError):
    """What was given was fine, and the work was not: no backend, a GPU that failed."""
