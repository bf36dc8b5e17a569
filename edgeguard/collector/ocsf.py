"""Events as OCSF 1.8 (schema.ocsf.io): one class for each record type, in one table. Pure.

Ids are numbers of the schema; `type_uid` is class times 100 plus activity. What a class has no attribute for stands in
`unmapped` under EdgeGuard's own name. `metadata.profiles` has "host", which gives classes their device, and
"linux/linux_users", which gives processes the user who logged in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from edgeguard import __version__
from edgeguard.collector import ocsf_objects as objects
from edgeguard.collector import shapes
from edgeguard.collector.ocsf_objects import OTHER, Activity, severity_number
from edgeguard.collector.shapes import To
from edgeguard.model import Severity

VERSION = "1.8.0"
IOT = 7  # device.type_id
Finish = Callable[[dict[str, Any], Mapping[str, Any]], None]


class Class(NamedTuple):
    uid: int
    name: str
    category: int
    category_name: str
    activity: Activity
    fields: shapes.Table
    finish: Finish


def event(common: Mapping[str, Any], decoded: Mapping[str, Any]) -> dict[str, Any]:
    """One record (where and when, and its own content) in the shape of its class; without one it is a base event."""
    kind = CLASSES.get(str(decoded.get("type")), BASE)
    kind = kind(decoded) if not isinstance(kind, Class) else kind
    time, known = shapes.milliseconds(common)
    activity, activity_name = kind.activity(decoded)
    shaped: dict[str, Any] = {
        "activity_id": activity,
        "activity_name": activity_name,
        "category_uid": kind.category,
        "category_name": kind.category_name,
        "class_uid": kind.uid,
        "class_name": kind.name,
        "type_uid": kind.uid * 100 + activity,
        "type_name": f"{kind.name}: {activity_name}",
        "time": time,
        **_severity(decoded.get("severity")),
        "metadata": _metadata(common, decoded.get("code")),
        "device": {"uid": common["device"], "name": common["name"], "type_id": IOT, "type": "IOT"},
    }
    rest = shapes.place(shapes.own(decoded), kind.fields, shaped)
    rest |= {name: common[name] for name in ("boot", "mono_ms", "clock", "segment")}
    rest["record"] = decoded.get("type")
    if not known:
        rest["time_unknown"] = True
    if decoded.get("rule_matched"):
        rest["rule_matched"] = True
    kind.finish(shaped, decoded)
    shaped["unmapped"] = rest
    return shaped


def _metadata(common: Mapping[str, Any], code: Any) -> dict[str, Any]:
    received, _ = shapes.milliseconds({"time": common.get("received")})
    known = {
        "version": VERSION,
        "product": {"name": "EdgeGuard", "vendor_name": "EdgeGuard", "version": __version__},
        "profiles": ["host", "linux/linux_users"],
        "uid": f"{common['device']}-{common['stream']}-{common['seq']}",
        "sequence": common["seq"],
        "log_name": f"stream {common['stream']}",
    }
    if received:
        known["logged_time"] = received
    if isinstance(code, str):
        known["event_code"] = code
    return known


def _severity(name: Any) -> dict[str, Any]:
    number = severity_number(name)
    return {"severity_id": number, "severity": "Other" if number == OTHER else Severity(number).name.capitalize()}


_LISTEN = {"opened": (7, "Listen"), "seen": (7, "Listen"), "created": (7, "Listen"), "closed": (2, "Close")}
_SYSTEM, _FINDINGS, _IAM = (1, "System Activity"), (2, "Findings"), (3, "Identity & Access Management")
_NETWORK, _DISCOVERY = (4, "Network Activity"), (5, "Discovery")
_APPLICATION, _REMEDIATION = (6, "Application Activity"), (7, "Remediation")
_CONNECTED: shapes.Table = {"protocol": (To("connection_info.protocol_num", shapes.small),)}
_STATES = {
    "start": (3, "Start"), "stop": (4, "Stop"), "boot": (5, "Restart"), "baseline installed": (8, "Update"),
    "policy": (8, "Update"),
}  # fmt: skip

STATE = Class(
    6002,
    "Application Lifecycle",
    *_APPLICATION,
    objects.named("what", _STATES),
    {"text": (To("message", shapes.text),)},
    objects.finish_app,
)
REMEDY = Class(
    7001,
    "Remediation Activity",
    *_REMEDIATION,
    objects.remedy_activity,
    {"text": (To("message", shapes.text),), "finding": (To("command_uid", shapes.text),)},
    objects.finish_remedy,
)
BASE = Class(
    0,
    "Base Event",
    0,
    "Uncategorized",
    objects.always(OTHER, "Other"),
    {"text": (To("message", shapes.text),)},
    objects.nothing,
)

CLASSES: Mapping[str, Class | Callable[[Mapping[str, Any]], Class]] = {
    "exec": Class(
        1007,
        "Process Activity",
        *_SYSTEM,
        objects.named("action", {"opened": (1, "Launch"), "created": (1, "Launch"), "closed": (2, "Terminate"),
                          "gone": (2, "Terminate")}),
        {
            "exe": (
                To("process.file.path", shapes.text),
                To("process.file.name", shapes.base),
                To("process.name", shapes.base),
            ),
            "argv": (To("process.cmd_line", objects.line),),
            "pid": (To("process.pid", shapes.small),),
            "ppid": (To("process.parent_process.pid", shapes.small),),
            "uid": (To("process.user.uid", shapes.identity),),
            "user": (To("process.user.name", shapes.text),),
            "login_uid": (To("process.auid", shapes.small),),
            "tty": (To("process.session.terminal", shapes.text),),
            "cwd": (To("process.working_directory", shapes.text),),
            "sha256": (To("process.file.hashes", objects.hashes),),
        },
        objects.finish_exec,
    ),
    "file": Class(
        1001,
        "File System Activity",
        *_SYSTEM,
        objects.named("action", {"created": (1, "Create"), "changed": (3, "Update"), "removed": (4, "Delete"),
                          "gone": (4, "Delete")}),
        {"path": (To("file.path", shapes.text),), "actor": (To("actor", objects.actor),)},
        objects.finish_file,
    ),
    "listener": Class(
        4001,
        "Network Activity",
        *_NETWORK,
        objects.named("action", {**_LISTEN, "gone": (2, "Close"), "removed": (2, "Close")}),
        {
            **_CONNECTED,
            "address": (To("dst_endpoint.ip", shapes.address), To("dst_endpoint.name", shapes.no_address)),
            "port": (To("dst_endpoint.port", shapes.port),),
            "pid": (To("actor.process.pid", shapes.small),),
            "exe": (To("actor.process.file.path", shapes.text), To("actor.process.file.name", shapes.base)),
            "uid": (To("actor.process.user.uid", shapes.identity),),
            "user": (To("actor.process.user.name", shapes.text),),
        },
        objects.finish_endpoints,
    ),
    "connection": Class(
        4001,
        "Network Activity",
        *_NETWORK,
        objects.named("action", {"opened": (1, "Open"), "created": (1, "Open"), "closed": (2, "Close"),
                                 "gone": (2, "Close"), "removed": (2, "Close"), "seen": (6, "Traffic")}),
        {
            **_CONNECTED,
            "local_address": (To("src_endpoint.ip", shapes.address), To("src_endpoint.name", shapes.no_address)),
            "local_port": (To("src_endpoint.port", shapes.port),),
            "remote_address": (To("dst_endpoint.ip", shapes.address), To("dst_endpoint.name", shapes.no_address)),
            "remote_port": (To("dst_endpoint.port", shapes.port),),
            "pid": (To("actor.process.pid", shapes.small),),
            "exe": (To("actor.process.file.path", shapes.text), To("actor.process.file.name", shapes.base)),
            "uid": (To("actor.process.user.uid", shapes.identity),),
        },
        objects.finish_endpoints,
    ),
    "login": Class(
        3002,
        "Authentication",
        *_IAM,
        objects.named("result", {"accepted": (1, "Logon"), "failed": (1, "Logon"), "ended": (2, "Logoff")}),
        {
            "service": (To("service.name", shapes.text),),
            "user": (To("user.name", shapes.text),),
            "tty": (To("session.terminal", shapes.text),),
            "address": (To("src_endpoint.ip", shapes.address), To("src_endpoint.name", shapes.no_address)),
            "port": (To("src_endpoint.port", shapes.port),),
            "method": (To("auth_protocol", shapes.text),),
        },
        objects.finish_login,
    ),
    "usb": Class(
        1010,
        "Peripheral Activity",
        *_SYSTEM,
        objects.usb_activity,
        {
            "serial": (To("peripheral_device.serial_number", shapes.text),),
            "manufacturer": (To("peripheral_device.vendor_name", shapes.text),),
            "name": (To("peripheral_device.name", shapes.text),),
        },
        objects.finish_usb,
    ),
    "metric": Class(5001, "Device Inventory Info", *_DISCOVERY, objects.always(2, "Collect"), {}, objects.nothing),
    "finding": Class(
        2004,
        "Detection Finding",
        *_FINDINGS,
        objects.named("transition", {"opened": (1, "Create"), "changed": (2, "Update"), "repeated": (2, "Update"),
                              "suppressed": (2, "Update"), "resolved": (3, "Close")}),
        {"id": (To("finding_info.uid", shapes.text),), "note": (To("comment", shapes.text),)},
        objects.finish_finding,
    ),
    "state": lambda decoded: REMEDY if decoded.get("what") == "remediation" else STATE,
    "drop": Class(1008, "Event Log Activity", *_SYSTEM, objects.always(2, "Delete"), {}, objects.finish_drop),
    "attest": Class(5002, "Device Config State", *_DISCOVERY, objects.always(2, "Collect"), {}, objects.nothing),
    "fact": Class(
        5002,
        "Device Config State",
        *_DISCOVERY,
        objects.always(2, "Collect"),
        {"note": (To("message", shapes.text),), "actor": (To("actor", objects.actor),)},
        objects.nothing,
    ),
    "upgrade": Class(
        6002,
        "Application Lifecycle",
        *_APPLICATION,
        objects.upgrade_activity,
        {
            "package": (To("app.name", shapes.text),),
            "after": (To("app.version", shapes.text),),
            "text": (To("message", shapes.text),),
        },
        objects.finish_upgrade,
    ),
    "text": BASE,
}  # fmt: skip
