"""Records <-> rows <-> segment payloads. Pure: bytes and values, nothing is opened, no clock is asked.

    payload = [version, device, stream, seq, epoch, boot, first, n, previous, mono0, wall0, clock, baseline,
               dictionary, codec, body]
    body    = [strings, rows, ? drops], raw DEFLATE where that is shorter
    row     = [dt, type<<4 | rule<<3 | severity, fields...], trailing nulls cut

A text that occurs twice in a segment goes into `strings` and is an index; one that the baseline's manifest holds is
one negative number; any other is written out where it stands. A single record, as the journal keeps it, is a row
without a string table.
Signing is `codec.cose`, deciding what is recorded is `compose`. docs/wire-format.md says all of this for a stranger.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from edgeguard.codec import cbor
from edgeguard.errors import DecodeError, SegmentRefused
from edgeguard.records.registry import (
    ACTOR_FIELDS,
    COLUMN_NAMES,
    COLUMN_NUMBERS,
    TYPES,
    Field,
    Kind,
)

VERSION = 1
HEADER_FIELDS = 16
CODEC_RAW, CODEC_DEFLATE = 0, 1
NO_PREVIOUS = bytes(32)  # of the first segment of a stream
NO_BASELINE = bytes(8)
DEPTH = 7  # body, rows, row, actor, parents, one parent, and one to spare for fields of tomorrow
INFLATED_MAX = 256 * 1024  # bytes of a body; a sealer stops at 48 KiB
SEGMENT_MAX = 256 * 1024  # bytes of a sealed segment; also the limit of one POST
RECORDS_MAX = 4096  # rows in a segment; a sealer stops at 256
RECORD_MAX = 16 * 1024  # bytes of one row in the journal, whose frames count to 64 KiB
TEXT_MAX = 1024  # bytes of a text before it is cut, with a mark
LIST_MAX = 64  # elements of a list in a record
UINT_MAX = 2**64 - 1
COUNT_MAX = 2**62  # sequence numbers and times: sums of two still fit where SQL keeps its integers

Reference = Callable[[str], int | None]  # text -> entry of the baseline's manifest
Resolve = Callable[[int], str | None]  # and back


class Entry(NamedTuple):
    """An entry of a baseline manifest that the reader does not have."""

    number: int


class Record(NamedTuple):
    """One logged entry. `fields` are in the registry's order; more than it knows is kept as it came."""

    type: int
    stream: int
    mono: int  # ms since boot
    wall: int | None  # ms since the epoch, as the device believed
    clock: int = 0
    severity: int = 0
    rule: bool = False
    fields: tuple[Any, ...] = ()


class Drop(NamedTuple):
    """Segments that will never come, and why (registry.REASONS)."""

    first: int
    last: int
    reason: int
    stream: int


class Header(NamedTuple):
    device: bytes
    stream: int
    sequence: int
    epoch: int  # whose key signed it (epoch.Statement)
    boot: int
    first: int  # sequence number of the first record
    n: int  # how many
    previous: bytes  # SHA-256 of the whole segment before this one
    mono: int
    wall: int | None
    clock: int
    baseline: bytes
    dictionary: int


class Segment(NamedTuple):
    header: Header
    records: tuple[Record, ...]
    drops: tuple[Drop, ...]


# --- out ---------------------------------------------------------------------------------------------------------


def encode_record(record: Record) -> bytes:
    """A record alone, as the journal keeps it: [stream, wall, clock, row], texts written out."""
    from cbor2 import dumps  # only writers need it

    row = _row(record, record.mono, _inline)
    encoded: bytes = dumps([record.stream, record.wall, record.clock, row])
    return encoded


def decode_record(data: bytes) -> Record:
    """The record that `encode_record` wrote. Raises DecodeError."""
    parts = cbor.decode(data, depth=DEPTH, size=0x10000)
    if not isinstance(parts, list) or len(parts) != 4:
        raise DecodeError("record: not an array of four")
    stream, wall, clock, row = parts
    _need(_is_uint(stream) and stream < 16, "record: stream")
    _need(wall is None or type(wall) is int, "record: wall time")
    _need(_is_uint(clock) and clock < 4, "record: clock quality")
    mono, record = _parse_row(row, _Reader((), None), 0)
    return record._replace(stream=stream, mono=mono, wall=wall, clock=clock)


