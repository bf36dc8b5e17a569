"""Who writes which file of a small fixed set, also in /proc/sys, where most watchers do not look.

Facts of the kernel that this rests on (measured on 6.1 and 6.18):
* A write to /proc/sys passes through the VFS like any other, so inotify and fanotify report it; the kernel's own
  changes and writes through another mount of proc (another PID namespace) have another inode and are not seen.
* proc makes a new inode when a dentry was dropped from memory, and marks stick to inodes: an O_PATH descriptor on
  every file keeps its dentry, and with it the mark, for as long as we live.
* fanotify names the writer. Classic groups (no FID) open the file for us for each event; proc has no file handles,
  so FID groups refuse it on most kernels. fanotify_init wants CAP_SYS_ADMIN; reading later does not.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from edgeguard.errors import Unavailable

IN_MODIFY = 0x2  # <linux/inotify.h>
IN_OPEN = 0x20
IN_Q_OVERFLOW = 0x4000
FAN_MODIFY = 0x2  # <linux/fanotify.h>
FAN_OPEN = 0x20
FAN_Q_OVERFLOW = 0x4000
FAN_CLOEXEC = 0x1
FAN_NONBLOCK = 0x2
FAN_MARK_ADD = 0x1
FAN_MARK_REMOVE = 0x2
AT_FDCWD = -100

_FAN_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_IN_EVENT = struct.Struct("iIII")  # struct inotify_event without its name
_READ = 16 * 1024  # bytes a read; some 600 events

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]


class Written(NamedTuple):
    path: str  # "" when events were lost: look at all of them
    pid: int | None


class Watch:
    """A set of files whose writes are reported through `fd`. `mechanism`: "fanotify" or "inotify"."""

    def __init__(self, mechanism: str) -> None:
        self.mechanism = mechanism
        self._paths: dict[int, str] = {}  # inotify: watch descriptor -> path
        self._inodes: dict[tuple[int, int], str] = {}  # fanotify: device and inode -> path
        self._pinned: list[int] = []
        if mechanism == "fanotify":
            self.fd: int = _libc.fanotify_init(FAN_CLOEXEC | FAN_NONBLOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        else:
            self.fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            raise Unavailable(f"{mechanism}: {os.strerror(ctypes.get_errno())}")

    def add(self, path: str) -> None:
        """Raises OSError when this file cannot be watched."""
        pin = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self._pinned.append(pin)
        seen = os.fstat(pin)
        self._inodes[seen.st_dev, seen.st_ino] = path
        self._mark(path, FAN_MARK_ADD, IN_MODIFY)

    def prove(self, path: str) -> bool:
        """Open a file of ours and see that it is told."""
        self._mark(path, FAN_MARK_ADD, IN_MODIFY | IN_OPEN)
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            return any(written.path == path for written in self.read())
        finally:
            self._unmark(path)

    def read(self) -> Iterable[Written]:
        """What was written since the last call, each file and writer once. Never blocks."""
        read = self._read_fanotify if self.mechanism == "fanotify" else self._read_inotify
        found: dict[Written, None] = {}
        try:
            for written in read():
                found[written] = None
        except OSError:
            # The kernel could not open the file for us (no right, no descriptor left) and has dropped that event.
            found[Written("", None)] = None
        return list(found)

    def close(self) -> None:
        for fd in (self.fd, *self._pinned):
            os.close(fd)
        self._pinned.clear()

    def _mark(self, path: str, flags: int, mask: int) -> None:
        name = os.fsencode(path)
        if self.mechanism == "fanotify":
            result = _libc.fanotify_mark(self.fd, flags, mask, AT_FDCWD, name)
        else:
            result = _libc.inotify_add_watch(self.fd, name, mask)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        if self.mechanism == "inotify":
            self._paths[result] = path

    def _unmark(self, path: str) -> None:
        if self.mechanism == "fanotify":
            self._mark(path, FAN_MARK_REMOVE, FAN_OPEN)
        else:
            self._mark(path, FAN_MARK_ADD, IN_MODIFY)  # inotify_add_watch replaces the mask

    def _read_fanotify(self) -> Iterator[Written]:
        for data in self._chunks():
            for _, _, _, _, mask, fd, pid in _FAN_EVENT.iter_unpack(data):
                if mask & FAN_Q_OVERFLOW or fd < 0:
                    yield Written("", None)
                    continue
                try:
                    seen = os.fstat(fd)
                finally:
                    os.close(fd)
                # By inode, as the mark is: the writer may have come through a bind mount, under another path.
                path = self._inodes.get((seen.st_dev, seen.st_ino))
                if path is not None:
                    yield Written(path, pid or None)

    def _read_inotify(self) -> Iterator[Written]:
        for data in self._chunks():
            offset = 0
            while offset < len(data):
                if offset + _IN_EVENT.size > len(data):
                    yield Written("", None)  # half an event: what it was about is not known
                    break
                wd, mask, _, length = _IN_EVENT.unpack_from(data, offset)
                offset += _IN_EVENT.size + length
                if mask & IN_Q_OVERFLOW:
                    yield Written("", None)
                elif wd in self._paths and mask & (IN_MODIFY | IN_OPEN):
                    yield Written(self._paths[wd], None)

    def _chunks(self) -> Iterator[bytes]:
        while True:
            try:
                data = os.read(self.fd, _READ)
            except BlockingIOError:
                return
            yield data
