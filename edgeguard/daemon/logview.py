"""A record as one line for `edgeguard log`: what happened, in words, and which finding it belongs to."""

from __future__ import annotations

from typing import Any

from edgeguard.cli.text import escape
from edgeguard.model import Severity
from edgeguard.records import registry
from edgeguard.records.wire import Record

TEXT_MAX = 300  # characters of one line
STREAMS = ("findings", "security", "metrics", "verbose")


def record_document(stream: int, sequence: int, record: Record) -> dict[str, Any]:
    """The document of control.VERBS["Log"]; `sent` is not known before a receipt says so."""
    kind = registry.TYPES.get(record.type)
    values = dict(zip((field.name for field in kind.fields), record.fields, strict=False)) if kind else {}
    return {
        "at": record.wall if record.wall is not None else 0,
        "stream": STREAMS[stream],
        "sequence": sequence or None,
        "type": kind.name if kind else str(record.type),
        "severity": Severity(record.severity).name.lower() if record.severity in set(Severity) else None,
        "text": escape(_text(kind.name if kind else "", values))[:TEXT_MAX],
        "sent": None,
        "finding": values.get("id") or values.get("finding") or None,
    }


def _text(kind: str, values: dict[str, Any]) -> str:
    if kind == "finding":
        transition = _name(registry.TRANSITIONS, values.get("transition"))
        done = f" ({values['remediation']})" if values.get("remediation") else ""
        return f"{transition} {values.get('code')} {values.get('subject')}{done}"
    if kind == "state":
        what = _name(registry.STATES, values.get("what"))
        return f"{what}: {values['text']}" if values.get("text") else what
    if kind == "upgrade":
        return str(values.get("text") or values.get("package"))
    action = _name(registry.ACTIONS, values.get("action"))
    names = ("path", "exe", "subject", "address", "port", "name", "text", "reason")
    return " ".join([action, *(str(values[name]) for name in names if values.get(name) is not None)]).strip()


def _name(names: tuple[str, ...], place: Any) -> str:
    return names[place] if isinstance(place, int) and 0 <= place < len(names) else ""
