"""Units of systemd, their drop-ins and its own settings: which keys of which section have another value. Pure.

As systemd reads them (systemd.syntax(7)): a backslash joins lines, comments in between are passed over, a key may stand
several times, and an empty value takes back what stood before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from edgeguard.sensors.changes.secrets import line, value_of

_Keys = dict[tuple[str, str], list[str]]


def tell(old: str, new: str) -> Iterator[str]:
    before, after = _parsed(old), _parsed(new)
    for section, key in dict.fromkeys((*after, *before)):
        was, now = before.get((section, key), []), after.get((section, key), [])
        if was == now:
            continue
        name = f"[{line(section)}] {line(key)}" if section else line(key)
        if len(was) <= 1 and len(now) <= 1:
            yield f"{name}: {_shown(key, was)} → {_shown(key, now)}"
            continue
        gone, came = Counter(was) - Counter(now), Counter(now) - Counter(was)
        for value in came.elements():
            yield f"{name} added: {_shown(key, [value])}"
        for value in gone.elements():
            yield f"{name} removed: {_shown(key, [value])}"
        if not gone and not came:
            yield f"{name}: the same values in another order"


def _shown(key: str, values: list[str]) -> str:
    if not values:
        return "not set"
    return value_of(key, values[0]) if values[0] else "(empty: takes back what was set before)"


def _parsed(text: str) -> _Keys:
    keys: _Keys = {}
    section, joined = "", ""
    for raw in (*text.split("\n"), ""):
        stripped = raw.strip()
        if stripped.startswith(("#", ";")):
            continue
        joined = f"{joined} {stripped}" if joined else stripped
        if joined.endswith("\\"):
            joined = joined[:-1].rstrip()
            continue
        entry, joined = joined, ""
        if entry.startswith("[") and entry.endswith("]"):
            section = entry[1:-1]
        elif entry:
            key, equals, value = entry.partition("=")
            place = (section, key.strip()) if equals else (section, "a line that is no setting")
            keys.setdefault(place, []).append(value.strip() if equals else entry)
    return keys
