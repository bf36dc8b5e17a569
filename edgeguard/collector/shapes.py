"""From a decoded record to another shape, by a table: which field goes where, and how. Pure. Tables: `ocsf`, `ecs`.

What has no place, or does not fit its place (an address that is none, a port beyond 65,535), is kept under a name of
its own by the caller: nothing that a device said is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Any, NamedTuple

Convert = Callable[[Any], Any]


class To(NamedTuple):
    """A place, by names and dots, and what turns the value into what belongs there: None, if it does not fit."""

    path: str
    convert: Convert


Table = Mapping[str, tuple[To, ...]]
HEAD = frozenset({"type", "severity", "rule_matched"})  # of a record: beside the fields of its type


def place(fields: Mapping[str, Any], table: Table, into: dict[str, Any]) -> dict[str, Any]:
    """Put fields where the table says. Returns those that are nowhere now."""
    rest = {}
    for name, value in fields.items():
        placed = False
        for target in table.get(name, ()):
            fitting = target.convert(value)
            if fitting is not None:
                put(into, target.path, fitting)
                placed = True
        if not placed:
            rest[name] = value
    return rest


def put(into: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path, unless something else stands there or on the way."""
    *way, last = path.split(".")
    for step in way:
        deeper = into.setdefault(step, {})
        if not isinstance(deeper, dict):
            return
        into = deeper
    into.setdefault(last, value)


def own(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the record's type alone."""
    return {name: value for name, value in body.items() if name not in HEAD}


def milliseconds(common: Mapping[str, Any]) -> tuple[int, bool]:
    """When it happened; where that is not known, when it was received, and False."""
    for name in ("time", "received"):
        try:
            return _milliseconds(str(common.get(name))), name == "time"
        except ValueError:
            continue
    return 0, False


def _milliseconds(text: str) -> int:
    if text.endswith(" ms"):  # beyond the calendar
        return int(text[:-3])
    moment = datetime.fromisoformat(text)
    return round(moment.timestamp() * 1000)


def text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def number(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def small(value: Any) -> int | None:
    """A number of 32 bits, as a process id or a user id is one."""
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def identity(value: Any) -> str | None:
    """A user id as text; -1 is none."""
    return str(value) if type(value) is int and value >= 0 else None


def words(value: Any) -> str | None:
    """A command line for people: arguments with blanks between."""
    return " ".join(str(item) for item in value) if isinstance(value, list) and value else None


def texts(value: Any) -> list[str] | None:
    return [str(item) for item in value] if isinstance(value, list) and value else None


def base(value: Any) -> str | None:
    """The last part of a path; the path itself where there is none."""
    return (value.rstrip("/").rpartition("/")[2] or value) if isinstance(value, str) and value else None


def folder(value: Any) -> str | None:
    return (value.rpartition("/")[0] or "/") if isinstance(value, str) and value.startswith("/") else None


def address(value: Any) -> str | None:
    """An IP address in its usual form."""
    try:
        return str(ip_address(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def no_address(value: Any) -> str | None:
    return text(value) if address(value) is None else None


def port(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= 65535 else None


def sha256(value: Any) -> str | None:
    good = isinstance(value, str) and len(value) == 64 and all(digit in "0123456789abcdef" for digit in value)
    return value if good else None


def octal(value: Any) -> str | None:
    return f"{value & 0o7777:04o}" if type(value) is int and value >= 0 else None
