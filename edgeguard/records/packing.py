"""Packed rows (codecs 2 and 3): the same records in fewer bytes, for a collector that has said that it reads them.

    numbers   A field or column of the kind "number": what is at least 0 stands for itself; -1 - z is a difference to
              the number before it, z its zigzag (0, -1, 1, -2, ... are 0, 1, 2, 3, ...). The number before it is the
              last one of a field or column of the same name in the segment, 0 at first; for `start` it is the row's
              wall time, for `ppid` and the numbers of an actor's parents the last `pid`.
    digests   32 bytes are a number: 0 is the next of the segment's digests, k the k-th back from the last one used,
              and -1 the digest that the baseline holds for this row's own path: the first text of the row that is a
              reference into it. In a column, {1: number}.
    body      [strings, rows, drops, digests]: the digests of all rows one after the other, at the end, because
              nothing makes them shorter and they make longer what is compressed with them.

`wire` says what a row is. Pure.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from edgeguard.codec.heads import NATURALS, encoded, head, integer
from edgeguard.errors import DecodeError
from edgeguard.records.registry import ACTOR_FIELDS, COLUMN_NUMBERS, TYPES, Field, Kind
from edgeguard.records.wire import (
    UINT_MAX,
    Digest,
    Drop,
    Entry,
    Reader,
    Record,
    Reference,
    Resolve,
    coded_key,
    coded_value,
    inline,
    key_order,
    written,
)

LEVEL = 6  # of DEFLATE with a dictionary: 9 saves 0.06 bytes an event and takes another 1.8 us
DIGEST_SIZE = 32
OWN = -1  # the digest of this row's own path
NUMBER_COLUMNS = {COLUMN_NUMBERS[name]: name for name in ("pid", "ppid", "start")}
_DIFFERENCE_MAX = 2**32  # beyond, a difference has nine bytes, too
_ESCAPED = 2  # {2: value}: what stands in a column of numbers and is none
_DIGEST_KEY = 1
_PARENTS = len(ACTOR_FIELDS) - 1
_TO_OTHERS = frozenset({"start", "ppid"})  # numbers whose difference is to something else
_NULL = b"\xf6"
_PAIR = head(4, 2)
_DIGEST_HEAD = head(5, 1) + integer(_DIGEST_KEY)
_BOOLS = (b"\xf4", b"\xf5")


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


def string_table(
    records: Iterable[Record], reference: Reference | None
) -> tuple[list[str | bytes], dict[str, int | str | bytes]]:
    """What occurs twice gets a number, the baseline's own a negative one. Most frequent first: short numbers."""
    places: dict[str, int | str | bytes] = {}
    often: list[tuple[int, str]] = []
    for text, times in Counter(_texts(records)).items():
        index = reference(text) if reference is not None else None
        if index is not None:
            places[text] = -1 - index
        elif times > 1 and len(text) > 2:
            often.append((times, text))
        else:
            places[text] = inline(text)
    often.sort(key=itemgetter(0), reverse=True)
    for number, (_, text) in enumerate(often):
        places[text] = number
    return [inline(text) for _, text in often], places


def _texts(records: Iterable[Record]) -> list[str]:
    """Every text that may be a reference, in the order of the rows."""
    texts: list[str] = []
    for record in records:
        _gather(_TEXTS.get(record.type, ()), record.fields, texts)
    return texts


def _gather(plan: tuple[tuple[int, Kind], ...], fields: tuple[Any, ...], texts: list[str]) -> None:
    size = len(fields)
    for index, kind in plan:
        if index >= size:
            break
        value = fields[index]
        if value is None:
            continue
        if kind is Kind.REF:
            texts.append(value)
        elif kind is Kind.REFS:
            texts += value
        else:
            _gather(_ACTOR_TEXTS, value, texts)
            if len(value) > _PARENTS:
                texts += [exe for _, exe in value[_PARENTS] or ()]


def packed_body(
    records: Sequence[Record],
    reference: Reference | None = None,
    digest: Digest | None = None,
) -> bytes:
    """A packed body before it is compressed: what a dictionary is made of."""
    strings, places = string_table(records, reference)
    return pack(records, strings, places, (), digest)[0]


def pack(
    records: Sequence[Record],
    strings: list[str | bytes],
    places: dict[str, int | str | bytes],
    drops: Sequence[Drop],
    digest: Digest | None,
) -> tuple[bytes, int]:
    """(the body, where its digests begin)."""
    packer = Packer(places, digest, records[0].wall)
    rows = written(records, packer.row)
    digests = packer.digests
    parts = (head(4, 4), encoded(strings), head(4, len(rows)), *rows, encoded([list(drop) for drop in drops]))
    plain = b"".join((*parts, encoded(digests)))
    return plain, len(plain) - len(digests)


