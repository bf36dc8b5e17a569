"""One policy file while it is read: TOML to values, every problem with file:line:column and what was expected.

Small typed checks live here; which sections and keys a policy has is in `policy`. Pure: bytes in, values out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from edgeguard.baseline.toml_positions import Path, Place, line_column, locate, source_line
from edgeguard.errors import PolicyProblem

TEXT_MAX = 1000  # characters of one text: a reason, a path pattern; PATH_MAX is for the file system to enforce
LIST_MAX = 500  # elements of one list, generous for excludes

BAD = object()
"""What a check returns after it has complained; never a valid value."""

Check = Callable[["Source", Path, Any], Any]

_AT_LINE = re.compile(r"(.*) \(at line (\d+), column (\d+)\)", re.DOTALL)
_DURATION = re.compile(r"(\d{1,9})(ms|s|min|m|h|d|w|y)")
_DURATION_MS = {
    "ms": 1,
    "s": 1000,
    "min": 60_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
    "y": 365 * 86_400_000,
}
_SIZE = re.compile(r"(\d{1,12})(B|KiB|MiB|GiB|TiB)?")
_SIZE_BYTES = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class Source:
    """A policy file, its positions, and the list that its problems go to."""

    def __init__(self, name: str, data: bytes, problems: list[PolicyProblem]) -> None:
        self.name = name
        self.problems = problems
        self.text = ""
        self.document: dict[str, Any] = {}
        self._places: dict[Path, Place] = {}
        try:
            self.text = data.decode().removeprefix("\ufeff").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            self.text = data[: error.start].decode()
            self._problem_at(len(self.text), "not UTF-8 text")
            return
        self._read()

    def _read(self) -> None:
        import tomllib  # 2.5 MB of private memory: only while a policy is read

        try:
            document = tomllib.loads(self.text)
            self._places = locate(self.text)
        except tomllib.TOMLDecodeError as error:
            self._syntax(str(error))
        except RecursionError:
            self._problem_at(0, "nested too deeply")
        except ValueError:  # Python makes no number of more than 4,300 digits, and tomllib does not say where it is
            self._problem_at(0, "a number with thousands of digits", "whole numbers of 64 bits")
        else:
            self.document = document

    def _syntax(self, message: str) -> None:
        found = _AT_LINE.fullmatch(message)
        if found is None:  # "(at end of document)"
            self._problem_at(len(self.text.rstrip()), message.removesuffix(" (at end of document)"), "more text")
            return
        line, column = int(found[2]), int(found[3])
        self._add(line, column, found[1], "valid TOML", "error")

    def _problem_at(self, offset: int, message: str, expected: str = "") -> None:
        self._add(*line_column(self.text, offset), message, expected, "error")

    def _add(self, line: int, column: int, message: str, expected: str, level: str) -> None:
        source = source_line(self.text, line)
        self.problems.append(PolicyProblem(self.name, line, column, message, expected, source, level))

    def complain(
        self, path: Path, message: str, expected: str = "", *, key: bool = False, level: str = "error"
    ) -> object:
        """Report a problem at a value (or its key); returns BAD for the caller to hand on."""
        while path and path not in self._places:
            path = path[:-1]
        place = self._places.get(path, Place(0, 0, 0))
        line, column = line_column(self.text, place.key if key else place.value)
        self._add(line, column, message, expected, level)
        return BAD

    def position(self, path: Path) -> str:
        """file:line, as rules and watches carry it."""
        place = self._places.get(path)
        return f"{self.name}:{line_column(self.text, place.key)[0]}" if place else self.name

    def line(self, path: Path) -> int:
        """The line of a value, or of what it stands in."""
        while path and path not in self._places:
            path = path[:-1]
        return line_column(self.text, self._places.get(path, Place(0, 0, 0)).value)[0]

    def table(self, path: Path, value: Any, shape: Mapping[str, Check], required: Iterable[str] = ()) -> dict[str, Any]:
        """The valid part of a table. Unknown keys, wrong values and missing keys are reported, all of them."""
        if not isinstance(value, dict):
            self.complain(path, f"{_shown(value)} is not a table", "a table")
            return {}
        found = {}
        for key, item in value.items():
            check = shape.get(key)
            if check is None:
                self.complain(
                    (*path, key), f"unknown key {_shown(key)}{did_you_mean(key, shape)}", _any_of(shape), key=True
                )
            elif (checked := check(self, (*path, key), item)) is not BAD:
                found[key] = checked
        for key in required:
            if key not in value:
                self.complain(path, f'"{key}" is missing', f"{key} = ...", key=True)
        return found


def text(source: Source, path: Path, value: Any) -> Any:
    if not isinstance(value, str):
        return source.complain(path, f"{_shown(value)} is not a text", "a text in quotes")
    if len(value) > TEXT_MAX or "\0" in value:
        return source.complain(path, "this text is too long or holds a NUL", f"at most {TEXT_MAX} characters")
    return value


def texts(source: Source, path: Path, value: Any) -> Any:
    """One text or a list of them, as a tuple."""
    if not isinstance(value, list):
        one = text(source, path, value)
        return one if one is BAD else (one,)
    if len(value) > LIST_MAX:
        return source.complain(path, f"{len(value)} elements", f"at most {LIST_MAX}")
    items = [text(source, (*path, index), item) for index, item in enumerate(value)]
    return BAD if BAD in items else tuple(items)


def boolean(source: Source, path: Path, value: Any) -> Any:
    return (
        value
        if isinstance(value, bool)
        else source.complain(path, f"{_shown(value)} is not true or false", "true or false")
    )


def choice(noun: str, options: Collection[str]) -> Check:
    """A text that is one of a closed set."""

    def check(source: Source, path: Path, value: Any) -> Any:
        if isinstance(value, str) and value in options:
            return value
        near = did_you_mean(value, options) if isinstance(value, str) else ""
        return source.complain(path, f"{_shown(value)} is not a {noun}{near}", _any_of(options))

    return check


def duration(source: Source, path: Path, value: Any) -> Any:
    """Milliseconds of a text such as "6h"."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None or not int(found[1]):
        return source.complain(path, f"{_shown(value)} is not a duration", _better_duration(value))
    return int(found[1]) * _DURATION_MS[found[2]]


