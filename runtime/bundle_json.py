"""The JSON files of a bundle, read as text from a stranger.

What comes out has bounded size and depth, finite numbers and printable text; whatever else a file holds ends
as one `InvalidBundle` line, whoever walks, prints or compares the content later.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossmost.runtime.errors import InvalidInput

MOST_BYTES = 8 * 2**20
"""Size from which on a file is not parsed."""

MOST_LEVELS = 32
"""Nesting from which on a file is refused, before anything that walks through it runs out of stack."""

MOST_DIGITS = 20
"""Digits of a 64 bit integer; reading longer ones takes time that grows with the square of their length."""

KINDS = {dict: "a JSON object", list: "a list", str: "text", int: "an integer", float: "a number"}


class InvalidBundle(InvalidInput):
    """A bundle that cannot be used; the message says what was expected, what was found and what to do."""


def read_json(path: Path) -> Any:
    """Parse a JSON file of at most 8 MiB; the content is yet to be checked (`check_plain`).

    Raises:
        InvalidBundle: cannot be read, too large, not UTF-8, or not JSON.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InvalidBundle(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise InvalidBundle(f"{path}: expected at most {MOST_BYTES} bytes, found more")
    try:
        return json.loads(content.decode("utf-8"), parse_int=_short_integer)
    except (ValueError, RecursionError) as error:
        raise InvalidBundle(f"{path}: expected JSON, found a damaged or another file ({error})") from None


def check_plain(value: Any, key: str, levels: int = MOST_LEVELS) -> None:
    """Refuse what could trip whoever prints, compares or stores a value later.

    Args:
        value: dicts, lists, text, numbers, booleans, None, nested.
        key: where it is from, for the message.
        levels: of nesting that are left.

    Raises:
        InvalidBundle: NaN, infinity, huge integers, broken text, deep nesting, or other objects.
    """
    if levels == 0:
        raise InvalidBundle(f"{key}: expected at most {MOST_LEVELS} levels of nesting, found more")
    if isinstance(value, dict):
        for name, entry in value.items():
            check_plain(name, key, levels - 1)
            check_plain(entry, key, levels - 1)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            check_plain(entry, key, levels - 1)
    elif isinstance(value, str):
        if not _is_text(value):
            raise InvalidBundle(f"{key}: expected text, found half a character in {shown(value)}")
    elif isinstance(value, int):
        if abs(value) >= 2**63:
            raise InvalidBundle(f"{key}: expected integers of 64 bits, found a larger one")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidBundle(f"{key}: expected finite numbers, found {value}")
    elif value is not None:
        raise InvalidBundle(f"{key}: expected plain JSON, found a {type(value).__name__}")


def shown(value: Any) -> str:
    """A value in a message: one line, shortened, nothing that a terminal would obey."""
    return reprlib.repr(value)


class Fields:
    """The entries of one JSON object, taken one by one with the type they must have.

    Every method raises InvalidBundle for an entry that is missing, of another type or out of bounds.
    """

    def __init__(self, found: Any, where: str) -> None:
        if not isinstance(found, dict):
            raise InvalidBundle(f"{where}: expected a JSON object, found {shown(found)}")
        self.found: dict[str, Any] = found
        self.where = where

    def take(self, key: str, *kinds: type) -> Any:
        """The value of one of these types, exactly: True is an int to Python, and no size."""
        if key not in self.found:
            raise InvalidBundle(f"{self.where}: expected {key!r} in it, found {shown(list(self.found))}")
        if type(self.found[key]) not in kinds:
            raise self._wrong(key, KINDS[kinds[0]])
        return self.found[key]

    def text(self, key: str, choices: Sequence[str] = ()) -> str:
        """Some text, or one of the choices."""
        value: str = self.take(key, str)
        if choices and value not in choices:
            raise self._wrong(key, " or ".join(choices))
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.take(key, list, tuple)
        if any(type(value) is not str for value in values):
            raise self._wrong(key, "a list of texts")
        return tuple(values)

    def whole(self, key: str, least: int, most: int) -> int:
        """An integer within bounds, both allowed."""
        value: int = self.take(key, int)
        if not least <= value <= most:
            raise self._wrong(key, f"an integer from {least} to {most}")
        return value

    def real(self, key: str, least: float, most: float) -> float:
        """A number within bounds, both allowed."""
        value: float = self.take(key, float, int)
        if not least <= value <= most:
            raise self._wrong(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def _wrong(self, key: str, expected: str) -> InvalidBundle:
        return InvalidBundle(f"{self.where}: expected {key} as {expected}, found {shown(self.found[key])}")


def _short_integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _is_text(value: str) -> bool:
    # "\ud800" is valid JSON and no character: it can be neither printed nor written again.
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