def squeeze(plain: bytes, at: int, dictionary: bytes) -> tuple[bytes, bytes]:
    """The body, and the body in fewer bytes. What stands from `at` on is random: a block, and so codes, of its own."""
    squeezer = zlib.compressobj(LEVEL, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, dictionary)
    squeezed = squeezer.compress(plain[:at])
    if at < len(plain):
        squeezed += squeezer.flush(zlib.Z_BLOCK) + squeezer.compress(plain[at:])
    return plain, squeezed + squeezer.flush()


class Packer:
    """Writes the rows of one segment, in their order. `wall`: of the first record.

    Straight into bytes, and with what a text becomes looked up once: Debian 13's cbor2 is Python and took three times
    as long for lists that it only walks once more.
    """

    def __init__(self, places: Mapping[str, int | str | bytes], digest: Digest | None, wall: int | None) -> None:
        self._raw = places
        self._places = _Encoded(places)
        self._digest = digest
        self._before: dict[str, int] = {}
        self._digests: dict[bytes, int] = {}
        self._clock = wall is not None
        self._wall = wall or 0  # of the row, as a reader will make it out of `wall` and the rows' differences
        self._record: Record | None = None  # whose row is written
        self._done = 0  # so many of its fields are, which is what a reader knows of
        self._texts = _Texts()  # in columns
        self._orders: dict[tuple[str, ...], list[tuple[str, bytes, str]]] = {}

    @property
    def digests(self) -> bytes:
        return b"".join(self._digests)

    def row(self, record: Record, dt: int) -> bytes:
        if self._clock:
            self._wall += dt
        self._record = record
        places, before = self._places, self._before
        plan, fields = _PLANS.get(record.type, ()), record.fields
        parts = [b"", integer(dt), integer(record.type << 4 | (8 if record.rule else 0) | record.severity)]
        append = parts.append
        for (kind, name), value in zip(plan, fields, strict=False):
            if value is None:
                append(_NULL)
            elif kind == _REF:
                append(places[value])
            elif kind == _NUMBER:
                last = before.get(name, 0)
                before[name] = value
                append(NATURALS[value] if value < 24 else integer(difference(value, last)))
            elif kind == _SMALL:
                append(_BOOLS[value] if value is True or value is False else integer(value))
            elif kind == _REFS:
                append(head(4, len(value)) + b"".join([places[item] for item in value]))
            elif kind == _COUNTER:
                append(integer(value - before.get(name, 0)))
                before[name] = value
            else:
                self._done = len(parts) - 3
                append(self._other(kind, name, value))
        parts += [encoded(value) for value in fields[len(plan) :]]
        while parts[-1] is _NULL:
            parts.pop()
        parts[0] = head(4, len(parts) - 1)
        return b"".join(parts)

    def _other(self, kind: int, name: str, value: Any) -> bytes:
        if kind == _COLUMNS:
            return self._columns(value)
        if kind == _ACTOR:
            return self._actor(value)
        if kind == _DIGEST:
            return self._reference(value) if len(value) == DIGEST_SIZE else encoded(value)
        if kind == _PLAIN:
            return encoded(value)
        return integer(self._number(name, value))

    def _number(self, name: str, value: int) -> int:
        if name == "start":
            return difference(value, self._wall)
        if name == "ppid":
            return difference(value, self._before.get("pid", 0))
        before = self._before.get(name, 0)
        self._before[name] = value
        return difference(value, before)

    def _reference(self, value: bytes) -> bytes:
        own = self._own()
        if own is not None and self._digest is not None and self._digest(own) == value:
            return integer(OWN)
        known = self._digests
        number = known.get(value)
        if number is None:
            known[value] = len(known)
            return integer(0)
        return integer(len(known) - number)

    def _own(self) -> int | None:
        """The baseline's entry of this row's own path, None if it has none before this field."""
        assert self._record
        fields = self._record.fields[: self._done]
        for (kind, _), value in zip(_PLANS.get(self._record.type, ()), fields, strict=False):
            place = self._raw[value] if kind == _REF and value is not None else None
            if type(place) is int and place < 0:
                return -1 - place
        return None

    def _columns(self, columns: dict[str, Any]) -> bytes:
        names = tuple(columns)
        order = self._orders.get(names)
        if order is None:
            order = self._orders[names] = _order(columns)
        parts, texts = [head(5, len(names))], self._texts
        for name, key, number in order:
            parts.append(key)
            value = columns[name]
            kind = type(value)
            if kind is str:
                parts.append(texts[value])
            elif kind is int:
                if not number:
                    parts.append(integer(value))
                elif value >= 0:
                    parts.append(integer(self._number(number, value)))
                else:
                    parts.append(encoded({_ESCAPED: value}))
            elif kind is bytes and len(value) == DIGEST_SIZE:
                parts.append(_DIGEST_HEAD + self._reference(value))
            else:
                parts.append(encoded(coded_value(value)))
        return b"".join(parts)

    def _actor(self, value: tuple[Any, ...]) -> bytes:
        places = self._places
        parts = [b""]
        for (kind, name), item in zip(_ACTOR_PLAN, value, strict=False):
            if item is None:
                parts.append(_NULL)
            elif kind == _REF:
                parts.append(places[item])
            elif kind == _REFS:
                parts.append(head(4, len(item)) + b"".join([places[text] for text in item]))
            elif kind == _NUMBER:
                parts.append(integer(self._number(name, item)))
            else:
                parts.append(encoded(item))
        parents = value[_PARENTS] if len(value) > _PARENTS else None
        if parents:
            pid = self._before.get("pid", 0)
            pairs = [_PAIR + integer(difference(number, pid)) + places[exe] for number, exe in parents]
            parts.append(head(4, len(pairs)) + b"".join(pairs))
        else:
            while parts and parts[-1] is _NULL:
                parts.pop()
        parts[0] = head(4, len(parts) - 1)
        return b"".join(parts)


