"""Packed rows (codecs 2 and 3): the same records in fewer bytes, for a collector that has said that it reads them.

    numbers   A field or column of the kind "number": what is at least 0 stands for itself; -1 - z is a difference to the
              number before it, z its zigzag (0, -1, 1, -2, ... are 0, 1, 2, 3, ...). The number before it is the last one
              of a field or column of the same name in the segment, 0 at first; for `start` it is the row's wall time, for
              `ppid` and the numbers of an actor's parents the last `pid`.
    digests   32 bytes are a number: 0 is the next of the segment's digests, k the k-th back from the last one used, and
              -1 the digest that the baseline holds for this row's own path: the first text of the row that is a
              reference into it. In a column, {1: number}.
    body      [strings, rows, drops, digests]: the digests of all rows one after the other, at the end, because
              nothing makes them shorter and they make shorter what is compressed with them longer.

`wire` says what a row is. Pure.
"""

from __future__ import annotations

from typing import Any

from edgeguard.errors import DecodeError
from edgeguard.records.registry import ACTOR_FIELDS, COLUMN_NUMBERS, TYPES, Field, Kind
from edgeguard.records.wire import UINT_MAX, Digest, Entry, Place, Reader, Record, Resolve, coded_columns

DIGEST_SIZE = 32
OWN = -1  # the digest of this row's own path
NUMBER_COLUMNS = {COLUMN_NUMBERS[name]: name for name in ("pid", "ppid", "start")}
_DIFFERENCE_MAX = 2**32  # beyond, a difference has nine bytes, too
_ESCAPED = 2  # {2: value}: what stands in a column of numbers and is none
_DIGEST_KEY = 1
_PARENTS = len(ACTOR_FIELDS) - 1


def difference(value: int, before: int) -> int:
    """`value` as it goes out: as it is, or as a difference where that has fewer bytes."""
    if value < 24:
        return value
    z = (value - before) << 1 if value >= before else ((before - value) << 1) - 1
    if z < 24 or z < 0x100 <= value or z < 0x10000 <= value or z < _DIFFERENCE_MAX <= value:
        return -1 - z
    return value


def undo(number: int, before: int) -> int:
    """The value again. Raises DecodeError where there is none."""
    if number >= 0:
        return number
    z = -1 - number
    value = before + (z >> 1) if not z & 1 else before - ((z + 1) >> 1)
    if not 0 <= value <= UINT_MAX:
        raise DecodeError(f"a difference that leads to {value}")
    return value


class Packer:
    """Makes the rows of one segment, in their order. `wall`: of the first record."""

    def __init__(self, place: Place, digest: Digest | None, wall: int | None) -> None:
        self._place = place
        self._digest = digest
        self._before: dict[str, int] = {}
        self._digests: dict[bytes, int] = {}
        self._clock = wall is not None
        self._wall = wall or 0  # of the row, as a reader will make it out of `wall` and the rows' differences
        self._own = 0  # the reference to this row's own path, 0 while there is none

    @property
    def digests(self) -> bytes:
        return b"".join(self._digests)

    def row(self, record: Record, dt: int) -> list[Any]:
        row: list[Any] = [dt, record.type << 4 | (8 if record.rule else 0) | record.severity]
        plan = _PLANS.get(record.type, ())
        self._own = 0
        if self._clock:
            self._wall += dt
        place, append = self._place, row.append
        for (kind, name), value in zip(plan, record.fields, strict=False):
            if value is None or kind is None:
                append(value)
            elif kind is Kind.UINT:
                append(self._number(name, value))
            elif kind is Kind.REF:
                item = place(value)
                append(item)
                if not self._own and type(item) is int and item < 0:
                    self._own = item
            elif kind is Kind.REFS:
                append([place(item) for item in value])
            else:
                append(self._other(kind, value))
        row += record.fields[len(plan) :]
        while row[-1] is None:
            row.pop()
        return row

    def _other(self, kind: Kind, value: Any) -> Any:
        if kind is Kind.COLUMNS:
            return self._columns(value)
        return self._actor(value) if kind is Kind.ACTOR else self._reference(value)

    def _number(self, name: str, value: int) -> int:
        if name == "start":
            return difference(value, self._wall)
        if name == "ppid":
            return difference(value, self._before.get("pid", 0))
        before = self._before.get(name, 0)
        self._before[name] = value
        return difference(value, before)

    def _reference(self, value: bytes) -> Any:
        """A digest as a number; other bytes as they are."""
        if len(value) != DIGEST_SIZE:
            return value
        if self._own and self._digest is not None and self._digest(-1 - self._own) == value:
            return OWN
        known = self._digests
        number = known.get(value)
        if number is None:
            known[value] = len(known)
            return 0
        return len(known) - number

    def _columns(self, columns: dict[str, Any]) -> dict[Any, Any]:
        coded = coded_columns(columns)
        for key, value in coded.items():
            if isinstance(value, bytes):
                if len(value) == DIGEST_SIZE:
                    coded[key] = {_DIGEST_KEY: self._reference(value)}
            elif key in NUMBER_COLUMNS and type(value) is int:
                coded[key] = self._number(NUMBER_COLUMNS[key], value) if value >= 0 else {_ESCAPED: value}
        return coded

    def _actor(self, value: tuple[Any, ...]) -> list[Any]:
        place = self._place
        row: list[Any] = []
        for (kind, name), item in zip(_ACTOR_PLAN, value, strict=False):
            if item is None or kind is None:
                row.append(item)
            elif kind is Kind.REF:
                row.append(place(item))
            elif kind is Kind.REFS:
                row.append([place(text) for text in item])
            else:
                row.append(self._number(name, item))
        parents = value[_PARENTS] if len(value) > _PARENTS else None
        if parents:
            pid = self._before.get("pid", 0)
            row.append([[difference(number, pid), place(exe)] for number, exe in parents])
        else:
            while row and row[-1] is None:
                row.pop()
        return row