def _better_duration(value: Any) -> str:
    """What the writer probably meant: "6hours" -> "6h"."""
    if isinstance(value, str) and (found := re.match(r"\s*(\d+)\s*([a-zA-Z]+)", value)):
        word = found[2].lower()
        unit = "min" if word.startswith("min") else word[0]
        if unit in _DURATION_MS and int(found[1]):
            return f'"{found[1]}{unit}"'
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return f'a unit, such as "{value}s" or "{value}h"'
    return 'a number above 0 and a unit (ms, s, min, h, d, w, y), such as "6h"'


def size(source: Source, path: Path, value: Any) -> Any:
    """Bytes of a text such as "4MiB"."""
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return source.complain(
            path,
            f"{_shown(value)} is not a size",
            'a whole number, or a number and a unit (KiB, MiB, GiB), such as "4MiB"',
        )
    return int(found[1]) * _SIZE_BYTES[found[2]]


def moment(source: Source, path: Path, value: Any) -> Any:
    """Milliseconds since the epoch. A date means the end of that day; no offset means UTC."""
    from datetime import UTC, date, datetime, timedelta  # 1 MB, and only for waivers

    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value) if len(value) > 10 else date.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, date) and not isinstance(value, datetime):
        if value == date.max:
            return source.complain(path, "this date is the last there is", "a date such as 2027-02-01")
        value = datetime(value.year, value.month, value.day) + timedelta(days=1)  # noqa: DTZ001 - UTC is set below
    if not isinstance(value, datetime):
        return source.complain(path, "this is not a date", "a date such as 2027-02-01")
    value = value if value.tzinfo else value.replace(tzinfo=UTC)
    return (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # only when something is wrong

    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f', did you mean "{near[0]}"?' if near else ""


def _any_of(words: Iterable[str]) -> str:
    listed = [word for word in words if word]
    return "one of " + ", ".join(listed) if len(listed) <= 16 else ""


def _shown(value: Any) -> str:
    """A value as it might stand in TOML, shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a giant number"  # Python refuses to write very long ones in decimal digits
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


shown = _shown
