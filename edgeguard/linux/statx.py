"""statx(2) of an open file: it tells at once what fstat and FS_IOC_GETFLAGS tell in two calls."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from functools import cache
from struct import Struct

from edgeguard.linux.fileflags import HOLDING, STATX_BASIC_STATS
from edgeguard.linux.glance import STATX, as_seen

AT_EMPTY_PATH = 0x1000
_BYTES = 256
# linux/stat.h: attributes, mode, inode, size, which attributes are told here, ctime (s, ns), device (major, minor)
_FIELDS = Struct("=8xQ12xH2xQQ8xQ32xqI28xII112x")

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


BY_COLUMNS = sys.byteorder == "little"  # then a column of a manifest's block is one of these, too
SLOTS = 128
_HALVES = 2 * STATX.words
_OWNER, _GROUP, _MODE, _SIZE = 5, 6, 7, 2 * STATX.size  # in halves; what follows the mode is zero
_ATTRIBUTES, _TOLD = 8, 56  # the bytes with HOLDING
_TYPE = STATX.type
_HELD = bytes(byte & HOLDING for byte in range(256))
_REGULAR = bytes(kind for kind in range(256) if kind >> 4 == 0o10)
_TELLING = bytes(byte for byte in range(256) if byte & HOLDING == HOLDING)

ask = _statx
"""statx itself, for loops: (descriptor, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, one of the slots of a Room)."""


class Room:
    """What statx told of many open files, kept in one piece of memory and compared by columns."""

    def __init__(self) -> None:
        self._room = ctypes.create_string_buffer(_BYTES * SLOTS)
        self.slots = [ctypes.byref(self._room, _BYTES * slot) for slot in range(SLOTS)]
        self._bytes = memoryview(self._room).cast("B")
        self._words = self._bytes.cast("Q")
        self._halves = self._bytes.cast("I")

    def telling(self, fd: int) -> bool:
        """Is it told here what can be changed and what cannot (FS_IMMUTABLE_FL, FS_APPEND_FL)?"""
        return not ask(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, self.slots[0]) and self._tell(1)

    def as_seen(self, count: int, stats: memoryview) -> bool:
        """Are the first `count` regular files, and as they were seen (u64 inode, i64 change time in ns, u64 size each),
        and is it told of each what holds it?"""
        kinds = self._bytes[_TYPE : _BYTES * count : _BYTES].tobytes()
        return (
            as_seen(self._words, STATX, count, stats.cast("Q"))
            and not kinds.translate(None, _REGULAR)
            and self._tell(count)
        )

    def on(self, device: int, count: int) -> bool:
        """Do they all lie on this device? 0: any."""
        found = self._words[STATX.device : STATX.words * count : STATX.words].tobytes()
        return not device or found == struct.pack("=II", *_numbers(device)) * count

    def held(self, count: int) -> bytes:
        """Of each, not 0 where it has FS_IMMUTABLE_FL or FS_APPEND_FL."""
        return self._bytes[_ATTRIBUTES : _BYTES * count : _BYTES].tobytes().translate(_HELD)

    def attributes(self, count: int) -> bytes:
        """u32 mode, u32 owner, u32 group, u64 size each: as in a manifest, with the first category and nothing rare."""
        end, halves = _HALVES * count, self._halves
        rows = bytearray(20 * count)
        with memoryview(rows).cast("I") as into:
            for column, place in enumerate((_MODE, _OWNER, _GROUP, _SIZE, _SIZE + 1)):
                into[column::5] = halves[place:end:_HALVES]
        return bytes(rows)

    def _tell(self, count: int) -> bool:
        return not self._bytes[_TOLD : _BYTES * count : _BYTES].tobytes().translate(None, _TELLING)


@cache
def _numbers(device: int) -> tuple[int, int]:
    return os.major(device), os.minor(device)
