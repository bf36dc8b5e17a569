"""inotify by ctypes: events of single directories. Works without any privilege, but tells no actor.

A watch belongs to the inode: it follows the directory when it is moved, and the kernel does not say where to. Watches
cost kernel memory (about 1 KiB each) and are limited per user.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from struct import Struct, error
from typing import NamedTuple

from edgeguard.errors import DecodeError, Unavailable

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000
IN_DONT_FOLLOW = 0x2000000
IN_ISDIR = 0x40000000

READ_BYTES = 64 * 1024

_EVENT = Struct("=iIII")  # wd, mask, cookie, length of the name
_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    watch: int
    mask: int
    name: bytes


def parse(buffer: bytes) -> Iterator[Event]:
    """The events of one read. Raises DecodeError where the kernel's structures do not add up."""
    offset, end = 0, len(buffer)
    try:
        while offset < end:
            watch, mask, _, length = _EVENT.unpack_from(buffer, offset)
            offset += _EVENT.size + length
            if offset > end:
                raise DecodeError("inotify: an event is truncated")
            yield Event(watch, mask, buffer[offset - length : offset].rstrip(b"\0"))
    except error as short:
        raise DecodeError("inotify: an event is truncated") from short


class Queue:
    """An inotify instance. Raises Unavailable where there can be none."""

    def __init__(self) -> None:
        fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            raise Unavailable(f"inotify: {os.strerror(ctypes.get_errno())}")
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str, mask: int) -> int:
        """Watch one directory; its number. OSError: gone (ENOENT), no watch left (ENOSPC), ..."""
        watch: int = _libc.inotify_add_watch(self._fd, os.fsencode(path), mask | IN_ONLYDIR | IN_DONT_FOLLOW)
        if watch < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        return watch

    def remove(self, watch: int) -> None:
        """No longer watch; a watch that ended by itself is fine."""
        if _libc.inotify_rm_watch(self._fd, watch) < 0 and ctypes.get_errno() != errno.EINVAL:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def read(self) -> bytes:
        """What is queued, at most READ_BYTES; b"" for nothing. Never blocks."""
        try:
            return os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        os.close(self._fd)


def watches_max(proc: str = "/proc") -> int:
    """How many watches this user may have; a cautious number where the kernel does not say."""
    try:
        with open(f"{proc}/sys/fs/inotify/max_user_watches", "rb") as file:
            return int(file.read(32))
    except (OSError, ValueError):
        return 8192
