"""Decoded records: names from the registry, wall time restored, safe to print. Bytes become hex, text that is not
UTF-8 shows its bytes as \\xNN, and no control character leaves here unescaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from edgeguard.collector.database import Database
from edgeguard.model import Severity
from edgeguard.records import registry
from edgeguard.records.registry import ACTOR_FIELDS, Field, Kind
from edgeguard.records.wire import Entry, Header, Record

_SELECT = """
SELECT r.id, r.device, d.name, r.stream, r.seq, r.boot, r.mono, r.wall, r.body, s.seq, s.clock, b.offset, b.clock
FROM records r JOIN segments s ON s.id = r.segment JOIN devices d ON d.id = r.device
LEFT JOIN boots b ON b.device = r.device AND b.boot = r.boot
"""
_PAGE = 1000  # rows fetched at a time
CODE_MAX = 64  # letters of a finding code in the index; ours have eleven


def body(record: Record) -> dict[str, Any]:
    """A record's own content as JSON values, without where and when."""
    kind = registry.TYPES.get(record.type)
    shown: dict[str, Any] = {"type": kind.name if kind else record.type}
    if record.severity:
        shown["severity"] = _severity(record.severity)
    if record.rule:
        shown["rule_matched"] = True
    known = kind.fields if kind else ()
    for field, value in zip(known, record.fields, strict=False):
        if value is not None:
            shown[field.name] = _field(field, value)
    rest = record.fields[len(known) :]
    if rest:
        shown["unknown_fields"] = plain(list(rest))
    return shown


def code(record: Record) -> str | None:
    """The finding code, for searching."""
    if record.type != registry.FINDING.number or len(record.fields) < 2:
        return None
    return printable(text_of(record.fields[1]))[:CODE_MAX] if isinstance(record.fields[1], str) else None


def offset(header: Header) -> int | None:
    """Wall time of this boot's start, as far as this segment knows."""
    return None if header.wall is None else header.wall - header.mono


def listing(connection: Database, through: int, name: str | None = None) -> Iterator[dict[str, Any]]:
    """Stored records up to row `through`, of all devices or of one, each device's in the order of its recording.

    Boots are counted and the time since boot only grows, so this order does not depend on anybody's clock, nor on
    what was sent first.
    """
    for device, called in connection.execute("SELECT id, name FROM devices ORDER BY name").fetchall():
        if name in {None, called}:
            rows = connection.execute(
                _SELECT + "WHERE r.device = ? AND r.id <= ? ORDER BY r.boot, r.mono, r.stream, r.seq", (device, through)
            )
            for row in rows:
                yield _event(row)[1]


def page(connection: Database, after: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stored records after row `after`, in the order in which they came: (row, event)."""
    for row in connection.execute(_SELECT + "WHERE r.id > ? ORDER BY r.id LIMIT ?", (after, _PAGE)):
        yield _event(row)


def last_row(connection: Database) -> int:
    """The newest row, 0 if there is none."""
    row: tuple[int] = connection.execute("SELECT coalesce(max(id), 0) FROM records").fetchone()
    return row[0]


def _event(row: tuple[Any, ...]) -> tuple[int, dict[str, Any]]:
    number, device, name, stream, seq, boot, mono, wall, text, segment, clock, base, base_clock = row
    if base is not None and base_clock > clock:  # a later segment of the same boot knew the time better
        wall, clock = base + mono, base_clock
    event = {
        "v": 1,
        "device": device.hex(),
        "name": name,
        "stream": stream,
        "seq": seq,
        "segment": segment,
        "time": iso(wall) if wall is not None else None,
        "clock": registry.Clock(clock).name.lower(),
        "boot": boot,
        "mono_ms": mono,
        **json.loads(text),
    }
    return number, event


def line(event: Mapping[str, Any]) -> str:
    """One line of JSON that is safe on a terminal."""
    return json.dumps(event, separators=(",", ":")).replace("\x7f", "\\u007f")


def sentence(event: Mapping[str, Any]) -> str:
    """One line for people."""
    subject = event.get("subject") or event.get("path") or event.get("exe") or event.get("text") or ""
    if event.get("type") == "listener":
        subject = f"{event.get('address', '')}:{event.get('port', '')} {event.get('exe', '')}"
    elif event.get("type") == "usb":
        subject = f"{event.get('vendor', 0):04x}:{event.get('product', 0):04x} {event.get('name', '')}"
    words = [event.get("transition") or event.get("what") or event.get("action"), event.get("code"), subject]
    said = " ".join(str(word) for word in words if word)
    severity = event.get("severity", "")
    return printable(f"{event['time'] or '?':24} {event['name']:16} {severity:13} {event['type']:9} {said}")


def printable(text: str) -> str:
    """`text` with everything that a terminal might act on, and every line break, as \\xNN or \\uNNNN."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def iso(ms: int) -> str:
    """UTC with milliseconds; a time beyond the calendar as the number that it is."""
    try:
        moment = datetime.fromtimestamp(ms // 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def plain(value: Any) -> Any:
    """Any decoded value as JSON can hold it."""
    if isinstance(value, str):
        return text_of(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Entry):
        return f"baseline:{value.number}"
    if isinstance(value, Mapping):
        return {text_of(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def text_of(text: str) -> str:
    """Bytes that are not UTF-8 visible as \\xNN."""
    return (
        "".join(f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else letter for letter in text)
        .encode("utf-8", "backslashreplace")
        .decode()
    )


def _field(field: Field, value: Any) -> Any:
    if field.kind is Kind.ENUM:
        return field.names[value] if value < len(field.names) else value
    if field.kind is Kind.ACTOR:
        return _actor(value)
    return plain(value)


def _actor(parts: tuple[Any, ...]) -> dict[str, Any]:
    shown = {field.name: plain(item) for field, item in zip(ACTOR_FIELDS[:-1], parts, strict=False) if item is not None}
    if len(parts) >= len(ACTOR_FIELDS) and parts[-1]:
        shown["parents"] = plain(parts[-1])
    return shown


def _severity(number: int) -> Any:
    try:
        return Severity(number).name.lower()
    except ValueError:
        return number
