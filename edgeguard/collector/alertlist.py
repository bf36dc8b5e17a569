"""What `edgeguard-collector alerts` and `test-alert` show: open alerts, and what became of telling people of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edgeguard.collector import alerter, alerts
from edgeguard.collector.alertbook import Message
from edgeguard.collector.alerts import Alert, Notice, severity_name
from edgeguard.collector.config import Config
from edgeguard.collector.database import Database
from edgeguard.collector.deadline import Undelivered
from edgeguard.collector.events import iso
from edgeguard.model import Severity

MESSAGES_MAX = 100  # undelivered ones shown; all are counted


def document(db: Database) -> dict[str, Any]:
    """Open alerts, worst first; messages that wait or were given up; how many were delivered."""
    rows = db.execute(
        "SELECT a.kind, a.device, coalesce(d.name, ''), a.code, a.subject, a.detail, a.severity, a.opened, a.told"
        " FROM alerts a LEFT JOIN devices d ON d.id = a.device WHERE a.resolved IS NULL"
        " ORDER BY a.severity DESC, a.opened, a.key"
    )
    shown = [
        {
            "kind": kind,
            "device": device.hex(),
            "name": name,
            "code": code,
            "subject": subject,
            "detail": detail,
            "severity": severity_name(severity),
            "opened": iso(opened),
            "told": iso(told),
        }
        for kind, device, name, code, subject, detail, severity, opened, told in rows
    ]
    return {"v": 1, "alerts": shown, "targets": _targets(db), "messages": _messages(db)}


def _targets(db: Database) -> list[dict[str, Any]]:
    rows = db.execute(
        "SELECT target, count(sent), count(failed), count(*), max(sent) FROM messages GROUP BY target ORDER BY target"
    )
    return [
        {
            "target": target,
            "sent": sent,
            "given_up": failed,
            "waiting": total - sent - failed,
            "last_sent": iso(last) if last else None,
        }
        for target, sent, failed, total, last in rows
    ]


def _messages(db: Database) -> list[dict[str, Any]]:
    rows = db.execute(
        "SELECT id, target, created, attempts, failed, error FROM messages WHERE sent IS NULL"
        " ORDER BY created, id LIMIT ?",
        (MESSAGES_MAX,),
    )
    return [
        {
            "id": identity,
            "target": target,
            "created": iso(created),
            "attempts": attempts,
            "given_up": failed is not None,
            "error": error,
        }
        for identity, target, created, attempts, failed, error in rows
    ]


def lines(shown: dict[str, Any]) -> list[str]:
    """The same for people."""
    said = []
    for alert in shown["alerts"]:
        what = " ".join(alert[part] for part in ("name", "code", "subject", "detail") if alert[part])
        said.append(f"{alert['opened']} {alert['severity']:13} {alert['kind']:9} {what}")
    if not said:
        said.append("No open alerts.")
    for target in shown["targets"]:
        state = f"{target['sent']} sent, {target['waiting']} waiting, {target['given_up']} given up"
        said.append(f"{target['target']}: {state}, last {target['last_sent'] or 'never'}")
    for message in shown["messages"]:
        state = "given up" if message["given_up"] else "waiting"
        said.append(
            f"!    {message['target']}: message of {message['created']} {state} after {message['attempts']} tries:"
            f" {message['error'] or 'not tried yet'}"
        )
    return said


def summary(config: Config, path: str) -> list[str]:
    """What a configuration means, for `check-config`."""
    policy, silence = config.alerts, config.silence
    said = [f"{path}: fine."]
    for target in policy.targets:
        kind = type(target).__name__.lower()
        said.append(f"{kind} {target.name}: from severity {target.least.name.lower()}")
    if not policy.targets:
        said.append("Nobody is told of alerts: there is no [[alerts.webhook]] and no [[alerts.mail]].")
    if silence.beats:
        said.append(
            f"A device that is silent for {silence.beats} of its intervals ({silence.least_s} s at least where it"
            f" promised none) is an alert of severity {silence.severity.name.lower()}."
        )
    else:
        said.append("A device that is silent is no alert.")
    said.append("Database: PostgreSQL." if config.database else "Database: SQLite.")
    if config.queue:
        said.append(f"Queue: {config.queue.url}, for `edgeguard-collector work`.")
    if config.metrics:
        said.append(f"Metrics: http://{config.metrics[0]}:{config.metrics[1]}/metrics")
    if config.mqtt:
        shared = f", shared by all workers of {config.mqtt.share!r}" if config.mqtt.share else ""
        said.append(f"Devices may send by the broker {config.mqtt.url}, too{shared}.")
    return said


def test(config: Config, name: str | None, identity: Callable[[], str], now: int) -> list[tuple[str, str]]:
    """Send a message to every target, or to one, now: (target, "" or what was not right). It leaves no trace here."""
    alert = Alert("test", "test", bytes(16), "", "", "a test of the alert path", "", Severity.CRITICAL, now)
    notice = Notice(0, "test", int(alert.severity), alerts.item(alert, "test"), now)
    told = []
    for target in config.alerts.targets:
        if name in {None, target.name}:
            message = identity()
            body = json.dumps(alerts.message(message, [notice], now), separators=(",", ":"))
            try:
                told.append((target.name, alerter.deliver(target, Message(message, target.name, now, 0, body), now)))
            except Undelivered as error:
                told.append((target.name, str(error)))
    return told
