"""Sensor `accounts`: users, groups, and the SSH keys that may log in.

It looks when the files sensor sees one of its files change (`triggers`), and every quarter of an hour besides: homes
can lie where the files sensor has no eyes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from edgeguard.model import Columns, Observation, Origin, Status
from edgeguard.sensors import Column, Context, Rung, parse_accounts, reading, sshd
from edgeguard.sensors.snapshot import WHOLE_KIND

DAY_MS = 86_400_000
SYSTEM_BELOW = 1000  # UID_MIN and GID_MIN of Debian's login.defs
NOBODY_ID = 65534
KEY_USERS_MAX = 2000  # accounts whose key files are looked for
KEYS_MAX = 20_000  # key subjects in all
UNREAD = "unread"  # instead of a key's type: there are lines that sshd may understand and this does not
SUBORDINATE = ("/etc/subuid", "/etc/subgid")
NOTED_MAX = 4  # unreadable key files that are named

_ACCOUNT: Mapping[str, Column] = {
    "name": Column("str", "name of the user or group"),
    "type": Column("str", "user or group"),
    "uid": Column("int", "user id (users)", reference=True),
    "gid": Column("int", "primary group of a user, id of a group", reference=True),
    "home": Column("str", "home directory (users)", reference=True),
    "shell": Column("str", "login shell (users)", reference=True),
    "password": Column("str", "set, none, locked, expired, or unknown (shadow could not be read)", reference=True),
    "members": Column("list", "members of a group, sorted", reference=True),
    "groups": Column("list", "groups of a user, sorted, the primary one included"),
    "admins": Column("list", "who may add members to the group (gshadow)"),
    "system": Column("bool", "an id below 1000, or nobody"),
    "privileged": Column(
        "bool", "amounts to root: uid 0, or a group such as sudo, docker, disk or shadow, whatever its name"
    ),
    "reaching": Column("bool", "may map ids below 1000 into a namespace (subuid, subgid), and so become root"),
    "nis": Column("bool", 'a "+" or "-" line: further accounts come from a network directory'),
}
_KEY: Mapping[str, Column] = {
    "user": Column("str", "who may log in with it"),
    "path": Column("str", "file that lists it"),
    "type": Column("str", "key type, e.g. ssh-ed25519; unread: lines of the file that are not understood"),
    "comment": Column("str", "comment beside it"),
    "options": Column("list", "restrictions and commands in front of it", reference=True),
}


class Accounts:
    name = "accounts"
    kinds: Mapping[str, Mapping[str, Column]] = {"account": _ACCOUNT, "authorized_key": _KEY}
    ladder = ("reading",)
    interval_s = 900
    triggers = (
        "/etc/passwd",
        "/etc/shadow",
        "/etc/group",
        "/etc/gshadow",
        *SUBORDINATE,
        "/home/*/.ssh/authorized_keys*",
        "/root/.ssh/authorized_keys*",
        "/etc/ssh/authorized_keys/*",
        *sshd.TRIGGERS,  # they say where keys are looked for
    )

    def __init__(self, context: Context) -> None:
        self._root = context.root
        self.places: frozenset[str] = frozenset()  # every path where sshd looks for keys: they wake us, too
        self._unread: list[str] = []  # key files that could not be read at the last look
        self.malformed = 0  # lines of key files, at the last look, that are neither key nor comment

    def start(self) -> Rung:
        blind = []
        try:
            self._read("/etc/passwd")
        except OSError as error:
            blind.append(f"accounts: /etc/passwd: {reading.why(error)}")
        try:
            self._read("/etc/shadow")
        except OSError as error:
            blind.append(f"whether an account has a password is not known: /etc/shadow: {reading.why(error)}")
        return Rung("reading", proven=True, blind=tuple(blind))

    def fileno(self) -> int | None:
        return None

    def ready(self, now: int) -> Iterable[Observation]:
        del now  # nothing comes by itself
        return ()

    def observe(self, now: int) -> Iterator[Observation]:
        try:
            users = list(parse_accounts.users(self._read("/etc/passwd")))
            groups = list(parse_accounts.groups(self._read("/etc/group")))
        except OSError as error:
            note = f"{error.filename}: {reading.why(error)}"
            for kind in self.kinds:
                yield Observation(kind, WHOLE_KIND, {}, now, Status.UNREADABLE, Origin.SWEEP, note=note)
            return
        if len(users) >= parse_accounts.ENTRIES_MAX or len(groups) >= parse_accounts.ENTRIES_MAX:
            note = f"only the first {parse_accounts.ENTRIES_MAX} are looked at"
            yield Observation("account", WHOLE_KIND, {}, now, Status.UNREADABLE, Origin.SWEEP, note=note)
        yield from self._users(users, groups, now)
        yield from self._groups(groups, now)
        yield from self._keys(users, now)

    def close(self) -> None:
        pass

    def _read(self, path: str) -> bytes:
        return reading.read(reading.under(self._root, path), parse_accounts.FILE_MAX)

    def _users(
        self, users: list[parse_accounts.User], groups: list[parse_accounts.Group], now: int
    ) -> Iterator[Observation]:
        try:
            states = parse_accounts.shadow(self._read("/etc/shadow"), now // DAY_MS)
        except OSError:
            states = None
        names = {group.gid: group.name for group in reversed(groups)}
        amounting, reaching = _amounting(groups), self._reaching()
        memberships: dict[str, set[str]] = {}
        for group in groups:
            for member in group.members:
                memberships.setdefault(member, set()).add(group.name)
        taken: dict[str, int] = {}
        for user in users:
            password = user.password
            if password == "shadow":  # noqa: S105 - a state, not a password
                password = "unknown" if states is None else states.get(user.name, "locked")
            mine = memberships.get(user.name, set()) | ({names[user.gid]} if user.gid in names else set())
            columns: Columns = {
                "name": user.name,
                "type": "user",
                "uid": user.uid,
                "gid": user.gid,
                "home": user.home,
                "shell": user.shell,
                "password": password,
                "members": (),
                "groups": tuple(sorted(mine)),
                "admins": (),
                "system": _is_system(user.uid),
                "privileged": user.uid == 0 or user.gid in amounting or not mine.isdisjoint(parse_accounts.PRIVILEGED),
                "nis": user.nis,
                "reaching": user.name in reaching or str(user.uid) in reaching,
            }
            yield Observation("account", _nth(f"user {user.name}", taken), columns, now, origin=Origin.SWEEP)

    def _reaching(self) -> frozenset[str]:
        """Names and numbers of users who may map ids of the system (newuidmap, newgidmap), and so become root."""
        found: set[str] = set()
        for path in SUBORDINATE:
            try:
                rows = parse_accounts.subordinates(self._read(path))
                found.update(user for user, first, _count in rows if first < SYSTEM_BELOW)
            except OSError:
                continue  # nobody has any
        return frozenset(found - {"root", "0"})

    def _groups(self, groups: list[parse_accounts.Group], now: int) -> Iterator[Observation]:
        try:
            secrets = parse_accounts.group_shadow(self._read("/etc/gshadow"))
        except OSError:
            secrets = None
        amounting = _amounting(groups)
        taken: dict[str, int] = {}
        for group in groups:
            locked: tuple[str, tuple[str, ...]] = ("locked", ())
            password, admins = ("unknown", ()) if secrets is None else secrets.get(group.name, locked)
            columns: Columns = {
                "name": group.name,
                "type": "group",
                "uid": None,
                "gid": group.gid,
                "home": None,
                "shell": None,
                "password": password,
                "members": group.members,
                "groups": (),
                "admins": admins,
                "system": _is_system(group.gid),
                "privileged": group.gid in amounting or group.name in parse_accounts.PRIVILEGED,
                "nis": group.nis,
                "reaching": False,
            }
            yield Observation("account", _nth(f"group {group.name}", taken), columns, now, origin=Origin.SWEEP)

    def _keys(self, users: list[parse_accounts.User], now: int) -> Iterator[Observation]:
        patterns = sshd.key_files(self._root)
        self.malformed = 0
        budget = KEYS_MAX
        self._unread.clear()
        paths: dict[tuple[str, str], None] = {}
        for user in users[:KEY_USERS_MAX]:
            if not user.nis and user.home.startswith("/"):
                paths |= dict.fromkeys((user.name, _expand(pattern, user)) for pattern in patterns)
        self.places = frozenset(each for _, path in paths for each in (path, self._leading_to(path)))
        known: dict[str, dict[str, set[tuple[str, ...]]]] = {}  # user -> fingerprint -> options; names come twice
        for name, path in paths:
            for observation in self._key_file(name, path, known.setdefault(name, {}), now):
                budget -= 1
                if budget >= 0:
                    yield observation
        if budget < 0:
            self._unread.insert(0, f"more than {KEYS_MAX} keys")
        if self._unread:  # speaks for the kind: a key whose file cannot be read now is not gone
            note = "; ".join(self._unread[:NOTED_MAX])
            yield Observation("authorized_key", WHOLE_KIND, {}, now, Status.UNREADABLE, Origin.SWEEP, note=note)

    def _leading_to(self, path: str) -> str:
        """Where events about that path are told: /bin and an .ssh may be links."""
        prefix = self._root.rstrip("/")
        return os.path.realpath(prefix + path)[len(os.path.realpath(prefix)) if prefix else 0 :]

    def _key_file(self, user: str, path: str, seen: dict[str, set[tuple[str, ...]]], now: int) -> Iterator[Observation]:
        """The keys of one file; a key that the user has already with the same options is not told again."""
        try:
            data, whole = reading.beginning(reading.under(self._root, path), parse_accounts.KEYS_MAX)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._unread.append(f"{path}: {reading.why(error)}")
            return
        found, malformed = parse_accounts.keys(data)
        self.malformed += malformed
        for key in found:
            others = seen.setdefault(key.fingerprint, set())
            if key.options in others:
                continue
            others.add(key.options)
            subject = f"{user} {key.fingerprint}" + (f"#{len(others)}" if len(others) > 1 else "")
            yield Observation("authorized_key", subject, _key_columns(user, path, key), now, origin=Origin.SWEEP)
        if malformed or not whole:
            rest = parse_accounts.Key("", UNREAD, "", ())
            yield Observation(
                "authorized_key", f"{user} {path}", _key_columns(user, path, rest), now, origin=Origin.SWEEP
            )


def _key_columns(user: str, path: str, key: parse_accounts.Key) -> Columns:
    return {"user": user, "path": path, "type": key.type, "comment": key.comment, "options": key.options}


def _nth(subject: str, taken: dict[str, int]) -> str:
    """A second line with the same name is a subject of its own: the C library takes the first, others may not."""
    taken[subject] = taken.get(subject, 0) + 1
    return subject if taken[subject] == 1 else f"{subject}#{taken[subject]}"


def _amounting(groups: list[parse_accounts.Group]) -> frozenset[int]:
    """Ids that amount to root. To the kernel a group is its number, whatever other name it has."""
    return frozenset(group.gid for group in groups if group.name in parse_accounts.PRIVILEGED) | {0}


def _is_system(number: int) -> bool:
    return 0 <= number < SYSTEM_BELOW or number == NOBODY_ID


def _expand(pattern: str, user: parse_accounts.User) -> str:
    """AuthorizedKeysFile's tokens (sshd_config(5)); what is not absolute lies in the home directory."""
    tokens = {"%%": "%", "%h": user.home, "%u": user.name, "%U": str(user.uid)}
    out, index = [], 0
    while index < len(pattern):
        token = pattern[index : index + 2]
        out.append(tokens.get(token, pattern[index]))
        index += 2 if token in tokens else 1
    path = "".join(out)
    return path if path.startswith("/") else os.path.join(user.home, path)
