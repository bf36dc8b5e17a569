"""The collector's tables, as steps from one version of the schema to the next. Forward only; a step is never edited.

Written once for SQLite and PostgreSQL: BLOB, INTEGER and "INTEGER PRIMARY KEY" are what `postgres` translates. A step
is SQL, or a function where rows must be read. `meta` says how far a database has come; one that has come further than
this program is refused, because what it does not know it cannot keep right.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeguard.collector import findings
from edgeguard.collector.database import Database
from edgeguard.errors import EdgeGuardError

META = "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"

# Version 1 is what stood before versions were counted: hence IF NOT EXISTS.
SCHEMA = """
CREATE TABLE IF NOT EXISTS devices (
    id BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, public BLOB NOT NULL, added INTEGER NOT NULL,
    seen INTEGER, duplicates INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS segments (
    id INTEGER PRIMARY KEY, device BLOB NOT NULL, stream INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL,
    previous BLOB NOT NULL, first INTEGER NOT NULL, n INTEGER NOT NULL, epoch INTEGER NOT NULL, boot INTEGER NOT NULL,
    mono INTEGER NOT NULL, wall INTEGER, clock INTEGER NOT NULL, received INTEGER NOT NULL, bytes BLOB NOT NULL,
    UNIQUE (device, stream, seq));
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY, segment INTEGER NOT NULL REFERENCES segments (id), device BLOB NOT NULL,
    stream INTEGER NOT NULL, seq INTEGER NOT NULL, type INTEGER NOT NULL, severity INTEGER NOT NULL,
    boot INTEGER NOT NULL, mono INTEGER NOT NULL, wall INTEGER, code TEXT, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS records_of ON records (device, stream, seq);
CREATE INDEX IF NOT EXISTS records_time ON records (device, boot, mono, stream, seq);
CREATE INDEX IF NOT EXISTS records_code ON records (code) WHERE code IS NOT NULL;
CREATE TABLE IF NOT EXISTS heads (
    device BLOB NOT NULL, stream INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL,
    last_good INTEGER NOT NULL, next_record INTEGER NOT NULL, PRIMARY KEY (device, stream)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS drops (
    device BLOB NOT NULL, stream INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    reason INTEGER NOT NULL, PRIMARY KEY (device, stream, first, last)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS boots (
    device BLOB NOT NULL, boot INTEGER NOT NULL, "offset" INTEGER NOT NULL, clock INTEGER NOT NULL,
    PRIMARY KEY (device, boot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS incidents (
    id INTEGER PRIMARY KEY, device BLOB NOT NULL, stream INTEGER NOT NULL, seq INTEGER NOT NULL, name TEXT NOT NULL,
    detail TEXT NOT NULL, first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL, count INTEGER NOT NULL DEFAULT 1,
    resolved INTEGER, evidence BLOB, UNIQUE (device, stream, seq, name, detail));
"""

# Version 2: the newest word on each finding, how often a device talks, and alerts with the state of their delivery.
# devices.segments, records, bytes: totals, so that nobody has to count; lag: age of the newest record when it came.
# devices.pace and devices.beat: milliseconds between posts as seen here, and between its heartbeats; beat_seq, boot and
# mono: the newest heartbeat.
# findings.noted, openings_noted, incidents.noted: how far the alerter has looked.
# notices.message: NULL as long as it waits for its group.
ALERTS = """
ALTER TABLE devices ADD COLUMN pace INTEGER;
ALTER TABLE devices ADD COLUMN beat INTEGER;
ALTER TABLE devices ADD COLUMN beat_seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN beat_boot INTEGER;
ALTER TABLE devices ADD COLUMN beat_mono INTEGER;
ALTER TABLE devices ADD COLUMN segments INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN records INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN lag INTEGER;
UPDATE devices SET segments = (SELECT count(*) FROM segments WHERE device = devices.id),
    records = (SELECT coalesce(sum(n), 0) FROM segments WHERE device = devices.id),
    bytes = (SELECT coalesce(sum(length(bytes)), 0) FROM segments WHERE device = devices.id);
CREATE INDEX devices_seen ON devices (seen);
CREATE TABLE findings (
    device BLOB NOT NULL, finding TEXT NOT NULL, seq INTEGER NOT NULL, code TEXT NOT NULL, subject TEXT NOT NULL,
    severity INTEGER NOT NULL, state TEXT NOT NULL, detail TEXT NOT NULL, time INTEGER NOT NULL,
    openings INTEGER NOT NULL, openings_noted INTEGER NOT NULL DEFAULT 0, noted INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (device, finding));
CREATE INDEX findings_new ON findings (device) WHERE noted < seq OR openings_noted < openings;
CREATE INDEX findings_open ON findings (severity) WHERE state = 'open';
ALTER TABLE incidents ADD COLUMN noted INTEGER NOT NULL DEFAULT 0;
CREATE INDEX incidents_new ON incidents (id) WHERE noted = 0;
CREATE INDEX incidents_over ON incidents (id) WHERE noted = 1 AND resolved IS NOT NULL;
CREATE TABLE alerts (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, device BLOB NOT NULL, code TEXT NOT NULL, subject TEXT NOT NULL,
    detail TEXT NOT NULL, severity INTEGER NOT NULL, opened INTEGER NOT NULL, told INTEGER NOT NULL, resolved INTEGER);
CREATE INDEX alerts_open ON alerts (told) WHERE resolved IS NULL;
CREATE INDEX alerts_of ON alerts (device);
CREATE TABLE messages (
    id TEXT PRIMARY KEY, target TEXT NOT NULL, created INTEGER NOT NULL, due INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, sent INTEGER, failed INTEGER, error TEXT NOT NULL DEFAULT '',
    body TEXT NOT NULL);
CREATE INDEX messages_due ON messages (target, due) WHERE sent IS NULL AND failed IS NULL;
CREATE INDEX messages_of ON messages (target, created);
CREATE TABLE notices (
    id INTEGER PRIMARY KEY, target TEXT NOT NULL, alert TEXT NOT NULL, event TEXT NOT NULL, severity INTEGER NOT NULL,
    item TEXT NOT NULL, created INTEGER NOT NULL, message TEXT);
CREATE INDEX notices_waiting ON notices (target, id) WHERE message IS NULL;
CREATE INDEX notices_of ON notices (message);
CREATE INDEX notices_about ON notices (alert);
"""

# Version 3: statements about the keys that sign segments (rival 0 is the one that counts), and the newest segments that
# devices named.
EPOCHS = """
CREATE TABLE epochs (
    device BLOB NOT NULL, number INTEGER NOT NULL, rival INTEGER NOT NULL, kid BLOB NOT NULL, before BLOB,
    received INTEGER NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (device, number, rival));
CREATE INDEX epochs_by_key ON epochs (device, kid);
CREATE INDEX epochs_by_next ON epochs (device, before);
CREATE INDEX segments_of_epoch ON segments (device, epoch);
CREATE TABLE announced (
    device BLOB NOT NULL, stream INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL,
    received INTEGER NOT NULL, PRIMARY KEY (device, stream)) WITHOUT ROWID;
"""

Step = str | Callable[[Database], None]
STEPS: tuple[tuple[Step, ...], ...] = ((SCHEMA,), (ALERTS, findings.from_records), (EPOCHS,))
VERSION = len(STEPS)


class Newer(EdgeGuardError):
    """The database was made by a newer collector than this one."""


def version(db: Database) -> int:
    """How far this database has come; 0: it is empty, or from before versions were counted."""
    row = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    return int(row[0]) if row else 0


def migrate(db: Database, through: int = VERSION) -> None:
    """Bring the tables up to date, all or nothing. Raises Newer."""
    db.execute(META)
    if version(db) == through:
        return
    with db.transaction("schema"):
        found = version(db)  # another process may have been first
        if found > through:
            raise Newer(f"the database has schema {found}, this collector knows {through}: install the newer one again")
        for step in (step for steps in STEPS[found:through] for step in steps):
            if isinstance(step, str):
                db.run(step)
            else:
                step(db)
        db.execute(
            "INSERT INTO meta (key, value) VALUES ('schema', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (str(through),),
        )
