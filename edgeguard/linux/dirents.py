"""getdents64(2): what a directory holds, in the kernel's own bytes.

Two listings of the same bytes have the same names, inodes and types. To compare them takes no string a name, no sorting
and no encoding, which for an unchanged directory is more work than the rest.
"""

from __future__ import annotations

import ctypes
import os

ROOM = 1 << 15  # bytes of one answer: some 1,000 names
_LENGTH, _NAME = 16, 19  # struct linux_dirent64: u64 inode, i64 offset, u16 length of the entry, u8 type, name

_getdents64 = ctypes.PyDLL(None, use_errno=True).getdents64
_memset = ctypes.PyDLL(None).memset
_room_size = ctypes.c_size_t(ROOM)


class _Room:
    """One answer, with zeros behind each name: the kernel leaves out what lies between a name and the next entry."""

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(ROOM)
        self._start = ctypes.byref(self._buffer)
        self._bytes = memoryview(self._buffer).cast("B")
        self._used = 0

    def fill(self, fd: int) -> memoryview:
        """The next entries of an open directory; empty at its end. Good until the next call. Raises OSError."""
        if self._used:
            _memset(self._start, 0, self._used)
        self._used = got = _getdents64(fd, self._start, _room_size)
        if got < 0:
            self._used = ROOM
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return self._bytes[:got]


class Listing:
    """Reads open directories, one after the other."""

    def __init__(self) -> None:
        self._first, self._next = _Room(), _Room()

    def read(self, fd: int, most: int) -> bytes | memoryview | None:
        """All entries of an open directory that nobody has read from, "." and ".." too; good until the next call.
        None: more than `most` bytes. Raises OSError."""
        first = self._first.fill(fd)
        more = self._next.fill(fd)
        if not more:
            return first
        pieces, size = [first.tobytes()], len(first)
        while more:
            size += len(more)
            if size > most:
                return None
            pieces.append(more.tobytes())
            more = self._next.fill(fd)
        return b"".join(pieces)


def names(listing: bytes | memoryview) -> list[bytes]:
    """The names in a listing, sorted, without "." and ".."."""
    data = bytes(listing)
    lengths = memoryview(data).cast("H")
    found: list[bytes] = []
    at, end, until, add = 0, len(data), data.index, found.append
    while at < end:
        start = at + _NAME
        add(data[start : until(0, start)])
        at += lengths[at + _LENGTH >> 1]
    found.sort()
    return [name for name in found if name not in {b".", b".."}]