def encode_segment(
    header: Header, records: Sequence[Record], reference: Reference | None = None, drops: Sequence[Drop] = ()
) -> bytes:
    """The payload of a segment. `n`, `mono`, `wall` and `clock` of the header are taken from the records."""
    from cbor2 import dumps

    first = records[0]
    strings, place = _string_table(records, reference)
    rows: list[list[Any]] = []
    before = first.mono
    for record in _differences(records):
        mono = max(before, record.mono)  # a step back of some ms between two sensors is not worth a sign
        rows.append(_row(record, mono - before, place))
        before = mono
    content: list[Any] = [strings, rows]
    if drops:
        content.append([list(drop) for drop in drops])
    plain = dumps(content)
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    squeezed = squeezer.compress(plain) + squeezer.flush()
    codec, body = (CODEC_DEFLATE, squeezed) if len(squeezed) < len(plain) else (CODEC_RAW, plain)
    payload: bytes = dumps(
        [
            VERSION,
            header.device,
            header.stream,
            header.sequence,
            header.epoch,
            header.boot,
            header.first,
            len(records),
            header.previous,
            first.mono,
            first.wall,
            first.clock,
            header.baseline,
            header.dictionary,
            codec,
            body,
        ]
    )
    return payload


def _string_table(records: Iterable[Record], reference: Reference | None) -> tuple[list[str | bytes], Place]:
    """What occurs twice gets a number, the baseline's own a negative one. Most frequent first: short numbers."""
    seen: dict[str, int] = {}

    def count(text: str) -> int:
        seen[text] = seen.get(text, 0) + 1
        return 0

    for record in records:
        _row(record, 0, count)
    places: dict[str, int | str | bytes] = {}
    strings: list[str | bytes] = []
    for text, times in sorted(seen.items(), key=lambda item: -item[1]):
        index = reference(text) if reference is not None else None
        if index is not None:
            places[text] = -1 - index
        elif times > 1 and len(text) > 2:
            places[text] = len(strings)
            strings.append(_inline(text))
        else:
            places[text] = _inline(text)
    return strings, places.__getitem__


def _differences(records: Sequence[Record]) -> Iterable[Record]:
    """Counters of metrics as differences to the row of the same type before; the first stands as it is."""
    before: dict[tuple[int, int], int] = {}
    for record in records:
        counters = _COUNTERS.get(record.type)
        if counters is None:
            yield record
            continue
        fields = list(record.fields)
        for place in counters:
            if place < len(fields) and fields[place] is not None:
                key, value = (record.type, place), fields[place]
                fields[place] = value - before.get(key, 0)
                before[key] = value
        yield record._replace(fields=tuple(fields))


Place = Callable[[str], int | str | bytes]


