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
SELECT r.id, r.device, d.name, r.stream, r.seq, r.boot, r.mono, r.wall, r.body, s.seq, s.clock, s.received,
    b."offset", b.clock
FROM records r JOIN segments s ON s.id = r.segment JOIN devices d ON d.id = r.device
LEFT JOIN boots b ON b.device = r.device AND b.boot = r.boot
"""
_OF_DEVICE = "WHERE r.device = ? AND r.id <= ? ORDER BY r.boot, r.mono, r.stream, r.seq"
_AFTER = "WHERE r.id > ? AND r.id <= ? ORDER BY r.id LIMIT ?"
_written = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode  # what was decoded has no circles
_PAGE = 1000  # rows fetched at a time
_LAST = (1 << 63) - 1  # a row that there never is
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


def stored(record: Record) -> str:
    """`body` as it is kept: a line of ASCII."""
    return _written(body(record))


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
    for common, own in parts(connection, through, name):
        yield merged(common, own)


def page(connection: Database, after: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stored records after row `after`, in the order in which they came: (row, event)."""
    for row in connection.execute(_SELECT + _AFTER, (after, _LAST, _PAGE)):
        yield _event(row)


def last_row(connection: Database) -> int:
    """The newest row, 0 if there is none. Rows before it may still come: `following` knows which can not."""
    row: tuple[int] = connection.execute("SELECT coalesce(max(id), 0) FROM records").fetchone()
    return row[0]


def parts(db: Database, through: int, name: str | None = None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """As `listing`, where and when apart from the record's own content."""
    for device, called in db.execute("SELECT id, name FROM devices ORDER BY name").fetchall():
        if name in {None, called}:
            for row in db.each(_SELECT + _OF_DEVICE, (device, through)):
                yield _parts(row)[1:]


def new_parts(db: Database, after: int, through: int) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """As `page` and no further than row `through`, where and when apart from the record's own content."""
    for row in db.execute(_SELECT + _AFTER, (after, through, _PAGE)):
        yield _parts(row)


def merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """One flat event. A field that has the name of something common gets that of its type before it: usb_name."""
    clear = {f"{own['type']}_{key}" if key in common else key: value for key, value in own.items()}
    return {**common, **clear}


def _event(row: tuple[Any, ...]) -> tuple[int, dict[str, Any]]:
    number, common, own = _parts(row)
    return number, merged(common, own)


def _parts(row: tuple[Any, ...]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    number, device, name, stream, seq, boot, mono, wall, text, segment, clock, received, base, base_clock = row
    if base is not None and base_clock > clock:  # a later segment of the same boot knew the time better
        wall, clock = base + mono, base_clock
    common = {
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
        "received": iso(received),
    }
    return number, common, json.loads(text)


def line(event: Mapping[str, Any]) -> str:
    """One line of JSON that is safe on a terminal."""
    return json.dumps(event, separators=(",", ":")).replace("\x7f", "\\u007f")


def sentence(event: Mapping[str, Any]) -> str:
    """One line for people."""
    subject = event.get("subject") or event.get("path") or event.get("exe") or event.get("text") or ""
    if event.get("type") == "listener":
        subject = f"{event.get('address', '')}:{event.get('port', '')} {event.get('exe', '')}"
    elif event.get("type") == "usb":
        subject = f"{event.get('vendor', 0):04x}:{event.get('product', 0):04x} {event.get('usb_name', '')}"
    words = [event.get("transition") or event.get("what") or event.get("action"), event.get("code"), subject]
    said = " ".join(str(word) for word in words if word)
    severity = event.get("severity", "")
    return printable(f"{event['time'] or '?':24} {event['name']:16} {severity:13} {event['type']:9} {said}")


def printable(text: str) -> str:
    """`text` with everything that a terminal might act on, and every line break, as \\xNN or \\uNNNN."""
    if text.isprintable():  # nearly always
        return text
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
    if text.isascii():  # nearly always
        return text
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
