"""The ordinary segment, in bulk: it follows the head of its chain, nothing contradicts it, and it tells of no losses.

Nearly all segments are so. What the database knows of all devices of a batch is read at once, each segment is judged
against that in memory, and all are written at once. Whatever is not ordinary is left to `ingest`, which looks at one
segment at a time; for ordinary ones both make the same rows. Within the caller's transaction, under the devices' locks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from edgeguard.codec import cose
from edgeguard.collector import events
from edgeguard.collector.database import Database
from edgeguard.errors import DecodeError
from edgeguard.records import certify, examine, receipts, registry, wire
from edgeguard.records.certify import Keys, Refused
from edgeguard.records.epoch import Statement
from edgeguard.records.receipts import Head
from edgeguard.records.wire import Segment

STREAMS = 4
STATEMENTS_KEPT = 4096  # verified and in memory, some 3 KB each: a device sends an hour's segments under one
ROWS = 200  # in one INSERT with values: SQLite takes 32,766 of them, PostgreSQL 65,535
_SEGMENT = "device, stream, seq, hash, previous, first, n, epoch, boot, mono, wall, clock, received, bytes"
_RECORD = "segment, device, stream, seq, type, severity, boot, mono, wall, code, body"


class Chain(NamedTuple):
    """The head of a stream: complete to `sequence`, whose segment is here; the next begins with `record`."""

    sequence: int = 0
    hash: bytes = wire.NO_PREVIOUS
    last: int = 0
    record: int = 1


class Taken(NamedTuple):
    segment: Segment
    data: bytes
    hash: bytes


class Standing:
    """What the database knows of one device."""

    __slots__ = ("announced", "chains", "dropped", "epochs", "newest", "statements")

    def __init__(self) -> None:
        self.chains: dict[int, Chain] = {}
        self.newest: dict[int, int] = {}  # number of the newest segment of a stream
        self.dropped: dict[int, int] = {}  # the highest number of a stream that is said to be lost
        self.announced: dict[int, tuple[int, bytes]] = {}
        self.epochs: list[int] = []  # newest first, as many as a receipt names
        self.statements: list[bytes] = []  # of the newest two

    def heads(self) -> tuple[Head, ...]:
        return tuple(Head(stream, head.sequence, head.hash) for stream, head in sorted(self.chains.items()))

    def is_whole(self) -> bool:
        """Nothing is here beyond a gap."""
        return all(number <= self.chains.get(stream, Chain()).sequence for stream, number in self.newest.items())


def standing(db: Database, devices: Sequence[bytes]) -> dict[bytes, Standing]:
    """Of all of these at once."""
    found = {device: Standing() for device in devices}
    of_these = f"WITH v(device) AS (VALUES {_places(len(found), 1)})"
    among = ", ".join("?" * len(found))
    for device, stream, seq, digest, last, record, newest in db.execute(of_these + _CHAINS, devices).fetchall():
        if seq is not None:
            found[device].chains[stream] = Chain(seq, digest, last, record)
        if newest is not None:
            found[device].newest[stream] = newest
    for device, stream, last in db.execute(_DROPS.format(among), devices).fetchall():
        found[device].dropped[stream] = last
    for device, stream, seq, digest in db.execute(_ANNOUNCED.format(among), devices).fetchall():
        found[device].announced[stream] = (seq, digest)
    rows = db.execute(of_these + _EPOCHS, (*devices, receipts.EPOCHS_MAX - 1)).fetchall()
    for device, number, data in sorted(rows, key=lambda row: -row[1]):
        found[device].epochs.append(number)
        if data is not None:
            found[device].statements.append(data)
    return found


def ordinary(
    parts: Iterable[bytes], public: bytes, known: Standing, decode: Callable[[bytes], Segment]
) -> list[Taken] | None:
    """All of a device's segments, when each is ordinary: `known` has moved on then. None: they are for `ingest`."""
    statements = [admitted for data in known.statements if (admitted := _admitted(public, data)) is not None]
    if len(statements) < len(known.statements):
        return None
    taken: list[Taken] = []
    chains, newest = dict(known.chains), dict(known.newest)
    for data in parts:
        found = _one(data, statements, decode)
        if found is None:
            return None
        segment, own, following = found
        header, digest = segment.header, sha256(data).digest()
        chain = chains.get(header.stream, Chain())
        if not (
            chain.sequence == chain.last == newest.get(header.stream, 0) == header.sequence - 1
            and (header.previous, header.first) == (chain.hash, chain.record)
            and known.dropped.get(header.stream, 0) <= chain.sequence
            and not _tells_of_losses(segment)
            and certify.misplaced(header.stream, header.sequence, header.boot, own, following) is None
            and not _contradicted(header.stream, header.sequence, digest, following, known)
        ):
            return None
        taken.append(Taken(segment, data, digest))
        chains[header.stream] = Chain(header.sequence, digest, header.sequence, header.first + header.n)
        newest[header.stream] = header.sequence
    known.chains, known.newest = chains, newest
    return taken


