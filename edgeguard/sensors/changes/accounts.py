"""passwd, shadow, group and gshadow: users, groups and members that came, went or are others now. Pure.

Of a password only its state is told, and that it is another one; no hash leaves here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from edgeguard.sensors import parse_accounts
from edgeguard.sensors.parse_accounts import PRIVILEGED, password_state

_ROOT = "amounts to root"
_SHADOW_FIELDS = {3: "minimum age", 4: "maximum age", 5: "warning", 6: "inactivity", 7: "expiry"}
_STATES = {"none": "none (logs in without one)", "shadow": "in shadow"}


class _Entry(NamedTuple):
    """What is compared of one line: facts by name, sets of members, and the password as it stands there."""

    facts: Mapping[str, str]
    sets: Mapping[str, frozenset[str]] = {}
    password: bytes = b""
    rights: str = ""


def passwd(old: str, new: str) -> Iterator[str]:
    return _compared("user", old, new, _users)


def shadow(old: str, new: str) -> Iterator[str]:
    return _compared("password entry of user", old, new, _shadow)


def group(old: str, new: str) -> Iterator[str]:
    return _compared("group", old, new, _groups)


def gshadow(old: str, new: str) -> Iterator[str]:
    return _compared("password entry of group", old, new, _group_shadow)


def _compared(noun: str, old: str, new: str, parse: Callable[[bytes], dict[str, _Entry]]) -> Iterator[str]:
    before, after = (parse(text.encode("utf-8", "surrogateescape")) for text in (old, new))
    for name, entry in after.items():
        if name not in before:
            yield f"{noun} {name} added: {_whole(entry)}"
    for name, entry in before.items():
        if name not in after:
            yield f"{noun} {name} removed: {_whole(entry)}"
    short = noun.rpartition(" ")[2]
    for name, entry in after.items():
        if name in before and entry != before[name]:
            yield from (f"{short} {name}: {what}" for what in _changes(before[name], entry))
    if list(before) != list(after) and set(before) == set(after):
        yield "the same entries in another order: of those with the same number the first gives its name"


def _whole(entry: _Entry) -> str:
    parts = [f"{name} {value or 'empty'}" for name, value in entry.facts.items() if value or name in ("shell", "home")]
    parts += [f"{name}s {', '.join(sorted(names))}" for name, names in entry.sets.items() if names]
    if entry.password and password_state(entry.password) != "shadow":
        parts.append(f"password {_state(entry.password)}")
    return ", ".join([*parts, *([entry.rights] if entry.rights else [])])


def _changes(was: _Entry, now: _Entry) -> Iterator[str]:
    for name in dict.fromkeys((*was.facts, *now.facts)):
        before, after = was.facts.get(name, ""), now.facts.get(name, "")
        if before != after:
            rights = f" ({now.rights})" if now.rights and name in ("uid", "gid") else ""
            yield f"{name} {before or 'empty'} → {after or 'empty'}{rights}"
    for name in now.sets:
        before_set, after_set = was.sets.get(name, frozenset()), now.sets[name]
        rights = f" ({now.rights})" if now.rights else ""
        yield from (f"{name} {member} added{rights}" for member in sorted(after_set - before_set))
        yield from (f"{name} {member} removed" for member in sorted(before_set - after_set))
    if was.password != now.password:
        states = _state(was.password), _state(now.password)
        yield f"password {states[0]} → {states[1]}" if states[0] != states[1] else "password changed"


def _state(password: bytes) -> str:
    state = password_state(password)
    return _STATES.get(state, state)


def _users(data: bytes) -> dict[str, _Entry]:
    found = _Entries()
    passwords = _passwords(data, 7)
    for user in parse_accounts.users(data):
        facts = {"uid": str(user.uid), "gid": str(user.gid), "home": user.home, "shell": user.shell}
        rights = _ROOT if user.uid == 0 and not user.nis else ""
        found.put(user.name, _Entry(facts, {}, passwords.get(user.name, b""), rights))
    return found


def _shadow(data: bytes) -> dict[str, _Entry]:
    found = _Entries()
    for fields in parse_accounts.rows(data):
        if len(fields) >= 2:
            facts = {name: _text(fields[at]) for at, name in _SHADOW_FIELDS.items() if at < len(fields)}
            found.put(_text(fields[0]), _Entry(facts, {}, fields[1]))
    return found


def _groups(data: bytes) -> dict[str, _Entry]:
    found = _Entries()
    passwords = _passwords(data, 4)
    for item in parse_accounts.groups(data):
        rights = _ROOT if item.name in PRIVILEGED or item.gid == 0 else ""
        entry = _Entry(
            {"gid": str(item.gid)}, {"member": frozenset(item.members)}, passwords.get(item.name, b""), rights
        )
        found.put(item.name, entry)
    return found


def _group_shadow(data: bytes) -> dict[str, _Entry]:
    found = _Entries()
    for fields in parse_accounts.rows(data):
        if len(fields) >= 2:
            admins, members = ([*fields, b"", b""][at] for at in (2, 3))
            name = _text(fields[0])
            sets = {"administrator": _names(admins), "member": _names(members)}
            found.put(name, _Entry({}, sets, fields[1], _ROOT if name in PRIVILEGED else ""))
    return found


class _Entries(dict[str, _Entry]):
    """Entries by name. A second line with the same name is an entry of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, int] = {}

    def put(self, name: str, entry: _Entry) -> None:
        self._seen[name] = number = self._seen.get(name, 0) + 1
        self[name if number == 1 else f"{name} (line {number} of that name)"] = entry


def _passwords(data: bytes, fields_max: int) -> dict[str, bytes]:
    return {_text(fields[0]): fields[1] for fields in parse_accounts.rows(data, fields_max) if len(fields) > 1}


def _names(field: bytes) -> frozenset[str]:
    return frozenset(_text(name.strip()) for name in field.split(b",") if name.strip())


def _text(field: bytes) -> str:
    return os.fsdecode(field)
