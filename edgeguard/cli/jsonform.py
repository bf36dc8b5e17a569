"""Documents that other programs may rely on (`"v": 1`): findings and answers of `why`, as JSON can hold them. Pure.

Bytes become hex, texts from outside are escaped (cli.text), times are ISO 8601 in UTC. Keys are stable: a new one may
come, none goes or changes its meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from edgeguard.cli.text import escape
from edgeguard.codec import sha
from edgeguard.model import (
    NOBODY,
    Actor,
    Columns,
    Condition,
    Finding,
    Observation,
    Origin,
    Result,
    Status,
    Value,
    Waiver,
    Watch,
)


class Explained(Protocol):
    """What the engine's `why` gives (edgeguard.evaluate.engine.Why)."""

    @property
    def observation(self) -> Observation: ...
    @property
    def reference(self) -> Columns | None: ...
    @property
    def results(self) -> tuple[Result, ...]: ...
    @property
    def waivers(self) -> tuple[Waiver, ...]: ...


def iso(ms: int) -> str:
    """2026-11-23T06:41:07Z; a time that no calendar has (a broken clock) is given in milliseconds."""
    try:
        return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"


def plain(value: Value) -> Any:
    """A column value in JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def columns(row: Columns | None) -> dict[str, Any]:
    return {name: plain(value) for name, value in (row or {}).items()}


def actor_document(actor: Actor) -> dict[str, Any] | None:
    """None: it is not known who did it."""
    if actor == NOBODY:
        return None
    *simple, _ = actor
    values: list[Any] = list(simple)
    document = {name: plain(value) for name, value in zip(Actor._fields, values, strict=False)}
    document["parents"] = [[pid, escape(exe)] for pid, exe in actor.parents]
    return document


def finding_document(finding: Finding) -> dict[str, Any]:
    """One finding, for status.json, `-o json` and the control socket."""
    return {
        "v": 1,
        "id": finding.id,
        "code": finding.code,
        "severity": finding.severity.name.lower(),
        "state": finding.state.value,
        "outcome": finding.outcome.value,
        "title": escape(finding.title),
        "kind": finding.kind,
        "subject": escape(finding.subject),
        "rule": escape(finding.rule),
        "first_seen": iso(finding.first_seen),
        "last_seen": iso(finding.last_seen),
        "count": finding.count,
        "origin": finding.origin.name.lower(),
        "expected": columns(finding.expected),
        "observed": columns(finding.observed),
        "actor": actor_document(finding.actor),
        "details": columns(finding.details),
        "note": escape(finding.note),
        "fix": escape(finding.fix),
        "waiver": escape(finding.waiver),
        "remediation": escape(finding.remediation),
        "resolved_at": None if finding.resolved_at is None else iso(finding.resolved_at),
        "mark": mark(finding),
    }


def mark(finding: Finding) -> str:
    """Eight hex digits of what was observed: `accept` refuses when it is another by then."""
    content = repr((finding.id, sorted(columns(finding.observed).items()), finding.outcome.value))
    return sha.blake2b(content.encode(), 4).hex()


def why_document(why: Explained, findings: Iterable[Finding] = ()) -> dict[str, Any]:
    """What the policy says about one subject: the deciding rule first."""
    observation = why.observation
    return {
        "v": 1,
        "kind": observation.kind,
        "subject": escape(observation.subject),
        "status": Status(observation.status).name.lower(),
        "origin": Origin(observation.origin).name.lower(),
        "known": why.reference is not None,
        "observed": columns(observation.columns),
        "reference": None if why.reference is None else columns(why.reference),
        "results": [_result(result) for result in why.results],
        "waivers": [_waiver(waiver) for waiver in why.waivers],
        "findings": [finding_document(finding) for finding in findings],
    }


class Deciding(Protocol):
    """edgeguard.sensors.deciding.Decision: which line of the policy says whether a path is watched."""

    @property
    def watch(self) -> Watch | None: ...
    @property
    def watched(self) -> bool: ...
    @property
    def glob(self) -> str: ...
    @property
    def at(self) -> str: ...
    @property
    def source(self) -> str: ...


def watch_document(found: Deciding) -> dict[str, Any]:
    """Whether a file is watched, by which line, and what is checked of it."""
    watch = found.watch
    excluded = {"glob": escape(found.glob), "at": escape(found.at)} if found.glob else None
    return {
        "watched": found.watched,
        "source": escape(found.source),
        "path": "" if watch is None else escape(watch.path),
        "excluded": excluded,
        "category": watch.category if watch is not None and found.watched else "",
        "checks": _checked(watch) if watch is not None and found.watched else [],
        "only": watch.only if watch is not None and found.watched else "",
        "protect": watch is not None and found.watched and watch.protect,
    }


def _checked(watch: Watch) -> list[str]:
    return [check for check in watch.checks if check != "sha256" or watch.content]


def _result(result: Result) -> dict[str, Any]:
    rule = result.rule
    return {
        "rule": escape(rule.id),
        "code": rule.code,
        "severity": rule.severity.name.lower(),
        "title": escape(rule.title),
        "source": escape(rule.source),
        "mode": rule.mode.value,
        "remediation": rule.remediation,
        "outcome": result.outcome.value,
        "where": [condition_text(condition) for condition in rule.where],
        "expect": [condition_text(condition) for condition in rule.expect],
        "expected": columns(result.expected),
        "observed": columns(result.observed),
    }


def condition_text(condition: Condition) -> str:
    """`type is file`, `sha256 same as in the baseline`."""
    word = condition.operator.value.replace("_", " ")
    if condition.operator.value in {"same", "not_below"}:
        tail = "as in the baseline" if condition.operator.value == "same" else "the baseline's"
        return f"{escape(condition.column)} {word} {tail}"
    operand = plain(condition.operand)
    listed = ", ".join(str(item) for item in operand) if isinstance(operand, list) else _word(operand)
    return f"{escape(condition.column)} {word} {listed}"


def _word(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _waiver(waiver: Waiver) -> dict[str, Any]:
    document: Mapping[str, Any] = {
        "code": waiver.code,
        "subject": escape(waiver.subject),
        "owner": escape(waiver.owner),
        "reason": escape(waiver.reason),
        "expires": iso(waiver.expires),
        "source": escape(waiver.source),
    }
    return dict(document)
