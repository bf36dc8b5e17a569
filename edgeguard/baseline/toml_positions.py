"""Where in a TOML text every key and value stands, because tomllib does not say.

`locate` takes text that tomllib has accepted and walks it once, a token at a time; it decides nothing about validity
and never raises for valid text. The oracle in the tests is tomllib: the text at every position, parsed alone, is the
value at that path.
"""

from __future__ import annotations

from typing import NamedTuple

Path = tuple[str | int, ...]
"""Keys and, for elements of arrays, indexes: ("rule", 2, "where", "category")."""

_BARE_END = frozenset(",]}#\n")
_SPACE = " \t"
_BLANK = " \t\r\n"
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b", '"': '"', "\\": "\\"}


class Place(NamedTuple):
    """Offsets of the key and of the value in the text; `value` ends before `end`."""

    key: int
    value: int
    end: int


def locate(text: str) -> dict[Path, Place]:
    """The place of every key path of a valid TOML text. Tables stand at their (last) header."""
    return _Walk(text).run()


def line_column(text: str, offset: int) -> tuple[int, int]:
    """Both from 1, as editors count."""
    start = text.rfind("\n", 0, offset) + 1
    return text.count("\n", 0, offset) + 1, offset - start + 1


def source_line(text: str, line: int) -> str:
    lines = text.split("\n")
    return lines[line - 1].rstrip("\r") if 0 < line <= len(lines) else ""


class _Walk:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.places: dict[Path, Place] = {}
        self.counts: dict[Path, int] = {}  # elements so far of every array of tables

    def run(self) -> dict[Path, Place]:
        table: Path = ()
        while True:
            self._skip(_BLANK)
            if self.at >= len(self.text):
                return self.places
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _skip(self, blank: str) -> None:
        """Over blanks and comments."""
        text = self.text
        while self.at < len(text):
            if text[self.at] in blank:
                self.at += 1
            elif text[self.at] == "#":
                end = text.find("\n", self.at)
                self.at = len(text) if end < 0 else end
            else:
                return

    def _header(self) -> Path:
        start = self.at
        many = self.text.startswith("[[", start)
        self.at += 2 if many else 1
        keys = self._keys()
        self.at += 2 if many else 1
        place = Place(start, start, self.at)
        path: Path = ()
        for number, (key, _) in enumerate(keys):
            path = (*path, key)
            last = number == len(keys) - 1
            if many and last:
                self.places.setdefault(path, place)
                self.counts[path] = self.counts.get(path, 0) + 1
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
            if last:
                self.places[path] = place
            else:
                self.places.setdefault(path, place)
        return path

    def _pair(self, table: Path) -> None:
        keys = self._keys()
        self.at += 1  # "="
        self._skip(_SPACE)
        path = table
        for key, start in keys[:-1]:
            path = (*path, key)
            self.places.setdefault(path, Place(start, start, self.at))
        key, start = keys[-1]
        self._value((*path, key), start)

    def _keys(self) -> list[tuple[str, int]]:
        """A dotted key: its parts and where each begins."""
        keys = []
        while True:
            self._skip(_SPACE)
            start = self.at
            if self.text[start] in "\"'":
                keys.append((self._string(), start))
            else:
                while self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] in "_-"):
                    self.at += 1
                keys.append((self.text[start : self.at], start))
            self._skip(_SPACE)
            if self.text[self.at] != ".":
                return keys
            self.at += 1

    def _value(self, path: Path, key: int) -> None:
        start = self.at
        first = self.text[start]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in _BARE_END:
                self.at += 1
            while self.text[self.at - 1] in _BLANK:
                self.at -= 1
        self.places[path] = Place(key, start, self.at)

    def _array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            if self.text[self.at] == "]":
                self.at += 1
                return
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self._value((*path, index), self.at)
            index += 1

    def _inline(self, path: Path) -> None:
        self.at += 1
        while True:
            self._skip(_BLANK)
            if self.text[self.at] == "}":
                self.at += 1
                return
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self._pair(path)

    def _string(self) -> str:
        """Past a string of any of the four kinds; what it says (exact for keys, which is where it is used)."""
        text, quote = self.text, self.text[self.at]
        if text.startswith(quote * 3, self.at):
            self.at = self._multi_line(quote)
            return ""
        parts = []
        self.at += 1
        while text[self.at] != quote:
            if quote == '"' and text[self.at] == "\\":
                parts.append(self._escape())
            else:
                parts.append(text[self.at])
                self.at += 1
        self.at += 1
        return "".join(parts)

    def _escape(self) -> str:
        letter = self.text[self.at + 1]
        digits = {"x": 2, "u": 4, "U": 8}.get(letter, 0)
        code = self.text[self.at + 2 : self.at + 2 + digits]
        self.at += 2 + digits
        return chr(int(code, 16)) if digits else _ESCAPES.get(letter, letter)

    def _multi_line(self, quote: str) -> int:
        at = self.at + 3
        while not self.text.startswith(quote * 3, at):
            at += 2 if quote == '"' and self.text[at] == "\\" else 1
        at += 3
        while at < len(self.text) and self.text[at] == quote:  # up to two quotes may stand before the closing three
            at += 1
        return at
