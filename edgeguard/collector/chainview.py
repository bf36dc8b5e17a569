"""One device as the collector knows it, for `edgeguard-collector show`: its key, its rhythm, and each stream's chain
with the newest segments, what was passed over as lost, and the boots it spoke of.
"""

from __future__ import annotations

from typing import Any

from edgeguard.collector.alerts import severity_name
from edgeguard.collector.database import Database
from edgeguard.collector.events import iso
from edgeguard.records import registry
from edgeguard.records.defects import reason_word

BOOTS_MAX = 10
LOSSES_MAX = 50  # shown of each stream; the number is true
FINDINGS_MAX = 100


def document(db: Database, name: str, most: int) -> dict[str, Any] | None:
    """The device of this name with the newest `most` segments of each stream, or None."""
    with db.snapshot():
        row = db.execute(
            "SELECT id, name, public, added, seen, beat, pace, duplicates, segments, records, bytes, lag"
            " FROM devices WHERE name = ?",
            (name,),
        ).fetchone()
        if row is None:
            return None
        device, called, public, added, seen, beat, pace, duplicates, segments, records, size, lag = row
        return {
            "v": 1,
            "id": device.hex(),
            "name": called,
            "public": public.hex(),
            "added": iso(added),
            "last_seen": iso(seen) if seen is not None else None,
            "heartbeat_s": beat // 1000 if beat else None,
            "pace_s": pace // 1000 if pace else None,
            "lag_s": lag // 1000 if lag is not None else None,
            "segments": segments,
            "records": records,
            "bytes": size,
            "duplicates": duplicates,
            "streams": [_stream(db, device, stream, most) for stream in registry.Stream],
            "boots": _boots(db, device),
            "open_findings": _findings(db, device),
        }


def _stream(db: Database, device: bytes, stream: registry.Stream, most: int) -> dict[str, Any]:
    key = (device, int(stream))
    head = db.execute("SELECT seq, hash, next_record FROM heads WHERE device = ? AND stream = ?", key).fetchone() or (
        0,
        None,
        1,
    )
    stored, newest = db.execute(
        "SELECT count(*), coalesce(max(seq), 0) FROM segments WHERE device = ? AND stream = ?", key
    ).fetchone()
    rows = db.execute(
        "SELECT seq, hash, previous, first, n, epoch, boot, received, length(bytes) FROM segments"
        " WHERE device = ? AND stream = ? ORDER BY seq DESC LIMIT ?",
        (*key, most),
    ).fetchall()
    losses = db.execute(
        "SELECT first, last, reason FROM drops WHERE device = ? AND stream = ? ORDER BY first DESC", key
    ).fetchall()
    return {
        "stream": int(stream),
        "name": stream.name.lower(),
        "complete_to": head[0],
        "hash": head[1].hex() if head[1] else None,
        "records": head[2] - 1,
        "stored": stored,
        "newest": newest,
        "missing": newest > head[0],
        "segments": [
            {
                "seq": seq,
                "hash": digest.hex(),
                "previous": previous.hex(),
                "first": first,
                "n": n,
                "epoch": epoch,
                "boot": boot,
                "received": iso(received),
                "bytes": size,
            }
            for seq, digest, previous, first, n, epoch, boot, received, size in reversed(rows)
        ],
        "losses": len(losses),
        "lost": [
            {"first": first, "last": last, "reason": reason_word(why)} for first, last, why in losses[:LOSSES_MAX]
        ],
    }


def _boots(db: Database, device: bytes) -> list[dict[str, Any]]:
    rows = db.execute(
        'SELECT boot, "offset", clock FROM boots WHERE device = ? ORDER BY boot DESC LIMIT ?', (device, BOOTS_MAX)
    )
    return [{"boot": boot, "began": iso(began), "clock": _clock(clock)} for boot, began, clock in rows]


def _clock(number: int) -> str:
    try:
        return registry.Clock(number).name.lower()
    except ValueError:
        return str(number)


def _findings(db: Database, device: bytes) -> list[dict[str, Any]]:
    rows = db.execute(
        "SELECT finding, code, subject, severity, time FROM findings WHERE device = ? AND state = 'open'"
        " ORDER BY severity DESC, finding LIMIT ?",
        (device, FINDINGS_MAX),
    )
    return [
        {"id": finding, "code": code, "subject": subject, "severity": severity_name(severity), "time": iso(time)}
        for finding, code, subject, severity, time in rows
    ]


def lines(shown: dict[str, Any]) -> list[str]:
    """The same for people."""
    said = [
        f"{shown['name']}  {shown['id']}",
        f"     key {shown['public']}",
        f"     added {shown['added']}, last heard {shown['last_seen'] or 'never'}",
        f"     {shown['segments']} segments, {shown['records']} records, {shown['bytes']} bytes",
        f"     {shown['duplicates']} segments came again",
    ]
    if shown["heartbeat_s"] or shown["pace_s"]:
        promise = f"a heartbeat every {shown['heartbeat_s']} s" if shown["heartbeat_s"] else "no heartbeat promised"
        said.append(f"     {promise}, longest pause of late {shown['pace_s'] or 0} s")
    for stream in shown["streams"]:
        if stream["stored"] or stream["losses"]:
            said += _stream_lines(stream)
    for boot in shown["boots"]:
        said.append(f"boot {boot['boot']}: began {boot['began']} (clock: {boot['clock']})")
    for finding in shown["open_findings"]:
        said.append(f"!    {finding['severity']} {finding['code']} {finding['subject']} ({finding['id']})")
    return said


def _stream_lines(stream: dict[str, Any]) -> list[str]:
    state = f"GAP, newest is {stream['newest']}" if stream["missing"] else "complete"
    said = [f"stream {stream['stream']} {stream['name']}: to segment {stream['complete_to']}, {state}"]
    if len(stream["segments"]) < stream["stored"]:
        said.append(f"     {stream['stored'] - len(stream['segments'])} earlier segments")
    said += [
        f"     {item['seq']:>8}  records {item['first']}-{item['first'] + item['n'] - 1}  boot {item['boot']}"
        f" epoch {item['epoch']}  {item['hash'][:16]} after {item['previous'][:16]}  {item['bytes']} B"
        f"  {item['received']}"
        for item in stream["segments"]
    ]
    said += [f"     lost {item['first']}-{item['last']}: {item['reason']}" for item in stream["lost"]]
    if stream["losses"] > len(stream["lost"]):
        said.append(f"     {stream['losses'] - len(stream['lost'])} earlier losses")
    return said
