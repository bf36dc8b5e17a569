"""Small words of every screen: ages, numbers, states, and what happened in one phrase. Pure.

Everything here works on finding documents (cli.jsonform), whose texts are escaped already.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from edgeguard.cli.text import escape

Document = Mapping[str, Any]

EXIT = {"OK": 0, "LEARNING": 0, "WARN": 1, "CRIT": 2, "UNKNOWN": 3}
"""Verdict -> exit code of status. Learning is no alarm: the device is new, not wrong."""

_STATE = {"critical": "CRIT", "high": "WARN", "medium": "WARN", "low": "INFO", "informational": "INFO"}
_COLOURS = {"OK": "32", "WARN": "1;33", "CRIT": "1;31", "FAIL": "1;31", "UNKNOWN": "35", "LEARNING": "36", "OFF": "2"}


def paint(word: str, color: bool, reverse: bool = False, text: str = "") -> str:
    """A state word (or `text` in its colour). The word carries the meaning; colour only repeats it."""
    code = _COLOURS.get(word)
    if not color or code is None:
        return text or word
    return f"\x1b[{'7;' if reverse else ''}{code}m{text or word}\x1b[0m"


def state(finding: Document) -> str:
    """CRIT, WARN or INFO for an open finding, else what became of it."""
    if finding.get("state") == "open":
        return _STATE.get(str(finding.get("severity")), "WARN")
    return {"suppressed": "ACC", "resolved": "DONE"}.get(str(finding.get("state")), "?")


def age(ms: int) -> str:
    """A span of time, as people say it."""
    seconds = max(0, ms) // 1000
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 100 * 60:
        return f"{seconds // 60} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h"
    return f"{seconds // 86400} days"


def ago(then: int | None, now: int) -> str:
    """`42 s ago`; a time to come (the clock was set back) is said as such."""
    if then is None:
        return "never"
    return f"{age(now - then)} ago" if then <= now + 2000 else "in the future (clock?)"


def day(ms: int) -> str:
    """2026-08-02."""
    from edgeguard.cli.jsonform import iso

    return iso(ms)[:10]


def when(text: Any) -> int | None:
    """Milliseconds of an ISO time of ours; None if it is not one."""
    try:
        return int(datetime.fromisoformat(str(text)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def count(number: Any, one: str, many: str = "") -> str:
    """`1 file`, `12,431 files`."""
    if not isinstance(number, int):
        return f"? {many or one + 's'}"
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size(number: Any) -> str:
    """Bytes as people read them."""
    if not isinstance(number, int) or isinstance(number, bool):
        return "?"
    amount, unit = float(number), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 - the unit is used after the loop
        if amount < 1000:
            break
        amount /= 1000
    return f"{int(amount)} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"


def base(path: Any) -> str:
    return str(path or "").rstrip("/").rpartition("/")[2] or str(path or "")


def port(subject: str) -> str:
    """`tcp/0.0.0.0:4444` -> `4444/tcp`."""
    protocol, _, rest = subject.partition("/")
    number = rest.rpartition(":")[2]
    return f"{number}/{protocol}" if number.isdigit() else subject


def phrase(finding: Document) -> str:
    """What happened, in one line: `port 4444/tcp opened by /tmp/.x (pid 2211)`."""
    make = _PHRASES.get(str(finding.get("code")))
    said = make(finding) if make else _other(finding)
    return f"cannot tell: {said}" if finding.get("outcome") == "unknown" else said


def headline(finding: Document) -> str:
    """The phrase, and where a file's change has a meaning that is known, the first of it instead of "changed"."""
    details = finding.get("details")
    said = details.get("changes") if isinstance(details, Mapping) else None
    if not isinstance(said, list) or not said or finding.get("kind") != "file":
        return phrase(finding)
    more = f" (and {len(said) - 1} more)" if len(said) > 1 else ""
    return f"{_subject(finding)}: {said[0]}{more}"


def actor_words(finding: Document) -> str:
    """`bash (root, ssh)`, `cp (anna, pts/0)`; empty when it is not known."""
    actor = finding.get("actor")
    if not isinstance(actor, Mapping):
        return {"down": "while not running"}.get(str(finding.get("origin")), "")
    name = base(actor.get("exe")) or (f"pid {actor['pid']}" if actor.get("pid") else "")
    person = actor.get("login_user") or actor.get("user") or ""
    place = "ssh" if actor.get("address") else actor.get("tty") or actor.get("unit") or ""
    inside = ", ".join(str(part) for part in (person, place) if part)
    return f"{name} ({inside})" if name and inside else name or inside


