"""How the start of a file looks that holds no weights, a failed download more often than not, and what it is."""

from __future__ import annotations

import re

AGAIN = "download it again"
LONG_ENOUGH = 512
"""Bytes of the start of a file that tell."""
SIGNS = (
    (rb"\Z", f"an empty file: {AGAIN}"),
    (rb"version https://git-lfs", f"a git-LFS pointer to the file: `git lfs pull` brings it, or {AGAIN}"),
    (rb"\s*<(!doctype|html|\?xml|head|body)", f"an HTML page, a download that failed: {AGAIN}"),
    (rb"\x1f\x8b", "a gzip archive: unpack it"),
    (rb"[\t\n\r -~]+\Z", f"a text file: {AGAIN}"),
)


def no_weights(start: bytes) -> str | None:
    """What a file is that begins with these bytes, and what to do about it; None where it may hold weights."""
    return next((found for sign, found in SIGNS if re.match(sign, start, re.IGNORECASE)), None)
