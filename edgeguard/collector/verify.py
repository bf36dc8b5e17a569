"""`edgeguard-collector verify`: the whole evidence of a fleet, or a directory of segments, from end to end.

The database is not believed: what it says of a segment is compared with the segment, its heads with the chain, its
explanations with what devices signed. Judging is records.chain; a database is read one row at a time.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edgeguard.codec import cose
from edgeguard.collector import store
from edgeguard.collector.config import Config, load
from edgeguard.collector.database import Database
from edgeguard.errors import DecodeError
from edgeguard.records import epoch, evidence, examine, receipts, registry
from edgeguard.records.certify import Keys, Refused
from edgeguard.records.chain import Chain, Known
from edgeguard.records.defects import Defect, Name, Place, Report, reason_word
from edgeguard.records.examine import Link

DATABASE = "collector.db"
OPERATOR = registry.REASONS.index("operator")
_SEGMENTS = """
SELECT id, bytes, stream, seq, hash, previous, first, n, epoch, boot, wall,
    (SELECT count(*) FROM records WHERE segment = segments.id)
FROM segments WHERE device = ? ORDER BY stream, seq
"""
_STATEMENTS = "SELECT bytes FROM epochs ORDER BY device, number, rival"
_STATEMENTS_OF = "SELECT number, kid, before, received, bytes FROM epochs WHERE device = ? ORDER BY number, rival"
_OWNERS = {
    "devices": "SELECT id, count(*) FROM devices GROUP BY id",
    "segments": "SELECT device, count(*) FROM segments GROUP BY device",
    "epochs": "SELECT device, count(*) FROM epochs GROUP BY device",
}
ANNOUNCED_MS = 24 * 3600 * 1000  # a device that was heard for so long after naming a segment has had time to send it
LIMITS = (
    "What this cannot see: segments that no heartbeat, statement, receipt, head or later segment speaks of; and whether"
    " a device really went off where a key was lost: who holds its identity key can pretend it."
)

OK, DEFECTS, UNKNOWN = 0, 2, 3


class Nothing(Exception):
    """What was asked cannot be answered with what was given; the message says what to give."""


class Device(NamedTuple):
    id: bytes
    name: str
    public: bytes


def run(
    path: str,
    *,
    keys: Sequence[bytes] = (),
    collector: str = "",
    receipt_files: Sequence[str] = (),
    collector_key: bytes | None = None,
) -> Report:
    """What the command was asked. Raises Nothing, OSError, store.FAILURES, TooMany."""
    report = Report()
    place = collector or path
    connection = _open(place) if collector or not os.path.isdir(path) or _is_collector(path) else None
    with contextlib.closing(connection) if connection else contextlib.nullcontext():
        registered = devices(connection) if connection else []
        publics = list(dict.fromkeys([*keys, *(device.public for device in registered)]))
        if collector_key is None and connection:
            collector_key = _collector_key(place if os.path.isdir(place) else os.path.dirname(place))
        known = [head for file in receipt_files for head in _receipt(file, publics, collector_key, report)]
        if connection and not collector:
            return database(connection, known, report)
        if not publics:
            raise Nothing("whose segments are they? Give --key HEX of the device, or --collector DIR that knows it")
        if connection:
            known += heads(connection)
        statements = [row[0] for row in connection.execute(_STATEMENTS)] if connection else []
        return evidence.directory(path, publics, known, report, [data for data in statements if type(data) is bytes])


def code(report: Report) -> int:
    """The exit status. Where there is nothing, nothing is proven."""
    if not report.clean:
        return DEFECTS
    return OK if report.segments else UNKNOWN


def _open(place: str) -> Database:
    """A collector's directory, or the file of its database."""
    config = load(place) if os.path.isdir(place) else Config()
    file = os.path.join(place, DATABASE) if os.path.isdir(place) else place
    if not config.database and not _is_database(file):
        raise Nothing(f"{file}: not a collector's database")
    return store.open_readonly(place, config) if config.database else store.connect_readonly(file)


def _is_collector(path: str) -> bool:
    return os.path.exists(os.path.join(path, DATABASE)) or bool(load(path).database)


def _collector_key(directory: str) -> bytes | None:
    """From the collector's own private key, where the reader may."""
    try:
        return cose.public_of(cose.load_seed([os.path.join(directory, "collector.key")]))
    except (OSError, DecodeError):
        return None


