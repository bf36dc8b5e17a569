"""The flags that `chattr` sets: a file with FS_IMMUTABLE_FL or FS_APPEND_FL can be neither replaced nor removed, even
by root, until the flag is gone (CAP_LINUX_IMMUTABLE). Intruders like them.

The ioctl's argument is an int, although its number says long: linux/fs.h has it so since 1995.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

_LONG = struct.calcsize("l")
FS_IOC_GETFLAGS = 2 << 30 | _LONG << 16 | ord("f") << 8 | 1  # _IOR('f', 1, long), linux/fs.h
FS_IOC_SETFLAGS = 1 << 30 | _LONG << 16 | ord("f") << 8 | 2  # _IOW('f', 2, long)
FS_IMMUTABLE_FL = 0x10
FS_APPEND_FL = 0x20
HOLDING = FS_IMMUTABLE_FL | FS_APPEND_FL
COMBINATIONS = (0, FS_IMMUTABLE_FL, FS_APPEND_FL, HOLDING)

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
STATX_BASIC_STATS = 0x7FF  # linux/stat.h; its STATX_ATTR_IMMUTABLE and STATX_ATTR_APPEND are the two flags again
_STATX_BYTES = 256
_ATTRIBUTES = 8  # offset of stx_attributes

_libc = ctypes.CDLL(None, use_errno=True)
_NONE = (errno.ENOTTY, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # this file system has no such flags


def get(fd: int) -> int:
    """All flags of an open file; 0 where the file system has none."""
    try:
        answer = fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
    except OSError as error:
        if error.errno in _NONE:
            return 0
        raise
    return int(struct.unpack_from("I", answer)[0])


def of_path(path: str) -> int:
    """FS_IMMUTABLE_FL and FS_APPEND_FL of anything, without opening or following it; 0 where they are not known."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, buffer) < 0:
        return 0
    return int(struct.unpack_from("Q", buffer, _ATTRIBUTES)[0]) & HOLDING


def text(flags: int) -> bytes:
    """The holding flags as an extended attribute of no namespace: b"" for none of them."""
    letters = (b"i" if flags & FS_IMMUTABLE_FL else b"") + (b"a" if flags & FS_APPEND_FL else b"")
    return b"chattr\0" + len(letters).to_bytes(4, "little") + letters if letters else b""


def hold(fd: int, flags: int) -> None:
    """Set FS_IMMUTABLE_FL and FS_APPEND_FL as in `flags`; the other flags stay."""
    now = get(fd)
    wanted = now & ~HOLDING | flags & HOLDING
    if wanted != now:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("I", wanted) + bytes(4))
