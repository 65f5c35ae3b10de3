"""Class names as a user gives them to a command: a text file, or a list."""

from __future__ import annotations

import os
import re
from pathlib import Path

from crossmost.runtime.vocabulary import InvalidVocabulary, check_names

MOST_SHOWN = 120
"""Characters of what was given that a message repeats."""


def read_class_names(source: str | Path) -> tuple[str, ...]:
    """Read class names from a text file, one a line, or from a list such as `mug,bowl`.

    In a file, blank lines and what follows a `#` are left out. One name without a comma is no list: it is more
    likely a mistyped file, which nobody wants as a class.

    Raises:
        InvalidVocabulary: no such file, no text, no names, or a class twice.
    """
    # Not Path.is_file, which raises where a list is too long for a file's name.
    if os.path.isfile(source):
        entries = [re.split(r"(?:^|\s)#", line)[0] for line in _read_text(Path(source)).splitlines()]
    elif isinstance(source, str) and "," in source:
        entries = source.split(",")
    else:
        what = "a folder" if os.path.isdir(source) else "no such file"
        raise InvalidVocabulary(
            "expected a text file with one class name a line, or a list such as 'mug,bowl', "
            f"found {_shown(source)}, {what}: correct the name, or put a comma after a single class"
        )
    names = tuple(entry.strip() for entry in entries if entry.strip())
    if not names:
        raise InvalidVocabulary(f"expected class names, found none in {_shown(source)}")
    check_class_names(names)
    return names


def check_class_names(names: tuple[str, ...]) -> None:
    """Refuse names that CLIP cannot tell apart: it reads them in lower case, and prompts have spaces for underscores.

    Raises:
        InvalidVocabulary: no name, an empty one, or one twice.
    """
    check_names(names)
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(" ".join(name.lower().replace("_", " ").split()), name)
        if other is not name:
            raise InvalidVocabulary(
                f"expected different class names, found {other!r} and {name!r}: CLIP ignores case, and reads an "
                "underscore as a space here"
            )


def _shown(source: str | Path) -> str:
    text = str(source)
    return repr(text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}...")


def _read_text(path: Path) -> str:
    if path.suffix == ".npz":
        raise InvalidVocabulary(
            f"expected a text file with one class name a line, found the vocabulary {path}: give its names"
        )
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidVocabulary(
            f"expected a UTF-8 text file with one class name a line, found {path}: {error}"
        ) from error
