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
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import getitem, itemgetter
from typing import Any, NamedTuple, Protocol

from edgeguard.codec import cbor
from edgeguard.codec.heads import ARRAYS, NATURALS, NEGATIVES, encoded, head, integer
from edgeguard.errors import DecodeError
from edgeguard.records import dictionaries
from edgeguard.records.registry import ACTOR_FIELDS, COLUMN_NUMBERS, TYPES, Field, Kind
from edgeguard.records.rows import Reader
from edgeguard.records.wire import (
    UINT_MAX,
    Digest,
    Drop,
    Entry,
    Record,
    Reference,
    Resolve,
    coded_key,
    coded_value,
    inline,
    key_order,
)

MEMORY = 8  # zlib's memLevel: with 9 the same bytes within 0.02 %, and twice the memory to copy
LEVEL = 6  # of DEFLATE with a dictionary: 9 saves 0.06 bytes an event and takes another 1.8 us
DIGEST_SIZE = 32
OWN = -1  # the digest of this row's own path
NUMBER_COLUMNS = {COLUMN_NUMBERS[name]: name for name in ("pid", "ppid", "start")}
_DIFFERENCE_MAX = 2**32  # beyond, a difference has nine bytes, too
_ESCAPED = 2  # {2: value}: what stands in a column of numbers and is none
_DIGEST_KEY = 1
_PARENTS = len(ACTOR_FIELDS) - 1
_NULL = b"\xf6"
_PAIR = head(4, 2)
_DIGEST_HEAD = head(5, 1) + integer(_DIGEST_KEY)
ORDERS_MAX = 1000  # orders of columns that are kept; a device has some forty


def moved(value: int, before: int) -> bytes:
    """`value` as it goes out: as it is, or as a difference where that has fewer bytes."""
    if value < 24:
        return NATURALS[value]
    z = (value - before) << 1 if value >= before else ((before - value) << 1) - 1
    if z < 24 or z < 0x100 <= value:
        return NEGATIVES[z]
    if z < 0x10000 <= value or z < _DIFFERENCE_MAX <= value:
        return integer(-1 - z)
    return NATURALS[value] if value < 0x100 else integer(value)


def string_table(
    records: Sequence[Record], reference: Reference | None
) -> tuple[list[str | bytes], dict[str, int | str | bytes]]:
    """What occurs twice gets a number, the baseline's own a negative one. Most frequent first: short numbers."""
    places: dict[str, int | str | bytes] = {}
    often: list[tuple[int, str]] = []
    counted = Counter(_texts(records))
    del counted[None]
    for text, times in counted.items():
        assert text is not None
        if reference is not None and text[:1] == "/" and (index := reference(text)) is not None:
            places[text] = -1 - index
        elif times > 1 and len(text) > 2:
            often.append((times, text))
        else:
            places[text] = text if text.isascii() else inline(text)
    often.sort(key=itemgetter(0), reverse=True)
    for number, (_, text) in enumerate(often):
        places[text] = number
    return [text if text.isascii() else inline(text) for _, text in often], places


def _texts(records: Iterable[Record]) -> list[str | None]:
    """Every text that may be a reference, in the order of the rows, and None where a field has none."""
    texts: list[str | None] = []
    for record in records:
        plan = _TEXTS.get(record.type)
        if plan is not None and plan.size:
            _gather(plan, record.fields, texts)
    return texts


def _gather(plan: _Texted, fields: tuple[Any, ...], texts: list[str | None]) -> None:
    if len(fields) < plan.size:
        fields += (None,) * (plan.size - len(fields))
    texts += plan.one(fields)
    for place in plan.lists:
        texts += fields[place] or ()
    if plan.actor is not None and fields[plan.actor] is not None:
        actor = fields[plan.actor]
        _gather(_ACTOR_TEXTS, actor, texts)
        if len(actor) > _PARENTS:
            texts += [exe for _, exe in actor[_PARENTS] or ()]


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
    rows = packer.rows(records)
    digests = b"".join(packer.digests)
    parts = (head(4, 4), encoded(strings), head(4, len(rows)), *rows, encoded([list(drop) for drop in drops]))
    plain = b"".join((*parts, encoded(digests)))
    return plain, len(plain) - len(digests)


