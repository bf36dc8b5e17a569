"""What the kernel says happened to files, whichever mechanism tells it: touches, with the zone that they fall into.

`FanotifySource` watches whole file systems and knows the actor; `InotifySource` watches single directories and does
not. Both drop what no watch can care about as early as possible. What a touch means is found by looking at the path
(sensors/files.py); only directories that came or went need more than that.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from stat import S_ISREG
from typing import NamedTuple

from edgeguard.codec.manifest import PATH_MAX
from edgeguard.errors import DecodeError, Unavailable
from edgeguard.linux import fanotify, inotify, mounts
from edgeguard.model import Watch
from edgeguard.sensors.watching import Plan, Zone, literal_root

PLACES_MAX = 512  # directories remembered by handle: about 250 bytes each
PROGRAMS_MAX = 64  # file systems that are watched for program starts only
# Where programs may lie besides the watched trees: memory, sticks, other disks. Not overlay: that is containers.
PROGRAM_TYPES = frozenset(("tmpfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "vfat", "exfat"))
WATCHES_MAX = 8192  # inotify watches: 1 KiB of kernel memory and 250 bytes here each

# udev, the service manager and every login write there all day: a mark on all of it would wake us each time.
RESTLESS = "/run/"
RESTLESS_WHY = "too much happens there"

# The mark on one file system says nothing of what is mounted below it, and which mounts a wildcard means changes.
BEYOND_WHY = "other file systems are mounted below it"

OnExec = Callable[[int, str], None]


class Touch(NamedTuple):
    """Something happened to `path`. For directories, `came` and `went` say that what is below moved with them."""

    path: str
    zone: Zone  # of the directory that holds it
    pid: int
    came: bool = False
    went: bool = False
    writing: bool = False  # it was written to and is still open, so more of it may follow
    linked: bool = False  # nobody watches this name of it, but it has others
    named: bool = False  # only the name came or went: what is behind it is as before


class _Place(NamedTuple):
    path: str  # of a directory; "" is /
    zone: Zone


class FanotifySource:
    """Marks on every file system that a watch lies on. Raises Unavailable where there can be no group at all."""

    MASK = (
        fanotify.FAN_CREATE
        | fanotify.FAN_DELETE
        | fanotify.FAN_MOVED_FROM
        | fanotify.FAN_MOVED_TO
        | fanotify.FAN_CLOSE_WRITE
        | fanotify.FAN_ATTRIB
        | fanotify.FAN_ONDIR
    )
    WRITES = MASK | fanotify.FAN_MODIFY
    INTO = fanotify.FAN_CLOSE_WRITE | fanotify.FAN_ATTRIB  # something happened to what is behind the name
    NEW = fanotify.FAN_CREATE | fanotify.FAN_DELETE | fanotify.FAN_MOVED_FROM  # the name itself came or went

    def __init__(self, plan: Plan, root: str, on_exec: OnExec | None = None) -> None:
        self._group = fanotify.Group()
        self._plan = plan
        self._prefix = root.rstrip("/")
        self._on_exec = on_exec
        self._mask = self.WRITES | (fanotify.FAN_OPEN_EXEC if on_exec is not None else 0)
        self.deaf_to_writes = ""  # why files that stay open are not told, if so
        self._hushed = False  # single files are ignored, whose name may become another
        self._points: dict[bytes, str] = {}  # file system id -> a mount of it
        self._program_points: dict[bytes, str] = {}  # the same for those that are watched for program starts only
        self._places: dict[bytes, _Place | None] = {}
        self._own = os.getpid()
        self.lost = 0  # overflows of the kernel's queue
        self.behind = False  # the last read was so long that more will be waiting
        self._proof = b""  # name of the self-test's file
        self._proof_point = ""  # a mount of the file system that is marked for the self-test alone
        self.proven = False
        self.why = ""  # the self-test's event came and was of no use
        self._hear_writes()

    def fileno(self) -> int:
        return self._group.fileno()

    def mark(self, watches: tuple[Watch, ...]) -> list[tuple[Watch, str]]:
        """Mark the file systems of all watches (again: new mounts come in). Which watches cannot be served, and why."""
        failed = []
        results: dict[int, str] = {}
        table = _mounts()
        for watch in watches:
            path = existing(self._prefix + literal_root(watch.path))
            if os.path.islink(path):  # what happens to a symlink happens where it lies, not where it points
                path = os.path.dirname(path)
            device = os.lstat(path).st_dev
            if watch.path.startswith(RESTLESS) and device != os.lstat(self._prefix or "/").st_dev:
                failed.append((watch, RESTLESS_WHY))
                continue
            if device not in results:
                results[device] = self._mark_one(path, table)
            if results[device]:
                failed.append((watch, results[device]))
        failed += self._reaching_further(table, {watch for watch, _ in failed}, results)
        if self._on_exec is not None:
            self._mark_programs(table)
        return failed

    def _reaching_further(
        self, table: list[mounts.Mount], failed: set[Watch], marked: dict[int, str]
    ) -> list[tuple[Watch, str]]:
        """Watches whose wildcards mean something on a file system that is not marked."""
        start = self._prefix + "/"
        others = [
            mount.point[len(self._prefix) :]
            for mount in table
            if mount.point.startswith(start) and _number(mount.device) not in marked
        ]
        wild = [watch for watch in self._plan.watches if watch not in failed and literal_root(watch.path) != watch.path]
        return [(watch, BEYOND_WHY) for watch in wild if any(_means(watch, others))]

    def _hear_writes(self) -> None:
        """Whoever hears of each write must be able to say where it does not matter: else every log would wake us."""
        try:
            fd = os.open(self._prefix or "/", os.O_PATH | os.O_CLOEXEC)
            try:
                self._group.ignore(fd, fanotify.FAN_MODIFY)
            finally:
                os.close(fd)
            self._group.ignore_nothing()
        except (Unavailable, OSError) as why:
            self._mask &= ~fanotify.FAN_MODIFY
            self.deaf_to_writes = str(why)

    def _mark_programs(self, table: list[mounts.Mount]) -> None:
        """No watch names /tmp or /dev/shm where they are file systems of their own, but a program that starts there
        and ends at once is seen by nothing else."""
        for mount in table:
            inside = not self._prefix or (mount.point + "/").startswith(self._prefix + "/")
            if not inside or mount.fstype not in PROGRAM_TYPES or "noexec" in mount.options:
                continue
            if mount.root != "/":  # a part of a file system whose rest is none of ours: a container's host runs there
                continue
            if len(self._program_points) >= PROGRAMS_MAX:
                return
            try:
                key = fanotify.fsid(mount.point)
                if key in self._points or key in self._program_points:
                    continue
                self._group.mark(mount.point, fanotify.FAN_OPEN_EXEC)
            except (Unavailable, OSError):  # hidden by another mount, an old kernel, or too late: polling sees some
                continue
            self._program_points[key] = _mount_of(mount.point, table)

    def _mark_one(self, path: str, table: list[mounts.Mount]) -> str:
        """ "" or why it cannot be marked."""
        try:
            key = fanotify.fsid(path)
            if not (key in self._points and os.lstat(path).st_dev in self._group.marked()):
                self._group.mark(path, self._mask)
        except Unavailable as why:
            return str(why)
        except OSError as error:
            return error.strerror or str(error)
        self._points[key] = _mount_of(path, table)
        return ""

    def covers(self, path: str) -> bool:
        return fanotify.fsid(path) in self._points

    def add_temporarily(self, path: str) -> None:
        """Mark one more file system, for the self-test. Raises Unavailable."""
        self._group.mark(path, self.MASK)
        self._proof_point = _mount_of(path, _mounts())

    def remove(self, path: str) -> None:
        self._proof_point = ""
        self._group.unmark(path, self.MASK)

    def expect(self, name: bytes) -> None:
        """From now on `proven` tells whether a file of this name was seen; b"" ends the self-test."""
        self.proven = self.proven and not name
        self.why = "" if name else self.why
        self._proof = name

    def _prove(self, event: fanotify.Event) -> None:
        """The self-test's event is here. It is worth something only if the directory behind its handle can be opened:
        the kernel reports handles to whoever may mark, and opens them for CAP_DAC_READ_SEARCH only."""
        point = self._points.get(fanotify.fsid_key(event.fsid)) or self._proof_point
        try:
            self.proven = _path_of(point, event.handle) is not None
            self.why = "" if self.proven else "an event's directory is not found"
        except OSError as error:
            self.why = error.strerror or str(error)

    def renew(self, plan: Plan) -> None:
        self._plan = plan
        self._places.clear()
        self._hear_all()

    def _hear_all(self) -> None:
        """What did not matter may matter now."""
        self._hushed = False
        self._group.ignore_nothing()

    def read(self) -> Iterator[Touch]:
        """One read from the queue."""
        buffer = self._group.read()
        self.behind = len(buffer) > fanotify.READ_BYTES // 2
        for event in fanotify.parse(buffer):
            if event.mask & fanotify.FAN_Q_OVERFLOW:
                self.lost += 1
            elif self._proof and event.name == self._proof:
                self._prove(event)
            elif event.pid != self._own:
                touch = self._touch(event)
                if touch is not None:
                    yield touch

    def _touch(self, event: fanotify.Event) -> Touch | None:
        key = event.fsid + event.handle
        place = self._places[key] if key in self._places else self._resolve(event, key)
        if place is None:
            return None
        mask = event.mask
        if mask & fanotify.FAN_OPEN_EXEC:
            if self._on_exec is not None:
                self._on_exec(event.pid, f"{place.path}/{os.fsdecode(event.name)}")
            if not mask & (self.WRITES & ~fanotify.FAN_ONDIR):
                return None
        came = went = False
        if mask & fanotify.FAN_ONDIR:
            came = bool(mask & fanotify.FAN_MOVED_TO)  # a directory made here tells of its children by itself
            went = bool(mask & (fanotify.FAN_MOVED_FROM | fanotify.FAN_MOVED_TO | fanotify.FAN_DELETE))
            if went:
                self._places.clear()  # paths of everything below are others now
            if came:
                self._hear_all()
        elif place.zone.quiet:
            return self._quiet(event, place)
        if place.zone.dead:
            return None
        if event.name == b".":
            parent = place.path.rpartition("/")[0]
            return Touch(place.path, self._plan.zone(parent), event.pid) if place.path else None
        path = f"{place.path}/{os.fsdecode(event.name)}"
        if mask == fanotify.FAN_MODIFY:
            return self._written(path, place, event)
        if self._hushed and mask & (fanotify.FAN_MOVED_TO | fanotify.FAN_CREATE):
            self._hear_all()  # an ignored file may have got this name
        named = not mask & (self.INTO | fanotify.FAN_MODIFY)
        return Touch(path, place.zone, event.pid, came, went, named=named)

    def _quiet(self, event: fanotify.Event, place: _Place) -> Touch | None:
        """Where no content is watched. A program with other rights may appear; and what is written may be a file that
        has a watched name elsewhere. Files that were just made are most of what happens here, and are not asked."""
        mask = event.mask
        if mask == fanotify.FAN_MODIFY:
            self._ignore(event)
            return None
        if place.zone.dead and (mask & self.NEW or not mask & self.INTO):
            return None
        path = f"{place.path}/{os.fsdecode(event.name)}"
        if not place.zone.dead:
            return Touch(path, place.zone, event.pid)
        return Touch(path, place.zone, event.pid, linked=True) if self._links(path) > 1 else None

    def _written(self, path: str, place: _Place, event: fanotify.Event) -> Touch | None:
        """Somebody writes to a file and keeps it open."""
        watch = place.zone.decide(path)
        if watch is not None and (watch.content or watch.grows) and not watch.only:
            return Touch(path, place.zone, event.pid, writing=True)
        if self._links(path) > 1:  # one of the other names may be watched
            return Touch(path, place.zone, event.pid, writing=True, linked=True)
        self._ignore(event, event.name)
        return None

    def _ignore(self, event: fanotify.Event, name: bytes = b"") -> None:
        """Hear no more of writes to the event's file `name`; without one, to all that lies in its directory.

        By the event's own handle: what its directory was called then may be a symlink to another one by now.
        """
        with contextlib.suppress(Unavailable, OSError):  # gone meanwhile: nothing more will come from there
            directory = _opened(self._point(event) or "", event.handle)
            try:
                if name:
                    self._ignore_file(directory, name)
                else:
                    self._group.ignore(directory, fanotify.FAN_MODIFY | fanotify.FAN_EVENT_ON_CHILD)
            finally:
                os.close(directory)

    def _ignore_file(self, directory: int, name: bytes) -> None:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            at = os.fstat(fd)
            if S_ISREG(at.st_mode) and at.st_nlink == 1:  # more names: one of them may be watched
                self._group.ignore(fd, fanotify.FAN_MODIFY)
                self._hushed = True
        finally:
            os.close(fd)

    def _point(self, event: fanotify.Event) -> str | None:
        """A mount of the file system where it happened."""
        key = fanotify.fsid_key(event.fsid)
        return self._points.get(key) or self._program_points.get(key)

    def _links(self, path: str) -> int:
        """How many names a regular file has; 0 where there is none."""
        try:
            at = os.lstat(self._prefix + path)
        except OSError:
            return 0
        return at.st_nlink if S_ISREG(at.st_mode) else 0

    def _resolve(self, event: fanotify.Event, key: bytes) -> _Place | None:
        """The directory behind a handle; None if it is gone, or not in our tree."""
        point = self._point(event)
        if point is None:
            return None
        try:
            path = _path_of(point, event.handle)
        except OSError:
            return None  # gone: what happened in it is told by its parent
        place = None
        if path is not None and (not self._prefix or path == self._prefix or path.startswith(self._prefix + "/")):
            inner = path[len(self._prefix) :].rstrip("/")
            place = _Place(inner, self._plan.zone(inner))
        if len(self._places) >= PLACES_MAX:
            self._places.clear()
        self._places[key] = place
        return place

    def close(self) -> None:
        self._group.close()


class InotifySource:
    """Watches on the directories of the watched trees, up to a bound. Set-id-only trees are too large for that."""

    MASK = (
        inotify.IN_CREATE
        | inotify.IN_DELETE
        | inotify.IN_MOVED_FROM
        | inotify.IN_MOVED_TO
        | inotify.IN_CLOSE_WRITE
        | inotify.IN_ATTRIB
    )
    WRITES = MASK | inotify.IN_MODIFY  # where content is watched

    def __init__(self, plan: Plan, root: str) -> None:
        self._queue = inotify.Queue()
        self._prefix = root.rstrip("/")
        self._plan = plan
        self._places: dict[int, _Place] = {}
        self._limit = min(WATCHES_MAX, inotify.watches_max() // 2)
        self.lost = 0
        self.behind = False  # the last read was so long that more will be waiting
        self.full = ""  # why some directories are not watched, if so
        self._proof_watch = -1
        self._proof = b""
        self.proven = False
        self.why = ""  # as in FanotifySource; an event of inotify has the path that it was asked for

    def fileno(self) -> int:
        return self._queue.fileno()

    def watch(self) -> None:
        """Watch all directories that the plan names, and those on the way to them."""
        self._add_tree("", self._plan.top)

    def expect(self, name: bytes) -> None:
        """From now on `proven` tells whether a file of this name was seen; b"" ends the self-test."""
        self.proven = self.proven and not name
        self._proof = name

    def watch_proof(self, directory: str) -> None:
        self._proof_watch = self._queue.add(directory, self.MASK)

    def renew(self, plan: Plan) -> None:
        self._plan = plan
        for number in list(self._places):
            self._drop(number)
        self.full = ""
        self.watch()

    @property
    def watched(self) -> int:
        """How many directories."""
        return len(self._places)

    def read(self) -> Iterator[Touch]:
        """One read from the queue."""
        buffer = self._queue.read()
        self.behind = len(buffer) > inotify.READ_BYTES // 2
        for event in inotify.parse(buffer):
            if event.mask & inotify.IN_Q_OVERFLOW:
                self.lost += 1
                continue
            if event.watch == self._proof_watch and self._proof and event.name == self._proof:
                self.proven = True
                continue
            place = self._places.get(event.watch)
            if place is None:
                continue
            if event.mask & inotify.IN_IGNORED:
                del self._places[event.watch]
                continue
            touch = self._touch(event, place)
            if touch is not None:
                yield touch

    def _touch(self, event: inotify.Event, place: _Place) -> Touch | None:
        if not event.name:  # the watched directory itself
            return Touch(place.path, self._plan.zone(place.path.rpartition("/")[0]), 0) if place.path else None
        path = f"{place.path}/{os.fsdecode(event.name)}"
        if not event.mask & inotify.IN_ISDIR:
            named = not event.mask & (inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB | inotify.IN_MODIFY)
            return Touch(path, place.zone, 0, writing=event.mask == inotify.IN_MODIFY, named=named)
        came = bool(event.mask & (inotify.IN_CREATE | inotify.IN_MOVED_TO))
        went = bool(event.mask & (inotify.IN_DELETE | inotify.IN_MOVED_FROM))
        if went:
            for number, other in list(self._places.items()):
                if other.path == path or other.path.startswith(path + "/"):
                    self._drop(number)
        if came:
            zone = place.zone.child(path)
            if not zone.dead:
                self._add_tree(path, zone)
        return Touch(path, place.zone, 0, came, went)

    def _drop(self, number: int) -> None:
        del self._places[number]
        self._queue.remove(number)

    def _add_tree(self, path: str, zone: Zone) -> None:
        stack = [(path, zone)]
        while stack:
            path, zone = stack.pop()
            full = self._prefix + path or "/"
            if zone.setid_only or (len(full) * 4 >= PATH_MAX and len(os.fsencode(full)) >= PATH_MAX):
                continue
            if len(self._places) >= self._limit:
                self.full = f"our bound is {self._limit}"
                return
            try:
                number = self._queue.add(full, self.MASK if zone.quiet else self.WRITES)
                names = zone.names()
                below = _directories(full) if names is None else names
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.ENOMEM):  # others of this user have the rest
                    self.full = "the kernel gives no more inotify watches"
                    return
                continue  # gone, not a directory, or unreadable: the sweep says so
            self._places[number] = _Place(path, zone)
            for name in below:
                inner = f"{path}/{name}"
                child = zone.child(inner)
                if not child.dead:
                    stack.append((inner, child))

    def close(self) -> None:
        self._queue.close()


def existing(path: str) -> str:
    """The path, or its nearest ancestor that exists."""
    while path and not os.path.lexists(path):
        path = path.rpartition("/")[0]
    return path or "/"


def _directories(path: str) -> list[str]:
    with os.scandir(path) as listing:
        return [entry.name for entry in listing if entry.is_dir(follow_symlinks=False)]


def _mounts() -> list[mounts.Mount]:
    try:
        return mounts.read()
    except (OSError, DecodeError):
        return []


def _number(device: str) -> int:
    """ "8:1" as in st_dev."""
    major, _, minor = device.partition(":")
    return os.makedev(int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else -1


def _means(watch: Watch, points: list[str]) -> Iterator[bool]:
    """Does a watch with wildcards begin on a file system that is mounted there, or below?"""
    literal = literal_root(watch.path).rstrip("/") + "/"
    plan = Plan([watch])
    for point in points:
        if point.startswith(literal):
            yield not plan.zone(point).beyond(plan.zone(point[: point.rfind("/")])).dead


def _mount_of(path: str, table: list[mounts.Mount]) -> str:
    """A mount through which handles of this file system can be opened, best one that shows all of it."""
    best: mounts.Mount | None = None
    for mount in table:
        inside = mount.point in {"/", path} or path.startswith(mount.point + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    if best is None:
        return path if os.path.isdir(path) else os.path.dirname(path)
    whole = [mount.point for mount in table if mount.device == best.device and mount.root == "/"]
    return best.point if best.root == "/" or not whole else whole[0]


def _opened(mount: str, handle: bytes) -> int:
    """An O_PATH descriptor of a directory by its handle."""
    # Opened each time: a descriptor that is kept would keep the file system from being unmounted.
    through = os.open(mount, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fanotify.open_handle(through, handle)
    finally:
        os.close(through)


def _path_of(mount: str, handle: bytes) -> str | None:
    """The path of a directory by its handle; None if that path leads elsewhere (hidden by a mount, or unlinked)."""
    fd = _opened(mount, handle)
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
        there, here = os.fstat(fd), os.lstat(path)
    except FileNotFoundError:
        return None
    finally:
        os.close(fd)
    return path if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) else None
