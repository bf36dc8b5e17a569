"""Which of two Debian versions is the later one, as deb-version(7) says. Pure."""

from __future__ import annotations

import re

_PIECES = re.compile(r"(\D*)(\d*)")


def compare(one: str, two: str) -> int:
    """Below, above or 0, as `one` is before, after or equal to `two`."""
    for first, second in zip(_parts(one), _parts(two), strict=True):
        if result := _part(first, second):
            return result
    return 0


def _parts(version: str) -> tuple[str, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, hyphen, revision = rest.rpartition("-")
    return (epoch, upstream, revision) if hyphen else (epoch, rest, "")


def _part(one: str, two: str) -> int:
    """Text and numbers in turn."""
    first, second = _PIECES.findall(one), _PIECES.findall(two)
    for at in range(max(len(first), len(second))):
        text, number = first[at] if at < len(first) else ("", "")
        other_text, other_number = second[at] if at < len(second) else ("", "")
        if result := _text(text, other_text):
            return result
        value, other = int(number[:100] or 0), int(other_number[:100] or 0)
        if value != other:
            return -1 if value < other else 1
    return 0


def _text(one: str, two: str) -> int:
    """~ before the end, the end before letters, letters before all else."""
    for at in range(max(len(one), len(two))):
        first, second = _weight(one, at), _weight(two, at)
        if first != second:
            return -1 if first < second else 1
    return 0


def _weight(text: str, at: int) -> int:
    if at >= len(text):
        return 0
    char = text[at]
    if char == "~":
        return -1
    return ord(char) if char.isalpha() else ord(char) + 256