def squeeze(plain: bytes, at: int, number: int) -> tuple[bytes, bytes]:
    """The body, and the body in fewer bytes. What stands from `at` on is random: a block, and so codes, of its own."""
    squeezer = _squeezer(number).copy()
    squeezed = squeezer.compress(plain[:at])
    if at < len(plain):
        squeezed += squeezer.flush(zlib.Z_BLOCK) + squeezer.compress(plain[at:])
    return plain, squeezed + squeezer.flush()


@lru_cache(maxsize=1)
def _squeezer(number: int) -> zlib._Compress:
    """One that has read the dictionary, to be copied: reading it takes 30 us, which is half a microsecond for each of
    64 events. Raises DecodeError if that dictionary is not here."""
    return zlib.compressobj(LEVEL, zlib.DEFLATED, -15, MEMORY, zlib.Z_DEFAULT_STRATEGY, dictionaries.read(number))


class Table(Protocol):
    """From the value of a field to its encoding."""

    def __getitem__(self, value: Any, /) -> bytes: ...


class Packer:
    """Writes the rows of one segment, in their order. `wall`: of the first record.

    Straight into bytes, because Debian 13's cbor2 is Python and took three times as long for lists that it only walks
    once more. Every field has a table from values to encodings, which the interpreter walks along with the fields: most
    are dictionaries of what the segment said before. What depends on the rows before (numbers, digests) is computed
    behind the same face, a `__getitem__`.
    """

    def __init__(self, places: Mapping[str, int | str | bytes], digest: Digest | None, wall: int | None) -> None:
        self.places = places
        self.texts = _encoded_places(places)
        self.digest = digest
        self.digests: dict[bytes, int] = {}
        self.record: Record | None = None  # whose row is written
        self.wall = wall or 0  # of the row, as a reader will make it out of `wall` and the rows' differences
        self._clock = wall is not None
        self._lists = _Lists(self.texts)
        self._numbers: dict[str, _Number] = {}
        self._tables: dict[int, tuple[Table, ...]] = {}

    def rows(self, records: Iterable[Record]) -> list[bytes]:
        tables_of, arrays, clock = self._tables, ARRAYS, self._clock
        rows: list[bytes] = []
        before: int | None = None
        for record in records:
            self.record = record
            number, _, mono, _, _, severity, rule, fields = record
            dt = 0
            if before is None:
                before = mono
            elif mono > before:  # a step back of some ms between two sensors is not worth a sign
                dt, before = mono - before, mono
                if clock:
                    self.wall += dt
            tables = tables_of.get(number)
            if tables is None:
                tables = self._made(number)
            parts = [
                b"",
                NATURALS[dt] if dt < 0x100 else integer(dt),
                integer(number << 4 | (8 if rule else 0) | severity),
                *map(getitem, tables, fields),
            ]
            if len(fields) > len(tables):
                parts += map(encoded, fields[len(tables) :])
            while parts[-1] is _NULL:
                parts.pop()
            count = len(parts) - 1
            parts[0] = arrays[count] if count < 24 else head(4, count)
            rows.append(b"".join(parts))
        return rows

    def _made(self, number: int) -> tuple[Table, ...]:
        kind = TYPES.get(number)
        fields = kind.fields if kind else ()
        made = tuple(self._table(field, place) for place, field in enumerate(fields))
        self._tables[number] = made
        return made

    def _table(self, field: Field, place: int) -> Table:
        kind = field.kind
        if kind is Kind.REF:
            return self.texts
        if kind is Kind.REFS:
            return self._lists
        if kind is Kind.UINT:
            return self.moving(field.name)
        if kind is Kind.COUNTER:
            return _Counter(self.number(field.name))
        if kind is Kind.COLUMNS:
            return _Columns(self, place)
        if kind is Kind.DIGEST:
            return _Digests(self, place)
        if kind is Kind.ACTOR:
            return _Actor(self, [self._table(inner, 0) for inner in ACTOR_FIELDS[:-1]])
        return _BOOLS if kind is Kind.BOOL else _PLAIN

    def moving(self, name: str) -> Table:
        """The differences of a field or column of this name: `start` and `ppid` are told from something else."""
        if name == "start":
            return _Start(self)
        return _Parent(self.number("pid")) if name == "ppid" else self.number(name)

    def number(self, name: str) -> _Number:
        """All numbers of this name in the segment."""
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = _Number()
        return found