def _receipt(file: str, publics: Sequence[bytes], key: bytes | None, report: Report) -> list[Known]:
    if key is None:
        raise Nothing("who signs receipts? Give --collector-key HEX (collector.pub)")
    try:
        device = receipts.unverified(receipts.read(file)).device
    except DecodeError:
        device = bytes(cose.DEVICE_ID_SIZE)
    ours = {cose.device_id(public) for public in publics}
    return evidence.receipt(file, [key], device if device in ours else next(iter(ours), device), file, report)


def devices(connection: Database) -> list[Device]:
    """Those that are registered, as far as their rows are what the collector writes."""
    rows = connection.execute("SELECT id, name, public FROM devices ORDER BY id")
    return [
        Device(identity, name, public)
        for identity, name, public in rows
        if isinstance(identity, bytes) and isinstance(public, bytes) and cose.is_identity(public)
    ]


def heads(connection: Database) -> list[Known]:
    """How far each chain was confirmed, in the words of the database."""
    rows = connection.execute("SELECT device, stream, last_good, hash FROM heads WHERE last_good > 0")
    return [
        Known(device, stream, sequence, digest, "the database", let_go=False)
        for device, stream, sequence, digest in rows
        if _is_head((device, stream, sequence, digest))
    ]


def database(connection: Database, confirmed: Sequence[Known] = (), report: Report | None = None) -> Report:
    """Every device's chain. Raises store.FAILURES."""
    report = report or Report()
    with connection.snapshot():
        known = [*heads(connection), *(head._replace(let_go=False) for head in confirmed)]
        follower = Chain(report, known)
        known_devices = devices(connection)
        for device in known_devices:
            _device(connection, device, follower)
        follower.finish()
        _strangers(connection, known_devices, report)
        _drops(connection, follower)
    return report


def _strangers(connection: Database, known: Sequence[Device], report: Report) -> None:
    """Nobody is forgotten because his row of devices is gone or spoiled."""
    identities = {device.id for device in known}
    for table, query in _OWNERS.items():
        for identity, number in connection.execute(query):
            if identity not in identities:
                name = identity.hex() if isinstance(identity, bytes) else str(identity)
                detail = f"{number:,} rows of {name}, of which no key is registered"
                report.add(Defect(Name.COLUMNS, None, source=f"table {table}", detail=detail))


def _device(connection: Database, device: Device, follower: Chain) -> None:
    keys = _certified(connection, device, follower)
    if device.id != cose.device_id(device.public):
        follower.report.add(Defect(Name.COLUMNS, Place(device.id, 0, 0), detail="its key is that of another device"))
    for stream, first, last in connection.each(
        "SELECT stream, first, last FROM drops WHERE device = ? AND reason = ?", (device.id, OPERATOR)
    ):
        if all(type(item) is int for item in (stream, first, last)):
            follower.explain(device.id, stream, first, last, "said by an operator of this collector")
    rows = _rows(connection, device, keys, follower)
    conflicts = sorted(_conflicts(connection, device, keys, follower))
    for link in heapq.merge(rows, conflicts):
        follower.follow(link)
    _announced(connection, device, follower)


def _certified(connection: Database, device: Device, follower: Chain) -> Keys:
    """The device's statements, all of them: one that is not here never came."""
    keys, wrong, seen = Keys([device.public]), 0, _seen(connection, device)
    for number, kid, before, received, data in connection.each(_STATEMENTS_OF, (device.id,)):
        source = f"epoch {number}"
        try:
            statement = keys.admit(data if isinstance(data, bytes) else b"")
        except Refused as refused:
            follower.report.add(refused.defect(None, source))
            continue
        named = cose.kid_of(statement.before.public) if statement.before else None
        if type(received) is int and seen - received >= ANNOUNCED_MS:
            for head in statement.heads:
                if head.hash:
                    follower.claim(statement.device, head, f"the statement of epoch {statement.number}")
        wrong += (number, kid, before) != (statement.number, cose.kid_of(statement.public), named)
    if wrong:
        detail = f"{wrong:,} rows say other things than the statement in them"
        follower.report.add(Defect(Name.COLUMNS, None, source="table epochs", detail=detail))
    for identity, line in keys.lines.items():
        follower.epochs(identity, line, complete=True, ends=False)
    return keys


def _seen(connection: Database, device: Device) -> int:
    row = connection.execute("SELECT seen FROM devices WHERE id = ?", (device.id,)).fetchone()
    return row[0] if row and type(row[0]) is int else 0


