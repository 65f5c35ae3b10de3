"""What benchmarks/gpu.py proved, and what failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that was to be proved.

    Attributes:
        name: what.
        failure: what was found instead, in one line; "" where it holds.
        values: figures of it, JSON types.
        note: what was found and is not judged, in a few words.
    """

    name: str
    failure: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of_error(cls, name: str, error: Exception) -> Check:
        """The failure that an exception is."""
        return cls(name, f"{type(error).__name__}: {' '.join(str(error).split())}")


class Proof:
    """The checks made so far."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Start with none; `say` is told each."""
        self._say = say
        self.checks: list[Check] = []

    @property
    def failures(self) -> list[str]:
        """Name and failure of each check that failed."""
        return [f"{check.name}: {check.failure}" for check in self.checks if check.failure]

    def add(self, check: Check) -> None:
        """Take note of a check."""
        self.checks.append(check)
        said = f"FAILED  {check.name}: {check.failure}" if check.failure else f"ok      {check.name}"
        self._say(f"{said} ({check.note})" if check.note else said)

    def collect(self, name: str, checks: Callable[[], Iterable[Check]]) -> None:
        """Make checks; whatever they raise, of whichever library, is a failure of `name`, and the next ones go on."""
        try:
            for check in checks():
                self.add(check)
        except Exception as error:
            self.add(Check.of_error(name, error))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "passed": bool(self.checks) and not self.failures,
            "failures": self.failures,
            "checks": [asdict(check) for check in self.checks],
        }
