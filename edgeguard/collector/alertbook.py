"""Alerts and the state of their delivery, in the database: so that a restart neither loses nor doubles one.

`note` turns what is new into notices, `pack` turns notices into messages; both within one transaction each, so that
what was noted is noted once. A message has its id and its bytes before it is sent for the first time: sent again after
a crash it is the same message, and a receiver that knows the id can tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from edgeguard.collector import alerts
from edgeguard.collector.alerts import INCIDENTS, Alert, Notice
from edgeguard.collector.config import Alerts, Config
from edgeguard.collector.database import Database
from edgeguard.collector.events import iso, printable
from edgeguard.model import Severity

BATCH = 500  # rows noted in one transaction
PACK_MAX = 5000  # notices in one message, most of them only counted
KEPT_MS = 30 * 86_400_000  # messages that were sent, and alerts that are over
BACKOFF_MS, BACKOFF_MAX_MS = 5_000, 3_600_000
TICK_MS = 60_000  # the collector's sign of life; a pause of more than two is "it was down"
LOCK = "alerts"
REPEATED = "repeated"


class Message(NamedTuple):
    id: str
    target: str
    created: int
    attempts: int
    body: str


class Book:
    """One per process that leads. `identity` makes ids of messages: random, unique."""

    def __init__(self, db: Database, config: Config, identity: Callable[[], str]) -> None:
        self._db = db
        self._config = config
        self._policy: Alerts = config.alerts
        self._targets = {target.name: target for target in config.alerts.targets}
        self._identity = identity
        self._minute = alerts.clock(config.alerts.zone)

    # --- what is new ---------------------------------------------------------------------------------------------

    def note(self, now: int) -> bool:
        """Turn news into notices. True if there may be more at once."""
        found = self._findings_new()
        incidents = self._incidents_new(now)
        over = self._incidents_over()
        repeated = self._open_since(now - self._policy.repeat_s * 1000) if self._policy.repeat_s else []
        if not (found or incidents or over or repeated):
            return False
        # With the devices' locks: so neither waits for a row that the other holds while ingest works on them.
        devices = {row[0].hex() for row in found} | {row[1].hex() for row in (*incidents, *over)}
        with self._db.transaction(LOCK, *devices):
            for row in found:
                self._finding(row, now)
            for row in incidents:
                self._incident(row, now)
            for row in over:
                self._incident_over(row, now)
            for alert in repeated:
                self._tell(alert, REPEATED, now)
                self._db.execute("UPDATE alerts SET told = ? WHERE key = ?", (now, alert.key))
        return max(len(found), len(incidents), len(over), len(repeated)) >= BATCH

    def _findings_new(self) -> list[Any]:
        return self._db.execute(
            "SELECT f.device, d.name, f.finding, f.seq, f.code, f.subject, f.severity, f.state, f.detail, f.time,"
            " f.openings, f.openings_noted FROM findings f JOIN devices d ON d.id = f.device"
            " WHERE f.noted < f.seq OR f.openings_noted < f.openings LIMIT ?",
            (BATCH,),
        ).fetchall()

    def _finding(self, row: Any, now: int) -> None:
        device, name, finding, seq, code, subject, severity, state, detail, time, openings, before = row
        alert = Alert(
            f"finding:{device.hex()}:{finding}", "finding", device, name, code, subject, detail, severity, time
        )
        known = self._severity_of_open(alert.key)
        if state == "open":
            if known is None:
                self._open(alert, now)
            elif severity > known:
                self._open(alert, now, "worse")
        elif known is not None:
            self._resolve(alert, now)
        elif openings > before:
            self._tell(alert, "passed", now)
        self._db.execute(
            "UPDATE findings SET noted = ?, openings_noted = ? WHERE device = ? AND finding = ?",
            (seq, openings, device, finding),
        )

    def _incidents_new(self, now: int) -> list[Any]:
        return self._db.execute(
            "SELECT i.id, i.device, coalesce(d.name, ''), i.stream, i.seq, i.name, i.detail, i.first_seen, i.resolved"
            " FROM incidents i LEFT JOIN devices d ON d.id = i.device"
            " WHERE i.noted = 0 AND (i.name <> 'gap' OR i.resolved IS NOT NULL OR i.first_seen < ?) LIMIT ?",
            (now - alerts.GAP_MS, BATCH),
        ).fetchall()

    def _incidents_over(self) -> list[Any]:
        return self._db.execute(
            "SELECT i.id, i.device, coalesce(d.name, ''), i.stream, i.seq, i.name, i.detail, i.first_seen, i.resolved"
            " FROM incidents i LEFT JOIN devices d ON d.id = i.device"
            " WHERE i.noted = 1 AND i.resolved IS NOT NULL LIMIT ?",
            (BATCH,),
        ).fetchall()

    def _incident(self, row: Any, now: int) -> None:
        alert = _incident_alert(row)
        over = row[8] is not None
        if self._policy.incidents and not over:
            self._open(alert, now)
        self._db.execute("UPDATE incidents SET noted = ? WHERE id = ?", (2 if over else 1, row[0]))

    def _incident_over(self, row: Any, now: int) -> None:
        alert = _incident_alert(row)
        if self._severity_of_open(alert.key) is not None:
            self._resolve(alert, now)
        self._db.execute("UPDATE incidents SET noted = 2 WHERE id = ?", (row[0],))

    # --- silence -------------------------------------------------------------------------------------------------

    def silence(self, now: int) -> None:
        """Devices that do not talk any more, and those that do again."""
        rule = self._config.silence
        with self._db.transaction(LOCK):
            since = self._listening_since(now)
            if not rule.beats:
                return
            values = _silent_values(rule.beats, rule.least_s * 1000, since, now)
            for row in self._db.execute(_SILENT, values).fetchall():
                device, name, seen, beat, pace = row
                interval = beat or max(pace or 0, rule.least_s * 1000)
                promise = "its heartbeat" if beat else "its usual interval"
                detail = f"last heard {iso(seen)}; {promise} is {interval // 1000} s"
                self._open(
                    Alert(
                        f"silence:{device.hex()}", "silence", device, name, "", "silent", detail, rule.severity, seen
                    ),
                    now,
                )
            again = self._db.execute(
                "SELECT a.device, d.name, d.seen FROM alerts a JOIN devices d ON d.id = a.device"
                " WHERE a.kind = 'silence' AND a.resolved IS NULL AND d.seen > a.opened AND d.seen <= ? LIMIT ?",
                (now, BATCH),
            ).fetchall()
            for device, name, seen in again:
                detail = f"heard again {iso(seen)}"
                key = f"silence:{device.hex()}"
                self._resolve(Alert(key, "silence", device, name, "", "silent", detail, rule.severity, seen), now)

    def _listening_since(self, now: int) -> int:
        """Since when this collector could have heard anybody: a pause of its own is nobody's silence."""
        rows = dict(self._db.execute("SELECT key, value FROM meta WHERE key IN ('alive', 'since')").fetchall())
        alive, since = int(rows.get("alive", 0)), int(rows.get("since", 0))
        if not alive <= now <= alive + 2 * TICK_MS:
            since = now
        elif now < alive + TICK_MS // 4:
            return since
        for key, value in (("alive", now), ("since", since)):
            self._db.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, str(value)),
            )
        return since

    # --- alerts --------------------------------------------------------------------------------------------------

    def _severity_of_open(self, key: str) -> int | None:
        row = self._db.execute("SELECT severity FROM alerts WHERE key = ? AND resolved IS NULL", (key,)).fetchone()
        return row[0] if row else None

    def _open(self, alert: Alert, now: int, event: str = "opened") -> None:
        self._db.execute(
            "INSERT INTO alerts (key, kind, device, code, subject, detail, severity, opened, told)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET detail = excluded.detail,"
            " severity = excluded.severity, opened = excluded.opened, told = excluded.told, resolved = NULL",
            (
                alert.key,
                alert.kind,
                alert.device,
                alert.code,
                alert.subject,
                alert.detail,
                int(alert.severity),
                now,
                now,
            ),
        )
        self._tell(alert, event, now)

    def _resolve(self, alert: Alert, now: int) -> None:
        self._db.execute("UPDATE alerts SET resolved = ? WHERE key = ?", (now, alert.key))
        self._tell(alert, alerts.RESOLVED, now)

    def _open_since(self, before: int) -> list[Alert]:
        rows = self._db.execute(
            "SELECT a.key, a.kind, a.device, coalesce(d.name, ''), a.code, a.subject, a.detail, a.severity, a.opened"
            " FROM alerts a LEFT JOIN devices d ON d.id = a.device WHERE a.resolved IS NULL AND a.told <= ? LIMIT ?",
            (before, BATCH),
        ).fetchall()
        return [Alert(*row) for row in rows]

    def _tell(self, alert: Alert, event: str, now: int) -> None:
        for target in self._targets.values():
            if alert.severity >= target.least and not (event == REPEATED and self._under_way(target.name, alert.key)):
                item = json.dumps(alerts.item(alert, event), separators=(",", ":"))
                self._db.execute(
                    "INSERT INTO notices (target, alert, event, severity, item, created) VALUES (?, ?, ?, ?, ?, ?)",
                    (target.name, alert.key, event, int(alert.severity), item, now),
                )

    def _under_way(self, target: str, key: str) -> bool:
        """Does a notice of this alert still wait for its group or its delivery? Saying it again would say nothing."""
        row = self._db.execute(
            "SELECT count(*) FROM notices n LEFT JOIN messages m ON m.id = n.message WHERE n.target = ? AND n.alert = ?"
            " AND (n.message IS NULL OR (m.sent IS NULL AND m.failed IS NULL))",
            (target, key),
        ).fetchone()
        return bool(row[0])

    # --- messages ------------------------------------------------------------------------------------------------

    def pack(self, now: int) -> int:
        """Make messages of the notices whose time has come. Returns how many."""
        quiet = alerts.is_quiet(self._minute(now), self._policy.quiet)
        return sum(self._pack(target, now, quiet=quiet) for target in self._targets)

    def _pack(self, target: str, now: int, *, quiet: bool) -> int:
        if not self._waiting(target, 1):
            return 0
        with self._db.transaction(LOCK):
            last, urgent = self._db.execute(
                "SELECT coalesce(max(created), 0), count(CASE WHEN created > ? THEN 1 END) FROM messages"
                " WHERE target = ? AND created <= ?",  # beyond: made before the clock was set back
                (now - self._policy.group_s * 1000, target, now),
            ).fetchone()
            waiting = self._waiting(target, PACK_MAX)
            told = alerts.due(waiting, self._policy, now, quiet=quiet, last=last, urgent_sent=urgent)
            if not told:
                return 0
            self._send_later(target, told, now)
        return 1

    def _waiting(self, target: str, most: int) -> list[Notice]:
        rows = self._db.execute(
            "SELECT id, event, severity, item, created FROM notices WHERE target = ? AND message IS NULL"
            " ORDER BY CASE WHEN event = ? THEN 1 ELSE 0 END, severity DESC, id LIMIT ?",
            (target, alerts.RESOLVED, most),  # what is over waits through a night, and must not hide what opens in it
        ).fetchall()
        return [
            Notice(number, event, severity, json.loads(text), created)
            for number, event, severity, text, created in rows
        ]

    def _send_later(self, target: str, told: Sequence[Notice], now: int) -> None:
        identity = self._identity()
        body = json.dumps(alerts.message(identity, told, now), separators=(",", ":"))
        self._db.execute(
            "INSERT INTO messages (id, target, created, due, body) VALUES (?, ?, ?, ?, ?)",
            (identity, target, now, now, body),
        )
        self._db.executemany("UPDATE notices SET message = ? WHERE id = ?", [(identity, notice.id) for notice in told])

    def next_message(self, target: str, now: int) -> Message | None:
        """The oldest that should be sent now: in the order in which they were made. One that is to wait longer than any
        waits was put off before the clock was set back."""
        row = self._db.execute(
            "SELECT id, target, created, attempts, body, due FROM messages WHERE target = ? AND sent IS NULL"
            " AND failed IS NULL ORDER BY created, id LIMIT 1",
            (target,),
        ).fetchone()
        return Message(*row[:5]) if row and not now < row[5] <= now + BACKOFF_MAX_MS else None

    def sent(self, message: Message, now: int, remark: str = "") -> None:
        """`remark`: what was not right with it although it was taken."""
        self._db.execute(
            "UPDATE messages SET sent = ?, attempts = attempts + 1, error = ? WHERE id = ?",
            (now, printable(remark)[:300], message.id),
        )

    def failed(self, message: Message, now: int, why: str, wait_ms: int | None = None) -> bool:
        """Try again later, and longer each time; True: given up."""
        over = now - message.created >= self._policy.give_up_s * 1000
        wait = min(BACKOFF_MAX_MS, max(BACKOFF_MS << min(message.attempts, 16), wait_ms or 0))
        self._db.execute(
            "UPDATE messages SET attempts = attempts + 1, error = ?, due = ?, failed = ? WHERE id = ?",
            (printable(why)[:300], now + wait, now if over else None, message.id),
        )
        return over

    def tidy(self, now: int) -> list[str]:
        """Forget what is long over; give up what is for targets that are no more. Returns their names."""
        with self._db.transaction(LOCK):
            rows = self._db.execute(
                "SELECT target FROM messages WHERE sent IS NULL AND failed IS NULL UNION"
                " SELECT target FROM notices WHERE message IS NULL"
            ).fetchall()
            gone = sorted({row[0] for row in rows} - set(self._targets))
            for target in gone:
                self._db.execute(
                    "UPDATE messages SET failed = ?, error = 'no such target any more' WHERE target = ?"
                    " AND sent IS NULL AND failed IS NULL",
                    (now, target),
                )
                self._db.execute("DELETE FROM notices WHERE target = ? AND message IS NULL", (target,))
            before = now - KEPT_MS
            over = "SELECT id FROM messages WHERE coalesce(sent, failed) < ?"
            self._db.execute(f"DELETE FROM notices WHERE message IN ({over})", (before,))  # noqa: S608 - constant text
            self._db.execute("DELETE FROM messages WHERE coalesce(sent, failed) < ?", (before,))
            self._db.execute("DELETE FROM alerts WHERE resolved < ?", (before,))
        return gone


_SILENT = """
SELECT d.id, d.name, d.seen, d.beat, d.pace FROM devices d
LEFT JOIN alerts a ON a.device = d.id AND a.kind = 'silence' AND a.resolved IS NULL
WHERE d.seen IS NOT NULL AND a.key IS NULL AND ? - CASE WHEN d.seen < ? OR d.seen > ? THEN ? ELSE d.seen END
    > ? * CASE WHEN d.beat IS NOT NULL THEN d.beat WHEN d.pace > ? THEN d.pace ELSE ? END
ORDER BY d.seen LIMIT ?
"""


def _silent_values(beats: int, least: int, since: int, now: int) -> tuple[int, ...]:
    return (now, since, now, since, beats, least, least, BATCH)  # seen later than now: before the clock was set back


def _incident_alert(row: Any) -> Alert:
    number, device, name, stream, seq, title, detail, first, _ = row
    where = f"stream {stream}, segment {seq}" if seq else ""
    return Alert(
        f"incident:{number}", "incident", device, name, title, where, detail, INCIDENTS.get(title, Severity.HIGH), first
    )
