"""statx(2), where Python's stat_result of twenty numbers for each of 100,000 files costs as much as the call.

Of an open file it tells at once what fstat and FS_IOC_GETFLAGS tell in two calls. Of a directory's names the answers
lie in one piece of memory, and are compared with what was seen before by columns, not file by file.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from itertools import repeat
from struct import Struct

from edgeguard.linux.fileflags import AT_SYMLINK_NOFOLLOW, HOLDING, STATX_BASIC_STATS

AT_EMPTY_PATH = 0x1000
_BYTES = 256
# linux/stat.h: attributes, mode, inode, size, which attributes are told here, ctime (s, ns), device (major, minor)
_FIELDS = Struct("=8xQ12xH2xQQ8xQ32xqI28xII112x")

SLOTS = 128  # names asked for before one look at the answers
_WORDS = _BYTES // 8
_INODE, _SIZE, _CTIME_S, _CTIME_NS = 4, 5, 12, 13  # words of an answer
_TYPE = 29 if sys.byteorder == "little" else 28  # the byte whose upper half is the file type
_OTHER_TYPES = bytes(kind for kind in range(256) if kind >> 4 != 0o4)
_DIRECTORY = Struct("=32xQ96xII")  # inode, device (major, minor)

# Nothing else runs in a helper: letting other threads in, and keeping errno, costs a tenth of a call.
_statx = ctypes.PyDLL(None).statx
_buffer = ctypes.create_string_buffer(_BYTES)


def unchanged(fd: int, at: os.stat_result) -> bool | None:
    """Is this open file the very one that `at` told of, unchanged to the nanosecond, and may it be changed (neither
    FS_IMMUTABLE_FL nor FS_APPEND_FL)? None: that cannot be told so, by this kernel or of this file system."""
    if _statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, _buffer) < 0:
        return None
    attributes, mode, inode, size, told, seconds, nanoseconds, major, minor = _FIELDS.unpack(_buffer)
    if told & HOLDING != HOLDING:
        return None
    return (
        not attributes & HOLDING
        and inode == at.st_ino
        and seconds * 1_000_000_000 + nanoseconds == at.st_ctime_ns
        and size == at.st_size
        and mode == at.st_mode
        and (major, minor) == _numbers(at.st_dev)
    )


@cache
def _numbers(device: int) -> tuple[int, int]:
    return os.major(device), os.minor(device)


class Glance:
    """Compares what is in a directory with what was there. Holds the room for it."""

    def __init__(self) -> None:
        self._room = ctypes.create_string_buffer(_BYTES * SLOTS)
        start = ctypes.addressof(self._room)
        self._slots = [ctypes.c_void_p(start + _BYTES * slot) for slot in range(SLOTS)]
        self._bytes = memoryview(self._room).cast("B")
        self._words = self._bytes.cast("Q")

    def same(self, fd: int, names: list[bytes], stats: bytes) -> list[tuple[int, int, int]] | None:
        """None: not all of these names in the open directory are as `stats` says (u64 inode, i64 ctime in ns, u64 size
        each), or that cannot be told. Else the directories among them: (position, device, inode)."""
        directories: list[tuple[int, int, int]] = []
        seen = memoryview(stats).cast("Q")
        for first in range(0, len(names), SLOTS):
            some = names[first : first + SLOTS]
            if any(map(_statx, repeat(fd), some, repeat(AT_SYMLINK_NOFOLLOW), repeat(STATX_BASIC_STATS), self._slots)):
                return None
            if not self._as_seen(len(some), seen[3 * first : 3 * (first + len(some))]):
                return None
            types = self._bytes[_TYPE : _BYTES * len(some) : _BYTES].tobytes()
            if types.translate(None, _OTHER_TYPES):
                for at, kind in enumerate(types):
                    if kind >> 4 == 0o4:
                        inode, major, minor = _DIRECTORY.unpack_from(self._room, _BYTES * at)
                        directories.append((first + at, os.makedev(major, minor), inode))
        return directories

    def _as_seen(self, count: int, seen: memoryview) -> bool:
        words, end, number, order = self._words, _WORDS * count, int.from_bytes, sys.byteorder
        return (
            words[_INODE:end:_WORDS].tobytes() == seen[0::3].tobytes()
            and words[_SIZE:end:_WORDS].tobytes() == seen[2::3].tobytes()
            # All change times at once, as digits of 64 bits. One before 1970 is no such digit, and so never the same.
            and number(words[_CTIME_S:end:_WORDS].tobytes(), order) * 1_000_000_000
            + number(words[_CTIME_NS:end:_WORDS].tobytes(), order)
            == number(seen[1::3].tobytes(), order)
        )
