"""The newest word on each finding of each device, and how often a device promises to talk: read from records as they
are stored, in the same transaction, so that both are right however segments came.

A row is replaced only by a record with a higher number in the device's chain of findings: late, doubled and reordered
segments give the same rows. `openings` counts, so that a finding that opened and ended while nobody listened is not
overlooked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from edgeguard.collector import events
from edgeguard.collector.database import Database
from edgeguard.records import registry
from edgeguard.records.wire import Header, Record

SUBJECT_MAX = 1024  # letters; the whole stands in the record
IDENTITY_MAX = 1024  # bytes; ours have a dozen, and an index of PostgreSQL takes 2,700
HEARTBEAT = "heartbeat"  # a record of STATE; its column `seconds` promises the next, two of a boot show how often
BEAT_LEAST, BEAT_MAX = 60_000, 7 * 86_400_000  # ms; what is beyond is no rhythm
_UPSERT = """
INSERT INTO findings (device, finding, seq, code, subject, severity, state, detail, time, openings)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (device, finding) DO UPDATE SET seq = excluded.seq, code = excluded.code, subject = excluded.subject,
    severity = excluded.severity, state = excluded.state, detail = excluded.detail, time = excluded.time
WHERE excluded.seq > findings.seq
"""
_OPENED = "UPDATE findings SET openings = openings + 1 WHERE device = ? AND finding = ?"


def project(db: Database, header: Header, records: Iterable[Record], now: int) -> None:
    """What these records of one segment say of findings and heartbeats. Within the caller's transaction."""
    if header.stream != registry.Stream.FINDINGS:
        return
    for place, record in enumerate(records):
        if record.type == registry.FINDING.number:
            time = record.wall if record.wall is not None else now
            _finding(db, header.device, header.first + place, events.body(record), record.severity, time)
        elif record.type == registry.STATE.number:
            _state(db, header, header.first + place, record.mono, events.body(record))


def from_records(db: Database) -> None:
    """Fill the table from what is stored already (a step of `schema`)."""
    cursor = db.execute(
        "SELECT device, seq, severity, wall, body FROM records WHERE stream = ? AND type = ? ORDER BY id",
        (int(registry.Stream.FINDINGS), registry.FINDING.number),
    )
    for device, seq, severity, wall, body in cursor.fetchall():
        _finding(db, device, seq, json.loads(body), severity, wall or 0)
    db.execute("UPDATE findings SET openings_noted = openings")  # what is over is no news; what is open is


def _finding(db: Database, device: bytes, seq: int, said: Mapping[str, Any], severity: int, time: int) -> None:
    code, subject = _text(said.get("code")), _text(said.get("subject"))
    identity = _text(said.get("id")) or f"{code} {subject}"
    if len(identity.encode()) > IDENTITY_MAX:
        identity = sha256(identity.encode()).hexdigest()
    opened = said.get("transition") == "opened"
    row = (device, identity, seq, code, subject, severity, _text(said.get("state")), _text(said.get("note")), time)
    db.execute(_UPSERT, (*row, 0))
    if opened:
        db.execute(_OPENED, (device, identity))


def _state(db: Database, header: Header, seq: int, mono: int, said: Mapping[str, Any]) -> None:
    if said.get("what") != HEARTBEAT:
        return
    row = db.execute("SELECT beat_seq, beat_boot, beat_mono FROM devices WHERE id = ?", (header.device,)).fetchone()
    if row is None or seq <= row[0]:
        return
    columns = said.get("columns")
    seconds = columns.get("seconds") if isinstance(columns, Mapping) else None
    since = mono - row[2] if row[1] == header.boot else 0
    beat = seconds * 1000 if type(seconds) is int else since
    good = 0 < beat <= BEAT_MAX
    db.execute(
        "UPDATE devices SET beat = CASE WHEN ? = 1 THEN ? ELSE beat END, beat_seq = ?, beat_boot = ?, beat_mono = ?"
        " WHERE id = ?",
        (int(good), max(beat, BEAT_LEAST) if good else 0, seq, header.boot, mono, header.device),
    )


def _text(value: object) -> str:
    """Text that any database and any terminal takes."""
    return events.printable(value if isinstance(value, str) else "")[:SUBJECT_MAX]
