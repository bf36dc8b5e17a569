"""Columns in packed rows: maps, their keys in order (`packing` says what stands in them). Pure."""

from __future__ import annotations

from typing import Any

from edgeguard.codec.heads import NATURALS, encoded, head, integer
from edgeguard.records.differences import BOOLS, DIGEST_SIZE, NULL, Digests, Table
from edgeguard.records.registry import COLUMN_NUMBERS
from edgeguard.records.wire import coded_key, coded_value, key_order

NUMBER_COLUMNS = {COLUMN_NUMBERS[name]: name for name in ("pid", "ppid", "start")}
ESCAPED = 2  # {2: value}: what stands in a column of numbers and is none
DIGEST_KEY = 1
ORDERS_MAX = 1000  # orders of columns that are kept; a device has some forty
TEXTS_MAX = 1000  # texts that are kept, each of at most so many bytes: below 0.2 MB together
TEXT_KEPT = 64
_DIGEST_HEAD = head(5, 1) + integer(DIGEST_KEY)
_NONE = head(5, 0)


class Columns:
    """The table of a field of columns. `numbers`: the tables of those that may be differences, by name."""

    __slots__ = ("_digests", "_numbers")

    def __init__(self, digests: Digests, numbers: dict[str, Table]) -> None:
        self._digests = digests
        self._numbers = numbers

    def __getitem__(self, columns: dict[str, Any] | None) -> bytes:
        if columns is None:
            return NULL
        if len(columns) == 1:  # three of four: written in half of the time
            (name,) = columns
            value = columns[name]
            if type(value) is str:
                return _ALONE[name] + _TEXTS[value]
            if type(value) is bool:
                return _ALONE[name] + BOOLS[value]
            if type(value) is int and 0 <= value < 0x100 and name not in self._numbers:
                return _ALONE[name] + NATURALS[value]
        texts, naturals = _TEXTS, NATURALS
        parts: list[bytes] = []
        append = parts.append
        for name, key, numbered in _ORDERS[tuple(columns)]:
            append(key)
            value = columns[name]
            kind = type(value)
            if kind is str:
                append(texts[value])
            elif kind is int:
                if not numbered:
                    append(naturals[value] if 0 <= value < 0x100 else integer(value))
                elif value >= 0:
                    append(self._numbers[name][value])
                else:
                    append(encoded({ESCAPED: value}))
            elif kind is bytes and len(value) == DIGEST_SIZE:
                append(_DIGEST_HEAD)
                append(self._digests.reference(value))
            elif kind is bool:
                append(BOOLS[value])
            else:
                append(encoded(coded_value(value)))
        return b"".join(parts) if parts else _NONE


class _Texts(dict[str, bytes]):
    """Texts, encoded. Most are words that every segment says: they stay for the next one."""

    def __missing__(self, text: str) -> bytes:
        made = encoded(coded_value(text))
        if len(self) < TEXTS_MAX and len(made) <= TEXT_KEPT:
            self[text] = made
        return made


class _Alone(dict[str, bytes]):
    """What stands before the value of a column that is the only one, by its name."""

    def __missing__(self, name: str) -> bytes:
        made = head(5, 1) + encoded(coded_key(COLUMN_NUMBERS.get(name, name)))
        if len(self) < ORDERS_MAX:
            self[name] = made
        return made


class _Orders(dict[tuple[str, ...], tuple[tuple[str, bytes, bool], ...]]):
    """(name, encoded key, may it be a difference) of columns in the order of their keys. How many there are is written
    before the first key."""

    def __missing__(self, names: tuple[str, ...]) -> tuple[tuple[str, bytes, bool], ...]:
        coded = sorted(((COLUMN_NUMBERS.get(name, name), name) for name in names), key=lambda item: key_order(item[0]))
        keys = [encoded(coded_key(key)) for key, _ in coded]
        keys[:1] = [head(5, len(names)) + key for key in keys[:1]]
        order = tuple((name, before, key in NUMBER_COLUMNS) for before, (key, name) in zip(keys, coded, strict=True))
        if len(self) < ORDERS_MAX:
            self[names] = order
        return order


_TEXTS = _Texts()
_ALONE = _Alone()
_ORDERS = _Orders()
