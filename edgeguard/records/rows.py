"""Rows out of the bytes of a body, in one pass: CBOR, schema and references together. Pure.

Each field of a type is read by a table of 256 entries, one for each kind: the first byte gives the value, or says that
there is more of it. So most of what records are made of costs one look, and what may not stand there is refused where
it stands. How strictly CBOR is read is `codec.cbor`'s word; `wire` says what a row is, `unpacking` what a packed
one is. What else a value may be (a longer form, another type) goes through `cbor.item_at` and is named.
"""

from __future__ import annotations

from typing import Any

from edgeguard.codec import cbor
from edgeguard.codec.cbor import MORE, ONE, item_at
from edgeguard.errors import DecodeError, Incomplete
from edgeguard.records.registry import ACTOR_FIELDS, COLUMN_NAMES, TYPES, Field, Kind
from edgeguard.records.wire import COUNT_MAX, DEPTH, Drop, Entry, Header, Record, Resolve

ROW_DEPTH = DEPTH - 3  # of a field's value: body, rows and row are around it
_PARENTS = len(ACTOR_FIELDS) - 1
_NULL = 0xF6
_Plan = tuple[tuple[int, str], ...]  # kind and name of each field


class Reader:
    """Takes one body apart, with what its references point at."""

    sizes: tuple[int, ...] = (2, 3)
    size_words = "two or three"
    numbers: frozenset[int] = frozenset()  # columns whose numbers may be differences

    def __init__(self, data: bytes, resolve: Resolve | None, *, depth: int = ROW_DEPTH) -> None:
        self._data = data
        self._resolve = resolve
        self._depth = depth
        self._strings: tuple[str, ...] = ()
        self._before: dict[str, int] = {}  # the last number of each name in the segment
        self._entries: dict[int, str | Entry] = {}
        self._mono = 0  # of the row, ms since boot
        self._own: int | None = None  # the first of a row's texts that is a reference into the baseline
        self._tables = _TABLES
        self._open = False  # something is still to be filled in among this row's fields
        self._late: list[tuple[int, list[Any]]] = []  # such rows and their fields

    def content(self, header: Header) -> tuple[tuple[Record, ...], tuple[Drop, ...]]:
        """All of it. Raises DecodeError."""
        data = self._data
        size, at = cbor.count_at(data, 0, 4, "body: not an array")
        _need(size in self.sizes, f"body: not an array of {self.size_words}")
        table, at = item_at(data, at, DEPTH - 1)
        self._know(_strings(table))
        count, at = cbor.count_at(data, at, 4, "rows: not an array")
        _need(count == header.n, "rows: not as many as announced")
        records, at = self._records(header, at)
        drops: tuple[Drop, ...] = ()
        if size > 2:
            entries, at = item_at(data, at, DEPTH - 1)
            drops = _drops(entries)
        cbor.ended(data, self._end(at))
        for index, fields in self._late:
            records[index] = records[index]._replace(fields=tuple(fields))
        return tuple(records), drops

    def row(self, at: int, mono: int) -> tuple[int, int, int, list[Any]]:
        """The row that begins at `at`, `mono` ms after the start of the device what it counts from: (where it ends,
        its own time, head, fields)."""
        data = self._data
        try:
            count = data[at] - 0x80
            if 2 <= count < 24:
                at += 1
            else:
                count, at = cbor.count_at(data, at, 4, "row: no array")
                _need(count >= 2, "row: no [dt, head]")
            dt = data[at]
            if dt < 0x18:
                at += 1
            else:
                dt, at = self._natural(at)
            if data[at] == 0x18 and (head := data[at + 1]) >= 24:
                at += 2
            elif (head := data[at]) < 0x18:
                at += 1
            else:
                head, at = self._natural(at)
            mono += dt
            if mono >= COUNT_MAX:
                raise DecodeError("row: dt")
            self._mono = mono
            self._own = None
            name, plan = _READ.get(head >> 4, _UNKNOWN)
            fields, at = self._fields(at, plan, count - 2, name)
        except IndexError:
            raise Incomplete(f"ends at byte {len(data)}") from None
        except UnicodeDecodeError:
            raise DecodeError(f"text in the row that ends before byte {len(data)} is not UTF-8") from None
        return at, mono, head, fields

    def _records(self, header: Header, at: int) -> tuple[list[Record], int]:
        records: list[Record] = []
        append, row, stream, clock = records.append, self.row, header.stream, header.clock
        mono = header.mono
        ahead = None if header.wall is None else header.wall - mono
        for index in range(header.n):
            at, mono, head, fields = row(at, mono)
            if self._open:
                self._late.append((index, fields))
                self._open = False
            wall = None if ahead is None else ahead + mono
            append(_new(Record, (head >> 4, stream, mono, wall, clock, head & 7, bool(head & 8), tuple(fields))))
        return records, at

    def _natural(self, at: int) -> tuple[int, int]:
        data = self._data
        if data[at] == 0x19 and data[at + 1]:
            return data[at + 1] << 8 | data[at + 2], at + 3
        value, at = item_at(data, at, self._depth)
        if type(value) is not int or value < 0:
            raise DecodeError("row: no [dt, head]")
        return value, at

    def _know(self, strings: tuple[str, ...]) -> None:
        self._strings = strings
        texts = list(_TABLES[_REF])
        texts[: min(24, len(strings))] = strings[:24]
        self._tables = [texts, *_TABLES[1:]]

    def _end(self, at: int) -> int:
        """Drops were read, up to `at`: where everything ends."""
        return at

    def _fields(self, at: int, plan: _Plan, count: int, where: str) -> tuple[list[Any], int]:
        """`count` values, those of the fields that `plan` lists and behind them what is of tomorrow, and kept."""
        data, tables, before = self._data, self._tables, self._before
        values: list[Any] = []
        append = values.append
        for code, name in plan[:count]:
            initial = data[at]
            value = tables[code][initial]
            if value is not MORE:
                append(value)
                at += 1
                continue
            if initial < 0x40:
                number = ONE[initial]
                if number is not MORE:
                    at += 1
                elif initial == 0x19 and data[at + 1]:
                    number = data[at + 1] << 8 | data[at + 2]
                    at += 3
                elif initial == 0x18 and data[at + 1] >= 24:
                    number = data[at + 1]
                    at += 2
                elif initial == 0x39 and data[at + 1]:
                    number = -1 - (data[at + 1] << 8 | data[at + 2])
                    at += 3
                elif initial == 0x38 and data[at + 1] >= 24:
                    number = -1 - data[at + 1]
                    at += 2
                else:
                    number, at = item_at(data, at, 0)
                if code == _NUMBER:
                    if number < 0:
                        number = self._undone(name, number, where)
                    before[name] = number
                elif code == _REF:
                    if number < 0:
                        if self._own is None:
                            self._own = -1 - number
                        number = self._entries.get(number) or self._entry(number)
                    elif number < len(self._strings):
                        number = self._strings[number]
                    else:
                        raise self._no_string(number, where, name)
                elif code == _COUNTER:
                    number = before[name] = number + before.get(name, 0)
                elif code == _DIGEST:
                    number = self._digest(number, values, len(values), where, name)
                elif code != _INT and (code != _ENUM or number < 0):
                    raise _wrong(code, where, name)
                append(number)
            elif code == _REF:
                value, at = self._text(at, where, name)
                append(value)
            elif code == _REFS:
                value, at = self._texts(at, where, name)
                append(value)
            elif code == _COLUMNS:
                value, at = self._columns(at, where, name)
                append(value)
            elif code == _ACTOR:
                value, at = self._actor(at, f"{where}.{name}")
                append(value)
            else:
                value, at = item_at(data, at, self._depth)
                if type(value) is not bytes or code not in _BYTES_MAX or len(value) > _BYTES_MAX[code]:
                    raise _wrong(code, where, name)
                append(value)
        for _ in range(count - len(plan)):
            value, at = item_at(data, at, self._depth)
            append(value)
        return values, at

    # --- texts

    def _text(self, at: int, where: str, name: str) -> tuple[Any, int]:
        """A reference that is no field of its own."""
        data = self._data
        initial = data[at]
        value: Any
        if 0x60 <= initial < 0x78:
            end = at + initial - 0x5F
            if end <= len(data):
                return data[at + 1 : end].decode(), end
        if initial == 0x39 and data[at + 1]:
            value, at = -1 - (data[at + 1] << 8 | data[at + 2]), at + 3
        elif initial == 0x18 and data[at + 1] >= 24:
            value, at = data[at + 1], at + 2
        elif initial == 0x78 and data[at + 1] >= 24 and (end := at + 2 + data[at + 1]) <= len(data):
            return data[at + 2 : end].decode(), end
        else:
            value, at = item_at(data, at, 0 if initial < 0x80 else self._depth)
        kind = type(value)
        if kind is int:
            if value < 0:
                return self._entries.get(value) or self._entry(value), at
            if value < len(self._strings):
                return self._strings[value], at
            raise self._no_string(value, where, name)
        if kind is str:
            return value, at
        if kind is bytes:
            return value.decode("utf-8", "surrogateescape"), at
        raise _wrong(_REF, where, name)

    def _texts(self, at: int, where: str, name: str) -> tuple[tuple[Any, ...], int]:
        data, texts, text = self._data, self._tables[_REF], self._text
        if not 0x80 <= data[at] < 0xA0:
            item_at(data, at, self._depth)
            raise _wrong(_REFS, where, name)
        count = data[at] - 0x80
        if count < 24:
            at += 1
        else:
            count, at = cbor.count_at(data, at, 4, "")
        items: list[Any] = []
        for _ in range(count):
            value = texts[data[at]]
            if value is MORE or value is None:
                value, at = text(at, where, name)
            else:
                at += 1
            items.append(value)
        return tuple(items), at

    def _entry(self, reference: int) -> Any:
        """The path of a baseline's entry, looked up once in a segment."""
        text = self._resolve(-1 - reference) if self._resolve is not None else None
        found = self._entries[reference] = Entry(-1 - reference) if text is None else text
        return found

    def _no_string(self, number: int, where: str, name: str) -> DecodeError:
        return DecodeError(f"{where}.{name}: string {number} of {len(self._strings)}")

    # --- what packed rows say otherwise

    def _undone(self, name: str, number: int, where: str) -> int:
        """The number that a negative one stands for."""
        del number
        raise _wrong(_NUMBER, where, name)

    def _digest(self, number: int, place: Any, key: Any, where: str, name: str) -> Any:
        """The digest that a number stands for; what is known later goes into `place[key]`."""
        del number, place, key
        raise _wrong(_DIGEST, where, name)

    def _column(self, columns: dict[str, Any], name: str, key: int | str, value: Any, where: str) -> Any:
        """A column's value that is no text, and no number either where there may be differences."""
        del columns, name, key
        return _value(value, where)

    # --- what is made of more

    def _columns(self, at: int, where: str, field: str) -> tuple[dict[str, Any], int]:
        data, start, depth, numbers = self._data, at, self._depth - 1, self.numbers
        count = data[at] - 0xA0
        if 0 <= count < 24:
            at += 1
        else:
            count, at = cbor.count_at(data, at, 5, f"{where}.{field}: not a map")
        columns: dict[str, Any] = {}
        last: cbor.Place = -1
        for _ in range(count):
            key = ONE[data[at]]
            if key is not MORE:
                at += 1
            elif data[at] == 0x18 and data[at + 1] >= 24:
                key = data[at + 1]
                at += 2
            else:
                key, at = item_at(data, at, 0)
            last = key if type(key) is int and type(last) is int and key > last else cbor.next_key(key, last, start)
            name: str = key
            if type(key) is int:
                name = COLUMN_NAMES[key] if key < len(COLUMN_NAMES) else f"column {key}"
            if name in columns:
                raise DecodeError(f"{where}.{field}: column {name!r} twice")
            initial = data[at]
            value = ONE[initial]
            if value is not MORE:
                at += 1
            elif 0x60 <= initial < 0x78 and (end := at + initial - 0x5F) <= len(data):
                columns[name] = data[at + 1 : end].decode()
                at = end
                continue
            elif initial == 0x19 and data[at + 1]:
                value = data[at + 1] << 8 | data[at + 2]
                at += 3
            elif initial == 0xA1 and data[at + 1] == 1 and (number := ONE[data[at + 2]]) is not MORE:
                columns[name] = None
                columns[name] = self._digest(number, columns, name, where, name)
                at += 3
                continue
            else:
                value, at = item_at(data, at, depth)
            if type(value) is not int or key in numbers:
                columns[name] = value if type(value) is str else self._column(columns, name, key, value, where)
            else:
                columns[name] = value
        return columns, at

    def _actor(self, at: int, where: str) -> tuple[tuple[Any, ...], int]:
        data, own, depth = self._data, self._own, self._depth
        count, at = cbor.count_at(data, at, 4, f"{where}: not an array")
        self._depth = depth - 1
        values, at = self._fields(at, _ACTOR_READ, min(count, _PARENTS), where)
        self._depth = depth
        self._own = own  # an actor's texts are not the row's own
        values += [None] * (_PARENTS - count)
        pairs: list[tuple[int, Any]] = []
        if count > _PARENTS:
            if data[at] == _NULL:
                at += 1
            else:
                at = self._pairs(at, where, pairs)
        for _ in range(count - len(ACTOR_FIELDS)):
            _, at = item_at(data, at, depth - 1)
        return (*values, tuple(pairs)), at

    def _pairs(self, at: int, where: str, pairs: list[tuple[int, Any]]) -> int:
        data, texts = self._data, self._tables[_REF]
        count, at = cbor.count_at(data, at, 4, f"{where}: parents are not a list")
        for _ in range(count):
            if data[at] != 0x82:
                item_at(data, at, self._depth)
                raise DecodeError(f"{where}: parent is no pair")
            number = ONE[data[at + 1]]
            if number is MORE:
                number, at = item_at(data, at + 1, 0)
            else:
                at += 2
            if type(number) is not int:
                raise DecodeError(f"{where}: parent is no pair")
            number = self._parent(number, where)
            exe = texts[data[at]]
            if exe is MORE or exe is None:
                exe, at = self._text(at, where, "parents")
            else:
                at += 1
            pairs.append((number, exe))
        return at

    def _parent(self, number: int, where: str) -> int:
        if number < 0:
            raise DecodeError(f"{where}: parent is no pair")
        return number


