"""/proc/self/mountinfo: what is mounted where. Strict parser, and a descriptor that tells of changes."""

from __future__ import annotations

import os
import select
from typing import NamedTuple

from edgeguard.errors import DecodeError

SIZE_MAX = 4 * 1024 * 1024  # bytes; a line has about 120, so some 30,000 mounts
READ_BYTES = 64 * 1024

_ESCAPES = {b"\\040": b" ", b"\\011": b"\t", b"\\012": b"\n", b"\\134": b"\\", b"\\043": b"#"}


class Mount(NamedTuple):
    id: int
    parent: int
    device: str  # "8:1"
    root: str  # what of the file system is mounted; not "/" for a bind mount of a part
    point: str
    options: tuple[str, ...]  # of this mount: rw or ro, nosuid, nodev, noexec, relatime
    tags: tuple[str, ...]  # shared:2, master:1
    fstype: str
    source: str
    super_options: tuple[str, ...]  # of the file system


def parse(data: bytes) -> list[Mount]:
    """The mounts in the kernel's order (a later one hides an earlier one on the same point). Raises DecodeError."""
    return [_line(line) for line in data.split(b"\n") if line]


def read(proc: str = "/proc", pid: int | str = "self", most: int = SIZE_MAX) -> list[Mount]:
    """The mounts of a process's namespace below its root directory. Raises OSError, DecodeError (beyond `most` bytes,
    too)."""
    fd = os.open(f"{proc}/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return parse(_read_all(fd, most))
    finally:
        os.close(fd)


def covering(table: list[Mount], path: str) -> Mount | None:
    """The mount that `path` (absolute, without symlinks) lies on, by name alone: nothing is touched."""
    best: Mount | None = None
    for mount in table:
        inside = mount.point in ("/", path) or path.startswith(mount.point + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


class Changes:
    """Tells that the mount table changed. Wait on fileno() for EPOLLPRI | EPOLLERR, not for EPOLLIN."""

    EVENTS = select.EPOLLPRI | select.EPOLLERR

    def __init__(self, proc: str = "/proc") -> None:
        self._fd = os.open(f"{proc}/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)

    def fileno(self) -> int:
        return self._fd

    def changed(self) -> bool:
        """Was something mounted, moved or unmounted since the last call?"""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        os.close(self._fd)


class Mounts(Changes):
    """The mount table, read again when it changed."""

    def __init__(self, proc: str = "/proc") -> None:
        super().__init__(proc)
        self._mounts = self._read()

    def changed(self) -> bool:
        """Was something mounted, moved or unmounted since the last call? Reads the table again if so."""
        if not super().changed():
            return False
        self._mounts = self._read()
        return True

    def all(self) -> list[Mount]:
        return self._mounts

    def of(self, path: str) -> Mount | None:
        return covering(self._mounts, path)

    def _read(self) -> list[Mount]:
        os.lseek(self._fd, 0, os.SEEK_SET)
        return parse(_read_all(self._fd))


def _read_all(fd: int, most: int = SIZE_MAX) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := os.read(fd, READ_BYTES):
        size += len(part)
        if size > most:
            raise DecodeError(f"mountinfo: larger than {most} bytes")
        parts.append(part)
    return b"".join(parts)


def _line(line: bytes) -> Mount:
    fields = line.split(b" ")
    try:
        dash = fields.index(b"-", 6)
        fstype, source, super_options = fields[dash + 1 : dash + 4]
        number, parent = int(fields[0]), int(fields[1])
    except ValueError as error:
        raise DecodeError(f"mountinfo: not a mount: {line[:80]!r}") from error
    return Mount(
        number,
        parent,
        _text(fields[2]),
        _text(fields[3]),
        _text(fields[4]),
        _list(fields[5]),
        tuple(_text(tag) for tag in fields[6:dash]),
        _text(fstype),
        _text(source),
        _list(super_options),
    )


def _list(field: bytes) -> tuple[str, ...]:
    return tuple(_text(item) for item in field.split(b","))


def _text(field: bytes) -> str:
    """A field without the kernel's octal escapes. A backslash in a name is itself escaped, so this is exact."""
    if b"\\" in field:
        head, *rest = field.split(b"\\")
        field = head + b"".join(_ESCAPES.get(b"\\" + part[:3], b"\\" + part[:3]) + part[3:] for part in rest)
    return os.fsdecode(field)
