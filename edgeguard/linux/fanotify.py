"""fanotify by ctypes: marks on whole file systems, events that name directory and entry, handles turned into paths.

Facts that shape it: with FAN_REPORT_DFID_NAME an event carries the file system id, a handle of the directory and the
name in it, never a descriptor. A handle is opened through any mount of that file system, which needs
CAP_DAC_READ_SEARCH; marks on file systems and the pid of the actor need CAP_SYS_ADMIN when the group is made, not
later; marks on inodes need neither. An event about a directory itself has the name ".". FAN_MODIFY comes with every
write of a file that stays open, and alone with a truncate(2). Writes to a mapping make no event at all; the end of a
writable mapping is FAN_CLOSE_WRITE. File systems without ids or handles (old overlayfs, old
tmpfs, FUSE) refuse the mark.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from struct import Struct, calcsize, error
from typing import NamedTuple

from edgeguard.errors import DecodeError, Unavailable

FAN_CLOEXEC = 0x1
FAN_NONBLOCK = 0x2
FAN_UNLIMITED_QUEUE = 0x10
FAN_UNLIMITED_MARKS = 0x20
FAN_REPORT_DIR_FID = 0x400
FAN_REPORT_NAME = 0x800
FAN_REPORT_DFID_NAME = FAN_REPORT_DIR_FID | FAN_REPORT_NAME

FAN_MODIFY = 0x2
FAN_ATTRIB = 0x4
FAN_CLOSE_WRITE = 0x8
FAN_MOVED_FROM = 0x40
FAN_MOVED_TO = 0x80
FAN_CREATE = 0x100
FAN_DELETE = 0x200
FAN_OPEN_EXEC = 0x1000
FAN_Q_OVERFLOW = 0x4000
FAN_EVENT_ON_CHILD = 0x08000000
FAN_ONDIR = 0x40000000

FAN_MARK_ADD = 0x1
FAN_MARK_REMOVE = 0x2
FAN_MARK_ONLYDIR = 0x8
FAN_MARK_IGNORED_SURV_MODIFY = 0x40
FAN_MARK_FLUSH = 0x80
FAN_MARK_FILESYSTEM = 0x100
FAN_MARK_EVICTABLE = 0x200
FAN_MARK_IGNORE = 0x400

FAN_EVENT_INFO_TYPE_DFID_NAME = 2
AT_FDCWD = -100

READ_BYTES = 32 * 1024  # an event has 24 + 20 + handle + name, so some 400 events a read

_METADATA = Struct("=IBBHQii")  # event_len, version, reserved, metadata_len, mask, fd, pid
_INFO = Struct("=BBH8sIi")  # type, pad, length, fsid, handle_bytes, handle_type
_VERSION = 3

_libc = ctypes.CDLL(None, use_errno=True)
_HANDLE_BYTES = 8  # handle_bytes and handle_type before the handle proper
_HANDLE_MAX = 128  # MAX_HANDLE_SZ


class Event(NamedTuple):
    """`handle` is a whole struct file_handle of the directory; empty for an overflow."""

    mask: int
    pid: int
    fsid: bytes
    handle: bytes
    name: bytes


def parse(buffer: bytes) -> Iterator[Event]:
    """The events of one read. Raises DecodeError where the kernel's structures do not add up."""
    offset, end = 0, len(buffer)
    try:
        while offset < end:
            length, version, _, metadata, mask, _, pid = _METADATA.unpack_from(buffer, offset)
            if version != _VERSION or length < metadata or metadata < _METADATA.size or offset + length > end:
                raise DecodeError("fanotify: an event is damaged")
            if length == metadata:
                yield Event(mask, pid, b"", b"", b"")
            else:
                yield _with_name(buffer, offset + metadata, offset + length, mask, pid)
            offset += length
    except error as short:
        raise DecodeError("fanotify: an event is truncated") from short


def _with_name(buffer: bytes, offset: int, end: int, mask: int, pid: int) -> Event:
    kind, _, length, fsid, handle_bytes, _ = _INFO.unpack_from(buffer, offset)
    start = offset + _INFO.size - _HANDLE_BYTES
    name = offset + _INFO.size + handle_bytes
    stop = buffer.find(b"\0", name, end)
    if kind != FAN_EVENT_INFO_TYPE_DFID_NAME or handle_bytes > _HANDLE_MAX or stop < 0 or offset + length > end:
        raise DecodeError("fanotify: an event names no directory")
    return Event(mask, pid, fsid, buffer[start:name], buffer[name:stop])


