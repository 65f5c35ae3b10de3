"""The two ways a command can end badly; `crossmost.cli` turns them into one line on stderr."""


class InputError(ValueError):
    """Wrong use or bad input (exit 2): says what was expected, what was found and what to do."""


class WorkFailed(RuntimeError):
    """The input was fine and the work failed (exit 1): says what happened and what survives."""