def _announced(connection: Database, device: Device, follower: Chain) -> None:
    """What the device named and did not send. It may be on its way: a while later it is missing."""
    seen = _seen(connection, device)
    for stream, sequence, received in connection.each(
        "SELECT stream, seq, received FROM announced WHERE device = ?", (device.id,)
    ):
        newest = follower.newest(device.id, stream)
        if type(sequence) is not int or sequence <= newest or type(stream) is not int or type(received) is not int:
            continue
        late = seen - received >= ANNOUNCED_MS
        follower.claim(device.id, epoch.Head(stream, sequence, b""), "the device itself", ends=late)
        if not late:
            name = device.name if isinstance(device.name, str) else device.id.hex()
            follower.report.note(f"{name} named segments {newest + 1} to {sequence} of stream {stream}; not here yet.")


def _rows(connection: Database, device: Device, keys: Keys, follower: Chain) -> Iterator[Link]:
    for row in connection.each(_SEGMENTS, (device.id,)):
        number, data, stream, sequence, *columns = row
        source = f"row {number}"
        place = Place(device.id, stream, sequence) if type(stream) is int and type(sequence) is int else None
        link = _link(data, keys, place, source, follower)
        if link is None:
            continue
        if place is None or (link.stream, link.sequence) != place[1:]:
            detail = f"the row says {stream}-{sequence}, the segment {link.stream}-{link.sequence}"
            follower.report.add(Defect(Name.REORDERED, place, source=source, detail=detail))
            if place:
                follower.occupied(place)
            continue
        wrong = _differences(link, columns)
        if wrong:
            follower.report.add(Defect(Name.COLUMNS, place, source=source, detail=f"other {', '.join(wrong)}"))
        yield link


def _link(data: object, keys: Keys, place: Place | None, source: str, follower: Chain) -> Link | None:
    try:
        if not isinstance(data, bytes):
            raise Refused(Name.ALTERED, "not bytes")
        segment = examine.opened(data, keys)
    except Refused as refused:
        defect = refused.defect(place, source)
        follower.report.add(defect)
        if defect.place:
            follower.occupied(defect.place)
        return None
    follower.lost(segment.header.device, examine.losses(segment))
    for head in examine.heads(segment):
        follower.claim(segment.header.device, head, f"the heartbeat in {source}", ends=False)
    return examine.link(data, segment, source)


def _differences(link: Link, columns: list[object]) -> list[str]:
    """Which columns of the row the segment contradicts."""
    digest, previous, first, n, epoch, boot, wall, shown = columns
    said = {
        "hash": (digest, link.hash),
        "previous": (previous, link.previous),
        "first": (first, link.first),
        "n": (n, link.n),
        "epoch": (epoch, link.epoch),
        "boot": (boot, link.boot),
        "wall": (wall, link.begin),
        "records": (shown, link.n),
    }
    return [name for name, (row, segment) in said.items() if row != segment]


def _conflicts(connection: Database, device: Device, keys: Keys, follower: Chain) -> Iterator[Link]:
    """Segments that came with a number that was taken: kept as evidence by the ingest."""
    for number, data in connection.each(
        "SELECT id, evidence FROM incidents WHERE device = ? AND evidence IS NOT NULL", (device.id,)
    ):
        link = _link(data, keys, None, f"evidence of incident {number}", follower)
        if link is not None:
            yield link


def _drops(connection: Database, follower: Chain) -> None:
    """Explanations in the database that no segment gives."""
    rows = connection.each("SELECT device, stream, first, last, reason FROM drops")
    for device, stream, first, last, reason in rows:
        if not isinstance(device, bytes) or any(type(item) is not int for item in (stream, first, last)):
            follower.report.add(Defect(Name.COLUMNS, None, source="table drops", detail="a row that is no drop"))
        elif reason != OPERATOR and not follower.told(device, stream, first, last):
            detail = reason_word(reason) if type(reason) is int else "no reason"
            follower.report.add(Defect(Name.FORGED_DROP, Place(device, stream, first), last, "table drops", detail))


def _is_head(row: tuple[object, ...]) -> bool:
    device, stream, sequence, digest = row
    return isinstance(device, bytes) and type(stream) is int and type(sequence) is int and isinstance(digest, bytes)


def _is_database(path: str) -> bool:
    """Is it one by its first bytes?"""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except IsADirectoryError:
        return False
