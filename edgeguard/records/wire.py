"""Records <-> rows <-> segment payloads. Pure: bytes and values, nothing is opened, no clock is asked.

    payload = [version, device, stream, seq, epoch, boot, first, n, previous, mono0, wall0, clock, baseline,
               dictionary, codec, body]
    body    = [strings, rows, ? drops], raw DEFLATE where that is shorter; with a preset dictionary, which the collector
              must have said that it has, [strings, rows, drops, digests] with rows as in `packing`
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
    COLUMN_NUMBERS,
    DROP,
    REASONS,
    TYPES,
    Kind,
)

VERSION = 1
HEADER_FIELDS = 16
CODEC_RAW, CODEC_DEFLATE, CODEC_PACKED, CODEC_PACKED_DEFLATE = 0, 1, 2, 3
NO_PREVIOUS = bytes(32)  # of the first segment of a stream
NO_BASELINE = bytes(8)
DEPTH = 7  # body, rows, row, actor, parents, one parent, and one to spare for fields of tomorrow
INFLATED_MAX = 256 * 1024  # bytes of a body; a sealer stops at 48 KiB
SEGMENT_MAX = 256 * 1024  # bytes of a sealed segment; also the limit of one POST
RECORDS_MAX = 4096  # rows in a segment; a sealer stops at 256
RECORD_MAX = 16 * 1024  # bytes of one row in the journal, whose frames count to 64 KiB
ALONE_MAX = 0x10000  # bytes of such a frame
TEXT_MAX = 1024  # bytes of a text before it is cut, with a mark
LIST_MAX = 64  # elements of a list in a record
TOO_LARGE = REASONS.index("too large")
UINT_MAX = 2**64 - 1
COUNT_MAX = 2**62  # sequence numbers and times: sums of two still fit where SQL keeps its integers

Place = Callable[[str], int | str | bytes]  # text -> what stands for it in a row
Reference = Callable[[str], int | None]  # text -> entry of the baseline's manifest
Resolve = Callable[[int], str | None]  # and back
Digest = Callable[[int], bytes | None]  # entry of the baseline's manifest -> SHA-256 of its content


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

    row = _row(record, record.mono, inline)
    encoded: bytes = dumps([record.stream, record.wall, record.clock, row])
    return encoded


def decode_record(data: bytes) -> Record:
    """The record that `encode_record` wrote. Raises DecodeError."""
    from edgeguard.records.rows import Reader

    if len(data) > ALONE_MAX:
        raise DecodeError(f"record: {len(data)} bytes, at most {ALONE_MAX} are read")
    parts, at = cbor.count_at(data, 0, 4, "record: not an array")
    _need(parts == 4, "record: not an array of four")
    stream, at = cbor.item_at(data, at, 0)
    wall, at = cbor.item_at(data, at, 0)
    clock, at = cbor.item_at(data, at, 0)
    _need(_is_uint(stream) and stream < 16, "record: stream")
    _need(wall is None or type(wall) is int, "record: wall time")
    _need(_is_uint(clock) and clock < 4, "record: clock quality")
    at, mono, head, fields = Reader(data, None).row(at, 0)
    cbor.ended(data, at)
    return Record(head >> 4, stream, mono, wall, clock, head & 7, bool(head & 8), tuple(fields))


def encode_segment(
    header: Header,
    records: Sequence[Record],
    reference: Reference | None = None,
    drops: Sequence[Drop] = (),
    digest: Digest | None = None,
) -> bytes:
    """The payload of a segment. `n`, `mono`, `wall` and `clock` of the header are taken from the records.

    A dictionary in the header packs the rows, too. Raises DecodeError if that dictionary is not here.
    """
    from edgeguard.codec.heads import encoded
    from edgeguard.records.strings import strings_of

    first = records[0]
    strings = strings_of(records, reference)
    if header.dictionary:
        from edgeguard.records.packing import pack, squeeze

        packed, squeezed = squeeze(*pack(records, strings, drops, digest), header.dictionary)
        codec, body = _shorter(packed, squeezed, CODEC_PACKED)
    else:
        from cbor2 import dumps

        place = strings.places().__getitem__
        rows = written(_differences(records), lambda record, dt: _row(record, dt, place))
        content: list[Any] = [strings.table(), rows]
        if drops:
            content.append([list(drop) for drop in drops])
        plain = dumps(content)
        squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
        codec, body = _shorter(plain, squeezer.compress(plain) + squeezer.flush(), CODEC_RAW)
    return encoded(
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


def _shorter(plain: bytes, squeezed: bytes, raw: int) -> tuple[int, bytes]:
    """The codec (`raw`, or DEFLATE over it, the number after it) and the body."""
    return (raw | CODEC_DEFLATE, squeezed) if len(squeezed) < len(plain) else (raw, plain)


def written(records: Iterable[Record], write: Callable[[Record, int], Any]) -> list[Any]:
    """The rows of records, by who writes one from a record and the ms since the row before."""
    rows: list[Any] = []
    before: int | None = None
    for record in records:
        before = record.mono if before is None else before
        mono = max(before, record.mono)  # a step back of some ms between two sensors is not worth a sign
        rows.append(write(record, mono - before))
        before = mono
    return rows


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


def inline(text: str) -> str | bytes:
    """Text as CBOR can hold it: names that are not UTF-8 as bytes."""
    if text.isascii():
        return text
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
    coded = {COLUMN_NUMBERS.get(name, name): coded_value(item) for name, item in value.items()}
    return {coded_key(key): coded[key] for key in sorted(coded, key=key_order)}


def key_order(key: int | str) -> tuple[int, int, bytes]:
    """Sorts the keys of columns as their encodings are sorted."""
    if isinstance(key, int):
        return (0, key, b"")
    text = key.encode("utf-8", "backslashreplace")
    return (1, len(text), text)


def coded_key(key: int | str) -> int | str:
    return key if isinstance(key, int) else key.encode("utf-8", "backslashreplace").decode()


def coded_value(value: Any) -> Any:
    """A column's value as CBOR holds it."""
    if isinstance(value, str):
        text = inline(value)
        return text if isinstance(text, str) else {0: text}
    if isinstance(value, tuple):
        return [coded_value(item) for item in value]
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
_PARENTS = len(ACTOR_FIELDS) - 1
_REF = Kind.REF  # looking a member up in its class costs as much as the rest
_COUNTERS = {
    kind.number: tuple(place for place, field in enumerate(kind.fields) if field.kind is Kind.COUNTER)
    for kind in TYPES.values()
    if any(field.kind is Kind.COUNTER for field in kind.fields)
}