def _value(value: Any, where: str) -> Any:
    """A column's value. Maps stand for bytes that are text but not UTF-8."""
    if isinstance(value, dict):
        _need(set(value) == {0} and isinstance(value[0], bytes), f"{where}: not a column value")
        text: str = value[0].decode("utf-8", "surrogateescape")
        return text
    if isinstance(value, list):
        _need(not any(isinstance(item, list) for item in value), f"{where}: a list in a list")
        return tuple([_value(item, where) for item in value])
    return value


def _strings(table: Any) -> tuple[str, ...]:
    _need(isinstance(table, list), "strings: not an array")
    _need(all(isinstance(item, (str, bytes)) for item in table), "strings: neither text nor bytes")
    return tuple([item if type(item) is str else item.decode("utf-8", "surrogateescape") for item in table])


def _drops(entries: Any) -> tuple[Drop, ...]:
    _need(isinstance(entries, list), "drops: not an array")
    drops = []
    for entry in entries:
        shaped = (
            isinstance(entry, list) and len(entry) >= 4 and all(type(item) is int and item >= 0 for item in entry[:4])
        )
        _need(
            shaped and 0 < entry[0] <= entry[1] < COUNT_MAX and entry[2] < 2**16 and entry[3] < 4,
            "drops: not [from, to, reason, stream]",
        )
        drops.append(Drop(*entry[:4]))
    return tuple(drops)


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise DecodeError(problem)


