"""The record types and their fields: one append-only table. Encoder, decoder, the names in decoded events and the CDDL
in docs/segment.cddl all come from it.

A number, once given, keeps its meaning for ever: fields and enum members are only added at the end, types only get new
numbers. A reader of today keeps what a writer of tomorrow adds (unknown types, trailing fields) and passes it on.
Nothing here encodes (`wire`), decides what becomes a record (`compose`), or opens anything.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Stream(IntEnum):
    """Each stream has its own sequence and chain, so that dropping metrics never holes the chain of findings."""

    FINDINGS = 0  # findings and state
    SECURITY = 1
    METRICS = 2
    VERBOSE = 3


class Clock(IntEnum):
    """How far the wall clock can be believed. Monotonic time is always right; wall time only labels."""

    UNSET = 0
    RTC = 1
    NTP = 2
    AUTHENTICATED = 3


class Kind(IntEnum):
    """What a field holds, and how it goes over the wire."""

    REF = 0  # text: index into the segment's strings, negative for an entry of the baseline, or written out
    REFS = 1  # a list of such
    UINT = 2
    INT = 3
    BOOL = 4
    DIGEST = 5  # bytes
    ENUM = 6  # a number; its name stands in `names`, an unknown one is kept as a number
    COLUMNS = 7  # column name -> value
    ACTOR = 8  # who did it
    COUNTER = 9  # as the difference to the previous row of this type in the segment
    BYTES = 10


CDDL_TYPES = {
    Kind.REF: "ref",
    Kind.REFS: "[* ref]",
    Kind.UINT: "natural",
    Kind.INT: "int",
    Kind.BOOL: "bool",
    Kind.DIGEST: "digest",
    Kind.ENUM: "uint",
    Kind.COLUMNS: "columns",
    Kind.ACTOR: "actor",
    Kind.COUNTER: "int",
    Kind.BYTES: "bstr",
}


class Field(NamedTuple):
    name: str
    kind: Kind
    names: tuple[str, ...] = ()  # of an ENUM, by number


class Type(NamedTuple):
    number: int
    name: str
    about: str
    fields: tuple[Field, ...]


ACTIONS = ("seen", "gone", "unreadable", "changed", "created", "opened", "closed", "removed")
ORIGINS = ("live", "sweep", "down", "learn")
STATUSES = ("present", "absent", "unreadable")
TRANSITIONS = ("opened", "changed", "repeated", "resolved", "suppressed")
OUTCOMES = ("pass", "fail", "error", "unknown", "notapplicable", "notchecked", "informational")
LIFE = ("open", "suppressed", "resolved")
EXE_STATES = ("ok", "deleted", "replaced", "memfd", "unknown")
SCOPES = ("any", "loopback", "link", "address")
STATES = (
    "boot",
    "start",
    "stop",
    "gap",
    "clock step",
    "baseline installed",
    "baseline refused",
    "policy",
    "maintenance begins",
    "maintenance ends",
    "remediation",
    "accepted",
    "sweep",
    "mode",
    "sensor",
    "learned",
    "undo",
    "overflow",
    "uplink",
    "helper failed",
    "image",
    "spool",
    "heartbeat",
)
REASONS = ("unknown", "damaged", "evicted", "memory full", "too large", "operator", "missing")

VOUCHED = ("none", "archive", "operator", "nobody")  # who says that a package is what it says it is

_R, _RS, _U, _I, _B = Kind.REF, Kind.REFS, Kind.UINT, Kind.INT, Kind.BOOL

EXEC = Type(
    1,
    "exec",
    "a program was started",
    (
        Field("exe", _R),
        Field("argv", _RS),
        Field("pid", _U),
        Field("ppid", _U),
        Field("uid", _I),
        Field("user", _R),
        Field("login_uid", _I),
        Field("tty", _R),
        Field("unit", _R),
        Field("exe_state", Kind.ENUM, EXE_STATES),
        Field("writable_dir", _B),
        Field("exe_known", _B),
        Field("package", _R),
        Field("parents", _RS),
        Field("start", _U),
        Field("action", Kind.ENUM, ACTIONS),
        Field("cwd", _R),
        Field("sha256", Kind.DIGEST),
        Field("more", Kind.COLUMNS),
    ),
)
FILE = Type(
    2,
    "file",
    "a file was seen to differ, or was changed",
    (
        Field("action", Kind.ENUM, ACTIONS),
        Field("path", _R),
        Field("columns", Kind.COLUMNS),
        Field("origin", Kind.ENUM, ORIGINS),
        Field("actor", Kind.ACTOR),
        Field("note", _R),
    ),
)
LISTENER = Type(
    3,
    "listener",
    "a port is listened on",
    (
        Field("action", Kind.ENUM, ACTIONS),
        Field("protocol", _U),  # IP protocol number
        Field("address", _R),
        Field("port", _U),
        Field("scope", Kind.ENUM, SCOPES),
        Field("pid", _U),
        Field("exe", _R),
        Field("uid", _I),
        Field("user", _R),
        Field("unit", _R),
        Field("package", _R),
        Field("exe_known", _B),
        Field("more", Kind.COLUMNS),
    ),
)
CONNECTION = Type(
    4,
    "connection",
    "a connection was made or ended",
    (
        Field("action", Kind.ENUM, ACTIONS),
        Field("protocol", _U),
        Field("local_address", _R),
        Field("local_port", _U),
        Field("remote_address", _R),
        Field("remote_port", _U),
        Field("pid", _U),
        Field("exe", _R),
        Field("uid", _I),
    ),
)
LOGIN = Type(
    5,
    "login",
    "somebody logged in, or tried to",
    (
        Field("result", Kind.ENUM, ("accepted", "failed", "ended")),
        Field("service", _R),
        Field("user", _R),
        Field("tty", _R),
        Field("address", _R),
        Field("port", _U),
        Field("pid", _U),
        Field("method", _R),
    ),
)
USB = Type(
    6,
    "usb",
    "a USB device came or went",
    (
        Field("action", Kind.ENUM, ACTIONS),
        Field("vendor", _U),
        Field("product", _U),
        Field("serial", _R),
        Field("manufacturer", _R),
        Field("name", _R),
        Field("interfaces", _RS),
        Field("port", _R),
        Field("driver", _R),
        Field("authorized", _B),
        Field("more", Kind.COLUMNS),
    ),
)
METRIC = Type(
    7,
    "metric",
    "what the device and the guard are busy with",
    (
        Field("cpu_ms", Kind.COUNTER),  # of the guard
        Field("rss_kib", _U),  # of the guard
        Field("received_bytes", Kind.COUNTER),
        Field("sent_bytes", Kind.COUNTER),
        Field("processes", _U),
        Field("listening", _U),
        Field("established", _U),
        Field("memory_free_kib", _U),
        Field("disk_free_kib", _U),
        Field("temperature_mc", _I),  # thousandths of a degree Celsius
        Field("load_permille", _U),
        Field("observations", Kind.COUNTER),
        Field("lost", Kind.COUNTER),
        Field("open_findings", _U),
        Field("spool_bytes", _U),
        Field("written_kib", Kind.COUNTER),  # what records cost the disk, whole blocks
        Field("disk_written_kib", Kind.COUNTER),  # what anybody wrote to the device that holds them
    ),
)
FINDING = Type(
    8,
    "finding",
    "a finding opened, changed, was suppressed or resolved",
    (
        Field("transition", Kind.ENUM, TRANSITIONS),
        Field("code", _R),
        Field("id", _R),
        Field("kind", _R),
        Field("subject", _R),
        Field("state", Kind.ENUM, LIFE),
        Field("outcome", Kind.ENUM, OUTCOMES),
        Field("origin", Kind.ENUM, ORIGINS),
        Field("count", _U),
        Field("age_ms", _U),  # how long before this record it was first seen
        Field("expected", Kind.COLUMNS),
        Field("observed", Kind.COLUMNS),
        Field("actor", Kind.ACTOR),
        Field("details", Kind.COLUMNS),
        Field("rule", _R),
        Field("note", _R),
        Field("waiver", _R),
        Field("remediation", _R),
    ),
)
STATE = Type(
    9,
    "state",
    "EdgeGuard itself: started, stopped, clock set, baseline, policy, maintenance, remediation",
    (
        Field("what", Kind.ENUM, STATES),
        Field("text", _R),
        Field("columns", Kind.COLUMNS),
        Field("subject", _R),
        Field("finding", _R),
    ),
)
DROP = Type(
    10,
    "drop",
    "what was lost, from where to where and why: a gap is explained or it is an incident",
    (
        Field("stream", _U),
        Field("first", _U),  # segment sequence numbers; absent: records that never got one
        Field("last", _U),
        Field("reason", Kind.ENUM, REASONS),
        Field("count", _U),
        Field("name", _R),
    ),
)
ATTEST = Type(11, "attest", "an attestation (EAT, RFC 9711)", (Field("token", Kind.BYTES),))
FACT = Type(
    12,
    "fact",
    "an observation of a kind that has no type of its own",
    (
        Field("kind", _R),
        Field("subject", _R),
        Field("status", Kind.ENUM, STATUSES),
        Field("columns", Kind.COLUMNS),
        Field("origin", Kind.ENUM, ORIGINS),
        Field("actor", Kind.ACTOR),
        Field("note", _R),
    ),
)
UPGRADE = Type(
    13,
    "upgrade",
    "a package was installed, upgraded or removed, and what became of its files",
    (
        Field("package", _R),
        Field("architecture", _R),
        Field("before", _R),  # version until now; absent: there was none
        Field("after", _R),  # absent: it was removed
        Field("vouched", Kind.ENUM, VOUCHED),
        Field("sha256", Kind.DIGEST),  # of the .deb
        Field("signed", _U),  # paths that are as in the package
        Field("other", _U),  # paths that are not: each is a finding of its own
        Field("kept", _U),  # settings that are not the package's
        Field("removed", _U),
        Field("others", _RS),
        Field("text", _R),
    ),
)
TEXT = Type(15, "text", "words", (Field("text", _R), Field("cut", _B)))

TYPES: dict[int, Type] = {
    kind.number: kind
    for kind in (
        EXEC,
        FILE,
        LISTENER,
        CONNECTION,
        LOGIN,
        USB,
        METRIC,
        FINDING,
        STATE,
        DROP,
        ATTEST,
        FACT,
        UPGRADE,
        TEXT,
    )
}

ACTOR_FIELDS = (
    Field("pid", _U),
    Field("exe", _R),
    Field("argv", _RS),
    Field("uid", _I),
    Field("user", _R),
    Field("login_uid", _I),
    Field("login_user", _R),
    Field("tty", _R),
    Field("address", _R),
    Field("unit", _R),
    Field("parents", _RS),  # pid, exe, pid, exe, ...: handled apart, a pair for each parent
)

# Column names travel as their place in this list. Append only.
COLUMN_NAMES = (
    *("type", "sha256", "size", "mode", "uid", "gid", "target", "caps", "xattrs", "category", "setid"),
    *("world_writable", "package", "protocol", "address", "port", "scope", "exe", "user", "unit", "pid"),
    *("ephemeral", "exe_known", "exe_state", "writable_dir", "ppid", "login_uid", "tty", "argv", "parents", "start"),
    *("vendor", "product", "serial", "manufacturer", "name", "interfaces", "authorized", "driver", "value", "level"),
    *("used_by", "fstype", "source", "options", "home", "shell", "password", "members", "system", "privileged"),
    *("path", "comment", "version", "status", "ok", "reason", "detail", "code", "count", "known"),
    *("revision", "signer", "digest", "before", "after", "delta_ms", "result", "sensor", "rung", "blind"),
    *("files", "bytes", "seconds", "finding", "subject", "verb", "until", "owner", "exit", "error"),
    *("vouched", "came_from", "diff", "changes"),
)
COLUMN_NUMBERS = {name: number for number, name in enumerate(COLUMN_NAMES)}


def field_names(number: int) -> tuple[str, ...]:
    """The field names of a type, () for one that is not known here."""
    kind = TYPES.get(number)
    return tuple(field.name for field in kind.fields) if kind else ()


def cddl() -> str:
    """The record types as CDDL (RFC 8610)."""
    names = [f"{kind.name}-row" for kind in TYPES.values()]
    lines = ["", "; head = type << 4 | rule << 3 | severity (0..5)", f"row = {' / '.join((*names, 'unknown-row'))}"]
    lines += ["; a type of tomorrow: keep it, pass it on", f"unknown-row = [ dt, {_unknown_heads()}, * any ]"]
    for kind in TYPES.values():
        heads = f"{kind.number << 4}..{kind.number << 4 | 15}"
        fields = _optional(kind.fields, "* any")
        lines += ["", f"; {kind.about}", f"{kind.name}-row = [ dt, {heads}, {fields} ]"]
        lines += [
            f"; {kind.name}.{field.name}: {', '.join(f'{number} {name}' for number, name in enumerate(field.names))}"
            for field in kind.fields
            if field.names
        ]
    lines += [
        "",
        "; who did it; trailing nulls are cut",
        f"actor = [ {_optional(ACTOR_FIELDS[:-1], '? parents / null')} ]",
    ]
    lines += ["", "; column names are numbers of this list, or written out"]
    lines += [f";   {number:3} {name}" for number, name in enumerate(COLUMN_NAMES)]
    return "\n".join(lines) + "\n"


def _unknown_heads() -> str:
    """The heads of types that are not in the table."""
    free = [number for number in range(max(TYPES) + 1) if number not in TYPES]
    return " / ".join((*(f"{number << 4}..{number << 4 | 15}" for number in free), f"{max(TYPES) + 1 << 4}..{2**62}"))


def _optional(fields: tuple[Field, ...], last: str) -> str:
    """Each field only behind the one before it, and `last` behind all of them: side by side, a wrong field would be
    taken for one of tomorrow."""
    groups = [f"? ( {field.name}: {CDDL_TYPES[field.kind]} / null, " for field in fields]
    return "".join(groups) + last + " )" * len(groups)