def _inline(text: str) -> str | bytes:
    """Text as CBOR can hold it: names that are not UTF-8 as bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape") if _escaped(text) else text.encode("utf-8", "backslashreplace")
    return text


def _escaped(text: str) -> bool:
    """Are all lone surrogates those that os.fsdecode makes?"""
    return all("\udc80" <= letter <= "\udcff" for letter in text if "\ud800" <= letter <= "\udfff")


def _row(record: Record, dt: int, place: Place) -> list[Any]:
    row: list[Any] = [dt, record.type << 4 | (8 if record.rule else 0) | record.severity]
    plan = _PLANS.get(record.type, ())
    row += [
        value if writer is None or value is None else writer(value, place)
        for writer, value in zip(plan, record.fields, strict=False)
    ]
    row += record.fields[len(plan) :]
    while row[-1] is None:
        row.pop()
    return row


def _write_ref(value: Any, place: Place) -> Any:
    return place(value)


def _write_refs(value: Any, place: Place) -> Any:
    return [place(item) for item in value]


def _write_columns(value: Any, _place: Place) -> Any:
    coded = {COLUMN_NUMBERS.get(name, name): _write_value(item) for name, item in value.items()}
    return {key: coded[key] for key in sorted(coded, key=_key_order)}


def _key_order(key: int | str) -> tuple[int, int, bytes]:
    if isinstance(key, int):
        return (0, key, b"")
    text = key.encode("utf-8", "backslashreplace")
    return (1, len(text), text)


def _write_value(value: Any) -> Any:
    if isinstance(value, str):
        text = _inline(value)
        return text if isinstance(text, str) else {0: text}
    if isinstance(value, tuple):
        return [_write_value(item) for item in value]
    return value


def _write_actor(value: Any, place: Place) -> Any:
    row = [
        item if writer is None or item is None else writer(item, place)
        for writer, item in zip(_ACTOR_PLAN, value, strict=False)
    ]
    parents = value[len(ACTOR_FIELDS) - 1] if len(value) >= len(ACTOR_FIELDS) else None
    row.append([[pid, place(exe)] for pid, exe in parents] if parents else None)
    while row and row[-1] is None:
        row.pop()
    return row


_WRITERS: dict[Kind, Callable[[Any, Place], Any]] = {  # any other kind goes out as it is
    Kind.REF: _write_ref,
    Kind.REFS: _write_refs,
    Kind.COLUMNS: _write_columns,
    Kind.ACTOR: _write_actor,
}
_PLANS = {kind.number: tuple(_WRITERS.get(field.kind) for field in kind.fields) for kind in TYPES.values()}
_ACTOR_PLAN = tuple(_WRITERS.get(field.kind) for field in ACTOR_FIELDS[:-1])
_COUNTERS = {
    kind.number: tuple(place for place, field in enumerate(kind.fields) if field.kind is Kind.COUNTER)
    for kind in TYPES.values()
    if any(field.kind is Kind.COUNTER for field in kind.fields)
}


# --- in ----------------------------------------------------------------------------------------------------------


def decode_header(payload: bytes) -> Header:
    """The header alone; the body is not looked into. Raises SegmentRefused."""
    return _opened(payload)[0]


def decode_segment(payload: bytes, resolve: Resolve | None = None) -> Segment:
    """A whole segment, strictly. `resolve` knows the baseline's entries; without it they stay `Entry` numbers.

    Raises SegmentRefused for anything that a sealer does not write, except types and fields of tomorrow.
    """
    header, codec, body = _opened(payload)
    try:
        content = cbor.decode(_inflate(codec, body), depth=DEPTH, size=INFLATED_MAX)
        _need(isinstance(content, list) and 2 <= len(content) <= 3, "body: not an array of two or three")
        reader = _Reader(_strings(content[0]), resolve)
        records = _records(header, content[1], reader)
        drops = _drops(content[2]) if len(content) == 3 else ()
    except DecodeError as error:
        raise SegmentRefused(f"segment {header.stream}-{header.sequence}: {error}") from error
    return Segment(header, records, drops)


def split(data: bytes) -> list[bytes]:
    """The segments of a CBOR sequence, each as its own bytes. Raises SegmentRefused.

    Only the outer shape is looked at; `codec.cose` parses each strictly.
    """
    segments, at = [], 0
    while at < len(data):
        start = at
        if data[at : at + 2] != b"\xd2\x84":
            raise SegmentRefused(f"no segment begins at byte {at}")
        at += 2
        try:
            for _ in range(4):
                _, at = cbor.decode_prefix(data, at, depth=1, size=SEGMENT_MAX)
        except DecodeError as error:
            raise SegmentRefused(f"the segment at byte {start}: {error}") from error
        segments.append(data[start:at])
    return segments


def _opened(payload: bytes) -> tuple[Header, int, bytes]:
    try:
        parts = cbor.decode(payload, depth=1, size=SEGMENT_MAX)
        _need(isinstance(parts, list) and len(parts) >= HEADER_FIELDS, "payload: not an array of sixteen")
        return _header(parts)
    except DecodeError as error:
        raise SegmentRefused(f"segment: {error}") from error


def _header(parts: list[Any]) -> tuple[Header, int, bytes]:
    version, device, stream, sequence, epoch, boot, first, count, previous, mono, wall, clock, *rest = parts
    baseline, dictionary, codec, body = rest[:4]
    _need(version == VERSION and type(version) is int, f"payload: version {version!r} is not {VERSION}")
    _need(isinstance(device, bytes) and len(device) == 16, "payload: device id")
    _need(_is_uint(stream) and stream < 4, "payload: stream")
    for name, value in (("seq", sequence), ("epoch", epoch), ("boot", boot), ("first", first), ("mono0", mono)):
        _need(_is_uint(value) and value < COUNT_MAX, f"payload: {name}")
    _need(sequence > 0, "payload: seq starts at 1")
    _need(epoch > 0, "payload: epoch starts at 1")
    _need(_is_uint(count) and 0 < count <= RECORDS_MAX, "payload: number of records")
    _need(isinstance(previous, bytes) and len(previous) == 32, "payload: hash of the previous segment")
    _need(wall is None or (type(wall) is int and abs(wall) < COUNT_MAX), "payload: wall0")
    _need(_is_uint(clock) and clock < 4, "payload: clock quality")
    _need(isinstance(baseline, bytes) and len(baseline) == 8, "payload: baseline id")
    _need(_is_uint(dictionary) and dictionary == 0, f"payload: dictionary {dictionary!r} is not here")
    _need(_is_uint(codec) and codec in {CODEC_RAW, CODEC_DEFLATE}, "payload: codec")
    _need(isinstance(body, bytes), "payload: body")
    header = Header(
        device, stream, sequence, epoch, boot, first, count, previous, mono, wall, clock, baseline, dictionary
    )
    return header, codec, body


def _inflate(codec: int, body: bytes) -> bytes:
    if codec == CODEC_RAW:
        return body
    inflater = zlib.decompressobj(-15)
    try:
        plain = inflater.decompress(body, INFLATED_MAX)
    except zlib.error as error:
        raise DecodeError(f"body: {error}") from error
    if not inflater.eof or inflater.unused_data:
        raise DecodeError(f"body: cut off, followed by other bytes, or of more than {INFLATED_MAX} bytes")
    return plain


def _strings(table: Any) -> tuple[str, ...]:
    _need(isinstance(table, list), "strings: not an array")
    _need(all(isinstance(item, (str, bytes)) for item in table), "strings: neither text nor bytes")
    return tuple(map(_text, table))


def _text(item: str | bytes) -> str:
    return item if isinstance(item, str) else item.decode("utf-8", "surrogateescape")


def _records(header: Header, rows: Any, reader: _Reader) -> tuple[Record, ...]:
    _need(isinstance(rows, list) and len(rows) == header.n, "rows: not as many as announced")
    records, mono = [], header.mono
    for row in rows:
        mono, record = _parse_row(row, reader, mono)
        wall = None if header.wall is None else header.wall + mono - header.mono
        records.append(record._replace(stream=header.stream, mono=mono, wall=wall, clock=header.clock))
    return tuple(records)


def _drops(entries: Any) -> tuple[Drop, ...]:
    _need(isinstance(entries, list), "drops: not an array")
    drops = []
    for entry in entries:
        shaped = isinstance(entry, list) and len(entry) >= 4 and all(_is_uint(item) for item in entry[:4])
        _need(
            shaped and 0 < entry[0] <= entry[1] < COUNT_MAX and entry[2] < 2**16 and entry[3] < 4,
            "drops: not [from, to, reason, stream]",
        )
        drops.append(Drop(*entry[:4]))
    return tuple(drops)


def _parse_row(row: Any, reader: _Reader, mono: int) -> tuple[int, Record]:
    _need(isinstance(row, list) and len(row) >= 2 and _is_uint(row[0]) and _is_uint(row[1]), "row: no [dt, head]")
    mono += row[0]
    _need(mono < COUNT_MAX, "row: dt")
    number, rule, severity = row[1] >> 4, bool(row[1] & 8), row[1] & 7
    kind = TYPES.get(number)
    if kind is None:
        return mono, Record(number, 0, 0, None, 0, severity, rule, tuple(row[2:]))
    return mono, Record(number, 0, 0, None, 0, severity, rule, reader.fields(kind.name, kind.fields, row[2:]))


class _Reader:
    """Takes fields apart, with what a segment's references point at."""

    def __init__(self, strings: tuple[str, ...], resolve: Resolve | None) -> None:
        self._strings = strings
        self._resolve = resolve
        self._counters: dict[tuple[str, int], int] = {}

    def fields(self, name: str, known: tuple[Field, ...], values: list[Any]) -> tuple[Any, ...]:
        parsed: list[Any] = []
        for place, (field, value) in enumerate(zip(known, values, strict=False)):
            if value is None:
                parsed.append(None)
                continue
            item = self._field(field, value, f"{name}.{field.name}")
            if field.kind is Kind.COUNTER:
                item += self._counters.get((name, place), 0)
                self._counters[name, place] = item
            parsed.append(item)
        return (*parsed, *values[len(known) :])

    def _field(self, field: Field, value: Any, where: str) -> Any:
        kind = field.kind
        if kind is Kind.REF:
            return self._ref(value, where)
        if kind is Kind.REFS:
            _need(isinstance(value, list), f"{where}: not a list")
            return tuple(self._ref(item, where) for item in value)
        if kind is Kind.COLUMNS:
            return self._columns(value, where)
        if kind is Kind.ACTOR:
            return self._actor(value, where)
        _need(_PLAIN[kind](value), f"{where}: not {kind.name.lower()}")
        return value

    def _ref(self, value: Any, where: str) -> Any:
        if isinstance(value, (str, bytes)):
            return _text(value)
        _need(type(value) is int, f"{where}: not a reference")
        if value < 0:
            text = self._resolve(-1 - value) if self._resolve is not None else None
            return Entry(-1 - value) if text is None else text
        _need(value < len(self._strings), f"{where}: string {value} of {len(self._strings)}")
        return self._strings[value]

    def _columns(self, value: Any, where: str) -> dict[str, Any]:
        _need(isinstance(value, dict), f"{where}: not a map")
        columns: dict[str, Any] = {}
        for key, item in value.items():
            name = key
            if isinstance(key, int):
                name = COLUMN_NAMES[key] if key < len(COLUMN_NAMES) else f"column {key}"
            _need(name not in columns, f"{where}: column {name!r} twice")
            columns[name] = _value(item, where)
        return columns

    def _actor(self, value: Any, where: str) -> tuple[Any, ...]:
        _need(isinstance(value, list), f"{where}: not an array")
        last = len(ACTOR_FIELDS) - 1
        parts = list(self.fields(where, ACTOR_FIELDS[:-1], value[:last]))
        parts += [None] * (last - len(parts))
        parents = value[last] if len(value) > last and value[last] is not None else []
        _need(isinstance(parents, list), f"{where}: parents are not a list")
        pairs = []
        for pair in parents:
            _need(isinstance(pair, list) and len(pair) == 2 and _is_uint(pair[0]), f"{where}: parent is no pair")
            pairs.append((pair[0], self._ref(pair[1], where)))
        return (*parts, tuple(pairs))


