"""Events as Elastic Common Schema: the ten kinds that rules and dashboards look for, by one table. Pure.

ECS has no home for much of what we record; that stands below `edgeguard`, a name of our own, as the schema wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgeguard import __version__, codes
from edgeguard.collector import shapes
from edgeguard.collector.ocsf_objects import known_codes, severity_number
from edgeguard.collector.shapes import To

VERSION = "8.17.0"


class Set(NamedTuple):
    """What kind of event a record type is: category, and the type for each value of `by`; "" where it says none."""

    category: tuple[str, ...]
    by: str
    types: Mapping[str, tuple[str, ...]]
    otherwise: tuple[str, ...]
    fields: shapes.Table
    kind: str = "event"


def event(common: Mapping[str, Any], decoded: Mapping[str, Any]) -> dict[str, Any]:
    """One record: where and when, and its own content."""
    name = str(decoded.get("type"))
    known = SETS.get(name, OTHER)
    time, certain = shapes.milliseconds(common)
    said = decoded.get(known.by)
    about: dict[str, Any] = {
        "kind": known.kind,
        "module": "edgeguard",
        "dataset": f"edgeguard.{name}" if name in SETS else "edgeguard.unknown",
        "id": f"{common['device']}-{common['stream']}-{common['seq']}",
        "sequence": common["seq"],
        "created": common.get("received"),
        "severity": severity_number(decoded.get("severity")),
        "type": list(known.types.get(str(said), known.otherwise)),
    }
    if known.category:
        about["category"] = list(known.category)
    if said is not None:
        about["action"] = str(said)
    shaped: dict[str, Any] = {
        "@timestamp": _iso(common, time),
        "ecs": {"version": VERSION},
        "event": about,
        "host": {"id": common["device"], "name": common["name"], "type": "iot"},
        "agent": {"type": "edgeguard", "id": common["device"], "version": __version__},
    }
    rest = shapes.place(shapes.own(decoded), known.fields, shaped)
    _extra(name, shaped, decoded)
    rest |= {key: common[key] for key in ("boot", "mono_ms", "clock", "segment")}
    rest["time_known"] = certain
    if decoded.get("rule_matched"):
        rest["rule_matched"] = True
    shaped["edgeguard"] = rest
    return shaped


def _iso(common: Mapping[str, Any], time: int) -> str:
    for name in ("time", "received"):
        value = common.get(name)
        if isinstance(value, str) and not value.endswith(" ms"):
            return value
    return str(time)


def _extra(name: str, shaped: dict[str, Any], decoded: Mapping[str, Any]) -> None:
    if name == "login":
        failed = decoded.get("result") == "failed"
        shaped["event"]["outcome"] = "failure" if failed else "success"
    elif name == "file":
        _columns(shaped, decoded.get("columns"))
        _actor(shaped, decoded.get("actor"))
    elif name == "finding":
        _actor(shaped, decoded.get("actor"))
        known = known_codes().get(str(decoded.get("code")))
        if known:
            _known(shaped, known)
        if decoded.get("kind") == "file":
            shapes.place({"path": decoded.get("subject")}, _FILE, shaped)
            _columns(shaped, decoded.get("observed"))


def _known(shaped: dict[str, Any], code: codes.Code) -> None:
    shaped["message"] = code.title
    shapes.put(shaped, "rule.description", code.rationale)
    if code.attack:
        shaped["threat"] = {"framework": "MITRE ATT&CK", "technique": {"id": list(code.attack)}}


def _columns(shaped: dict[str, Any], columns: Any) -> None:
    if isinstance(columns, Mapping):
        shapes.place(columns, _COLUMNS, shaped)


def _actor(shaped: dict[str, Any], parts: Any) -> None:
    if isinstance(parts, Mapping):
        shapes.place(parts, _PROCESS, shaped)


_FILE: shapes.Table = {
    "path": (
        To("file.path", shapes.text),
        To("file.name", shapes.base),
        To("file.directory", shapes.folder),
    ),
}
_COLUMNS: shapes.Table = {
    "sha256": (To("file.hash.sha256", shapes.sha256),),
    "size": (To("file.size", shapes.number),),
    "mode": (To("file.mode", shapes.octal),),
    "uid": (To("file.uid", shapes.identity),),
    "gid": (To("file.gid", shapes.identity),),
    "type": (To("file.type", shapes.text),),
    "target": (To("file.target_path", shapes.text),),
}
_PROCESS: shapes.Table = {
    "pid": (To("process.pid", shapes.number),),
    "exe": (To("process.executable", shapes.text), To("process.name", shapes.base)),
    "argv": (To("process.args", shapes.texts), To("process.command_line", shapes.words)),
    "uid": (To("user.id", shapes.identity),),
    "user": (To("user.name", shapes.text),),
    "tty": (To("process.tty.name", shapes.text),),
}
_START, _END, _INFO = ("start",), ("end",), ("info",)
_OPENINGS = {"opened": _START, "created": _START, "closed": _END, "gone": _END, "removed": _END}
_CHANGES = {"created": ("creation",), "changed": ("change",), "removed": ("deletion",), "gone": ("deletion",)}

SETS: Mapping[str, Set] = {
    "exec": Set(
        ("process",),
        "action",
        _OPENINGS,
        _INFO,
        {
            **_PROCESS,
            "ppid": (To("process.parent.pid", shapes.number),),
            "cwd": (To("process.working_directory", shapes.text),),
            "sha256": (To("process.hash.sha256", shapes.sha256),),
        },
    ),
    "file": Set(("file",), "action", _CHANGES, _INFO, _FILE),
    "listener": Set(
        ("network",),
        "action",
        _OPENINGS,
        _INFO,
        {
            "protocol": (To("network.iana_number", shapes.identity),),
            "address": (
                To("server.ip", shapes.address),
                To("server.address", shapes.text),
            ),
            "port": (To("server.port", shapes.port),),
            "pid": _PROCESS["pid"],
            "exe": _PROCESS["exe"],
            "uid": _PROCESS["uid"],
            "user": _PROCESS["user"],
        },
    ),
    "connection": Set(
        ("network",),
        "action",
        {
            "opened": ("connection", "start"),
            "created": ("connection", "start"),
            "closed": ("connection", "end"),
            "gone": ("connection", "end"),
            "removed": ("connection", "end"),
        },
        ("connection",),
        {
            "protocol": (To("network.iana_number", shapes.identity),),
            "local_address": (To("source.ip", shapes.address), To("source.address", shapes.text)),
            "local_port": (To("source.port", shapes.port),),
            "remote_address": (To("destination.ip", shapes.address), To("destination.address", shapes.text)),
            "remote_port": (To("destination.port", shapes.port),),
            "pid": _PROCESS["pid"],
            "exe": _PROCESS["exe"],
            "uid": _PROCESS["uid"],
        },
    ),
    "login": Set(
        ("authentication",),
        "result",
        {"accepted": _START, "failed": _START, "ended": _END},
        _INFO,
        {
            "service": (To("process.name", shapes.text),),
            "user": (To("user.name", shapes.text),),
            "tty": (To("process.tty.name", shapes.text),),
            "address": (To("source.ip", shapes.address), To("source.address", shapes.text)),
            "port": (To("source.port", shapes.port),),
            "pid": _PROCESS["pid"],
        },
    ),
    "usb": Set(
        ("host",),
        "action",
        {},
        _INFO,
        {
            "serial": (To("device.serial_number", shapes.text),),
            "manufacturer": (To("device.manufacturer", shapes.text),),
            "name": (To("device.model.name", shapes.text),),
        },
    ),
    "metric": Set(("host",), "", {}, _INFO, {}, "metric"),
    "finding": Set(
        ("intrusion_detection",),
        "transition",
        {},
        _INFO,
        {
            "code": (To("rule.id", shapes.text), To("event.code", shapes.text)),
            "rule": (To("rule.name", shapes.text),),
            "note": (To("event.reason", shapes.text),),
        },
        "alert",
    ),
    "state": Set(
        ("configuration",), "what", {"start": _START, "stop": _END}, _INFO, {"text": (To("message", shapes.text),)}
    ),
    "drop": Set((), "", {}, ("deletion",), {}, "pipeline_error"),
    "attest": Set(("host",), "", {}, _INFO, {}, "state"),
    "fact": Set(("configuration",), "", {}, _INFO, {"note": (To("message", shapes.text),)}, "state"),
    "upgrade": Set(
        ("package",),
        "",
        {},
        ("installation",),
        {
            "package": (To("package.name", shapes.text),),
            "after": (To("package.version", shapes.text),),
            "architecture": (To("package.architecture", shapes.text),),
            "text": (To("message", shapes.text),),
        },
    ),
    "text": Set((), "", {}, _INFO, {"text": (To("message", shapes.text),)}),
}
OTHER = Set((), "", {}, _INFO, {})
