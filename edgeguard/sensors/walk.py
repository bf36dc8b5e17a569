"""Walking watched trees in a fixed order, each directory once, robustly and with little work per file.

A walk stays on the file systems that watches lie on; it says what it did not enter. Where others are mounted it passes
through to the watches below, and sees nothing else there. It never follows a symlink, never recurses (a tree 2,000
levels deep is a list here), and checks that the directory it opened is the one it saw listed. Where the caller knows
that change times can be believed, a directory that has the one that it had is not listed again.
Kinds of trouble that are part of life (a directory vanishes) are silent; the others are told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from struct import error as out_of_range
from typing import NamedTuple

from edgeguard.codec import sha
from edgeguard.codec.manifest import BLOCK_MAX, NAMES_MAX, PATH_MAX
from edgeguard.errors import DecodeError
from edgeguard.linux import dirents, mounts
from edgeguard.linux.glance import Glance, Told
from edgeguard.linux.inside import inside
from edgeguard.model import Watch
from edgeguard.sensors import timely
from edgeguard.sensors.observed import LISTING, NO_LISTING, STAT, Record
from edgeguard.sensors.timely import Believed
from edgeguard.sensors.watching import Plan, Zone, literal_root

LISTING_MAX = NAMES_MAX * 280  # bytes: an entry has at most so many
NAMES_BYTES_MAX = BLOCK_MAX // 2  # of one directory, with what is kept of each: else no record could hold them
NO_TIME = 1 << 63  # ns: no time that is known to be as it was
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Visit(NamedTuple):
    """One directory, open while it is being looked at. Lists are parallel and sorted by the bytes of the names.

    There are no names and stats where all is as was expected."""

    path: str  # "" is /
    fd: int
    names: list[str]
    joined: bytes  # the names, joined by NUL
    stats: list[os.stat_result]
    packed: bytes  # 24 bytes each, as in observed.db
    watch: Watch | None  # decides for all of them; None: see `watches`
    watches: Sequence[Watch]
    listing: bytes = NO_LISTING  # identifies what the kernel listed, if the names are all of that
    block: bytes = b""  # what `Learn` gave; then there are no names and stats either


Expected = Callable[[str], Record | None]
"""The directory as it was seen, where it may be so still."""
Confirm = Callable[[int, list[bytes], Record, Watch | None], bool]
"""Is what the open directory (descriptor, names) holds as it was seen, too? Asked where its listing and the
attributes of all names are."""
Learn = Callable[[str, int, list[bytes], Told, Watch], bytes | None]
"""Everything in the open directory (path, descriptor, names, what lstat told) as a block without categories. None: not
to be had so simply."""


class _Step(NamedTuple):
    """A directory that is to be visited."""

    path: str
    zone: Zone
    identity: tuple[int, int] | None
    as_listed: bool  # its names are those that were seen: its change time says so, and can be believed


class Walker:
    """Iterate for visits of directories that hold something watched. `troubles` and `skipped` say what was not looked
    at, and why; the consumer may take them meanwhile."""

    def __init__(self, plan: Plan, root: str = "/", start: str = "") -> None:
        self._plan = plan
        self.expected: Expected | None = None
        self.confirm: Confirm | None = None
        self.learn: Learn | None = None
        self._believed = Believed()
        self._glance = Glance()
        self._listing = dirents.Listing()
        self._prefix = os.path.join(os.getcwd(), root).rstrip("/")  # while it walks the process may stand elsewhere
        self._start = start
        self._devices = {self._device(literal_root(watch.path)) for watch in plan.watches}
        self._types: dict[str, str] | None = None
        self.troubles: list[tuple[str, str]] = []  # (path, why); the consumer takes them
        self.skipped: list[tuple[str, str]] = []  # mounts that were not entered, or not for all watches
        # Nothing may be said about what is below these, but for what the zone, where there is one, still watches.
        self._blocked: dict[str, Zone | None] = {}

    def believe(self, until: int) -> None:
        """A directory that has the change time that it had, one from before `until` (ns), holds the names that are
        `expected`, where that can be said: see `timely`."""
        self._believed = timely.believed(self._devices, until)

    def is_blocked(self, path: str) -> bool:
        """Does `path` lie in a place that could not be looked at?"""
        place = self._place(path)
        if place is None:
            return False
        zone = self._blocked[place]
        return zone is None or path == place or zone.down(place, path[: path.rfind("/")]).decide(path) is None

    def is_closed(self, directory: str) -> bool:
        """May nothing be said about whatever lies directly in `directory`?"""
        place = self._place(directory)
        if place is None:
            return False
        zone = self._blocked[place]
        return zone is None or zone.down(place, directory).dead

    def _place(self, path: str) -> str | None:
        """The nearest of the blocked ones."""
        places = [place for place in self._blocked if path == place or path.startswith(place + "/")]
        return max(places, key=len, default=None)

    def __iter__(self) -> Iterator[Visit]:
        stack = [_Step(self._start, self._beginning(), None, False)]
        try:
            while stack:
                path, zone, identity, as_listed = stack.pop()
                fd = self._open(path, identity)
                if fd < 0:
                    continue
                try:
                    deeper: list[_Step] = []
                    visit = self._visit(path, zone, fd, deeper, as_listed)
                    if deeper:
                        deeper.reverse()
                        stack += deeper
                    if visit is not None:
                        yield visit
                finally:
                    os.close(fd)
        finally:
            self._glance.close()

    def _open(self, path: str, identity: tuple[int, int] | None) -> int:
        """A descriptor, or -1 if there is nothing to visit."""
        full = self._prefix + path or "/"
        if len(full) >= PATH_MAX // 4 and len(os.fsencode(full)) >= PATH_MAX:
            self._trouble(path, f"its path is longer than {PATH_MAX - 1} bytes: what is below is not watched")
            return -1
        try:
            fd = os.open(full, DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return -1
        except OSError as error:
            self._trouble(path, error.strerror or str(error))
            return -1
        if identity is not None and self._glance.identity(fd) != identity:
            os.close(fd)  # exchanged since it was listed, or reached through a symlink
            self._trouble(path, "it was exchanged while it was being looked at")
            return -1
        return fd

    def _visit(self, path: str, zone: Zone, fd: int, deeper: list[_Step], as_listed: bool) -> Visit | None:
        if as_listed and zone.plain and self.expected is not None:
            record = self.expected(path)
            if record is not None and record.listing != NO_LISTING:
                visit = self._as_before(path, zone, fd, record, deeper)
                if visit is not None:
                    return visit
        wanted = None if zone.plain else zone.names()
        listing = NO_LISTING
        if wanted is not None:
            names = sorted(wanted, key=os.fsencode)
        else:
            try:
                listed = self._listing.read(fd, LISTING_MAX)
            except OSError as error:
                self._trouble(path, error.strerror or str(error))
                return None
            listing = sha.blake2b(listed, LISTING) if listed is not None else b""
            record = self.expected(path) if self.expected is not None and zone.plain else None
            if record is not None and listing == record.listing:  # nothing was put in or taken out
                visit = self._as_before(path, zone, fd, record, deeper)
                if visit is not None:
                    return visit
                record = None
            bits = dirents.names(listed) if listed is not None else []
            if listed is None or len(bits) > NAMES_MAX:
                self._trouble(path, f"more than {NAMES_MAX} entries in one directory")
                return None
            joined = b"\0".join(bits)
            if len(joined) + STAT.size * len(bits) > NAMES_BYTES_MAX:
                self._trouble(path, f"{len(bits)} entries in one directory, and their names are too long for so many")
                return None
            # Some file systems list in another order after each start.
            if record is not None and joined == record.joined:
                visit = self._as_before(path, zone, fd, record, deeper)
                if visit is not None:
                    return visit
            if self.learn is not None and zone.plain and zone.watch is not None and bits:
                told = self._glance.told(fd, bits)
                block = self.learn(path, fd, bits, told, zone.watch) if told is not None else None
                if told is not None and block is not None:
                    self._below(path, fd, zone, bits, told, deeper)
                    return Visit(path, fd, [], joined, [], told.stats, zone.watch, (), listing, block)
            names = os.fsdecode(joined).split("\0") if bits else []
        stats: list[os.stat_result] = []
        packed: list[bytes] = []
        directories: list[tuple[str, int, int]] = []
        try:
            self._stat(names, fd, stats, packed, directories)
        except OSError:  # one vanished, or is unreadable: once more, each for itself
            names, listing = self._surviving(path, names, fd), NO_LISTING
            stats, packed, directories = [], [], []
            try:
                self._stat(names, fd, stats, packed, directories)
            except OSError as error:
                self._trouble(path, f"it keeps changing while it is being looked at ({error.strerror})")
                return None
        self._descend(path, fd, zone, directories, deeper)
        if not names:
            return None
        if zone.plain:
            if zone.watch is not None and zone.watch.by_rights:
                packed = [_rights(at) for at in stats]
            joined = os.fsencode("\0".join(names))
            return Visit(path, fd, names, joined, stats, b"".join(packed), zone.watch, (), listing)
        return self._chosen(path, fd, zone, names, stats, packed)

    def _as_before(self, path: str, zone: Zone, fd: int, record: Record, deeper: list[_Step]) -> Visit | None:
        """None: some of what the record names is not as it was."""
        names = record.joined.split(b"\0")
        found = self._glance.same(fd, names, record.stats)
        if found is None or (self.confirm is not None and not self.confirm(fd, names, record, zone.watch)):
            return None
        if found:
            below = [(os.fsdecode(names[at]), device, inode) for at, device, inode in found]
            times = memoryview(record.stats).cast("q")[1::3]
            self._descend(path, fd, zone, below, deeper, [times[at] for at, _, _ in found])
        return Visit(path, fd, [], b"", [], b"", zone.watch, ())

    def _below(
        self,
        path: str,
        fd: int,
        zone: Zone,
        names: list[bytes],
        told: Told,
        deeper: list[_Step],
    ) -> None:
        inodes = memoryview(told.stats).cast("Q")[0::3]
        directories = [
            (os.fsdecode(names[at]), told.device, inodes[at]) for at, kind in enumerate(told.types) if kind >> 4 == 0o4
        ]
        self._descend(path, fd, zone, directories, deeper)

    @staticmethod
    def _stat(
        names: list[str],
        fd: int,
        stats: list[os.stat_result],
        packed: list[bytes],
        directories: list[tuple[str, int, int]],
    ) -> None:
        # The inner loop of every sweep: each operation here runs once a file.
        lstat, pack, keep, add = os.lstat, STAT.pack, stats.append, packed.append
        for name in names:
            at = lstat(name, dir_fd=fd)
            keep(at)
            try:
                add(pack(at.st_ino, at.st_ctime_ns, at.st_size))
            except out_of_range:  # a file system says what it likes, and 64 bits of seconds are too many nanoseconds
                add(pack(at.st_ino, (at.st_ctime_ns + (1 << 63)) % (1 << 64) - (1 << 63), at.st_size))
            if at.st_mode & 0o170000 == 0o040000:
                directories.append((name, at.st_dev, at.st_ino))

    def _surviving(self, path: str, names: list[str], fd: int) -> list[str]:
        left = []
        for name in names:
            try:
                os.lstat(name, dir_fd=fd)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._trouble(f"{path}/{name}", error.strerror or str(error))
                continue
            left.append(name)
        return left

    def _descend(
        self,
        path: str,
        fd: int,
        zone: Zone,
        directories: list[tuple[str, int, int]],
        deeper: list[_Step],
        times: Iterable[int] = repeat(NO_TIME),
    ) -> None:
        """`times`: their change times (ns), where all have those that they had."""
        if not directories:
            return
        device = os.fstat(fd).st_dev
        devices, until = self._believed
        for (name, on, inode), time in zip(directories, times, strict=False):
            below = f"{path}/{name}"
            inner = zone if zone.plain else zone.child(below)
            if on != device and on not in self._devices and not inner.dead:
                inner = self._pass(below, zone, inner)
            if not inner.dead:
                deeper.append(_Step(below, inner, (on, inode), time < until and on in devices))

    @staticmethod
    def _chosen(
        path: str, fd: int, zone: Zone, names: list[str], stats: list[os.stat_result], packed: list[bytes]
    ) -> Visit | None:
        watches: list[Watch] = []
        chosen: list[int] = []
        for at, name in enumerate(names):
            watch = zone.decide(f"{path}/{name}")
            if watch is not None:
                watches.append(watch)
                chosen.append(at)
        if not chosen:
            return None
        names = [names[at] for at in chosen]
        joined = os.fsencode("\0".join(names))
        bits = b"".join(
            _rights(stats[at]) if watch.by_rights else packed[at] for at, watch in zip(chosen, watches, strict=True)
        )
        return Visit(path, fd, names, joined, [stats[at] for at in chosen], bits, None, watches)

    def _beginning(self) -> Zone:
        """What holds where the walk starts. Whoever asks for a place wants to know all of it; but a watch for set-id
        programs above it stays on its own file system, as it does when the walk comes from above."""
        zone = self._plan.zone(self._start)
        if not self._start or zone.watch is None or not zone.watch.only:
            return zone
        device = self._device(self._start)
        if device in self._devices:
            return zone
        point = self._start
        while (parent := point[: point.rfind("/")]) and self._device(parent) == device:
            point = parent
        outside = self._plan.zone(parent)
        return self._pass(point, outside, outside.child(point)).down(point, self._start)

    def _pass(self, path: str, outside: Zone, inside: Zone) -> Zone:
        """What holds inside the directory `path`, where a file system is mounted that no watch is known to lie on:
        the watch around it ends there, and those that begin there or below do not."""
        zone = inside.beyond(outside)
        if zone is inside:
            return zone
        if self._types is None:
            self._types = _types()
        kind = self._types.get(self._prefix + path, "unknown")
        rest = " and no watch names it" if zone.dead else ", and only what watches name below it is looked at"
        self.skipped.append((path, f"{kind} is mounted there{rest}"))
        self._blocked[path] = None if zone.dead else zone
        return zone

    def _device(self, path: str) -> int:
        """The file system that a watch begins on (what does not exist yet would come to lie on its parent's)."""
        while True:
            try:
                return os.lstat(self._prefix + path or "/").st_dev
            except OSError:
                if not path:
                    return 0
                path = path[: path.rfind("/")]

    def _trouble(self, path: str, why: str) -> None:
        self.troubles.append((path or "/", why))
        self._blocked[path] = None


def _rights(at: os.stat_result) -> bytes:
    """In place of inode, time and size where these say nothing: a log that grows is no other file than before."""
    return STAT.pack(at.st_mode, at.st_uid, at.st_gid)


def _types() -> dict[str, str]:
    """Mount point -> type of the file system; only for words, so nothing depends on it."""
    try:
        return {mount.point: mount.fstype for mount in mounts.read()}
    except (OSError, DecodeError):
        return {}


def _real(prefix: str, parent: str) -> str:
    """Of another root, symlinks lead where they would lead a system that runs from it."""
    return inside(prefix, parent) if prefix else os.path.realpath(parent)


def resolved(watches: Sequence[Watch], root: str) -> list[Watch]:
    """The watches with symlinked directories in their paths followed: /lib/systemd is /usr/lib/systemd.

    The last component stays, because a symlink can itself be what is watched; so does what follows a wildcard.
    """
    prefix = root.rstrip("/")
    if prefix and os.path.realpath(prefix) != prefix:
        return list(watches)  # a tree that is itself reached by a symlink: links in it would lead anywhere
    found = []
    for watch in watches:
        literal = literal_root(watch.path)
        parent, _, name = literal.rpartition("/")
        try:
            real = _real(prefix, parent) if parent else prefix
        except OSError:
            real = prefix + parent  # symlinks in a circle: nothing lies there
        if parent and real[len(prefix) :].rstrip("/") != parent:
            rest = watch.path.rstrip("/")[len(literal) :]
            watch = watch._replace(path=f"{real[len(prefix) :].rstrip('/')}/{name}{rest}")  # noqa: PLW2901
        found.append(watch)
    return found
