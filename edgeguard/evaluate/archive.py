"""The ledger on disk: CBOR out, strict in. Only `Ledger.to_cbor` and `from_cbor` come here.

One map {"v": 1, "findings": [...], "accepted": [...], "overflow": {...}}; a finding is an array in the order of
FIELDS. The file is ours, but a disk is outside: what is not exactly this shape is a DecodeError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edgeguard.codec import cbor
from edgeguard.codec.values import columns_from_plain, columns_to_plain, from_plain, to_plain
from edgeguard.errors import DecodeError
from edgeguard.model import NOBODY, Actor, Finding, Origin, Outcome, Severity, State

if TYPE_CHECKING:
    from edgeguard.evaluate.ledger import Acceptance, Key

VERSION = 1
SIZE_MAX = 32 * 1024 * 1024  # bytes; 10,000 findings with long names have 10 MB
FIELDS = Finding._fields
_COLUMNS = frozenset({"expected", "observed"})
_NUMBERS = frozenset({"first_seen", "last_seen", "count"})
_ENUMS = {"severity": Severity, "state": State, "origin": Origin, "outcome": Outcome}

Archive = tuple[list[tuple["Key", Finding]], dict["Key", "Acceptance"], dict[str, int]]


def pack(
    findings: Iterable[tuple[Key, Finding]], accepted: Mapping[Key, Acceptance], overflow: Mapping[str, int]
) -> bytes:
    return cbor.encode(
        {
            "v": VERSION,
            "findings": [_finding_to_plain(finding) for _, finding in findings],
            "accepted": [[*(to_plain(part) for part in key), *_texts(entry)] for key, entry in accepted.items()],
            "overflow": dict(overflow),
        }
    )


def unpack(data: bytes) -> Archive:
    from edgeguard.evaluate.ledger import Acceptance

    document = cbor.decode(data, size=SIZE_MAX)
    if not isinstance(document, dict) or document.get("v") != VERSION:
        raise DecodeError(f"ledger: not version {VERSION}")
    try:
        findings = [_finding_from_plain(row) for row in document["findings"]]
        accepted = {}
        for rule, kind, subject, mark, owner, reason, until, at in document["accepted"]:
            key = (str(rule), str(kind), str(from_plain(subject)))
            accepted[key] = Acceptance(
                _is(mark, bytes), str(from_plain(owner)), str(from_plain(reason)), _time(until), _is(at, int)
            )
        overflow = {str(code): _is(count, int) for code, count in document["overflow"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DecodeError(f"ledger: {error}") from error
    return [((f.rule, f.kind, f.subject), f) for f in findings], accepted, overflow


def _texts(entry: Acceptance) -> list[Any]:
    return [entry.fingerprint, to_plain(entry.owner), to_plain(entry.reason), entry.until, entry.at]


def _finding_to_plain(finding: Finding) -> list[Any]:
    row: list[Any] = []
    for name in FIELDS:
        value = getattr(finding, name)
        if name in _COLUMNS or (name == "details" and value is not None):
            row.append(columns_to_plain(value))
        elif name == "actor":
            row.append(None if value == NOBODY else _actor_to_plain(value))
        elif name in _ENUMS:
            row.append(value.value)
        else:
            row.append(to_plain(value))
    return row


def _finding_from_plain(row: list[Any]) -> Finding:
    values: dict[str, Any] = {}
    for name, plain in zip(FIELDS, row, strict=True):
        if name in _COLUMNS or (name == "details" and plain is not None):
            values[name] = columns_from_plain(plain)
        elif name == "actor":
            values[name] = NOBODY if plain is None else _actor_from_plain(plain)
        elif name in _ENUMS:
            values[name] = _ENUMS[name](plain)
        elif name in _NUMBERS:
            values[name] = _is(plain, int)
        elif name in {"resolved_at", "details"}:
            values[name] = _time(plain)
        else:
            values[name] = _is(from_plain(plain), str)
    return Finding(**values)


def _actor_to_plain(actor: Actor) -> list[Any]:
    *simple, parents = actor
    return [*(to_plain(value) for value in simple), [[pid, to_plain(exe)] for pid, exe in parents]]


def _actor_from_plain(plain: list[Any]) -> Actor:
    *simple, parents = plain
    values: list[Any] = [from_plain(value) for value in simple]
    chain = tuple((_is(pid, int), _is(from_plain(exe), str)) for pid, exe in parents)
    return Actor._make([*values, chain])


def _time(value: Any) -> int | None:
    return None if value is None else _is(value, int)


def _is(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise DecodeError(f"ledger: expected {kind.__name__}, got {type(value).__name__}")
    return value
