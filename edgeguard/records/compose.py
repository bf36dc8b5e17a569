"""What is worth telling -> a Record: findings, observations, states, drops. Pure; time comes in as a `Moment`.

Here it is decided which stream a record belongs to and how severe it is, and secrets in command lines are replaced:
no secret enters a record. How a record becomes bytes is `wire`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edgeguard import redact
from edgeguard.model import COMPARED, NOBODY, Actor, Change, Columns, Observation, Origin, Severity, Status, Value
from edgeguard.records import registry
from edgeguard.records.registry import Stream
from edgeguard.records.wire import TEXT_MAX, Record, cut_text, shrink

TOO_LARGE = "(too large for this record: `edgeguard why` on the device shows it)"
ARGUMENTS_MAX = 64  # of a command line; more are counted
_IP_PROTOCOLS = {"tcp": 6, "udp": 17, "udplite": 136, "sctp": 132, "dccp": 33, "raw": 255}
_ACTION_OF = {Status.PRESENT: "seen", Status.ABSENT: "gone", Status.UNREADABLE: "unreadable"}


class Moment(NamedTuple):
    """When something is recorded. `mono`: CLOCK_BOOTTIME in ms, `wall`: ms since the epoch, `clock`: registry.Clock."""

    mono: int
    wall: int | None
    clock: int = 0


def finding(change: Change, moment: Moment) -> Record:
    """What the ledger did with a finding."""
    record = _finding(change, moment)
    details = change.finding.details or {}
    if record.type == registry.FINDING.number or not any(name in details for name in COMPARED):
        return record
    # Too large: a long command line, and what changed. That somebody changed it matters more.
    left = {**{name: value for name, value in details.items() if name not in COMPARED}, "diff": (TOO_LARGE,)}
    return _finding(change._replace(finding=change.finding._replace(details=left)), moment)


def _finding(change: Change, moment: Moment) -> Record:
    this = change.finding
    since = max(0, (moment.wall or this.first_seen) - this.first_seen)
    fields = (
        _place(registry.TRANSITIONS, change.transition),
        this.code,
        this.id,
        this.kind,
        this.subject,
        _place(registry.LIFE, this.state),
        _place(registry.OUTCOMES, this.outcome),
        int(this.origin),
        this.count,
        since or None,
        _columns(this.expected),
        _columns(this.observed),
        _actor(this.actor),
        _columns(_rest(this.details or {}, this.observed)),
        this.rule if this.rule != this.code else None,
        redact.text(this.note) or None,
        this.waiver or None,
        this.remediation or None,
    )
    return _record(registry.FINDING, Stream.FINDINGS, moment, fields, severity=this.severity, rule=True)


def observation(seen: Observation, moment: Moment, expected: Columns | None = None) -> Record:
    """An observation as it was made. `expected`: the reference columns; what equals them is left out.

    Programs that the baseline knows, started from where programs belong, are verbose; all else is security.
    """
    moment = _back(moment, seen.at)
    build = _BUILDERS.get(seen.kind, _fact)
    return build(seen, moment, _rest(seen.columns, expected or {}))


def state(
    what: str,
    moment: Moment,
    text: str = "",
    *,
    subject: str = "",
    finding: str = "",
    severity: Severity = Severity.INFORMATIONAL,
    columns: Columns | None = None,
) -> Record:
    """Something about EdgeGuard itself; `what` is one of registry.STATES."""
    fields = (
        registry.STATES.index(what),
        redact.text(text) or None,
        _columns(columns or {}),
        subject or None,
        finding or None,
    )
    return _record(registry.STATE, Stream.FINDINGS, moment, fields, severity=severity)


def heartbeat(moment: Moment, heads: Sequence[tuple[int, int, bytes]], seconds: int) -> Record:
    """That the device lives, when the next one comes, and how far each stream is sealed: (stream, number of its newest
    segment, short hash)."""
    newest = {stream: (number, digest) for stream, number, digest in heads}
    numbers = tuple(newest.get(stream, (0, b""))[0] for stream in Stream)
    columns: Columns = {
        "seconds": seconds,
        "segments": numbers,
        "hashes": b"".join(newest[stream][1] for stream in Stream if stream in newest),
    }
    return state("heartbeat", moment, columns=columns)


def upgrade(package: Mapping[str, Any], moment: Moment, severity: Severity) -> Record:
    """One package of one transaction; `package` has the fields of registry.UPGRADE by other names."""
    fields = (
        cut_text(package["name"]),
        package["architecture"] or None,
        package["before"] or None,
        package["after"] or None,
        _place(registry.VOUCHED, package["word"]),
        package["sha256"] or None,
        package["signed"],
        package["other"] or None,
        package["kept"] or None,
        package["removed"] or None,
        tuple(cut_text(path) for path in package["others"]) or None,
        redact.text(cut_text(package["text"])),
    )
    return _record(registry.UPGRADE, Stream.FINDINGS, moment, fields, severity=severity)


def drop(
    stream: int,
    reason: str,
    moment: Moment,
    *,
    first: int | None = None,
    last: int | None = None,
    count: int | None = None,
    name: str = "",
) -> Record:
    """Something was lost; `reason` is one of registry.REASONS. `first`..`last` are segments, `count` are records."""
    fields = (stream, first, last, registry.REASONS.index(reason), count, name or None)
    return _record(registry.DROP, Stream.FINDINGS, moment, fields, severity=Severity.MEDIUM)


def metric(values: Mapping[str, int | None], moment: Moment) -> Record:
    """Gauges and counters by their names in registry.METRIC."""
    unknown = set(values) - set(registry.field_names(registry.METRIC.number))
    if unknown:
        raise ValueError(f"not a metric: {', '.join(sorted(unknown))}")
    fields = tuple(values.get(field.name) for field in registry.METRIC.fields)
    return _record(registry.METRIC, Stream.METRICS, moment, fields)


def text(words: str, moment: Moment, stream: Stream = Stream.VERBOSE) -> Record:
    """Words, where no type fits."""
    cut = len(words) > TEXT_MAX
    return _record(registry.TEXT, stream, moment, (redact.text(cut_text(words)), cut or None))


def _record(
    kind: registry.Type,
    stream: Stream,
    moment: Moment,
    fields: tuple[Any, ...],
    *,
    severity: int = 0,
    rule: bool = False,
) -> Record:
    return shrink(Record(kind.number, int(stream), moment.mono, moment.wall, moment.clock, int(severity), rule, fields))


def _back(moment: Moment, at: int) -> Moment:
    """The moment at which it happened, seen from the one at which it is recorded."""
    if moment.wall is None:
        return moment
    ago = min(max(0, moment.wall - at), moment.mono)
    return moment._replace(mono=moment.mono - ago, wall=moment.wall - ago)


def _place(names: tuple[str, ...], name: str) -> int | None:
    return names.index(name) if name in names else None


def _rest(columns: Columns, known: Columns) -> dict[str, Value]:
    """What `known` does not say already, without what says nothing."""
    return {
        name: value
        for name, value in columns.items()
        if value is not None and value is not False and value not in ("", ()) and known.get(name) != value
    }


def _columns(columns: Columns) -> dict[str, Value] | None:
    return {name: _clean(name, value) for name, value in columns.items()} or None


def _clean(name: str, value: Value) -> Value:
    if name == "argv" and isinstance(value, tuple):
        return redact.arguments(_bounded(value))
    if isinstance(value, str):
        return redact.text(cut_text(value))
    return value


def _bounded(argv: tuple[Any, ...]) -> tuple[str, ...]:
    """A command line of bounded length, before patterns are looked for in it."""
    return tuple(cut_text(str(argument)) for argument in argv[: ARGUMENTS_MAX + 1])


def _actor(actor: Actor) -> tuple[Any, ...] | None:
    if actor == NOBODY:
        return None
    return (
        actor.pid,
        actor.exe or None,
        redact.arguments(_bounded(actor.argv)) or None,
        actor.uid,
        actor.user or None,
        actor.login_uid,
        actor.login_user or None,
        actor.tty or None,
        actor.address or None,
        actor.unit or None,
        tuple((pid, exe) for pid, exe in actor.parents[:8]),
    )


class _Columns:
    """Columns taken out one by one, with the type that the field has; what is left at the end goes along as it is."""

    def __init__(self, columns: Mapping[str, Value]) -> None:
        self._left = dict(columns)

    def text(self, name: str) -> str | None:
        value = self._left.pop(name, None)
        return value if isinstance(value, str) and value else None

    def number(self, name: str) -> int | None:
        value = self._left.pop(name, None)
        return value if type(value) is int else None

    def natural(self, name: str) -> int | None:
        value = self.number(name)
        return value if value is not None and value >= 0 else None

    def flag(self, name: str) -> bool | None:
        return self._left.pop(name, None) is True or None

    def texts(self, name: str) -> tuple[str, ...] | None:
        value = self._left.pop(name, None)
        return tuple(map(str, value)) if isinstance(value, tuple) and value else None

    def digest(self, name: str) -> bytes | None:
        value = self._left.pop(name, None)
        return value if isinstance(value, bytes) and value else None

    def place(self, name: str, names: tuple[str, ...]) -> int | None:
        value = self._left.pop(name, None)
        return _place(names, value) if isinstance(value, str) else None

    def rest(self) -> dict[str, Value] | None:
        return _columns(self._left)


def _action(seen: Observation) -> int:
    return registry.ACTIONS.index(_ACTION_OF[seen.status])


def _exec(seen: Observation, moment: Moment, columns: dict[str, Value]) -> Record:
    ordinary = (
        seen.columns.get("exe_known") is True
        and seen.columns.get("exe_state") == "ok"
        and not seen.columns.get("writable_dir")
    )
    take = _Columns(columns)
    argv = _bounded(take.texts("argv") or ())
    fields = (
        take.text("exe") or seen.subject,
        redact.arguments(argv) or None,
        take.natural("pid"),
        take.natural("ppid"),
        take.number("uid"),
        take.text("user"),
        take.number("login_uid"),
        take.text("tty"),
        take.text("unit"),
        take.place("exe_state", registry.EXE_STATES) or None,
        take.flag("writable_dir"),
        take.flag("exe_known"),
        take.text("package"),
        take.texts("parents"),
        take.natural("start"),
        _action(seen) or None,
        take.text("cwd"),
        take.digest("sha256"),
        take.rest(),
    )
    return _record(registry.EXEC, Stream.VERBOSE if ordinary else Stream.SECURITY, moment, fields)


def _file(seen: Observation, moment: Moment, columns: dict[str, Value]) -> Record:
    for name in COMPARED:  # the finding tells it, once
        columns.pop(name, None)
    fields = (
        _action(seen),
        seen.subject,
        _columns(columns),
        int(seen.origin) if seen.origin is not Origin.LIVE else None,
        _actor(seen.actor),
        redact.text(seen.note) or None,
    )
    return _record(registry.FILE, Stream.SECURITY, moment, fields)


def _listener(seen: Observation, moment: Moment, columns: dict[str, Value]) -> Record:
    take = _Columns(columns)
    protocol = take.text("protocol") or seen.subject.partition("/")[0]
    fields = (
        _action(seen),
        _IP_PROTOCOLS.get(protocol.rstrip("6"), 0),
        take.text("address"),
        take.natural("port"),
        take.place("scope", registry.SCOPES),
        take.natural("pid"),
        take.text("exe"),
        take.number("uid"),
        take.text("user"),
        take.text("unit"),
        take.text("package"),
        take.flag("exe_known"),
        {**(take.rest() or {}), **({} if columns.get("address") else {"subject": seen.subject})} or None,
    )
    return _record(registry.LISTENER, Stream.SECURITY, moment, fields)


def _usb(seen: Observation, moment: Moment, columns: dict[str, Value]) -> Record:
    take = _Columns(columns)
    vendor, _, product = seen.subject.partition("/")[0].partition("@")[0].partition(":")
    fields = (
        _action(seen),
        _hexadecimal(take.text("vendor") or vendor),
        _hexadecimal(take.text("product") or product),
        take.text("serial"),
        take.text("manufacturer"),
        take.text("name"),
        take.texts("interfaces"),
        take.text("port"),
        take.text("driver"),
        take.flag("authorized"),
        take.rest(),
    )
    return _record(registry.USB, Stream.SECURITY, moment, fields)


def _hexadecimal(digits: str) -> int | None:
    """Vendor and product, four digits each, as a number."""
    try:
        return int(digits[:4], 16)
    except ValueError:
        return None


def _fact(seen: Observation, moment: Moment, columns: dict[str, Value]) -> Record:
    fields = (
        seen.kind,
        seen.subject,
        int(seen.status),
        _columns(columns),
        int(seen.origin) if seen.origin is not Origin.LIVE else None,
        _actor(seen.actor),
        redact.text(seen.note) or None,
    )
    return _record(registry.FACT, Stream.SECURITY, moment, fields)


_BUILDERS = {"process": _exec, "file": _file, "listener": _listener, "usb": _usb}