class _Number:
    """Differences to the number of the same name before it."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0

    def __getitem__(self, value: int | None) -> bytes:
        if value is None:
            return _NULL
        last, self.last = self.last, value
        if value < 24:
            return NATURALS[value]
        z = (value - last) << 1 if value >= last else ((last - value) << 1) - 1
        return NEGATIVES[z] if z < 24 or z < 0x100 <= value else moved(value, last)


class _Parent:
    """A number's differences to the last `pid`."""

    __slots__ = ("_pid",)

    def __init__(self, pid: _Number) -> None:
        self._pid = pid

    def __getitem__(self, value: int | None) -> bytes:
        return _NULL if value is None else moved(value, self._pid.last)


class _Start:
    """Its difference to the wall time of the row."""

    __slots__ = ("_packer",)

    def __init__(self, packer: Packer) -> None:
        self._packer = packer

    def __getitem__(self, value: int | None) -> bytes:
        return _NULL if value is None else moved(value, self._packer.wall)


class _Counter:
    """The plain difference to the row before."""

    __slots__ = ("_number",)

    def __init__(self, number: _Number) -> None:
        self._number = number

    def __getitem__(self, value: int | None) -> bytes:
        if value is None:
            return _NULL
        number = self._number
        last, number.last = number.last, value
        step = value - last
        return NATURALS[step] if 0 <= step < 0x100 else integer(step)


class _Digests:
    """Digests, in the field at `place` of a row or in columns there."""

    __slots__ = ("_packer", "_place")

    def __init__(self, packer: Packer, place: int) -> None:
        self._packer = packer
        self._place = place

    def __getitem__(self, value: bytes | None) -> bytes:
        if value is None:
            return _NULL
        return self.reference(value) if len(value) == DIGEST_SIZE else encoded(value)

    def reference(self, value: bytes) -> bytes:
        packer = self._packer
        if packer.digest is not None:
            own = self._own()
            if own is not None and packer.digest(own) == value:
                return integer(OWN)
        known = packer.digests
        number = known.get(value)
        if number is None:
            known[value] = len(known)
            return NATURALS[0]
        return integer(len(known) - number)

    def _own(self) -> int | None:
        """The baseline's entry of this row's own path, None if it has none before this field."""
        record, places = self._packer.record, self._packer.places
        assert record
        for at in _PATHS.get(record.type, ()):
            if at >= self._place:
                break
            value = record.fields[at]
            place = places[value] if value is not None else None
            if type(place) is int and place < 0:
                return -1 - place
        return None


class _Columns:
    """Columns, their keys in order."""

    __slots__ = ("_digests", "_numbers", "_texts")

    def __init__(self, packer: Packer, place: int) -> None:
        self._digests = _Digests(packer, place)
        self._numbers = {name: packer.moving(name) for name in NUMBER_COLUMNS.values()}
        self._texts = _Texts()

    def __getitem__(self, columns: dict[str, Any] | None) -> bytes:
        if columns is None:
            return _NULL
        texts, numbers = self._texts, self._numbers
        order = _ORDERS[tuple(columns)]
        parts = [head(5, len(columns))]
        append = parts.append
        for name, key, numbered in order:
            append(key)
            value = columns[name]
            kind = type(value)
            if kind is str:
                append(texts[value])
            elif kind is int:
                if not numbered:
                    append(NATURALS[value] if 0 <= value < 0x100 else integer(value))
                elif value >= 0:
                    append(numbers[name][value])
                else:
                    append(encoded({_ESCAPED: value}))
            elif kind is bytes and len(value) == DIGEST_SIZE:
                append(_DIGEST_HEAD + self._digests.reference(value))
            elif kind is bool:
                append(_BOOLS[value])
            else:
                append(encoded(coded_value(value)))
        return b"".join(parts)