class _Encoded(dict[str, bytes]):
    """What stands for a text in a row, encoded when it is first asked for."""

    def __init__(self, places: Mapping[str, int | str | bytes]) -> None:
        super().__init__()
        self._places = places

    def __missing__(self, text: str) -> bytes:
        found = self[text] = encoded(self._places[text])
        return found


class _Texts(dict[str, bytes]):
    """Texts of columns, encoded."""

    def __missing__(self, text: str) -> bytes:
        found = self[text] = encoded(coded_value(text))
        return found


def _order(columns: dict[str, Any]) -> list[tuple[str, bytes, str]]:
    """(name, encoded key, name of its differences or "") in the order of the keys."""
    coded = sorted(((COLUMN_NUMBERS.get(name, name), name) for name in columns), key=lambda item: key_order(item[0]))
    return [(name, encoded(coded_key(key)), name if key in NUMBER_COLUMNS else "") for key, name in coded]


class Unpacker(Reader):
    """Takes packed rows apart. `first`: time since boot and wall time of the first record, as the header has them."""

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

    def begin(self, mono: int) -> None:
        since, wall = self._first
        self._wall = 0 if wall is None else wall + mono - since
        self._own = None

    def end(self) -> None:
        if self._used != len(self._digests):
            raise DecodeError(f"digests: {len(self._digests)}, and {self._used} are used")

    def _difference(self, name: str, number: int, _where: str) -> int:
        return self._undone(name, number)

    def _digest_of(self, value: Any, where: str) -> Any:
        return self._reference(value, where) if type(value) is int else super()._digest_of(value, where)

    def _undone(self, name: str, number: int) -> int:
        if name == "start":
            return undo(number, self._wall)
        return undo(number, self._before.get("pid" if name == "ppid" else name, 0))

    def _number(self, name: str, number: int) -> int:
        value = self._before[name] = self._undone(name, number)
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
            return self._number(NUMBER_COLUMNS[key], value)
        if isinstance(value, dict):
            if set(value) == {_DIGEST_KEY}:
                return self._reference(value[_DIGEST_KEY], where)
            if set(value) == {_ESCAPED} and key in NUMBER_COLUMNS and type(value[_ESCAPED]) is int:
                return value[_ESCAPED]
        return super()._column(key, value, where)


_PLAIN, _SMALL, _REF, _REFS, _NUMBER, _MOVED, _DIGEST, _COLUMNS, _ACTOR, _COUNTER = range(10)
_CODES = {
    Kind.BOOL: _SMALL,
    Kind.ENUM: _SMALL,
    Kind.INT: _SMALL,
    Kind.REF: _REF,
    Kind.REFS: _REFS,
    Kind.UINT: _NUMBER,
    Kind.DIGEST: _DIGEST,
    Kind.COLUMNS: _COLUMNS,
    Kind.ACTOR: _ACTOR,
    Kind.COUNTER: _COUNTER,
}


def _plan(fields: tuple[Field, ...]) -> tuple[tuple[int, str], ...]:
    return tuple(
        (_MOVED if field.name in _TO_OTHERS else _CODES.get(field.kind, _PLAIN), field.name) for field in fields
    )


_PLANS: dict[int, tuple[tuple[int, str], ...]] = {kind.number: _plan(kind.fields) for kind in TYPES.values()}
_ACTOR_PLAN = _plan(ACTOR_FIELDS[:-1])
_TEXTS = {
    kind.number: tuple(
        (place, field.kind)
        for place, field in enumerate(kind.fields)
        if field.kind in {Kind.REF, Kind.REFS, Kind.ACTOR}
    )
    for kind in TYPES.values()
}
_ACTOR_TEXTS = tuple(
    (place, field.kind) for place, field in enumerate(ACTOR_FIELDS[:-1]) if field.kind in {Kind.REF, Kind.REFS}
)