class Unpacker(Reader):
    """Takes packed rows apart. `first`: time since boot and wall time of the segment's first record, as in its header."""

    def __init__(
        self,
        strings: tuple[str, ...],
        resolve: Resolve | None,
        digest: Digest | None,
        digests: Any,
        first: tuple[int, int | None],
    ) -> None:
        super().__init__(strings, resolve)
        if not isinstance(digests, bytes) or len(digests) % DIGEST_SIZE:
            raise DecodeError("digests: not bytes, 32 each")
        self._digest = digest
        self._digests = [digests[at : at + DIGEST_SIZE] for at in range(0, len(digests), DIGEST_SIZE)]
        self._used = 0
        self._first = first
        self._wall = 0
        self._own: int | None = None
        self._before: dict[str, int] = {}

    def begin(self, mono: int) -> None:
        since, wall = self._first
        self._wall, self._own = 0 if wall is None else wall + mono - since, None

    def end(self) -> None:
        if self._used != len(self._digests):
            raise DecodeError(f"digests: {len(self._digests)}, and {self._used} are used")

    def _field(self, field: Field, value: Any, where: str) -> Any:
        kind = field.kind
        if kind is Kind.UINT:
            if type(value) is not int:
                raise DecodeError(f"{where}: not uint")
            return self._number(field.name, value)
        if kind is Kind.DIGEST and type(value) is int:
            return self._reference(value, where)
        if kind is Kind.REF and self._own is None and type(value) is int and value < 0:
            self._own = -1 - value
        return super()._field(field, value, where)

    def _number(self, name: str, number: int) -> int:
        if name == "start":
            return undo(number, self._wall)
        if name == "ppid":
            return undo(number, self._before.get("pid", 0))
        value = self._before[name] = undo(number, self._before.get(name, 0))
        return value

    def _parent(self, number: Any, where: str) -> int:
        if type(number) is not int:
            raise DecodeError(f"{where}: parent is no pair")
        return undo(number, self._before.get("pid", 0))

    def _reference(self, number: Any, where: str) -> Any:
        if type(number) is not int or number < OWN or number > self._used:
            raise DecodeError(f"{where}: digest {number!r}, and {self._used} were used")
        if number == OWN:
            if self._own is None:
                raise DecodeError(f"{where}: the digest of a path that the row does not name")
            found = self._digest(self._own) if self._digest is not None else None
            return Entry(self._own) if found is None else found
        if number > 0:
            return self._digests[self._used - number]
        if self._used == len(self._digests):
            raise DecodeError(f"{where}: digest {self._used} of {len(self._digests)}")
        self._used += 1
        return self._digests[self._used - 1]

    def _column(self, key: int | str, value: Any, where: str) -> Any:
        if key in NUMBER_COLUMNS and type(value) is int:
            return self._number(NUMBER_COLUMNS[key], value)  # type: ignore[index]  # a key of the table is a number
        if isinstance(value, dict):
            if set(value) == {_DIGEST_KEY}:
                return self._reference(value[_DIGEST_KEY], where)
            if set(value) == {_ESCAPED} and key in NUMBER_COLUMNS and type(value[_ESCAPED]) is int:
                return value[_ESCAPED]
        return super()._column(key, value, where)


_SPECIAL = frozenset({Kind.REF, Kind.REFS, Kind.UINT, Kind.DIGEST, Kind.COLUMNS, Kind.ACTOR})


def _plan(fields: tuple[Field, ...]) -> tuple[tuple[Kind | None, str], ...]:
    return tuple((field.kind if field.kind in _SPECIAL else None, field.name) for field in fields)


_PLANS: dict[int, tuple[tuple[Kind | None, str], ...]] = {kind.number: _plan(kind.fields) for kind in TYPES.values()}
_ACTOR_PLAN = _plan(ACTOR_FIELDS[:-1])