def write(db: Database, taken: Sequence[Taken], now: int) -> None:
    """Segments, records, heads and times of boots; what a record of the stream of findings says is the caller's."""
    rows = write_segments(db, taken, now)
    write_records(db, ((row, each.segment) for row, each in zip(rows, taken, strict=True)))
    heads = {}
    boots: dict[tuple[bytes, int], tuple[int, int]] = {}
    for each in taken:
        header = each.segment.header
        after = header.first + header.n
        heads[header.device, header.stream] = (header.sequence, each.hash, header.sequence, after)
        base = events.offset(header)
        if base is not None and header.clock > boots.get((header.device, header.boot), (0, -1))[1]:
            boots[header.device, header.boot] = (base, header.clock)
    _upsert(db, _HEADS, [key + value for key, value in heads.items()])
    _upsert(db, _BOOTS, [key + value for key, value in boots.items()])


def write_segments(db: Database, taken: Sequence[Taken], now: int) -> list[int]:
    """Returns their row numbers."""
    found = {}
    for at in range(0, len(taken), ROWS):
        values: list[Any] = []
        some = taken[at : at + ROWS]
        for (header, *_), data, digest in some:
            values += (
                header.device, header.stream, header.sequence, digest, header.previous, header.first, header.n,
                header.epoch, header.boot, header.mono, header.wall, header.clock, now, data,
            )  # fmt: skip
        rows = db.execute(
            f"INSERT INTO segments ({_SEGMENT}) VALUES {_places(len(some), 14)} RETURNING id, device, stream, seq",  # noqa: S608 - names of ours
            values,
        )
        found.update({(device, stream, seq): row for row, device, stream, seq in rows.fetchall()})
    headers = [each.segment.header for each in taken]
    return [found[header.device, header.stream, header.sequence] for header in headers]


def write_records(db: Database, segments: Iterable[tuple[int, Segment]]) -> None:
    """The records of segments that have these row numbers."""
    db.insert(
        "records",
        _RECORD,
        [
            (
                row, header.device, header.stream, header.first + place, record.type, record.severity, header.boot,
                record.mono, record.wall, events.code(record), events.stored(record),
            )
            for row, segment in segments
            for header in (segment.header,)
            for place, record in enumerate(segment.records)
        ],
    )  # fmt: skip


# --- judging ---------------------------------------------------------------------------------------------------------


class _Admitted(NamedTuple):
    statement: Statement
    kid: bytes
    keys: Keys


@lru_cache(maxsize=STATEMENTS_KEPT)
def _admitted(public: bytes, data: bytes) -> _Admitted | None:
    """A statement under which segments are verified. Nobody changes it after this."""
    keys = Keys([public])
    try:
        statement = keys.admit(data)
    except Refused:
        return None
    return _Admitted(statement, cose.kid_of(statement.public), keys)


