"""sshd_config and its parts: which settings have another value, in which Match block, and whether that is weaker. Pure.

Told is what stands in this one file. What is in force follows from all of them in sshd's order, and is the sensor
host's word (kind sshd). The first value wins, except for keywords that collect values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from edgeguard.sensors import parse_sshd
from edgeguard.sensors.changes.secrets import line, value_of

VALUES_MAX = 8  # of a keyword that collects values, in one sentence
_NAME = re.compile(r"[ \t\r\f]*\"?([^\s=\"]+)")


class _Setting(NamedTuple):
    name: str  # as it is written
    values: tuple[str, ...]


_Settings = dict[tuple[str, str], _Setting]  # (criteria of the Match block, keyword) -> ...


def tell(old: str, new: str) -> Iterator[str]:
    (before, blocks_before), (after, blocks_after) = _parsed(old), _parsed(new)
    for block in blocks_after:
        if block not in blocks_before:
            yield f"block added: Match {line(block)}"
    for block in blocks_before:
        if block not in blocks_after:
            yield f"block removed: Match {line(block)}"
    for key in dict.fromkeys((*after, *before)):
        was, now = before.get(key), after.get(key)
        if was is None or now is None or was.values != now.values:
            yield from _setting(key, was, now)
    common = [block for block in blocks_before if block in blocks_after]
    if common != [block for block in blocks_after if block in blocks_before]:
        yield "Match blocks stand in another order: the first one that matches wins"


def _setting(key: tuple[str, str], was: _Setting | None, now: _Setting | None) -> Iterator[str]:
    match, keyword = key
    name = (now or was or _Setting(keyword, ())).name
    where = f"Match {line(match)}: {name}" if match else name
    known = parse_sshd.KEYWORDS.get(keyword)
    lists = keyword == "include" or known is None or known.lists
    olds, news = was.values if was else (), now.values if now else ()
    if not lists and olds[:1] == news[:1]:
        yield f"{where}: other values stand below the first, which counts: {value_of(name, olds[0])}"
        return
    before, after = (values if lists else values[:1] for values in (olds, news))
    sides = [_listed(name, side) for side in (before, after)]
    yield f"{where}: {sides[0]} → {sides[1]}{_weaker(keyword, before, after, inside=bool(match))}"


def _listed(name: str, values: tuple[str, ...]) -> str:
    if not values:
        return "not set here"
    more = f" and {len(values) - VALUES_MAX} more" if len(values) > VALUES_MAX else ""
    return ", ".join(value_of(name, value) for value in values[:VALUES_MAX]) + more


def _weaker(keyword: str, before: tuple[str, ...], after: tuple[str, ...], *, inside: bool) -> str:
    """Only where the values have an order, and where it is known what holds without one."""
    known = parse_sshd.KEYWORDS.get(keyword)
    if known is None or not (known.ranks or known.lower or known.algorithms):
        return ""
    if inside and not (before and after):
        return ""
    levels = [parse_sshd.level(keyword, _plain(side[0] if side else known.default)) for side in (before, after)]
    return " (weaker)" if 0 <= levels[1] < levels[0] else ""


def _plain(value: str) -> str:
    return "without-password" if value.lower() == "prohibit-password" else value


def _parsed(text: str) -> tuple[_Settings, dict[str, None]]:
    settings: dict[tuple[str, str], tuple[str, list[str]]] = {}
    blocks: dict[str, None] = {}  # a set in order
    match = ""
    for raw in text.split("\n"):
        words = parse_sshd.words(raw.encode("utf-8", "surrogateescape"))
        if not words or not words[0]:
            if raw.strip() and not raw.strip().startswith("#"):
                words = ("a line that sshd refuses", raw.strip())
            else:
                continue
        keyword, *arguments = words
        if keyword == "match":
            match = " ".join(arguments)
            blocks[match] = None
            continue
        written = _NAME.match(raw)
        name = written[1] if written and " " not in keyword else keyword
        settings.setdefault((match, keyword), (name, []))[1].append(" ".join(arguments))
    return {key: _Setting(name, tuple(values)) for key, (name, values) in settings.items()}, blocks
