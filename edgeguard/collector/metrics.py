"""The collector's figures for Prometheus, in its text format (version 0.0.4): from the database, so that they are the
same whichever process is asked, and by totals that ingest keeps, so that asking costs the same however much is stored.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeguard.collector.alerts import severity_name
from edgeguard.collector.database import Database
from edgeguard.model import Severity

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DEVICES_MAX = 10_000  # with figures of their own; of a larger fleet only sums
REFUSED = (
    *("altered", "truncated file", "malformed", "re-sealed", "replayed", "unknown epoch", "forged epoch"),
    *("unknown dictionary", "unknown device", "equivocation"),
)
_P = "edgeguard_collector_"

Sample = tuple[dict[str, str], float]


def text(db: Database, now: int) -> str:
    """Everything, as one page."""
    with db.snapshot():
        return "".join(line + "\n" for line in _lines(db, now))


def _lines(db: Database, now: int) -> Iterator[str]:
    devices, heard, segments, size, records, duplicates = db.execute(
        "SELECT count(*), count(seen), coalesce(sum(segments), 0), coalesce(sum(bytes), 0), coalesce(sum(records), 0),"
        " coalesce(sum(duplicates), 0) FROM devices"
    ).fetchone()
    yield from _family("devices", "gauge", "Devices that are registered.", [({}, devices)])
    yield from _family("devices_heard", "gauge", "Devices that ever sent something.", [({}, heard)])
    yield from _family("segments_total", "counter", "Segments stored.", [({}, segments)])
    yield from _family("segment_bytes_total", "counter", "Bytes of segments stored.", [({}, size)])
    yield from _family("records_total", "counter", "Records stored.", [({}, records)])
    yield from _family("duplicates_total", "counter", "Segments that came again.", [({}, duplicates)])
    yield from _incidents(db)
    yield from _findings(db)
    yield from _alerts(db)
    yield from _gaps(db)
    if devices <= DEVICES_MAX:
        yield from _each_device(db, now)


def _incidents(db: Database) -> Iterator[str]:
    rows = db.execute(
        "SELECT name, count(CASE WHEN resolved IS NULL THEN 1 END), sum(count) FROM incidents"
        " GROUP BY name ORDER BY name"
    ).fetchall()
    told = [({"name": name}, open_) for name, open_, _ in rows]
    yield from _family("incidents", "gauge", "What is wrong with chains and not resolved.", told)
    counts = {name: total for name, _, total in rows}
    refused = [({"name": name}, counts.get(name, 0)) for name in REFUSED]
    yield from _family("refused_total", "counter", "Segments and devices that were not let in.", refused)


def _findings(db: Database) -> Iterator[str]:
    rows = dict(db.execute("SELECT severity, count(*) FROM findings WHERE state = 'open' GROUP BY severity").fetchall())
    samples = [({"severity": severity_name(number)}, rows.get(int(number), 0)) for number in Severity]
    yield from _family("findings_open", "gauge", "Open findings of the whole fleet.", samples)


def _alerts(db: Database) -> Iterator[str]:
    rows = db.execute("SELECT kind, count(*) FROM alerts WHERE resolved IS NULL GROUP BY kind").fetchall()
    known = dict(rows)
    samples = [({"kind": kind}, known.get(kind, 0)) for kind in ("finding", "incident", "silence")]
    yield from _family("alerts_open", "gauge", "Alerts that are open.", samples)
    sent = db.execute("SELECT target, count(sent), count(failed), count(*) FROM messages GROUP BY target").fetchall()
    states = [
        ({"target": target, "state": state}, number)
        for target, done, failed, total in sorted(sent)
        for state, number in (("sent", done), ("given_up", failed), ("waiting", total - done - failed))
    ]
    yield from _family("messages", "gauge", "Messages of the last 30 days, by what became of them.", states)


def _gaps(db: Database) -> Iterator[str]:
    row = db.execute("SELECT count(*) FROM incidents WHERE name = 'gap' AND resolved IS NULL").fetchone()
    yield from _family(
        "chains_with_gap", "gauge", "Streams with segments missing before one that is here.", [({}, row[0])]
    )


def _each_device(db: Database, now: int) -> Iterator[str]:
    rows = db.execute("SELECT name, seen, lag FROM devices WHERE seen IS NOT NULL ORDER BY name").fetchall()
    seen = [({"device": name}, when / 1000) for name, when, _ in rows]
    yield from _family("device_last_seen_timestamp_seconds", "gauge", "When it was last heard, Unix time.", seen)
    lag = [({"device": name}, behind / 1000) for name, _, behind in rows if behind is not None]
    about = "How old the newest record of its last post was when it came, by the device's own clock."
    yield from _family("device_lag_seconds", "gauge", about, lag)
    silence = max((now - when for _, when, _ in rows), default=0)
    yield from _family(
        "longest_silence_seconds", "gauge", "Of the device that was not heard longest.", [({}, silence / 1000)]
    )


def _family(name: str, kind: str, about: str, samples: list[Sample]) -> Iterator[str]:
    yield f"# HELP {_P}{name} {about}"
    yield f"# TYPE {_P}{name} {kind}"
    for labels, value in samples:
        shown = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        yield f"{_P}{name}{{{shown}}} {_number(value)}" if shown else f"{_P}{name} {_number(value)}"


def _number(value: float) -> str:
    return str(int(value)) if int(value) == value else f"{value:.3f}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