def _get(finding: Document, column: str) -> Any:
    for place in ("observed", "details"):
        row = finding.get(place)
        if isinstance(row, Mapping) and row.get(column) not in (None, "", []):
            return row[column]
    return None


def _was(finding: Document, column: str) -> Any:
    row = finding.get("expected")
    return row.get(column) if isinstance(row, Mapping) else None


def _gone(finding: Document) -> bool:
    details = finding.get("details")
    return isinstance(details, Mapping) and details.get("status") == "absent"


def _new(finding: Document) -> bool:
    return not finding.get("expected") and not _gone(finding)


def _pid(finding: Document) -> str:
    pid = _get(finding, "pid")
    return f" (pid {pid})" if isinstance(pid, int) else ""


def _subject(finding: Document) -> str:
    return str(finding.get("subject", ""))


def _name(finding: Document) -> str:
    return _subject(finding).partition(" ")[2] or _subject(finding)


def _life(what: str) -> Any:
    """Appeared, is missing, or changed."""

    def make(finding: Document) -> str:
        thing = what.format(_name(finding) if "{}" in what and finding.get("kind") == "account" else _subject(finding))
        if _gone(finding):
            return f"{thing} is missing"
        return f"{thing} appeared" if _new(finding) else f"{thing} changed"

    return make


def _content(finding: Document) -> str:
    """`/usr/bin/ls changed`, `programs look for libraries in /srv/evil (libz.so.1)`."""
    if finding.get("kind") != "library_dir":
        return str(_life("{}")(finding))
    library = _get(finding, "library")
    return f"programs look for libraries in {_subject(finding)}" + (f" ({library})" if library else "")


def _attributes(finding: Document) -> str:
    names = {"uid": "owner", "gid": "group", "caps": "capabilities", "xattrs": "attributes"}
    changed = [names.get(str(column), str(column)) for column in finding.get("observed", {})]
    return f"{_subject(finding)}: {', '.join(changed) or 'attributes'} changed"


def _elsewhere(finding: Document) -> str:
    if target := _get(finding, "target"):
        return f"{_subject(finding)} points to {target}"
    return f"{_subject(finding)} is a {_get(finding, 'type') or 'different thing'} now"


def _open_port(finding: Document) -> str:
    if _gone(finding):
        return f"port {port(_subject(finding))} is closed"
    owner = _get(finding, "exe")
    return f"port {port(_subject(finding))} opened" + (f" by {owner}{_pid(finding)}" if owner else "")


def _other_server(finding: Document) -> str:
    owner, before = _get(finding, "exe") or "another program", _was(finding, "exe")
    tail = f", not {before}" if before else ""
    return f"port {port(_subject(finding))} is served by {owner}{_pid(finding)}{tail}"


def _process(tail: str) -> Any:
    return lambda finding: f"{_subject(finding)} {tail}{_pid(finding)}"


def _usb(tail: str) -> Any:
    def make(finding: Document) -> str:
        name = _get(finding, "name") or _subject(finding)
        place = _get(finding, "port")
        return f"USB {name} {tail}" + (f" (port {place})" if place else "")

    return make


def _value(what: str) -> Any:
    def make(finding: Document) -> str:
        thing = what.format(_subject(finding))
        now, before = _get(finding, "value"), _was(finding, "value")
        if now is None:
            return f"{thing} changed"
        return f"{thing} is {now}" + (f", was {before}" if before is not None else "")

    return make


def _mount(finding: Document) -> str:
    return f"{_subject(finding)} was mounted" if _new(finding) else f"{_subject(finding)}: mount changed"


def _key(finding: Document) -> str:
    comment = _get(finding, "comment")
    tail = f" ({comment})" if comment else ""
    return f"SSH key of {_get(finding, 'user') or _subject(finding).partition(' ')[0]} appeared{tail}"


def _account(finding: Document) -> str:
    """`user eve added, uid 0, shell /bin/sh`, `user pi: shell /bin/bash -> /bin/sh`, `user eve removed`."""
    subject = _subject(finding)
    if _gone(finding):
        return f"{subject} removed"
    observed, expected = finding.get("observed"), finding.get("expected")
    observed = observed if isinstance(observed, Mapping) else {}
    expected = expected if isinstance(expected, Mapping) else {}
    facts = [name for name in ("uid", "gid", "home", "shell", "password", "members") if name in observed]
    if any(name in expected for name in facts):
        return f"{subject}: " + ", ".join(
            f"{name} {_fact(expected.get(name))} -> {_fact(observed[name])}" for name in facts
        )
    told = [f"{name} {_fact(observed[name])}" for name in facts if name not in ("gid", "home")]
    return ", ".join([f"{subject} added", *told])


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "empty" if value in ("", None) else str(value)