def _wrong(code: int, where: str, name: str) -> DecodeError:
    return DecodeError(f"{where}.{name}: not {_WORDS[code]}")


_REF, _NUMBER, _COUNTER, _INT, _ENUM, _BOOL, _DIGEST, _BYTES, _REFS, _COLUMNS, _ACTOR = range(11)
_CODES = {
    Kind.REF: _REF, Kind.UINT: _NUMBER, Kind.COUNTER: _COUNTER, Kind.INT: _INT, Kind.ENUM: _ENUM, Kind.BOOL: _BOOL,
    Kind.DIGEST: _DIGEST, Kind.BYTES: _BYTES, Kind.REFS: _REFS, Kind.COLUMNS: _COLUMNS, Kind.ACTOR: _ACTOR,
}  # fmt: skip
_WORDS = (*("a reference", "uint", "counter", "int", "enum", "bool", "digest", "bytes", "a list", "a map", "an array"),)
_BYTES_MAX = {_DIGEST: 64, _BYTES: 2**62}


_NUMBERS = [value if value is None or type(value) is int else MORE for value in ONE]
_TABLES = [[value if value is None else MORE for value in ONE] for _ in _CODES]
_TABLES[_INT] = _NUMBERS
_TABLES[_ENUM] = [MORE if type(value) is int and value < 0 else value for value in _NUMBERS]
_TABLES[_BOOL] = [value if value is None or type(value) is bool else MORE for value in ONE]


def _plan(fields: tuple[Field, ...]) -> _Plan:
    return tuple((_CODES[field.kind], field.name) for field in fields)


_READ = {kind.number: (kind.name, _plan(kind.fields)) for kind in TYPES.values()}
_UNKNOWN: tuple[str, _Plan] = ("", ())
_ACTOR_READ = _plan(ACTOR_FIELDS[:-1])
_new = tuple.__new__  # a third of the time of Record(...), and a collector makes a hundred thousand a second
