"""What a file holds: as programs read it, and as it lies on its disk.

Both are the same unless somebody sees to it. Who writes to the block device below a mounted file system changes what is
read after the next start; who corrupts the page cache changes what is read until then; neither touches size, times or
inode. So a thorough reading bypasses the page cache, and compares with what of it happens to be cached.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import NamedTuple

from edgeguard.codec import sha

CHUNK = 256 * 1024  # bytes a read; a multiple of every block and page size
BLOCK = 4096  # bytes; direct reads begin and end on these
TRIES = 3  # a difference is one only if it stays: a writer may come between the two reads


class OnDisk(NamedTuple):
    """What a direct reading gave."""

    digest: bytes
    size: int  # bytes that were there
    as_read: bool  # what the page cache has of it is the same


class Disk:
    """Reads past the page cache, and with it, in the same room for one file after the other."""

    def __init__(self) -> None:
        self._room = mmap.mmap(-1, CHUNK)  # anonymous memory begins on a page, as direct reads want it
        self._disk = memoryview(self._room)
        self._cache = bytearray(CHUNK)
        self._cached = memoryview(self._cache)

    def read(self, fd: int, size: int) -> bytes | None:
        """A file of at most CHUNK bytes, if it lies on the disk as it is read. None: it does not, or that cannot be
        told so simply."""
        got = self._direct(fd, 0, size)
        if got is None or got < size:
            return None
        content = self._room[:size]
        return content if self._cached_equal(fd, 0, content) else None

    def _direct(self, fd: int, offset: int, size: int) -> int | None:
        """Read past the page cache by a descriptor that does not do so otherwise. How many bytes, None: not here."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:
            return None
        try:
            return os.preadv(fd, [self._disk[: _rounded(size)]], offset)
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)

    def digest(self, fd: int, size: int, new_hash: sha.NewHash) -> OnDisk | None:
        """The first `size` bytes as they lie on the disk. None: this file system only reads by its cache."""
        try:
            return self._digest(fd, size, new_hash())
        except OSError:  # it may be opened so, but not read so
            return None

    def _digest(self, fd: int, size: int, value: sha.Hash) -> OnDisk | None:
        as_read = True
        offset = 0
        while offset < size:
            for _attempt in range(TRIES):
                got = self._direct(fd, offset, size - offset)
                if got is None:
                    return None
                part = self._room[: min(got, size - offset)]
                if equal := self._cached_equal(fd, offset, part):
                    break
            as_read = as_read and equal
            value.update(part)
            if not part:
                break
            offset += len(part)
        return OnDisk(value.digest(), offset, as_read)

    def _cached_equal(self, fd: int, offset: int, disk: bytes) -> bool:
        """Is what the page cache has of this part the same? What it has not got is not read."""
        at, end = 0, len(disk)
        while at < end:
            try:
                got = os.preadv(fd, [self._cached[: end - at]], offset + at, os.RWF_NOWAIT)
            except BlockingIOError:
                at = ((offset + at) // mmap.PAGESIZE + 1) * mmap.PAGESIZE - offset
                continue
            # Views are compared byte by byte, these all at once.
            if not got or not disk.startswith(self._cache[:got], at):
                return False
            at += got
        return True


def _rounded(left: int) -> int:
    return min(CHUNK, -(-left // BLOCK) * BLOCK)
