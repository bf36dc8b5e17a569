"""What of this device decides where and how dpkg puts a file: links among the directories, users and groups,
diversions, overrides of modes, excluded paths, and what is installed. Read when asked, from dpkg's own files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase

from edgeguard.codec.manifest import PATH_MAX, Entry
from edgeguard.sensors import parse_accounts, parse_dpkg, reading
from edgeguard.sensors.packages import DIVERSIONS_MAX, STATUS

TEXT_MAX = 4 << 20
LIST_MAX = 32 << 20  # bytes of the list of files of one package; a kernel's has 0.5 MB
LISTED_MAX = 1_500_000  # paths of all packages; a desktop has 300,000
ID_MAX = (1 << 32) - 1
LINKS_MAX = 40  # followed on the way to a path, as the kernel does
_INSTALLED = frozenset(("installed", "half-configured", "unpacked", "triggers-awaited", "triggers-pending"))


class World:
    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._places: dict[bytes, bytes] = {}
        self._users: dict[str, int] | None = None
        self._groups: dict[str, int] | None = None
        self._diversions: dict[bytes, tuple[bytes, str]] | None = None
        self._overrides: dict[bytes, tuple[int, int, int]] | None = None
        self._rules: list[tuple[bool, str]] | None = None
        self._installed: dict[str, str] | None = None
        self._listed: set[int] | None = None

    def under(self, path: bytes) -> bytes:
        return os.fsencode(self._root.rstrip("/")) + path

    # -- where

    def located(self, path: bytes) -> bytes:
        """A path as it lies on the disk: /lib/x is /usr/lib/x where /lib is a link. The last part is not followed. What
        is too long for the kernel lies nowhere, and stays."""
        if len(path) >= PATH_MAX:
            return path
        directory, _, name = path.rstrip(b"/").rpartition(b"/")
        return self._directory(directory, 0) + b"/" + name

    def _directory(self, path: bytes, depth: int) -> bytes:
        if not path or depth > LINKS_MAX:
            return path
        if path not in self._places:
            at = 0  # from above: a path of two thousand directories is none for a function that calls itself for each
            while (at := path.find(b"/", at + 1)) > 0:
                self._place(path[:at], depth)
            self._place(path, depth)
        return self._places[path]

    def _place(self, path: bytes, depth: int) -> None:
        """Find out where this directory lies, of which it is known where the one above does."""
        if path in self._places:
            return
        above, _, name = path.rpartition(b"/")
        here = self._places.get(above, above) + b"/" + name
        try:
            target = os.readlink(self.under(here))
        except OSError:
            self._places[path] = here
        else:
            joined = target if target.startswith(b"/") else here.rpartition(b"/")[0] + b"/" + target
            whole = os.path.normpath(joined).replace(b"//", b"/")
            self._places[path] = b"" if whole == b"/" else self._directory(whole, depth + 1)

    def diverted(self, path: bytes, package: str) -> tuple[bytes, str] | None:
        """Where a package's file lies instead, and who has its path: another package, or ":", the administrator."""
        if self._diversions is None:
            text = self._read("/var/lib/dpkg/diversions", DIVERSIONS_MAX)
            self._diversions = parse_dpkg.diversions(text)
        for name in parse_dpkg.aliases(path):
            target, owner = self._diversions.get(name, (b"", ""))
            if target and owner != package:
                return self.located(target), owner
        return None

    def excluded(self, path: bytes) -> bool:
        """Is dpkg told not to install this? The last rule that fits decides."""
        if self._rules is None:
            self._rules = list(self._exclusions())
        text = os.fsdecode(path)
        last = False
        for exclude, pattern in self._rules:
            if fnmatchcase(text, pattern):
                last = exclude
        return last

    def _exclusions(self) -> Iterator[tuple[bool, str]]:
        parts = "/etc/dpkg/dpkg.cfg.d"
        try:
            names = sorted(os.listdir(reading.under(self._root, parts)))[:1000]
        except OSError:
            names = []
        for path in ("/etc/dpkg/dpkg.cfg", *(f"{parts}/{name}" for name in names)):
            for line in os.fsdecode(self._read(path, TEXT_MAX)).splitlines():
                name, _, value = line.strip().partition("=")
                if name in ("path-exclude", "path-include"):
                    yield name == "path-exclude", value.strip().strip("\"'")

    # -- whose

    def ids(self, user: str, group: str, uid: int, gid: int) -> tuple[int, int]:
        """As dpkg does it: by name where the name is known here, else by number."""
        if self._users is None or self._groups is None:
            self._users, self._groups = self._numbers("/etc/passwd"), self._numbers("/etc/group")
        return self._users.get(user, uid), self._groups.get(group, gid)

    def names(self, uid: int, gid: int) -> tuple[str, str]:
        """What user and group are called here; the number where nobody says."""
        self.ids("", "", 0, 0)
        users, groups = self._users or {}, self._groups or {}
        user = next((name for name, number in users.items() if number == uid), str(uid))
        return user, next((name for name, number in groups.items() if number == gid), str(gid))

    def alone(self, kind: str, name: str, number: int) -> bool:
        """Has this "user" or "group" its number for itself?"""
        if kind == "user":
            users = parse_accounts.users(self._read("/etc/passwd", TEXT_MAX))
            return [user.name for user in users if user.uid == number] == [name]
        groups = parse_accounts.groups(self._read("/etc/group", TEXT_MAX))
        return [group.name for group in groups if group.gid == number] == [name]

    def _numbers(self, path: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for line in os.fsdecode(self._read(path, TEXT_MAX)).split("\n"):
            fields = line.split(":")
            if len(fields) > 2 and fields[2].isascii() and fields[2].isdigit():
                found.setdefault(fields[0], min(int(fields[2][:10]), ID_MAX))
        return found

    def override(self, path: bytes) -> tuple[int, int, int] | None:
        """(mode, uid, gid) that the administrator gave to a path with dpkg-statoverride."""
        if self._overrides is None:
            self._overrides = {}
            for line in self._read("/var/lib/dpkg/statoverride", TEXT_MAX).split(b"\n"):
                fields = line.split(b" ", 3)
                if len(fields) == 4 and fields[2].isdigit():
                    user, group = (os.fsdecode(field).removeprefix("#") for field in fields[:2])
                    numbers = (int(text[:10]) if text.isascii() and text.isdigit() else -1 for text in (user, group))
                    mode = int(fields[2], 8) if not fields[2].strip(b"01234567") else -1
                    self._overrides[self.located(fields[3])] = (mode, *self.ids(user, group, *numbers))
        return self._overrides.get(path)

    # -- what

    def installed(self, name: str, architecture: str) -> str:
        """The version whose files lie here, "" if none."""
        if self._installed is None:
            self._installed = {}
            for package in parse_dpkg.packages(self._lines()):
                there = package.status in _INSTALLED
                self._installed[f"{package.name}:{package.architecture}"] = package.version if there else ""
        return self._installed.get(f"{name}:{architecture}", "")

    def scripts(self, package: str) -> list[bytes]:
        """Where the scripts of an installed package lie that say what becomes of others' files."""
        folder = "/var/lib/dpkg/info"
        stems = (package, *(name for name in self._names() if name.partition(":")[0] == package))
        return [f"{folder}/{stem}.{kind}".encode() for stem in stems for kind in ("preinst", "postinst")]

    def listed(self, path: bytes, besides: frozenset[str]) -> bool:
        """Does dpkg list this path as one of an installed package that is none of `besides`? They are the same in every
        call. Kept are numbers, 40 bytes a path."""
        if self._listed is None:
            self._listed = set()
            there = {name.partition(":")[0] for name in self._names()}
            folder = reading.under(self._root, "/var/lib/dpkg/info")
            for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                package = name.removesuffix(".list").partition(":")[0]
                if name.endswith(".list") and package in there and package not in besides:
                    for line in self._read(f"/var/lib/dpkg/info/{name}", LIST_MAX).split(b"\n"):
                        if len(self._listed) < LISTED_MAX and line.startswith(b"/"):
                            self._listed.add(hash(self.located(line)))
        return hash(path) in self._listed

    def read(self, path: bytes) -> bytes:
        """A small file of this device, b"" if it cannot be read."""
        return self._read(os.fsdecode(path), TEXT_MAX)

    def _names(self) -> list[str]:
        """Packages whose files lie here, each NAME:ARCHITECTURE."""
        self.installed("", "")
        return [name for name, version in (self._installed or {}).items() if version]

    def _lines(self) -> Iterator[bytes]:
        """dpkg's status, and what a dpkg that was killed had not written into it yet."""
        folder = "/var/lib/dpkg/updates"
        try:
            later = sorted(name for name in os.listdir(reading.under(self._root, folder)) if name.isdigit())
        except OSError:
            later = []
        for path in (STATUS, *(f"{folder}/{name}" for name in later[:10_000])):
            try:
                fd = os.open(reading.under(self._root, path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                continue
            with open(fd, "rb") as file:
                yield from iter(lambda: file.readline(parse_dpkg.LINE_MAX), b"")
            yield b"\n"

    def _read(self, path: str, limit: int) -> bytes:
        try:
            return reading.read(reading.under(self._root, path), limit)
        except OSError:
            return b""


def same_content(one: Entry, two: Entry) -> bool:
    """Type, content and target; not who may do what with it."""
    return (one.st_mode >> 12, one.digest, one.size, one.target) == (
        two.st_mode >> 12,
        two.digest,
        two.size,
        two.target,
    )


def same_rights(one: Entry, two: Entry) -> bool:
    return (one.st_mode & 0o7777, one.uid, one.gid) == (two.st_mode & 0o7777, two.uid, two.gid)