# --- in ----------------------------------------------------------------------------------------------------------


def decode_header(payload: bytes) -> Header:
    """The header alone; the body is not looked into. Raises SegmentRefused."""
    return _opened(payload)[0]


def decode_segment(payload: bytes, resolve: Resolve | None = None, digest: Digest | None = None) -> Segment:
    """A whole segment, strictly. `resolve` knows the baseline's entries and `digest` what they hold; without them they
    stay `Entry` numbers.

    Raises SegmentRefused for anything that a sealer does not write, except types and fields of tomorrow.
    """
    header, codec, body = _opened(payload)
    try:
        plain = _inflate(codec, body, header.dictionary)
        if len(plain) > INFLATED_MAX:
            raise DecodeError(f"body: {len(plain)} bytes, at most {INFLATED_MAX} are read")
        if codec >= CODEC_PACKED:
            from edgeguard.records.unpacking import Unpacker

            records, drops = Unpacker(plain, resolve, digest, (header.mono, header.wall)).content(header)
        else:
            from edgeguard.records.rows import Reader

            records, drops = Reader(plain, resolve).content(header)
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
    _need(_is_uint(dictionary), "payload: dictionary")
    _need(_is_uint(codec) and codec <= CODEC_PACKED_DEFLATE, "payload: codec")
    _need((codec >= CODEC_PACKED) == (dictionary > 0), "payload: codec and dictionary do not go together")
    _need(isinstance(body, bytes), "payload: body")
    header = Header(
        device, stream, sequence, epoch, boot, first, count, previous, mono, wall, clock, baseline, dictionary
    )
    return header, codec, body


def _inflate(codec: int, body: bytes, dictionary: int = 0) -> bytes:
    if not codec & CODEC_DEFLATE:
        return body
    try:
        inflater = zlib.decompressobj(-15, _dictionary(dictionary)) if dictionary else zlib.decompressobj(-15)
        plain = inflater.decompress(body, INFLATED_MAX)
    except zlib.error as error:
        raise DecodeError(f"body: {error}") from error
    if not inflater.eof or inflater.unused_data:
        raise DecodeError(f"body: cut off, followed by other bytes, or of more than {INFLATED_MAX} bytes")
    return plain


def _dictionary(number: int) -> bytes:
    from edgeguard.records.dictionaries import read  # a file of the package: here only who decodes such a segment

    return read(number)


def _is_uint(value: Any) -> bool:
    return type(value) is int and value >= 0


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise DecodeError(problem)


# --- bounds ------------------------------------------------------------------------------------------------------


def shrink(record: Record) -> Record:
    """The record with every text and list cut to its bound, each cut marked. For one that is still too large a drop
    stands in its place, with what it was about."""
    record = record._replace(fields=tuple(map(_cut, record.fields)))
    if len(encode_record(record)) <= RECORD_MAX:
        return record
    kind = TYPES.get(record.type)
    texts = [item[:128] for item in record.fields if isinstance(item, str)][:4]
    words = f"a record of type {kind.name if kind else record.type} was too large: {', '.join(texts)}"
    return record._replace(type=DROP.number, fields=(record.stream, None, None, TOO_LARGE, 1, words))


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
