"""Looking at one file: attributes, content digest, and the observation that comes of it. Used live and by sweeps.

A name may turn into something else between two calls, so what was opened is checked against what was seen, and
nothing is opened that could block or act (FIFOs, devices, sockets). A file that changes while it is read is read up
to the size it had, and said to have changed. Which files to look at is decided elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import TYPE_CHECKING, NamedTuple

from edgeguard.codec import digests, sha
from edgeguard.codec.digests import Algorithm, Digester
from edgeguard.codec.manifest import CAPS_MAX, PATH_MAX, TARGET_MAX, Entry, entry_of
from edgeguard.linux import fileflags, statx, xattr
from edgeguard.model import ATTRIBUTES, NOBODY, Actor, Observation, Origin, Status, Value, Watch
from edgeguard.sensors import Column

if TYPE_CHECKING:
    from edgeguard.sensors.content import Disk

KIND = "file"
COLUMNS: Mapping[str, Column] = {
    "type": Column("str", "file, directory, symlink, fifo, socket, block or char", reference=True),
    "sha256": Column("bytes", "SHA-256 of the content; none where no content was read", reference=True),
    "blake2b": Column(
        "bytes", "BLAKE2b of it (32 bytes), in its place where the baseline has that", reference=True, instead="sha256"
    ),
    "size": Column("int", "bytes of a regular file whose content is watched, else 0", reference=True),
    "mode": Column("int", "permission bits, 0 to 07777", reference=True),
    "uid": Column("int", "owner", reference=True),
    "gid": Column("int", "group", reference=True),
    "target": Column("str", "where a symlink points", reference=True),
    "caps": Column("str", "file capabilities (security.capability) in hex, empty if none", reference=True),
    "xattrs": Column(
        "bytes", "SHA-256 over the other extended attributes, immutable and append-only; empty if none", reference=True
    ),
    "category": Column("str", "what the watch says that this file is: program, config, unit, ..."),
    "setid": Column("bool", "a regular file with a set-id bit or capabilities: it runs with other rights"),
    "world_writable": Column("bool", "anyone may write it; a directory with the sticky bit does not count"),
    "package": Column("str", "Debian package that owns the path; only asked for what differs"),
    "continuity": Column(
        "str", "of a log: kept, rotated, shortened, rewritten, replaced, gone, or unknown; else empty"
    ),
    "lost": Column("int", "of a log: bytes that were in it and are not there any more, since the baseline"),
    "diff": Column("list", "what differs from the reference value, as a unified diff with secrets covered; see below"),
    "changes": Column("list", "what that means, in plain sentences, for formats that are known; see below"),
}

NOTHING = Entry(0, 0, 0, 0, "")
CHUNK = 256 * 1024  # bytes a read; larger does not read faster
NO_ATTRIBUTES = (b"", b"")
OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
LATER = "its content is read later"  # the note of a look whose digest a helper must find
ONLY_READ = "what programs read is not what lies on the disk"
ONLY_DISK = "what lies on the disk is not what programs read; they will after the next start"
UNWATCHED = Watch("", "other")  # for a look at a path that no watch names


class Seen(NamedTuple):
    """What a look gave."""

    entry: Entry
    note: str = ""  # one line where the look has a limit
    settled: bool = True  # False: it changed meanwhile, look again
    disk: bytes = b""  # digest of what lies on the disk, where programs read something else

    def judged(self, expected: Entry | None) -> Seen:
        """The content that is not as expected, if what is read and what lies on the disk are two."""
        if not self.disk:
            return self
        if expected is None or self.entry.digest != expected.digest:
            return self._replace(note=ONLY_READ)
        return self._replace(entry=self.entry._replace(digest=self.disk), note=ONLY_DISK)


class CannotLook(Exception):
    """It is there but cannot be read; the message says why in plain words."""


class Eye:
    """Looks at files. Holds what one process needs for it: hash function, limits, whether O_NOATIME is allowed."""

    def __init__(
        self,
        largest: int,
        *,
        postpone: bool = False,
        thorough: bool = False,
        digester: Digester = digests.slim(Algorithm.SHA256),  # noqa: B008 - a constant, the one of the daemon
    ) -> None:
        self.largest = largest  # bytes; of a larger file only the attributes are taken
        self.thorough = thorough  # read past the page cache, and compare with it
        self.bytes_read = 0
        self._postpone = postpone  # what is larger is left to another process, not out of bounds
        self.digester = digester
        self._disk: Disk | None = None
        self._slow: set[int] = set()  # devices of whose files nothing quick can be said
        self._flags = OPEN | os.O_NOATIME
        self.tee: Callable[[bytes | memoryview], object] | None = None  # gets what is read as it is read

    def look(self, directory: int, name: str, watch: Watch, at: os.stat_result | None = None) -> Seen:
        """The file `name` in the open `directory`. FileNotFoundError if it is gone, CannotLook if it is unreadable.
        `at`: its lstat of a moment ago, where the caller has it."""
        try:
            for _attempt in range(3):
                seen = self._look(directory, name, watch, at or os.lstat(name, dir_fd=directory))
                at = None
                if seen is not None:
                    return seen
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CannotLook(error.strerror or str(error)) from error
        raise CannotLook("it is replaced again and again while it is being read")

    @property
    def flags(self) -> int:
        """What a file is opened with."""
        return self._flags

    def quick(
        self, directory: int, names: Sequence[str], stats: Sequence[os.stat_result], category: str, settled: int
    ) -> list[Entry | None]:
        """Those of a directory's names that are regular files, all of them content that is watched, each in as few
        system calls as that takes. `stats`: their lstat of a moment ago; `settled`: ns, what changed later may change
        again unseen. None: it is not what its lstat said, or nothing quick can be said of it: `look` at it."""
        found: list[Entry | None] = []
        add, open_file, read, xattrs, close = found.append, os.open, os.pread, os.listxattr, os.close
        unchanged, flags = statx.unchanged, self._flags
        new_hash = self.digester.direct()
        both = self._both() if self.thorough else None
        fd = -1
        for name, at in zip(names, stats, strict=True):
            mode, size = at.st_mode, at.st_size
            if mode & 0o170000 != S_IFREG or size > CHUNK or at.st_ctime_ns > settled or at.st_dev in self._slow:
                add(None)
                continue
            try:
                fd = open_file(name, flags, dir_fd=directory)
                # What took its place meanwhile and is no file (a FIFO, say) has no offsets: nothing is taken out.
                content = both.read(fd, size) if both is not None else read(fd, size, 0)
                caps, others = self.attributes(fd) if xattrs(fd) else NO_ATTRIBUTES
                same = unchanged(fd, at)
            except OSError:
                add(None)
                continue
            finally:
                if fd >= 0:
                    close(fd)
                    fd = -1
            if same and content is not None and len(content) == size:
                value = new_hash(content)
                self.bytes_read += size
                add(entry_of((mode, at.st_uid, at.st_gid, size, category, value.digest(), b"", caps, others)))
                continue
            if same is None:
                self._slow.add(at.st_dev)
            add(None)
        return found

    def _look(self, directory: int, name: str, watch: Watch, at: os.stat_result) -> Seen | None:
        """None: it was exchanged between two calls."""
        kind = S_IFMT(at.st_mode)
        if kind == S_IFREG and watch.content and self._wanted(directory, name, at, watch):
            return self._regular(directory, name, at, watch)
        target = os.fsencode(os.readlink(name, dir_fd=directory))[:TARGET_MAX] if kind == S_IFLNK else b""
        caps = digest = b""
        if "xattrs" in watch.checks or "caps" in watch.checks or (kind == S_IFREG and at.st_mode & 0o111):
            caps, digest = self.attributes(xattr.member(directory, name))
        if kind != S_IFREG:
            caps = b""
        elif watch.only:
            digest = b""
        return Seen(
            masked(Entry(at.st_mode, at.st_uid, at.st_gid, 0, watch.category, b"", target, caps, digest), watch)
        )

    @staticmethod
    def _wanted(directory: int, name: str, at: os.stat_result, watch: Watch) -> bool:
        """Is the content a subject? In a set-id watch only that of programs that run with other rights."""
        if watch.only != "setid" or at.st_mode & 0o6000:
            return True
        return bool(at.st_mode & 0o111 and xattr.get(xattr.member(directory, name), xattr.CAPABILITY))

    def _regular(self, directory: int, name: str, at: os.stat_result, watch: Watch) -> Seen | None:
        if at.st_size > self.largest:
            return self._too_large(directory, name, at, watch)
        fd = self._open(directory, name)
        try:
            opened = os.fstat(fd)
            if S_IFMT(opened.st_mode) != S_IFREG or (opened.st_dev, opened.st_ino) != (at.st_dev, at.st_ino):
                return None
            if opened.st_size > self.largest:
                return self._too_large(directory, name, opened, watch)
            digest, disk = self._digests(fd, opened.st_size)
            after = os.fstat(fd)
            caps, others = self.attributes(fd)
        finally:
            os.close(fd)
        settled = (opened.st_size, opened.st_ctime_ns) == (after.st_size, after.st_ctime_ns)
        entry = Entry(
            opened.st_mode, opened.st_uid, opened.st_gid, opened.st_size, watch.category, digest, b"", caps, others
        )
        entry = masked(entry, watch)
        if not settled:
            return Seen(entry, "it changed while it was being read", settled=False)
        return Seen(entry, disk=disk)

    def _too_large(self, directory: int, name: str, at: os.stat_result, watch: Watch) -> Seen:
        path = xattr.member(directory, name)
        caps, others = self.attributes(path)
        entry = Entry(at.st_mode, at.st_uid, at.st_gid, at.st_size, watch.category, b"", b"", caps, others)
        entry = masked(entry, watch)
        if self._postpone:
            return Seen(entry, LATER, settled=False)
        return Seen(entry, f"larger than {self.largest} bytes: only its attributes are watched")

    def _open(self, directory: int, name: str) -> int:
        try:
            return os.open(name, self._flags, dir_fd=directory)
        except PermissionError:
            if not self._flags & os.O_NOATIME:
                raise
        fd = os.open(name, OPEN, dir_fd=directory)
        self._flags = OPEN  # O_NOATIME is for owners only: do not ask again for each of 50,000 files
        return fd

    def _digests(self, fd: int, size: int) -> tuple[bytes, bytes]:
        """The digest of the content, and of what lies on the disk if that is something else."""
        if not self.thorough or not size:
            return self._digest(fd, size), b""
        there = self._both().digest(fd, size, self.digester.new)
        if there is None:
            return self._digest(fd, size), b""
        self.bytes_read += there.size
        if there.as_read:
            return there.digest, b""
        digest = self._digest(fd, size)
        return digest, there.digest if there.digest != digest else b""

    def _both(self) -> Disk:
        if self._disk is None:
            from edgeguard.sensors.content import Disk  # the daemon reads so only when somebody asks

            self._disk = Disk()
        return self._disk

    def _digest(self, fd: int, size: int) -> bytes:
        """Of at most the first `size` bytes: a file that grows as fast as it is read comes to an end."""
        value = self.digester.new()
        left = size
        while left > 0 and (chunk := os.read(fd, min(CHUNK, left))):
            value.update(chunk)
            if self.tee is not None:
                self.tee(chunk)
            left -= len(chunk)
        self.bytes_read += size - left
        return value.digest()

    def attributes(self, target: int | str) -> tuple[bytes, bytes]:
        """The raw capability, and SHA-256 over the other attributes and the flags that hold the file: they are few and
        short, and it is the same in every baseline."""
        names = xattr.names(target)
        caps = xattr.get(target, xattr.CAPABILITY)[:CAPS_MAX] if xattr.CAPABILITY in names else b""
        found = xattr.lasting(names)
        held = fileflags.text(fileflags.get(target) if isinstance(target, int) else fileflags.of_path(target))
        if not found and not held:
            return caps, b""
        value = sha.new()
        for name in found:
            content = xattr.get(target, name)
            value.update(os.fsencode(name) + b"\0" + len(content).to_bytes(4, "little") + content)
        value.update(held)
        return caps, value.digest()


def masked(entry: Entry, watch: Watch) -> Entry:
    """Without what the watch's category does not check. Set-id bits and capabilities of what can be run are always
    checked: a program that runs with other rights is one wherever it lies."""
    checks = watch.checks
    if not watch.content and entry.digest:
        entry = entry._replace(digest=b"", size=0)
    if checks == ATTRIBUTES:
        return entry
    runs = S_IFMT(entry.st_mode) == S_IFREG and entry.st_mode & 0o111
    return entry._replace(
        st_mode=entry.st_mode if "mode" in checks else entry.st_mode & (0o170000 | 0o6000),
        uid=entry.uid if "uid" in checks else 0,
        gid=entry.gid if "gid" in checks else 0,
        target=entry.target if "target" in checks else b"",
        caps=entry.caps if "caps" in checks or runs else b"",
        xattrs=entry.xattrs if "xattrs" in checks else b"",
    )


def columns(entry: Entry, algorithm: Algorithm) -> dict[str, Value]:
    """All columns of kind "file"."""
    found = entry.columns(algorithm)
    found["category"] = entry.category
    found["setid"] = entry.setid
    kind = S_IFMT(entry.st_mode)
    sticky_directory = kind == S_IFDIR and entry.st_mode & 0o1000
    found["world_writable"] = bool(entry.st_mode & 0o002 and kind != S_IFLNK and not sticky_directory)
    found["package"] = ""
    found["continuity"] = ""  # who follows logs says it
    found["lost"] = 0
    return found


def present(path: str, seen: Seen, algorithm: Algorithm, at: int, origin: Origin, actor: Actor = NOBODY) -> Observation:
    return Observation(KIND, path, columns(seen.entry, algorithm), at, Status.PRESENT, origin, actor, seen.note)


def absent(path: str, category: str, at: int, origin: Origin, actor: Actor = NOBODY) -> Observation:
    return Observation(KIND, path, {"category": category}, at, Status.ABSENT, origin, actor)


def unreadable(path: str, category: str, why: str, at: int, origin: Origin, actor: Actor = NOBODY) -> Observation:
    return Observation(KIND, path, {"category": category}, at, Status.UNREADABLE, origin, actor, why)


def is_subject(entry: Entry, watch: Watch) -> bool:
    """In a set-id watch, only programs that run with other rights than their caller's."""
    return watch.only != "setid" or entry.setid


