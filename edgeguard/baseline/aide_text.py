"""The text of aide.conf: logical lines, words, what is encoded in them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

LINE_MAX = 16 * 1024  # characters of one line, written out
_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
_VERSION = re.compile(r"(\d{1,4})(?:\.(\d{1,4}))?(?:\.(\d{1,4}))?")  # what follows is cut off


def split(line: str) -> list[str]:
    """Separated by blanks. A backslash stands before a blank, an @ or a backslash that are meant; before anything else
    it belongs to the expression."""
    words = re.split(r"(?<!\\)[ \t]+", line.strip())
    return [re.sub(r"\\([ @\\])", r"\1", word) for word in words if word]


def decoded(expression: str) -> str:
    """%20 is a blank, as in an address of the web; bytes stay bytes."""
    data = _ENCODED.sub(
        lambda found: chr(int(found[1], 16)), expression.encode("utf-8", "surrogateescape").decode("latin-1")
    )
    return data.encode("latin-1").decode("utf-8", "surrogateescape")


def version(text: str) -> tuple[int, ...]:
    """MAJOR.MINOR.PATCH as numbers; what is missing is 0."""
    found = _VERSION.match(text)
    return tuple(int(part or 0) for part in found.groups()) if found else (0, 0, 0)


def lines(text: str) -> Iterable[tuple[int, str]]:
    """Logical lines: one that ends with a backslash goes on."""
    parts: list[str] = []
    start = 1
    for number, line in enumerate(text.split("\n"), 1):
        if not parts:
            start = number
        if line.endswith("\\") and not line.endswith("\\\\"):
            parts.append(line[:-1])
            continue
        yield start, ("".join(parts) + line)[: LINE_MAX * 4]
        parts = []
    if parts:
        yield start, "".join(parts)[: LINE_MAX * 4]