def _member(finding: Document) -> str:
    """`eve joined group sudo`, `pi left group sudo`, `eve may add members to group sudo`."""
    name = _name(finding)
    observed = finding.get("observed")
    observed = observed if isinstance(observed, Mapping) else {}
    if observed.get("admins"):
        return f"{', '.join(map(str, observed['admins']))} may add members to group {name}"
    if "password" in observed and "members" not in observed:
        return f"group {name} has a password that lets anybody in who knows it"
    if "reaching" in observed:
        return f"account {name} may take on ids of the system"
    members, before = _get(finding, "members") or [], _was(finding, "members") or []
    if isinstance(members, list) and isinstance(before, list):
        came, gone = [m for m in members if m not in before], [m for m in before if m not in members]
        said = [f"{', '.join(map(str, came))} joined"] if came else []
        said += [f"{', '.join(map(str, gone))} left"] if gone else []
        if said:
            return f"{', '.join(said)} group {name}"
    return f"members of group {name} changed"


def _package(finding: Document) -> str:
    return f"package {_subject(finding)} is {_get(finding, 'status') or 'not complete'}"


def _health(finding: Document) -> str:
    detail = _get(finding, "detail") or finding.get("note")
    return f"{_subject(finding)}: {detail}" if detail else f"{_subject(finding)}: {finding.get('title', '')}"


def _other(finding: Document) -> str:
    if finding.get("kind") == "health":
        return _health(finding)
    title = str(finding.get("title", ""))
    return f"{_subject(finding)}: {title}" if title else _subject(finding)


_PHRASES: Mapping[str, Any] = {
    "EG-FILE-001": _life("{}"),
    "EG-FILE-002": _content,
    "EG-FILE-003": _attributes,
    "EG-FILE-004": lambda finding: f"{_subject(finding)} is missing",
    "EG-FILE-005": lambda finding: f"{_subject(finding)} runs with its owner's rights",
    "EG-FILE-006": _elsewhere,
    "EG-FILE-007": lambda finding: f"{_subject(finding)} cannot be read",
    "EG-PERS-001": _life("{}"),
    "EG-PERS-002": _life("{}"),
    "EG-PERS-003": _life("{}"),
    "EG-PERS-004": _life("{}"),
    "EG-ACCT-001": lambda finding: f"account {_name(finding)} has user id 0",
    "EG-ACCT-002": _account,
    "EG-ACCT-003": lambda finding: f"account {_name(finding)} has no password",
    "EG-ACCT-004": _key,
    "EG-ACCT-005": _life("{}"),
    "EG-ACCT-006": _member,
    "EG-PORT-001": _open_port,
    "EG-PORT-002": _open_port,
    "EG-PORT-003": _other_server,
    "EG-PROC-001": _process("runs, its file was deleted"),
    "EG-PROC-002": _process("runs from memory"),
    "EG-PROC-003": _process("runs where anyone can write"),
    "EG-PROC-004": _process("runs, the baseline does not know it"),
    "EG-USB-001": _usb("was plugged in"),
    "EG-USB-002": _usb("offers other functions"),
    "EG-HOST-001": _value("{}"),
    "EG-HOST-002": lambda finding: f"kernel module {_subject(finding)} was loaded",
    "EG-HOST-003": _mount,
    "EG-SSH-001": _value("sshd {}"),
    "EG-SSH-002": _value("sshd {}"),
    "EG-PKG-001": _package,
}
"""Code -> how it reads. A code without a line here reads "subject: title of the rule"."""


def ascii_only(value: Any) -> Any:
    """A document for a terminal that does not show UTF-8: other letters become \\xNN."""
    if isinstance(value, str):
        value = value.replace("→", "->").replace("…", "..")
        return value if value.isascii() else "".join(c if c < "\x80" else _hex(c) for c in value)
    if isinstance(value, Mapping):
        return {key: ascii_only(item) for key, item in value.items()}
    if isinstance(value, list):
        return [ascii_only(item) for item in value]
    return value


def _hex(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))


def safe(value: Any) -> Any:
    """A document from a file or socket with every text escaped once more; what was escaped already stays as it is."""
    if isinstance(value, str):
        return "\\".join(escape(part) for part in value.split("\\"))
    if isinstance(value, Mapping):
        return {key: safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [safe(item) for item in value]
    return value