def _one(
    data: bytes, statements: Sequence[_Admitted], decode: Callable[[bytes], Segment]
) -> tuple[Segment, Statement, Statement | None] | None:
    """A segment that its epoch's key signed, with the statement of that epoch and of the next."""
    try:
        kid = cose.parse1(data).kid
    except DecodeError:
        return None
    at = next((at for at, each in enumerate(statements) if each.kid == kid), None)
    if at is None:
        return None
    try:
        segment = examine.opened(data, statements[at].keys, decode)
    except Refused:
        return None
    own = statements[at].statement
    if segment.header.epoch != own.number:
        return None
    return segment, own, statements[at - 1].statement if at else None


def _tells_of_losses(segment: Segment) -> bool:
    findings = segment.header.stream == registry.Stream.FINDINGS
    return bool(segment.drops) or (findings and any(record.type == registry.DROP.number for record in segment.records))


def _contradicted(stream: int, sequence: int, digest: bytes, following: Statement | None, known: Standing) -> bool:
    """Has the device named another segment with this number?"""
    named: list[bytes] = [
        head.hash
        for head in (following.heads if following else ())
        if (head.stream, head.sequence) == (stream, sequence)
    ]
    announced = known.announced.get(stream)
    if announced and announced[0] == sequence:
        named.append(announced[1])
    return not all(digest.startswith(each) for each in named)


# --- SQL for both databases ------------------------------------------------------------------------------------------

# The chains of devices, and their newest segments: one look into an index each.
_CHAINS = """, n(stream) AS (VALUES (0), (1), (2), (3)), m AS (
    SELECT v.device AS device, n.stream AS stream,
        (SELECT max(s.seq) FROM segments s WHERE s.device = v.device AND s.stream = n.stream) AS newest
    FROM v CROSS JOIN n)
SELECT m.device, m.stream, h.seq, h.hash, h.last_good, h.next_record, m.newest
FROM m LEFT JOIN heads h ON h.device = m.device AND h.stream = m.stream
WHERE h.seq IS NOT NULL OR m.newest IS NOT NULL
"""
_DROPS = "SELECT device, stream, max(last) FROM drops WHERE device IN ({}) GROUP BY device, stream"
_ANNOUNCED = "SELECT device, stream, seq, hash FROM announced WHERE device IN ({})"
# The newest epochs, as many as a receipt names, with the statements of the newest two.
_EPOCHS = """, w AS (
    SELECT v.device AS device, (SELECT e.number FROM epochs e WHERE e.device = v.device AND e.rival = 0
            ORDER BY e.number DESC LIMIT 1 OFFSET ?) AS least,
        (SELECT e.number FROM epochs e WHERE e.device = v.device AND e.rival = 0
            ORDER BY e.number DESC LIMIT 1 OFFSET 1) AS second
    FROM v)
SELECT e.device, e.number, CASE WHEN e.number >= coalesce(w.second, 0) THEN e.bytes END
FROM w JOIN epochs e ON e.device = w.device AND e.rival = 0 AND e.number >= coalesce(w.least, 0)
"""
_HEADS = (
    "INSERT INTO heads (device, stream, seq, hash, last_good, next_record) VALUES {}"
    " ON CONFLICT (device, stream) DO UPDATE SET seq = excluded.seq, hash = excluded.hash,"
    " last_good = excluded.last_good, next_record = excluded.next_record"
)
_BOOTS = (
    'INSERT INTO boots (device, boot, "offset", clock) VALUES {}'
    ' ON CONFLICT (device, boot) DO UPDATE SET "offset" = excluded."offset", clock = excluded.clock'
    " WHERE excluded.clock > boots.clock"
)


def _upsert(db: Database, sql: str, rows: Sequence[Sequence[Any]]) -> None:
    for at in range(0, len(rows), ROWS):
        some = rows[at : at + ROWS]
        db.execute(sql.format(_places(len(some), len(some[0]))), [value for row in some for value in row])


@lru_cache(maxsize=512)
def _places(rows: int, columns: int) -> str:
    """(?, ?), (?, ?)"""
    return ", ".join(["(" + ", ".join("?" * columns) + ")"] * rows)