class Group:
    """A fanotify group. Raises Unavailable where this kernel or this process may not have one."""

    def __init__(self) -> None:
        flags = FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DFID_NAME
        self._fd = self._init(flags | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS)
        self.unlimited = self._fd >= 0
        if self._fd < 0:
            self._fd = self._init(flags)
        if self._fd < 0:
            raise Unavailable(f"fanotify: {os.strerror(ctypes.get_errno())}")

    @staticmethod
    def _init(flags: int) -> int:
        try:
            fd: int = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
        except AttributeError as missing:
            raise Unavailable("fanotify: this C library does not have it") from missing
        return fd

    def fileno(self) -> int:
        return self._fd

    def mark(self, path: str, mask: int) -> None:
        """Watch the whole file system that `path` lies on. Raises Unavailable with the reason."""
        self._mark(FAN_MARK_ADD | FAN_MARK_FILESYSTEM, path, mask)

    def marked(self) -> frozenset[int]:
        """Devices (as in st_dev) whose file systems are marked, by the kernel's own account.

        A mark outlives the right to make it, and ends when its file system is unmounted; nothing tells of the latter.
        """
        with open(f"/proc/self/fdinfo/{self._fd}", encoding="ascii", errors="replace") as file:
            found = [line.partition("sdev:")[2].split()[0] for line in file if line.startswith("fanotify sdev:")]
        return frozenset(os.makedev(number >> 20, number & 0xFFFFF) for number in (int(word, 16) for word in found))

    def unmark(self, path: str, mask: int) -> None:
        self._mark(FAN_MARK_REMOVE | FAN_MARK_FILESYSTEM, path, mask)

    def ignore(self, fd: int, mask: int) -> None:
        """Not to be woken by this (Linux 6.0): of the open file, or with FAN_EVENT_ON_CHILD of what lies in the open
        directory. A path would not do: by now it may lead to what must be heard. The kernel forgets it together with
        the inode when memory is short. Raises Unavailable."""
        flags = FAN_MARK_ADD | FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY | FAN_MARK_EVICTABLE
        self._mark(flags, f"/proc/self/fd/{fd}", mask)  # O_PATH descriptors are taken no other way

    def ignore_nothing(self) -> None:
        """Take back every `ignore`."""
        self._mark(FAN_MARK_FLUSH, "/", 0)

    def _mark(self, flags: int, path: str, mask: int) -> None:
        if _libc.fanotify_mark(self._fd, flags, ctypes.c_uint64(mask), AT_FDCWD, os.fsencode(path)) < 0:
            number = ctypes.get_errno()
            raise Unavailable(_REASONS.get(number, os.strerror(number)))

    def read(self) -> bytes:
        """What is queued, at most READ_BYTES; b"" for nothing. Never blocks."""
        try:
            return os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        os.close(self._fd)


_REASONS = {
    errno.EPERM: "not permitted (CAP_SYS_ADMIN is needed)",
    errno.ENODEV: "the file system has no id",
    errno.EOPNOTSUPP: "the file system has no file handles",
    errno.EXDEV: "the file system gives each of its parts another id",
    errno.EINVAL: "this kernel cannot report names",
}


def fsid(path: str) -> bytes:
    """The file system id as events carry it. A 32-bit userland only learns its first half."""
    value = os.statvfs(path).f_fsid
    return int(value).to_bytes(calcsize("L"), "little")


def fsid_key(raw: bytes) -> bytes:
    """An event's fsid, shortened to what `fsid` can tell on this machine."""
    return raw[: calcsize("L")]


def open_handle(mount: int, handle: bytes) -> int:
    """An O_PATH descriptor of the directory behind a handle. OSError (ESTALE) when it is gone."""
    buffer = ctypes.create_string_buffer(handle, len(handle))
    fd: int = _libc.open_by_handle_at(mount, buffer, os.O_PATH | os.O_CLOEXEC)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"open_by_handle_at: {os.strerror(number)}")
    return fd