class _Actor:
    """An actor: its fields, and parents in pairs of a number, which is a difference to the last `pid`, and a text."""

    __slots__ = ("_parent", "_tables", "_texts")

    def __init__(self, packer: Packer, tables: list[Table]) -> None:
        self._tables = tables
        self._texts = packer.texts
        self._parent = packer.moving("ppid")

    def __getitem__(self, value: tuple[Any, ...] | None) -> bytes:
        if value is None:
            return _NULL
        parts = [b"", *map(getitem, self._tables, value)]
        parents = value[_PARENTS] if len(value) > _PARENTS else None
        if parents:
            number, texts = self._parent, self._texts
            parts.append(head(4, len(parents)))
            for pid, exe in parents:
                parts += (_PAIR, number[pid], texts[exe])
            parts[0] = ARRAYS[len(ACTOR_FIELDS)]
        else:
            while parts[-1] is _NULL:
                parts.pop()
            parts[0] = ARRAYS[len(parts) - 1]
        return b"".join(parts)


_Encoded = dict[str | None, bytes]  # what stands for a text in a row


def _encoded_places(places: Mapping[str, int | str | bytes]) -> _Encoded:
    texts: _Encoded = {
        text: encoded(place) if type(place) is not int else NATURALS[place] if 0 <= place < 0x100 else integer(place)
        for text, place in places.items()
    }
    texts[None] = _NULL
    return texts


class _Lists(dict[tuple[str, ...] | None, bytes]):
    """Lists of such: command lines come again."""

    def __init__(self, texts: _Encoded) -> None:
        super().__init__({None: _NULL})
        self._texts = texts

    def __missing__(self, items: tuple[str, ...]) -> bytes:
        texts = self._texts
        found = self[items] = head(4, len(items)) + b"".join(map(texts.__getitem__, items))
        return found


class _Texts(dict[str, bytes]):
    """Texts of columns, encoded."""

    def __missing__(self, text: str) -> bytes:
        found = self[text] = encoded(coded_value(text))
        return found


class _Plain(dict[Any, bytes]):
    """What has no other way of being said. Numbers are most of it."""

    def __missing__(self, value: Any) -> bytes:
        return encoded(value)


class _Orders(dict[tuple[str, ...], tuple[tuple[str, bytes, bool], ...]]):
    """(name, encoded key, may it be a difference) of columns in the order of their keys."""

    def __missing__(self, names: tuple[str, ...]) -> tuple[tuple[str, bytes, bool], ...]:
        coded = sorted(((COLUMN_NUMBERS.get(name, name), name) for name in names), key=lambda item: key_order(item[0]))
        order = tuple((name, encoded(coded_key(key)), key in NUMBER_COLUMNS) for key, name in coded)
        if len(self) < ORDERS_MAX:
            self[names] = order
        return order


