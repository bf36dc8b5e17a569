"""Extended attributes as the kernel stores them: which there are, and the raw file capability.

Everything is asked by descriptor or by `/proc/self/fd/<directory>/<name>`, so that no other file can slip in between
a look at the directory and this question. Reading never follows a symlink.
"""

from __future__ import annotations

import errno
import os

CAPABILITY = "security.capability"
# Labels that change without anyone touching the file, or that only some readers may see (trusted.*):
# comparing them would report the reader's rights, not the file's.
VOLATILE = frozenset((CAPABILITY, "security.selinux", "security.ima", "security.evm", "security.SMACK64"))
HIDDEN_PREFIX = "trusted."
SIZE_MAX = 64 * 1024  # bytes; the kernel's XATTR_SIZE_MAX and XATTR_LIST_MAX

# The file system knows no such attributes, or this kind of file has none.
_NONE = frozenset((errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.EINVAL))


def member(directory: int, name: str) -> str:
    """A path to `name` in an open directory, for calls that know no dir_fd. Short, whatever the depth."""
    return f"/proc/self/fd/{directory}/{name}"


def names(target: int | str) -> list[str]:
    """Names of all attributes of a descriptor or path, sorted; empty where there can be none."""
    try:
        if isinstance(target, int):
            return sorted(os.listxattr(target))
        return sorted(os.listxattr(target, follow_symlinks=False))
    except OSError as error:
        if error.errno in _NONE:
            return []
        raise


def get(target: int | str, name: str) -> bytes:
    """One attribute, b"" where it is not there."""
    try:
        if isinstance(target, int):
            return os.getxattr(target, name)
        return os.getxattr(target, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NONE:
            return b""
        raise


def lasting(found: list[str]) -> list[str]:
    """Those that say something about the file: access lists and what people set."""
    return [name for name in found if name not in VOLATILE and not name.startswith(HIDDEN_PREFIX)]