def observe(
    eye: Eye,
    watch: Watch | None,
    root: str,
    path: str,
    at: int,
    origin: Origin,
    actor: Actor = NOBODY,
    expected: Entry | None = None,
) -> Observation:
    """One path, now. A path that no watch names is looked at as well; whoever asks has a reason. `expected` is only
    for a thorough eye, see `Seen.judged`."""
    watch = watch or UNWATCHED
    full = root.rstrip("/") + path
    parent, _, name = full.rpartition("/")
    try:
        if not path.startswith("/") or not name or "\0" in full or len(os.fsencode(full)) >= PATH_MAX:
            raise CannotLook("it is not a path that can be opened")
        directory = os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            seen = eye.look(directory, name, watch)
            _listable(directory, name, seen.entry)
        finally:
            os.close(directory)
    except (FileNotFoundError, NotADirectoryError):
        return absent(path, watch.category, at, origin, actor)
    except CannotLook as why:
        return unreadable(path, watch.category, str(why), at, origin, actor)
    except OSError as error:
        return unreadable(path, watch.category, error.strerror or str(error), at, origin, actor)
    return present(path, seen.judged(expected), eye.digester.algorithm, at, origin, actor)


def _listable(directory: int, name: str, entry: Entry) -> None:
    """A directory that cannot be opened hides what is below it, so it is unreadable itself."""
    if entry.type == "directory":
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        os.close(os.open(name, flags, dir_fd=directory))
