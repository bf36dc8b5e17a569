"""How is this device? The status document that the CLI renders, status.json repeats and monitoring reads.

Facts only; the words are `edgeguard.cli.render`'s. Every number comes from what the sensors saw or the ledger holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from edgeguard import __version__
from edgeguard.baseline.document import Baseline
from edgeguard.cli.jsonform import finding_document
from edgeguard.cli.text import escape
from edgeguard.daemon.publish import VALID_MS
from edgeguard.evaluate.ledger import Ledger
from edgeguard.model import COMPARED, Finding, Severity, State

DAY_MS = 86_400_000
SHOWN = 8  # findings in the document; `edgeguard findings` lists all

# Area of the screen -> kinds that are judged there.
AREAS = {
    "files": ("file",),
    "ports": ("listener",),
    "processes": ("process",),
    "usb": ("usb",),
    "hardening": ("sysctl", "module", "mount", "sshd", "library_dir", "account", "authorized_key"),
    "packages": ("package",),
}


class Learning(NamedTuple):
    """Progress of the learn helper."""

    percent: int
    files: int
    bytes: int
    eta_s: int | None


class Facts(NamedTuple):
    """What the daemon knows besides the ledger; gathered by main."""

    name: str
    fleet: str
    now: int
    started: int
    checked: int | None  # last time that anything was looked at
    files_watched: int
    files_checked: int | None  # end of the last sweep
    counts: dict[str, int]
    packages_incomplete: int
    packages_changed: int | None
    sequence: int
    log_since: int | None
    log_error: str
    spool: dict[str, Any]  # storage.Storage.document
    uplink_state: str
    uplink_waiting: int
    uplink_last: int | None
    uplink_error: str
    uplink_transport: str  # "https", "mqtt", "": none is set
    clock_synchronised: bool | None
    trust: str
    signer: str
    mode: str
    learning: Learning | None
    problems: tuple[str, ...]
    cpu_percent: float | None  # of one core, over the last minute; None in the first


def document(facts: Facts, ledger: Ledger, baseline: Baseline | None) -> dict[str, Any]:
    """The document of the status interface; keys are stable, see edgeguard(1)."""
    found = list(ledger.all())
    open_ = sorted(
        (finding for finding in found if finding.state is State.OPEN),
        key=lambda finding: (-finding.severity, -finding.last_seen),
    )
    areas = _areas(facts, open_, baseline)
    verdict = _verdict(facts, open_, baseline)
    return {
        "v": 1,
        "verdict": verdict,
        "name": escape(facts.name),
        "fleet": escape(facts.fleet),
        "at": facts.now,
        "valid_until": facts.now + VALID_MS,
        "checked": facts.checked,
        "clock_synchronised": bool(facts.clock_synchronised),
        "areas": areas,
        "findings": [finding_document(_public(finding)) for finding in open_[:SHOWN]],
        "open": len(open_),
        "suppressed": sum(finding.state is State.SUPPRESSED for finding in found),
        "closed_24h": sum(_closed_today(finding, facts.now) for finding in found),
        "policy": _policy(facts, baseline),
        "daemon": {
            "version": __version__,
            "pid": os.getpid(),
            "started": facts.started,
            "rss": resident_bytes(),
            "cpu_percent": facts.cpu_percent,
        },
        "learning": facts.learning._asdict() if facts.learning else None,
        "problems": [escape(problem) for problem in facts.problems],
        "next": _next(open_, facts),
    }


def _public(finding: Finding) -> Finding:
    """Anybody may read this document, and not everybody the files: what is in them is not told here."""
    details = finding.details
    if details is None or not any(name in details for name in COMPARED):
        return finding
    return finding._replace(details={name: value for name, value in details.items() if name not in COMPARED})


def resident_bytes() -> int:
    """Our own RSS. /proc is there: without it no sensor works either."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _closed_today(finding: Finding, now: int) -> bool:
    return finding.state is State.RESOLVED and (finding.resolved_at or 0) > now - DAY_MS


def _state(findings: Iterable[Finding]) -> str:
    worst = max((finding.severity for finding in findings), default=Severity.INFORMATIONAL)
    if worst >= Severity.CRITICAL:
        return "CRIT"
    return "WARN" if worst >= Severity.MEDIUM else "OK"


def _verdict(facts: Facts, open_: list[Finding], baseline: Baseline | None) -> str:
    if facts.learning:
        return "LEARNING"
    if baseline is None:
        return "UNKNOWN"
    return _state(open_)


def _areas(facts: Facts, open_: list[Finding], baseline: Baseline | None) -> dict[str, dict[str, Any]]:
    by_area = {area: [f for f in open_ if f.kind in kinds] for area, kinds in AREAS.items()}
    blank = "LEARNING" if facts.learning else "UNKNOWN"
    state = {area: _state(found) if baseline else blank for area, found in by_area.items()}
    rules = [rule for rule in baseline.policy.rules if rule.kind in AREAS["hardening"]] if baseline else []
    broken = {finding.rule for finding in by_area["hardening"]}
    count = facts.counts.get
    return {
        "files": {
            "state": state["files"],
            "watched": facts.files_watched,
            "differ": len({finding.subject for finding in by_area["files"]}),
            "checked": facts.files_checked,
        },
        "ports": {
            "state": state["ports"],
            "listening": count("listener", 0),
            "unexpected": len({finding.subject for finding in by_area["ports"]}),
        },
        "processes": {
            "state": state["processes"],
            "running": count("process", 0),
            "unusual": len({finding.subject for finding in by_area["processes"]}),
        },
        "usb": {
            "state": state["usb"],
            "devices": count("usb", 0),
            "unknown": len({finding.subject for finding in by_area["usb"]}),
        },
        "hardening": {
            "state": state["hardening"],
            "rules": len(rules),
            "met": len(rules) - len(broken),
            "waived": len(baseline.policy.waivers) if baseline else 0,
        },
        "packages": {
            "state": state["packages"],
            "installed": count("package", 0),
            "incomplete": facts.packages_incomplete,
            "changed": facts.packages_changed,
        },
        "log": {
            "state": "CRIT" if facts.log_error else "WARN" if facts.spool["fleeting"] else "OK",
            "sequence": facts.sequence,
            "since": facts.log_since,
            "error": escape(facts.log_error),
            **facts.spool,
            "durable": facts.spool["durable"] and not facts.log_error,
        },
        "uplink": {
            "state": facts.uplink_state,
            "waiting": facts.uplink_waiting,
            "last_sent": facts.uplink_last,
            "error": escape(facts.uplink_error),
            "transport": facts.uplink_transport,
        },
        "clock": {
            "state": "UNKNOWN" if facts.clock_synchronised is None else "OK" if facts.clock_synchronised else "WARN",
            "synchronised": facts.clock_synchronised,
        },
    }


def _policy(facts: Facts, baseline: Baseline | None) -> dict[str, Any] | None:
    if baseline is None:
        return None
    return {
        "revision": baseline.revision,
        "trust": facts.trust,
        "signer": facts.signer,
        "mode": facts.mode,
        "expires": baseline.expires,
    }


def _next(open_: list[Finding], facts: Facts) -> str:
    if facts.learning:
        return "edgeguard status"
    if open_:
        return f"edgeguard explain {open_[0].id}"
    return "edgeguard doctor" if facts.problems else ""
