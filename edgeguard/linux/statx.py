"""statx(2) of an open file: it tells at once what fstat and FS_IOC_GETFLAGS tell in two calls."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from struct import Struct

from edgeguard.linux.fileflags import HOLDING, STATX_BASIC_STATS

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


@cache
def _numbers(device: int) -> tuple[int, int]:
    return os.major(device), os.minor(device)
