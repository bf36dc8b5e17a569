"""Sensor `host`: kernel settings, kernel modules, mounts, what sshd would do (see `sshd`), and where programs look for
libraries (see `ldcache`).

One descriptor for the loop: an epoll of the writes to /proc/sys, the kernel's module events and the mount table.
Which of them woke us cannot be asked: the mount table forgets its change as soon as anybody polls it, and the loop's
own poll of our epoll already does. So `ready` looks at all three; together that costs less than a millisecond.
A mount between `start` and the moment when the loop begins to wait on us wakes nobody: the first full look finds it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from edgeguard.errors import DecodeError, Unavailable
from edgeguard.linux import mounts, procwatch, uevent
from edgeguard.model import NOBODY, Actor, Columns, Observation, Origin, Status
from edgeguard.sensors import Column, Context, Rung, ldcache, parse_modules, parse_mounts, parse_sysctl, reading, sshd
from edgeguard.sensors.snapshot import WHOLE_KIND

MECHANISMS = ("fanotify", "inotify")  # that tell writes, best first

_SYSCTL: Mapping[str, Column] = {
    "value": Column("str", "the value as the kernel gives it", reference=True),
    "level": Column("int", "how strong the value is: higher is stronger, -1 not known", reference=True),
    "ordered": Column("bool", "levels say which value is stronger; false: only equality says something"),
}
_MODULE: Mapping[str, Column] = {
    "size": Column("int", "bytes of memory"),
    "used_by": Column("list", "modules that need it"),
    "taint": Column("str", "O out of tree, E unsigned, F forced; empty for a clean one"),
}
_MOUNT: Mapping[str, Column] = {
    "fstype": Column("str", "file system", reference=True),
    "source": Column("str", "device or share", reference=True),
    "options": Column("list", "those that matter: ro, nosuid, nodev, noexec, bind", reference=True),
    "category": Column("str", "disk, memory, network, pseudo, or transient (comes and goes by itself)"),
}


def _proc_root(root: str) -> tuple[str, bool]:
    """The root whose /proc everybody else writes to: process 1's where a sandbox gave us one of our own. And whether
    it is that one: without CAP_SYS_PTRACE nobody looks through process 1.

    ProtectKernelTunables=, ProtectControlGroups= and ProtectProc= of systemd mount another instance of proc, with other
    inodes.
    """
    if root != "/":
        return root, True
    try:
        other = os.stat("/proc/1/root/proc/sys").st_dev != os.stat("/proc/sys").st_dev
    except OSError:
        return root, _shares_proc()
    return "/proc/1/root" if other else root, True


def _shares_proc() -> bool:
    """By its mount table, has process 1 the same /proc as we?"""
    try:
        table = mounts.parse(reading.read("/proc/1/mountinfo", mounts.SIZE_MAX))
        ours = os.stat("/proc").st_dev
        return [one.device for one in table if one.point == "/proc"][-1:] == [f"{os.major(ours)}:{os.minor(ours)}"]
    except (OSError, DecodeError):
        return False


class Host:
    name = "host"
    kinds: Mapping[str, Mapping[str, Column]] = {
        "sysctl": _SYSCTL,
        "module": _MODULE,
        "mount": _MOUNT,
        "sshd": sshd.KIND,
        "library_dir": ldcache.KIND,
    }
    ladder = ("fanotify", "inotify", "polling")
    interval_s = 300  # for the kernel's own changes, and for writes through another mount of /proc
    triggers = (*sshd.TRIGGERS, *ldcache.TRIGGERS)
    volatile = frozenset({"size", "used_by"})

    def __init__(self, context: Context) -> None:
        self._context = context
        self._writes: procwatch.Watch | None = None
        self._modules: socket.socket | None = None
        self._mounts: int | None = None
        self._epoll: select.epoll | None = None
        self._mounted: dict[str, Columns] = {}
        self._loaded: dict[str, Columns] = {}
        self._libraries = ldcache.Directories()
        self._proc_root, self._shared = _proc_root(context.root)

    def start(self) -> Rung:
        self._epoll = select.epoll()
        blind: list[str] = []
        rung, tried = self._start_writes(blind)
        self._start_modules(blind)
        self._start_mounts(blind)
        self._loaded = self._read_modules()  # what is here already is no event
        with suppress(OSError, DecodeError):
            self._mounted = self._read_mounts()
        return Rung(rung, proven=True, blind=tuple(blind), tried=tuple(tried))

    def fileno(self) -> int | None:
        return self._epoll.fileno() if self._epoll is not None else None

    def ready(self, now: int) -> Iterator[Observation]:
        yield from self._written(now)
        yield from self._module_events(now)
        if self._mounts is not None:
            yield from self._mount_changes(now)

    def observe(self, now: int) -> Iterator[Observation]:
        for key in parse_sysctl.KEYS:
            if (observation := self._sysctl(key, now, Origin.SWEEP, NOBODY)) is not None:
                yield observation
        self._loaded = self._read_modules()
        for name, columns in self._loaded.items():
            yield Observation("module", name, columns, now, Status.PRESENT, Origin.SWEEP)
        if self._hides_modules():
            yield _unreadable("module", WHOLE_KIND, OSError(errno.ENOENT, "/proc shows processes only"), now)
        yield from sshd.observe(self._context.root, now)
        yield from self._libraries.observe(self._context.root, now)
        try:
            self._mounted = self._read_mounts()
        except (OSError, DecodeError) as error:
            yield _unreadable("mount", WHOLE_KIND, error, now)
            return
        for point, columns in self._mounted.items():
            yield Observation("mount", point, columns, now, Status.PRESENT, Origin.SWEEP)

    def close(self) -> None:
        if self._writes is not None:
            self._writes.close()
        if self._modules is not None:
            self._modules.close()
        if self._mounts is not None:
            os.close(self._mounts)
        if self._epoll is not None:
            self._epoll.close()
        self._writes = self._modules = self._mounts = self._epoll = None

    # kernel settings

    def _start_writes(self, blind: list[str]) -> tuple[str, list[tuple[str, str]]]:
        """Watch every setting that we may read, with the best mechanism that shows our own open of one of them."""
        paths, denied = self._readable()
        if denied:
            blind.append(f"only root may read these settings: {', '.join(denied)}")
        if not paths:
            blind.append(f"no kernel setting can be read: {reading.under(self._proc_root, '/proc/sys')} is not there")
            return "polling", [(mechanism, "there is nothing to watch") for mechanism in MECHANISMS]
        tried: list[tuple[str, str]] = []
        for mechanism in MECHANISMS:
            if not self._shared:
                tried.append((mechanism, "our /proc is not the one that others write to"))
                continue
            try:
                watch = procwatch.Watch(mechanism)
            except Unavailable as error:
                tried.append((mechanism, str(error)))
                continue
            if not (why := _mark_all(watch, paths)):
                assert self._epoll is not None
                self._epoll.register(watch.fd, select.EPOLLIN)
                self._writes = watch
                if mechanism == "inotify":
                    blind.append("who changed a kernel setting is not known")
                return mechanism, tried
            watch.close()
            tried.append((mechanism, why))
        blind.append(f"a change of a kernel setting is seen up to {self.interval_s} s later, and not who made it")
        return "polling", tried

    def _setting(self, key: str) -> str:
        return reading.under(self._proc_root, parse_sysctl.path_of(key))

    def _readable(self) -> tuple[list[str], list[str]]:
        paths, denied = [], []
        for key in parse_sysctl.KEYS:
            path = self._setting(key)
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            except PermissionError:
                denied.append(key)  # sysctl files ask for uid 0 and take no capability instead
            except OSError:
                continue  # this kernel does not have it
            else:
                paths.append(path)
        return paths, denied

    def _written(self, now: int) -> Iterator[Observation]:
        if self._writes is None:
            return
        keys = {self._setting(key): key for key in parse_sysctl.KEYS}
        writers: dict[str, Actor] = {}
        lost = False
        for written in self._writes.read():
            if written.path in keys:
                actor = NOBODY if written.pid is None else self._context.actor_of(written.pid)
                writers[keys[written.path]] = actor
            lost = lost or not written.path
        for key in parse_sysctl.KEYS if lost else writers:
            origin = Origin.SWEEP if lost else Origin.LIVE
            if (observation := self._sysctl(key, now, origin, writers.get(key, NOBODY))) is not None:
                yield observation

    def _sysctl(self, key: str, now: int, origin: Origin, actor: Actor) -> Observation | None:
        """None: this kernel has no such setting, or never lets us read it (the rung says so)."""
        path = self._setting(key)
        try:
            data = reading.read(path, parse_sysctl.VALUE_MAX)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except OSError as error:
            return _unreadable("sysctl", key, error, now)
        value = os.fsdecode(b" ".join(data.split()))
        level = parse_sysctl.level(key, value)
        columns: Columns = {"value": value, "level": level, "ordered": parse_sysctl.ordered(key)}
        return Observation("sysctl", key, columns, now, Status.PRESENT, origin, actor)

    # kernel modules

    def _start_modules(self, blind: list[str]) -> None:
        if self._hides_modules():
            blind.append("kernel modules are not seen: /proc shows processes only")
        try:
            if self._context.root != "/":
                raise OSError(errno.ENOTSUP, "not this machine's root directory")
            self._modules = uevent.listen((b"add@/module/", b"remove@/module/"))
        except OSError as error:
            blind.append(f"a kernel module is seen up to {self.interval_s} s later ({reading.why(error)})")
            return
        assert self._epoll is not None
        self._epoll.register(self._modules, select.EPOLLIN)

    def _module_events(self, now: int) -> Iterator[Observation]:
        """Any event, or lost ones: compare /proc/modules with what was there."""
        if self._modules is None:
            return
        try:
            if not list(uevent.read(self._modules)):
                return
        except OSError:
            pass  # ENOBUFS: some were lost, which the comparison makes good
        before, self._loaded = self._loaded, self._read_modules()
        yield from _differences("module", before, self._loaded, now)

    def _hides_modules(self) -> bool:
        """/proc may be mounted so that it shows processes only (subset=pid): that is no kernel without modules."""
        return self._context.root == "/" and not os.path.exists("/proc/stat")

    def _read_modules(self) -> dict[str, Columns]:
        path = reading.under(self._context.root, "/proc/modules")
        try:
            data = reading.read(path, parse_modules.MODULES_FILE_MAX)
        except OSError:
            return {}  # a kernel without modules, or `_hides_modules`
        return {
            module.name: {"size": module.size, "used_by": module.used_by, "taint": module.taint}
            for module in parse_modules.parse(data)
        }

    # mounts

    def _start_mounts(self, blind: list[str]) -> None:
        """The mount table of process 1: our own shows the sandbox that the service manager put us into."""
        try:
            self._mounts = self._open_mounts()
            if self._context.root == "/":
                assert self._epoll is not None
                self._epoll.register(self._mounts, select.EPOLLPRI | select.EPOLLERR)
        except OSError as error:
            blind.append(f"mounts are not seen ({error.filename}: {reading.why(error)})")

    def _open_mounts(self) -> int:
        """Not our own on this machine: it may be a sandbox's, in which everything is read-only."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            return os.open(reading.under(self._context.root, "/proc/1/mountinfo"), flags)
        except OSError:  # without CAP_SYS_PTRACE
            if self._context.root == "/" and _sandboxed():
                raise
            return os.open(reading.under(self._context.root, "/proc/self/mountinfo"), flags)

    def _mount_changes(self, now: int) -> Iterator[Observation]:
        try:
            after = self._read_mounts()
        except (OSError, DecodeError) as error:
            yield _unreadable("mount", WHOLE_KIND, error, now)
            return
        before, self._mounted = self._mounted, after
        yield from _differences("mount", before, after, now)

    def _read_mounts(self) -> dict[str, Columns]:
        fd = self._open_mounts() if self._mounts is None else self._mounts
        try:
            data = reading.drain(fd, mounts.SIZE_MAX, "mountinfo")
        finally:
            if self._mounts is None:
                os.close(fd)
        return {
            mount.point: {
                "fstype": mount.fstype,
                "source": mount.source,
                "options": parse_mounts.options(mount),
                "category": category,
            }
            for mount in mounts.parse(data)
            if (category := parse_mounts.category(mount))
        }