def _value(value: Any, where: str) -> Any:
    """A column's value. Maps stand for bytes that are text but not UTF-8."""
    if isinstance(value, dict):
        _need(set(value) == {0} and isinstance(value[0], bytes), f"{where}: not a column value")
        return _text(value[0])
    if isinstance(value, list):
        _need(not any(isinstance(item, list) for item in value), f"{where}: a list in a list")
        return tuple(_value(item, where) for item in value)
    return value


def _is_uint(value: Any) -> bool:
    return type(value) is int and value >= 0


_PLAIN: dict[Kind, Callable[[Any], bool]] = {
    Kind.UINT: _is_uint,
    Kind.ENUM: _is_uint,
    Kind.INT: lambda value: type(value) is int,
    Kind.COUNTER: lambda value: type(value) is int,
    Kind.BOOL: lambda value: isinstance(value, bool),
    Kind.DIGEST: lambda value: isinstance(value, bytes) and len(value) <= 64,
    Kind.BYTES: lambda value: isinstance(value, bytes),
}


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise DecodeError(problem)


# --- bounds ------------------------------------------------------------------------------------------------------


def shrink(record: Record) -> Record:
    """The record with every text and list cut to its bound, each cut marked. What is still too large becomes words."""
    record = record._replace(fields=tuple(map(_cut, record.fields)))
    if len(encode_record(record)) <= RECORD_MAX:
        return record
    kind = TYPES.get(record.type)
    texts = [item[:128] for item in record.fields if isinstance(item, str)][:4]
    words = f"a record of type {kind.name if kind else record.type} was too large: {', '.join(texts)}"
    return record._replace(type=15, fields=(words, True))


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return cut_text(value)
    if isinstance(value, bytes):
        return value if len(value) <= TEXT_MAX else value[:TEXT_MAX]
    if isinstance(value, tuple):
        items = tuple(_cut(item) for item in value[:LIST_MAX])
        texts = value and all(isinstance(item, str) for item in value)
        return (*items, f"[{len(value) - LIST_MAX} more]") if texts and len(value) > LIST_MAX else items
    if isinstance(value, dict):
        kept = {name: _cut(item) for name, item in list(value.items())[:LIST_MAX]}
        return kept if len(kept) == len(value) else {**kept, "more": len(value) - len(kept)}
    if type(value) is int and not -UINT_MAX - 1 <= value <= UINT_MAX:
        return None
    return value


def cut_text(text: str, limit: int = TEXT_MAX) -> str:
    """At most `limit` letters, and a mark that says how many are missing."""
    return text if len(text) <= limit else f"{text[:limit]}[{len(text) - limit} more]"
