"""Questions to a Python process of its own: what would end this one, or has to be seen from its beginning."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from crossmost.runtime.errors import RuntimeFailure

SECONDS = 120
"""Until a question counts as not answered."""
OWN_MODULES_ALONE = "import sys\nsys.path[:] = [entry for entry in sys.path if entry]\n"
"""Python looks for modules in the working folder first, which may be a bundle of somebody else's."""


class ProcessFailed(RuntimeFailure):
    """It crashed, failed or took too long; one line."""


def ask(code: str, *arguments: str, seconds: float = SECONDS) -> Any:
    """Run some Python in a process of its own and read the JSON of its last line.

    Args:
        code: what it runs; modules of the working folder are not seen.
        arguments: its `sys.argv` from 1 on.
        seconds: it may take.

    Raises:
        ProcessFailed: there is no answer.
    """
    command = [sys.executable, "-c", OWN_MODULES_ALONE + code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise ProcessFailed(f"no answer within {seconds:g} seconds") from None
    if done.returncode < 0:
        raise ProcessFailed(f"the process was ended by signal {-done.returncode}")
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ProcessFailed(f"the process failed: {said}") from None
