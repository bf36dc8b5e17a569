"""Text that came from outside, made safe for a terminal; and how wide it is there. Pure.

Everything that EdgeGuard prints, writes to the journal or puts into JSON passes `escape`: what could move a cursor,
hide a letter or start a sequence becomes a visible \\xNN of its UTF-8 bytes. A backslash becomes \\x5c, so that
`unescape` gives every byte back.
"""

from __future__ import annotations

import re
import unicodedata

# Controls (C0, DEL, C1), line and paragraph separators, bidirectional and invisible formatting characters, BOM,
# tags, variation selectors beyond the common ones, private use, surrogates (bytes that were not UTF-8), the backslash.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\\\\\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u205f-\u206f"
    "\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ue000-\uf8ff\U000e0000-\U0010ffff]"
)
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_COMBINING_MAX = 2  # marks on one letter; more of them climb over the lines above


def escape(text: str) -> str:
    """`text` without anything that a terminal would obey or that the eye would not see."""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return _marks(_UNSAFE.sub(_hex, text))


def unescape(text: str) -> bytes:
    """The bytes that `escape` was given (as os.fsencode would)."""
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), text.encode("utf-8", "surrogateescape"))


def _hex(match: re.Match[str]) -> str:
    return _bytes_of(match[0])


def _bytes_of(character: str) -> str:
    try:
        raw = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that no byte stands behind; it can only come from JSON
        raw = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def _marks(text: str) -> str:
    """No heaps of combining marks, and nothing that Unicode itself calls a control or unassigned."""
    if text.isascii():
        return text
    out: list[str] = []
    heap = 0
    for character in text:
        category = unicodedata.category(character) if character > "\x7f" else "L"
        heap = heap + 1 if category in {"Mn", "Me"} else 0
        bad = category in {"Cc", "Cf", "Cn", "Cs", "Co", "Zl", "Zp", "Zs"} or heap > _COMBINING_MAX
        out.append(_bytes_of(character) if bad or (heap and not out) else character)
    return "".join(out)


def width(text: str) -> int:
    """Columns that safe text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if character <= "\x7f":
        return 1
    if unicodedata.combining(character) or unicodedata.category(character) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def cut(text: str, columns: int) -> str:
    """The beginning of safe text in at most `columns`; ".." says that there was more. Never half an escape."""
    if width(text) <= columns:
        return text
    if columns <= 2:
        return ".."[:columns]
    return _take(text, columns - 2) + ".."


def cut_middle(text: str, columns: int) -> str:
    """A path in at most `columns`: its beginning and its end are what people recognise."""
    if width(text) <= columns or columns < 8:
        return cut(text, columns)
    head = _take(text, (columns - 2) // 3)
    tail = ""
    room = columns - 2 - width(head)
    for piece in reversed(_pieces(text)):
        if width(piece) > room:
            break
        tail = piece + tail
        room -= width(piece)
    return f"{head}..{tail}"


def _take(text: str, columns: int) -> str:
    taken = ""
    for piece in _pieces(text):
        columns -= width(piece)
        if columns < 0:
            break
        taken += piece
    return taken


def _pieces(text: str) -> list[str]:
    """Characters, with \\xNN as one."""
    return re.findall(r"\\x[0-9a-f]{2}|.", text, re.DOTALL)


def pad(text: str, columns: int) -> str:
    """Cut or filled to exactly `columns`."""
    short = cut(text, columns)
    return short + " " * (columns - width(short))


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most `columns`, broken at blanks where there are some."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        while width(word) > columns:  # a long path: fill the line, go on in the next
            room = columns - width(line) - (1 if line else 0)
            if room < 8:
                lines.append(line)
                line = ""
                continue
            head = _take(word, room)
            lines.append(f"{line} {head}" if line else head)
            line, word = "", word[len(head) :]  # noqa: PLW2901 - what is left of the word
        if not line:
            line = word
        elif width(line) + 1 + width(word) <= columns:
            line += " " + word
        else:
            lines.append(line)
            line = word
    return [*lines, line] if line else lines or [""]
