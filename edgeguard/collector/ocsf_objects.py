"""What OCSF's classes are made of (files, processes, actors), and what each class needs beside its table. Pure.

Each function of the second half finishes an event of one class: what the schema requires is there afterwards, whatever
the device left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from edgeguard import codes
from edgeguard.collector import shapes
from edgeguard.collector.shapes import To
from edgeguard.model import Severity

OTHER = 99
ARGUMENTS_MAX = 8192  # letters of a command line
Activity = Callable[[Mapping[str, Any]], tuple[int, str]]


def severity_number(name: Any) -> int:
    """severity_id; records without one are informational."""
    try:
        return int(Severity[str(name).upper()])
    except KeyError:
        return 1 if name is None else OTHER


def named(field: str, known: Mapping[str, tuple[int, str]]) -> Activity:
    """The activity by the value of a field; one that the class does not know is "other" under its own name."""

    def activity(decoded: Mapping[str, Any]) -> tuple[int, str]:
        said = decoded.get(field)
        return known.get(str(said), (OTHER, str(said))) if said is not None else (0, "Unknown")

    return activity


def always(number: int, name: str) -> Activity:
    return lambda _decoded: (number, name)


def nothing(_shaped: dict[str, Any], _decoded: Mapping[str, Any]) -> None:
    pass


def line(value: Any) -> str | None:
    joined = shapes.words(value)
    return joined[:ARGUMENTS_MAX] if joined else None


def hashes(value: Any) -> list[dict[str, Any]] | None:
    digest = shapes.sha256(value)
    return [{"algorithm_id": 3, "algorithm": "SHA-256", "value": digest}] if digest else None


def blake2b(value: Any) -> list[dict[str, Any]] | None:
    """OCSF has no number for it."""
    digest = shapes.sha256(value)  # of the same form
    return [{"algorithm_id": OTHER, "algorithm": "BLAKE2b-256", "value": digest}] if digest else None


_FILE_TYPES = {
    "file": 1, "regular": 1, "directory": 2, "dir": 2, "char": 3, "block": 4, "socket": 5, "fifo": 6, "pipe": 6,
    "symlink": 7, "link": 7,
}  # fmt: skip


def file(path: Any, columns: Any = None) -> dict[str, Any] | None:
    """A file object from its path and the columns of a sensor."""
    name = shapes.base(path)
    if name is None:
        return None
    known = columns if isinstance(columns, Mapping) else {}
    made: dict[str, Any] = {"name": name, "path": path, "type_id": _FILE_TYPES.get(str(known.get("type")), 0)}
    for column, key, convert in (
        ("sha256", "hashes", hashes),
        ("blake2b", "hashes", blake2b),
        ("size", "size", shapes.number),
    ):
        value = convert(known.get(column))
        if value is not None:
            made[key] = value
    owner = shapes.identity(known.get("uid"))
    if owner is not None:
        made["owner"] = {"uid": owner}
    return made


def process(parts: Any) -> dict[str, Any] | None:
    """A process object from an actor; None if it names no process."""
    if not isinstance(parts, Mapping) or shapes.small(parts.get("pid")) is None:
        return None
    made: dict[str, Any] = {"pid": parts["pid"]}
    shapes.place(parts, _PROCESS, made)
    return whole(made)


def whole(made: dict[str, Any]) -> dict[str, Any]:
    """A process object with what the schema requires of one."""
    if not {"pid", "uid", "cpid"} & made.keys():
        made["uid"] = "unknown"
    if "file" in made:
        made["file"].setdefault("name", "unknown")
        made["file"].setdefault("type_id", 0)
    return made


def actor(parts: Any) -> dict[str, Any] | None:
    """An actor object; None if nobody is named."""
    if not isinstance(parts, Mapping):
        return None
    made: dict[str, Any] = {}
    running = process(parts)
    if running:
        made["process"] = running
    user: dict[str, Any] = {}
    shapes.place(parts, _USER, user)
    if user:
        made["user"] = user
    return made or None


def _somebody(shaped: dict[str, Any], _decoded: Mapping[str, Any] | None = None) -> None:
    """Classes that need an actor have one."""
    shaped.setdefault("actor", {"app_name": "unknown"})


_USER: shapes.Table = {
    "uid": (To("uid", shapes.identity),),
    "user": (To("name", shapes.text),),
}
_PROCESS: shapes.Table = {
    "exe": (
        To("file.path", shapes.text),
        To("file.name", shapes.base),
        To("name", shapes.base),
    ),
    "argv": (To("cmd_line", line),),
    "uid": (To("user.uid", shapes.identity),),
    "user": (To("user.name", shapes.text),),
    "login_uid": (To("auid", shapes.small),),
    "tty": (To("session.terminal", shapes.text),),
}


def finish_exec(shaped: dict[str, Any], _decoded: Mapping[str, Any]) -> None:
    running = whole(shaped.setdefault("process", {}))
    parent = running.get("parent_process")
    shaped["actor"] = {"process": dict(parent)} if parent else {"app_name": "unknown"}


def finish_file(shaped: dict[str, Any], decoded: Mapping[str, Any]) -> None:
    shaped["file"] = file(decoded.get("path"), decoded.get("columns")) or {"name": "unknown", "type_id": 0}
    _somebody(shaped)


def finish_endpoints(shaped: dict[str, Any], _decoded: Mapping[str, Any]) -> None:
    shaped.setdefault("connection_info", {}).setdefault("direction_id", 0)
    ends = [shaped.get(side) for side in ("src_endpoint", "dst_endpoint")]
    for end in ends:
        if end is not None and not {"ip", "name"} & end.keys():
            end["name"] = "unknown"
    if not any(ends):
        shaped["dst_endpoint"] = {"name": "unknown"}
    if "process" in shaped.get("actor", {}):
        whole(shaped["actor"]["process"])


def finish_login(shaped: dict[str, Any], decoded: Mapping[str, Any]) -> None:
    shaped.setdefault("user", {"name": "unknown"})
    shaped.setdefault("service", {"name": "unknown"})
    origin = shaped.get("src_endpoint")
    if origin is not None and not {"ip", "name"} & origin.keys():
        origin["name"] = "unknown"
    failed = decoded.get("result") == "failed"
    shaped["status_id"], shaped["status"] = (2, "Failure") if failed else (1, "Success")


def finish_usb(shaped: dict[str, Any], decoded: Mapping[str, Any]) -> None:
    vendor, product = decoded.get("vendor"), decoded.get("product")
    known = shaped.setdefault("peripheral_device", {})
    if type(vendor) is int and type(product) is int:
        known["uid"] = f"{vendor:04x}:{product:04x}"
        known["vendor_id_list"] = [f"{vendor:04x}"]
    known.setdefault("name", known.get("uid", "unknown"))
    _somebody(shaped)


def usb_activity(decoded: Mapping[str, Any]) -> tuple[int, str]:
    if decoded.get("action") == "changed" and isinstance(decoded.get("authorized"), bool):
        return (3, "Enable") if decoded["authorized"] else (4, "Disable")
    return _USB_ACTIONS(decoded)


_USB_ACTIONS = named(
    "action",
    {
        "seen": (1, "Connect"),
        "opened": (1, "Connect"),
        "created": (1, "Connect"),
        "gone": (2, "Disconnect"),
        "removed": (2, "Disconnect"),
        "closed": (2, "Disconnect"),
    },
)


@cache
def known_codes() -> Mapping[str, codes.Code]:
    return codes.load()


def finish_finding(shaped: dict[str, Any], decoded: Mapping[str, Any]) -> None:
    code = decoded.get("code")
    known = known_codes().get(code) if isinstance(code, str) else None
    info: dict[str, Any] = shaped.setdefault("finding_info", {})
    info.setdefault("uid", shaped["metadata"]["uid"])
    info["title"] = known.title if known else str(code)
    if known:
        info["desc"] = known.rationale
        shaped["remediation"] = {"desc": known.fix, "references": list(known.references)}
        info["attacks"] = [{"technique": {"uid": technique}} for technique in known.attack]
    info["analytic"] = {"type_id": 1, "type": "Rule", "uid": str(code), "name": decoded.get("rule") or str(code)}
    age = shapes.number(decoded.get("age_ms"))
    if age is not None and age <= shaped["time"]:
        info["first_seen_time"] = shaped["time"] - age
    shaped["status_id"], shaped["status"] = _LIFE.get(str(decoded.get("state")), (0, "Unknown"))
    shaped["is_alert"] = True
    evidence = _evidence(decoded)
    if evidence:
        shaped["evidences"] = [evidence]


_LIFE = {"open": (1, "New"), "suppressed": (3, "Suppressed"), "resolved": (4, "Resolved")}


def _evidence(decoded: Mapping[str, Any]) -> dict[str, Any] | None:
    made: dict[str, Any] = {}
    who = actor(decoded.get("actor"))
    if who:
        made["actor"] = who
    if decoded.get("kind") == "file":
        found = file(decoded.get("subject"), decoded.get("observed"))
        if found:
            made["file"] = found
    seen = decoded.get("observed")
    expected = decoded.get("expected")
    if seen or expected:
        made["data"] = {"observed": seen, "expected": expected, "subject": decoded.get("subject")}
    return made or None


def finish_app(shaped: dict[str, Any], _decoded: Mapping[str, Any]) -> None:
    shaped["app"] = dict(shaped["metadata"]["product"])


def finish_upgrade(shaped: dict[str, Any], _decoded: Mapping[str, Any]) -> None:
    shaped.setdefault("app", {}).setdefault("name", "unknown")


def upgrade_activity(decoded: Mapping[str, Any]) -> tuple[int, str]:
    if not decoded.get("after"):
        return (2, "Remove")
    return (8, "Update") if decoded.get("before") else (1, "Install")


def finish_drop(shaped: dict[str, Any], decoded: Mapping[str, Any]) -> None:
    shaped["log_name"] = f"stream {decoded.get('stream', '')}"
    shaped["log_type_id"], shaped["log_type"] = 2, "Application"
    _somebody(shaped)


def finish_remedy(shaped: dict[str, Any], decoded: Mapping[str, Any]) -> None:
    shaped["command_uid"] = str(decoded.get("finding") or shaped["metadata"]["uid"])


def remedy_activity(decoded: Mapping[str, Any]) -> tuple[int, str]:
    columns = decoded.get("columns")
    verb = str(columns.get("verb")) if isinstance(columns, Mapping) else ""
    return _VERBS.get(verb, (OTHER, verb or "remediation"))


_ISOLATE, _EVICT, _RESTORE, _HARDEN = (1, "Isolate"), (2, "Evict"), (3, "Restore"), (4, "Harden")
_VERBS = {
    "quarantine": _ISOLATE, "block-port": _ISOLATE, "deauthorize-usb": _EVICT, "kill": _EVICT, "stop": _EVICT,
    "stop-process": _EVICT, "restore-file": _RESTORE, "restore": _RESTORE, "sysctl": _HARDEN, "set-sysctl": _HARDEN,
}  # fmt: skip