class Unpacker(Reader):
    """Takes packed rows apart. `first`: time since boot and wall time of the first record, as the header has them."""

    sizes = (4,)
    size_words = "four"
    numbers = frozenset(NUMBER_COLUMNS)

    def __init__(
        self, data: bytes, resolve: Resolve | None, digest: Digest | None, first: tuple[int, int | None]
    ) -> None:
        super().__init__(data, resolve)
        self._digest_of = digest
        self._used = 0  # of the digests behind the rows
        self._fill: list[tuple[Any, Any, int]] = []  # where one of them goes when they are known
        since, wall = first
        self._ahead = None if wall is None else wall - since

    def _end(self, at: int) -> int:
        digests, at = cbor.item_at(self._data, at, 1)
        if not isinstance(digests, bytes) or len(digests) % DIGEST_SIZE:
            raise DecodeError("digests: not bytes, 32 each")
        found = [digests[at : at + DIGEST_SIZE] for at in range(0, len(digests), DIGEST_SIZE)]
        if self._used > len(found):
            raise DecodeError(f"digests: digest {len(found)} of {len(found)}")
        if self._used < len(found):
            raise DecodeError(f"digests: {len(found)}, and {self._used} are used")
        for place, key, number in self._fill:
            place[key] = found[number]
        return at

    def _undone(self, name: str, number: int, where: str) -> int:
        if name == "start":
            before = 0 if self._ahead is None else self._ahead + self._mono  # the row's wall time
        else:
            before = self._before.get("pid" if name == "ppid" else name, 0)
        z = -1 - number
        value = before - ((z + 1) >> 1) if z & 1 else before + (z >> 1)
        if 0 <= value <= UINT_MAX:
            return value
        raise DecodeError(f"{where}.{name}: a difference that leads to {value}")

    def _parent(self, number: int, where: str) -> int:
        return number if number >= 0 else self._undone("ppid", number, where)

    def _digest(self, number: int, place: Any, key: Any, where: str, name: str) -> Any:
        if type(number) is not int or number < OWN or number > self._used:
            raise DecodeError(f"{where}.{name}: digest {number!r}, and {self._used} were used")
        if number == OWN:
            if self._own is None:
                raise DecodeError(f"{where}.{name}: the digest of a path that the row does not name")
            found = self._digest_of(self._own) if self._digest_of is not None else None
            return Entry(self._own) if found is None else found
        self._open = self._open or type(place) is list
        self._fill.append((place, key, self._used - number))
        if number == 0:
            self._used += 1
        return None

    def _column(self, columns: dict[str, Any], name: str, key: int | str, value: Any, where: str) -> Any:
        if type(value) is int:
            value = self._before[name] = self._undone(name, value, where) if value < 0 else value
            return value
        if isinstance(value, dict) and len(value) == 1:
            if _DIGEST_KEY in value:
                return self._digest(value[_DIGEST_KEY], columns, name, where, name)
            if key in NUMBER_COLUMNS and type(value.get(_ESCAPED)) is int:
                return value[_ESCAPED]
        return super()._column(columns, name, key, value, where)


class _Texted(NamedTuple):
    """Where texts stand in the fields of a type."""

    size: int  # so many fields, at least
    one: Callable[[tuple[Any, ...]], Iterable[str | None]]
    lists: tuple[int, ...]
    actor: int | None


def _texted(fields: tuple[Field, ...]) -> _Texted:
    places = {kind: tuple(at for at, field in enumerate(fields) if field.kind is kind) for kind in Kind}
    refs, lists, actors = places[Kind.REF], places[Kind.REFS], places[Kind.ACTOR]
    size = max((*refs, *lists, *actors), default=-1) + 1
    if len(refs) > 1:
        one: Callable[[tuple[Any, ...]], Iterable[str | None]] = itemgetter(*refs)
    else:
        one = itemgetter(slice(refs[0], refs[0] + 1) if refs else slice(0, 0))
    return _Texted(size, one, lists, actors[0] if actors else None)


_BOOLS = {None: _NULL, False: b"\xf4", True: b"\xf5"}
_PLAIN = _Plain({None: _NULL} | dict(enumerate(NATURALS)))
_ORDERS = _Orders()
_TEXTS = {kind.number: _texted(kind.fields) for kind in TYPES.values()}
_ACTOR_TEXTS = _texted(ACTOR_FIELDS[:-1])
_PATHS = {
    kind.number: tuple(at for at, field in enumerate(kind.fields) if field.kind is Kind.REF) for kind in TYPES.values()
}
