"""Reading small files of a root directory: bounded, never following a name into a device, never waiting.

Used by the sensors that look at /etc, /proc and /sys. What the text means is not known here.
"""

from __future__ import annotations

import errno
import os
import stat

from edgeguard.linux.inside import inside

TOO_LONG = "@" * 256  # a name of more than NAME_MAX bytes


def under(root: str, path: str) -> str:
    """Where the absolute `path` lies when `root` is the root directory. Symlinks of another root stay inside it."""
    if root == "/":
        return path
    try:
        return inside(root, path)
    except OSError:
        # Symlinks in a circle. The kernel, for which an absolute one begins elsewhere, must not be given them: this
        # name cannot be opened, and is no missing file either.
        return f"{root.rstrip('/')}/{TOO_LONG}"


def read(path: str, bound: int) -> bytes:
    """The content of a regular file (or of one in /proc or /sys), at most `bound` bytes.

    O_NONBLOCK: a FIFO that somebody put there must not stop us; what is not a regular file is refused with EINVAL.
    Raises OSError: EFBIG when the file is larger than `bound`, whatever open and read give otherwise.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return drain(fd, bound, path)
    finally:
        os.close(fd)


def beginning(path: str, bound: int) -> tuple[bytes, bool]:
    """The same, of a larger file its whole lines within the first `bound` bytes; and whether that is all of it."""
    try:
        return read(path, bound), True
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        data = os.pread(fd, bound, 0)
    finally:
        os.close(fd)
    return data[: data.rfind(b"\n") + 1], False


def drain(fd: int, bound: int, path: str) -> bytes:
    """Everything from offset 0 of an open file; files in /proc give their content in pieces and have size 0."""
    pieces: list[bytes] = []
    size = 0
    while piece := os.pread(fd, min(65536, bound + 1 - size), size):
        pieces.append(piece)
        size += len(piece)
        if size > bound:
            raise OSError(errno.EFBIG, f"larger than {bound} bytes", path)
    return b"".join(pieces)


def matching(root: str, pattern: str, bound: int) -> list[str]:
    """The paths in the root directory that an absolute glob names, sorted by their bytes, at most `bound`."""
    import glob  # only while a configuration with includes is read

    folder, _, name = pattern.rpartition("/")
    if root == "/" or glob.has_magic(folder):  # names only: what they lead to is read inside the root
        whole = glob.escape(root.rstrip("/")) + pattern
    else:
        whole = f"{glob.escape(under(root, folder))}/{name}"
    skip = 0 if root == "/" else len(root.rstrip("/"))
    found = sorted(glob.glob(whole), key=os.fsencode)[:bound]
    return [name[skip:] for name in found]


def why(error: OSError) -> str:
    """One plain phrase for a note."""
    return error.strerror or str(error)
