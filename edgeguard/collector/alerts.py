"""What people are told and when: the nouns of an alert and the decisions about it. No clock, database or network.

    finding, incident, silence ──▶ alert (open, worse, resolved) ──▶ a notice for each target ──▶ grouped: one message

A critical notice waits GATHER_MS for company and no longer. Everything else waits until `group_s` have passed since the
last message to that target, and through quiet hours. At most URGENT_MAX messages for critical notices leave within
`group_s`; beyond that they wait for the group like the rest, so that a thousand of them are not a thousand mails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from edgeguard.collector.config import MINUTES, Alerts
from edgeguard.collector.events import iso
from edgeguard.model import Severity

GATHER_MS = 1000
URGENT_MAX = 20  # messages within group_s
ITEMS_MAX = 100  # spelled out in one message, the worst first; the others are counted in it
RESOLVED = "resolved"
GAP_MS = 600_000  # segments that come in another order leave gaps for moments

# How bad it is what ingest finds wrong with a device's chain. What has no name here is HIGH.
INCIDENTS = {
    "equivocation": Severity.CRITICAL,
    "spliced": Severity.CRITICAL,
    "forged epoch": Severity.CRITICAL,
    "sealed later": Severity.CRITICAL,
    "old epoch": Severity.CRITICAL,
    "rolled back": Severity.CRITICAL,
    "records twice": Severity.HIGH,
    "records missing": Severity.HIGH,
    "gap": Severity.HIGH,
    "altered": Severity.HIGH,
    "re-sealed": Severity.HIGH,
    "replayed": Severity.HIGH,
    "unannounced epoch": Severity.HIGH,
    "truncated file": Severity.MEDIUM,
    "unknown epoch": Severity.MEDIUM,
    "late": Severity.MEDIUM,
    "malformed": Severity.MEDIUM,
    "unknown device": Severity.MEDIUM,
    "explained loss": Severity.LOW,
}


class Alert(NamedTuple):
    """Something that people should know of. `key` says what it is about, so that it is told once."""

    key: str
    kind: str  # "finding", "incident" or "silence"
    device: bytes
    name: str  # of the device
    code: str
    subject: str
    detail: str
    severity: int
    time: int  # when it happened, ms since the epoch, as far as is known


class Notice(NamedTuple):
    """One thing to tell one target."""

    id: int
    event: str  # "opened", "worse", "passed" (opened and over again), "repeated", "resolved", "test"
    severity: int
    item: Mapping[str, Any]
    created: int


def item(alert: Alert, event: str) -> dict[str, Any]:
    """One entry of a message."""
    return {
        "event": event,
        "kind": alert.kind,
        "severity": severity_name(alert.severity),
        "device": alert.device.hex(),
        "name": alert.name,
        "code": alert.code,
        "subject": alert.subject,
        "detail": alert.detail,
        "time": iso(alert.time),
    }


def severity_name(number: int) -> str:
    try:
        return Severity(number).name.lower()
    except ValueError:
        return str(number)


def clock(zone: str) -> Callable[[int], int]:
    """What says which minute of the day it is there, for milliseconds since the epoch."""
    place = ZoneInfo(zone) if zone else None

    def minute(now: int) -> int:
        moment = datetime.fromtimestamp(now / 1000, UTC).astimezone(place)
        return moment.hour * 60 + moment.minute

    return minute


def is_quiet(minute: int, hours: Sequence[tuple[int, int]]) -> bool:
    """Does this minute of the day lie in one of the spans? They may go over midnight."""
    return any((minute - begin) % MINUTES < (end - begin) % MINUTES for begin, end in hours)


def due(
    notices: Sequence[Notice], policy: Alerts, now: int, *, quiet: bool, last: int, urgent_sent: int
) -> list[Notice]:
    """Which of the waiting notices of one target make a message now; [] if none.

    `last` is when the last message to it was made, 0 if none; `urgent_sent` how many were within the last group_s.
    """
    told = [notice for notice in notices if not quiet or _breaks(notice, policy)]
    if not any(_waited(notice, now) for notice in told):
        return []
    if now - last >= policy.group_s * 1000:
        return told
    urgent = any(
        notice.severity >= Severity.CRITICAL and notice.event != RESOLVED and _waited(notice, now) for notice in told
    )
    return told if urgent and urgent_sent < URGENT_MAX else []


def _waited(notice: Notice, now: int) -> bool:
    """Long enough for company; also where it seems to come from the future: the clock was set back since."""
    return not now - GATHER_MS < notice.created <= now


def _breaks(notice: Notice, policy: Alerts) -> bool:
    return notice.severity >= policy.breaks and notice.event != RESOLVED


def message(identity: str, notices: Sequence[Notice], now: int) -> dict[str, Any]:
    """The body that a webhook gets, and of which a mail is made."""
    order = sorted(notices, key=lambda notice: (notice.event == RESOLVED, -notice.severity, notice.id))
    counts: dict[str, int] = {}
    for notice in order:
        name = RESOLVED if notice.event == RESOLVED else severity_name(notice.severity)
        counts[name] = counts.get(name, 0) + 1
    return {
        "v": 1,
        "type": "edgeguard.alerts",
        "id": identity,
        "time": iso(now),
        "counts": counts,
        "items": [dict(notice.item) for notice in order[:ITEMS_MAX]],
        "more": max(0, len(order) - ITEMS_MAX),
    }
