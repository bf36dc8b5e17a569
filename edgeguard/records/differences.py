"""What packed rows tell from what came before: numbers from numbers, digests from digests (`packing` says how). Pure.

Each is a table that is asked in the order of the rows.
"""

from __future__ import annotations

from typing import Any, Protocol

from edgeguard.codec.heads import NATURALS, NEGATIVES, encoded, integer
from edgeguard.records.registry import TYPES, Kind
from edgeguard.records.wire import Digest

DIGEST_SIZE = 32
OWN = -1  # the digest of this row's own path
NULL = b"\xf6"
BOOLS: dict[bool | None, bytes] = {None: NULL, False: b"\xf4", True: b"\xf5"}
_OWN = integer(OWN)
_DIFFERENCE_MAX = 2**32  # beyond, a difference has nine bytes, too
_PATHS = {
    kind.number: tuple(at for at, field in enumerate(kind.fields) if field.kind is Kind.REF) for kind in TYPES.values()
}


def moved(value: int, before: int) -> bytes:
    """`value` as it goes out: as it is, or as a difference where that has fewer bytes."""
    if value < 24:
        return NATURALS[value]
    z = (value - before) << 1 if value >= before else ((before - value) << 1) - 1
    if z < 24 or z < 0x100 <= value:
        return NEGATIVES[z]
    return integer(-1 - z if z < 0x10000 <= value or z < _DIFFERENCE_MAX <= value else value)


class Table(Protocol):
    """From the value of a field to its encoding."""

    def __getitem__(self, value: Any, /) -> bytes: ...


class Context:
    """The row that is written, and what the segment said before. `wall`: of the first record.

    Tables know it and not each other: what refers to itself stays until somebody looks for garbage, and each segment
    is written into memory that no cache holds.
    """

    __slots__ = ("clock", "digest", "digests", "entries", "fields", "wall")

    def __init__(self, entries: dict[str, int], digest: Digest | None, wall: int | None) -> None:
        self.entries = entries
        self.digest = digest
        self.digests: dict[bytes, int] = {}
        self.fields: tuple[Any, ...] = ()
        self.clock = wall is not None
        self.wall = wall or 0  # of the row, as a reader will make it out of the first one and the rows' differences


class Number:
    """Differences to the number of the same name before it."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0

    def __getitem__(self, value: int | None) -> bytes:
        if value is None:
            return NULL
        last, self.last = self.last, value
        if value < 24:
            return NATURALS[value]
        z = (value - last) << 1 if value >= last else ((last - value) << 1) - 1  # as `moved`, without the call
        if z < 24 or z < 0x100 <= value:
            return NEGATIVES[z]
        return integer(-1 - z if z < 0x10000 <= value or z < _DIFFERENCE_MAX <= value else value)


class Parent:
    """A number's differences to the last `pid`."""

    __slots__ = ("_pid",)

    def __init__(self, pid: Number) -> None:
        self._pid = pid

    def __getitem__(self, value: int | None) -> bytes:
        return NULL if value is None else moved(value, self._pid.last)


class Start:
    """Its difference to the wall time of the row."""

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def __getitem__(self, value: int | None) -> bytes:
        return NULL if value is None else moved(value, self._context.wall)


class Counted:
    """The plain difference to the row before."""

    __slots__ = ("_number",)

    def __init__(self, number: Number) -> None:
        self._number = number

    def __getitem__(self, value: int | None) -> bytes:
        if value is None:
            return NULL
        number = self._number
        last, number.last = number.last, value
        step = value - last
        return NATURALS[step] if 0 <= step < 0x100 else integer(step)


class Digests:
    """Digests, in the field at `place` of a row of the type `number` or in columns there."""

    __slots__ = ("_context", "_paths")

    def __init__(self, context: Context, number: int, place: int) -> None:
        self._context = context
        self._paths = tuple(at for at in _PATHS.get(number, ()) if at < place)

    def __getitem__(self, value: bytes | None) -> bytes:
        if value is None:
            return NULL
        return self.reference(value) if len(value) == DIGEST_SIZE else encoded(value)

    def reference(self, value: bytes) -> bytes:
        context = self._context
        if context.digest is not None:
            fields, entries = context.fields, context.entries
            for at in self._paths:
                own = entries.get(fields[at])  # the first text before this field that the baseline has
                if own is not None:
                    if context.digest(own) == value:
                        return _OWN
                    break
        known = context.digests
        number = known.get(value)
        if number is None:
            known[value] = len(known)
            return NATURALS[0]
        return integer(len(known) - number)