def _mark_all(watch: procwatch.Watch, paths: list[str]) -> str:
    """Is every setting watched, and is an access to one of them told? "" or why not."""
    try:
        for path in paths:
            watch.add(path)
        return "" if watch.prove(paths[0]) else "our own access to a kernel setting was not told"
    except OSError as error:
        return reading.why(error)


def _sandboxed() -> bool:
    """Is our mount table a copy that follows another one? A service manager's sandbox is."""
    try:
        table = mounts.read()
    except (OSError, DecodeError):
        return True
    return any(tag.startswith("master:") for mount in table if mount.point == "/" for tag in mount.tags)


def _differences(
    kind: str, before: Mapping[str, Columns], after: Mapping[str, Columns], now: int
) -> Iterable[Observation]:
    for subject, columns in after.items():
        if before.get(subject) != columns:
            yield Observation(kind, subject, columns, now)
    for subject, columns in before.items():
        if subject not in after:
            yield Observation(kind, subject, columns, now, Status.ABSENT)


def _unreadable(kind: str, subject: str, error: OSError | DecodeError, now: int) -> Observation:
    note = reading.why(error) if isinstance(error, OSError) else str(error)
    return Observation(kind, subject, {}, now, Status.UNREADABLE, Origin.SWEEP, note=note)
