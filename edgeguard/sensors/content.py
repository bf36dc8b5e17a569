"""What a file holds: as programs read it, and as it lies on its disk.

Both are the same unless somebody sees to it. Who writes to the block device below a mounted file system changes what is
read after the next start; who corrupts the page cache changes what is read until then; neither touches size, times or
inode. So a thorough reading bypasses the page cache, and compares with what of it happens to be cached.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import NamedTuple

from edgeguard.codec import sha

CHUNK = 256 * 1024  # bytes a read; a multiple of every block and page size
BLOCK = 4096  # bytes; direct reads begin and end on these
TRIES = 3  # a difference is one only if it stays: a writer may come between the two reads


class OnDisk(NamedTuple):
    """What a direct reading gave."""

    sha256: bytes
    size: int  # bytes that were there
    as_read: bool  # what the page cache has of it is the same


def on_disk(fd: int, size: int, new_hash: sha.NewHash) -> OnDisk | None:
    """The first `size` bytes as they lie on the disk. None: this file system reads no other way than by its cache."""
    try:
        direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None
    # Anonymous memory begins on a page, as direct reads want it.
    with contextlib.closing(mmap.mmap(-1, CHUNK)) as room, memoryview(room) as disk:
        try:
            return _read(direct, fd, size, disk, new_hash())
        except OSError:  # it may be opened so, but not read so
            return None
        finally:
            os.close(direct)


def _read(direct: int, fd: int, size: int, disk: memoryview, value: sha.Hash) -> OnDisk:
    cache = memoryview(bytearray(CHUNK))
    as_read = True
    offset = 0
    while offset < size:
        for _attempt in range(TRIES):
            got = os.preadv(direct, [disk[: _rounded(size - offset)]], offset)
            part = disk[: min(got, size - offset)]
            if equal := _cached_equal(fd, offset, part, cache):
                break
        as_read = as_read and equal
        value.update(part)
        if not part:
            break
        offset += len(part)
    return OnDisk(value.digest(), offset, as_read)


def _cached_equal(fd: int, offset: int, disk: memoryview, cache: memoryview) -> bool:
    """Is what the page cache has of this part the same? What it has not got is not read."""
    at, end = 0, len(disk)
    while at < end:
        try:
            got = os.preadv(fd, [cache[: end - at]], offset + at, os.RWF_NOWAIT)
        except BlockingIOError:
            at = ((offset + at) // mmap.PAGESIZE + 1) * mmap.PAGESIZE - offset
            continue
        if not got or cache[:got] != disk[at : at + got]:
            return False
        at += got
    return True


def _rounded(left: int) -> int:
    return min(CHUNK, -(-left // BLOCK) * BLOCK)
