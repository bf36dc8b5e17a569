"""The flags that `chattr` sets: a file with FS_IMMUTABLE_FL or FS_APPEND_FL can be neither replaced nor removed, even
by root, until the flag is gone (CAP_LINUX_IMMUTABLE). Intruders like them.

The ioctl's argument is an int, although its number says long: linux/fs.h has it so since 1995.
"""

from __future__ import annotations

import errno
import fcntl
import struct

_LONG = struct.calcsize("l")
FS_IOC_GETFLAGS = 2 << 30 | _LONG << 16 | ord("f") << 8 | 1  # _IOR('f', 1, long), linux/fs.h
FS_IOC_SETFLAGS = 1 << 30 | _LONG << 16 | ord("f") << 8 | 2  # _IOW('f', 2, long)
FS_IMMUTABLE_FL = 0x10
FS_APPEND_FL = 0x20
HOLDING = FS_IMMUTABLE_FL | FS_APPEND_FL

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


def hold(fd: int, flags: int) -> None:
    """Set FS_IMMUTABLE_FL and FS_APPEND_FL as in `flags`; the other flags stay."""
    now = get(fd)
    wanted = now & ~HOLDING | flags & HOLDING
    if wanted != now:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("I", wanted) + bytes(4))
