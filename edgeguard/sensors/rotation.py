"""Was a log rotated? What it held must be found again, under a name that rotation gives.

A log is known by its inode, its size, and digests of how it begins and of how it ended when it was last looked at.
Rotation by renaming keeps the inode; copying (copytruncate) keeps the bytes; compressing keeps them in another form.
Nothing else is believed: not a time, not who did it, not the settings of logrotate.

What this cannot prove is said in docs/sensors.md: whoever overwrites bytes in the middle of a log by as many others
changes neither its beginning nor its end nor its length.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable, Iterator
from stat import S_ISDIR, S_ISREG
from typing import NamedTuple

from edgeguard.codec import sha

SAMPLE = 4096  # bytes that are read of a beginning and of an end
DIGEST = 16  # bytes of a SHA-256 that are kept: nobody finds two logs with the same
CANDIDATES_MAX = 64  # names that are looked into, newest first; logrotate keeps seven in Debian
FOLDERS_MAX = 16  # folders beside a log in which its rotated copies may lie (logrotate's `olddir`)
ENTRIES_MAX = 20_000  # names of a folder; what is longer is not searched
UNPACK_MAX = 4 << 20  # bytes; of what is longer only the beginning and the length are compared
PART = 2048  # bytes unpacked at a time: deflate makes at most 1032 times as many of them
LENGTH_SURE = (1 << 32) - 1  # bytes; gzip notes a length modulo 4 GiB
OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_NUMBER = r"[.-]\d[\d._:TtZz-]*"
_PACKED = r"(?:\.(?:gz|xz|bz2|zst))"
_ROTATED = re.compile(rf"(?:{_NUMBER}(?:\.[a-z]{{1,8}})?|\.old|\.O){_PACKED}?\Z")
PACKED = (".gz", ".xz", ".bz2", ".zst")


class Tail(NamedTuple):
    """How a log ended at some length."""

    size: int
    length: int  # bytes of the sample: those before `size`
    digest: bytes


class Sample(NamedTuple):
    """What is kept of a log to know it again."""

    head_length: int
    head: bytes
    tail: Tail


def take(fd: int, size: int) -> Sample:
    """Of an open log, `size` bytes long."""
    return Sample(min(size, SAMPLE), _digest(os.pread(fd, min(size, SAMPLE), 0)), _tail(fd, size))


def _tail(fd: int, size: int) -> Tail:
    length = min(size, SAMPLE)
    return Tail(size, length, _digest(os.pread(fd, length, size - length)))


def begins_so(fd: int, sample: Sample) -> bool:
    return _digest(os.pread(fd, sample.head_length, 0)) == sample.head


def holds(fd: int, sample: Sample, tail: Tail) -> bool:
    """Does this file begin like the log, and go on as far as it went?"""
    at = tail.size - tail.length
    return begins_so(fd, sample) and _digest(os.pread(fd, tail.length, at)) == tail.digest


def is_rotated(name: str) -> bool:
    """Is this the name of a log that was put aside: x.log.1, x.log-20261126, x-20261126.log, x.log.2.gz, x.log.old?"""
    return _ROTATED.search(name) is not None


def family(name: str) -> re.Pattern[str]:
    """The names that rotation gives to what was `name`."""
    stem, dot, extension = name.rpartition(".")
    inside = rf"|{re.escape(stem)}{_NUMBER}{re.escape(dot + extension)}" if stem else ""
    return re.compile(rf"(?:{re.escape(name)}(?:{_NUMBER}|\.old|\.O){inside}){_PACKED}?\Z")


def successor(directory: str, name: str, inode: tuple[int, int], sample: Sample, tails: tuple[Tail, ...]) -> str:
    """The path of what now holds all that the log `name` held, "" if there is none. Any one of `tails` suffices: a
    line may be written between the copy and the truncation."""
    plain: list[str] = []
    packed: list[str] = []
    for path, at in _candidates(directory, name):
        if (at.st_dev, at.st_ino) == inode or not path.endswith(PACKED):
            plain.append(path)
        else:
            packed.append(path)
    for path in plain:
        if _plain_holds(path, sample, tails):
            return path
    return next((path for path in packed if _packed_holds(path, sample, tails)), "")


def _candidates(directory: str, name: str) -> list[tuple[str, os.stat_result]]:
    """Newest first."""
    match = family(name).match
    found: list[tuple[str, os.stat_result]] = []
    folders: list[str] = []
    for path, short in _names(directory):
        related = match(short) is not None
        with contextlib.suppress(OSError):
            if related or (len(folders) < FOLDERS_MAX and "." not in short):
                at = os.lstat(path)
                if related and S_ISREG(at.st_mode):
                    found.append((path, at))
                elif S_ISDIR(at.st_mode) and len(folders) < FOLDERS_MAX:
                    folders.append(path)
    for folder in folders:
        for path, short in _names(folder):
            with contextlib.suppress(OSError):
                if match(short) and S_ISREG((at := os.lstat(path)).st_mode):
                    found.append((path, at))
    found.sort(key=lambda item: item[1].st_mtime_ns, reverse=True)
    return found[:CANDIDATES_MAX]


def _names(directory: str) -> Iterator[tuple[str, str]]:
    try:
        names = os.listdir(directory or "/")
    except OSError:
        return
    for name in names[:ENTRIES_MAX]:
        yield f"{directory}/{name}", name


def opened(path: str) -> int:
    """A descriptor of a log; raises OSError. Reading it leaves no trace where that is allowed."""
    try:
        return os.open(path, OPEN | os.O_NOATIME)
    except PermissionError:
        return os.open(path, OPEN)


def _plain_holds(path: str, sample: Sample, tails: tuple[Tail, ...]) -> bool:
    try:
        fd = opened(path)
    except OSError:
        return False
    try:
        at = os.fstat(fd)
        return S_ISREG(at.st_mode) and any(at.st_size >= t.size and holds(fd, sample, t) for t in tails)
    except OSError:
        return False
    finally:
        os.close(fd)


# -- compressed


def _packed_holds(path: str, sample: Sample, tails: tuple[Tail, ...]) -> bool:
    try:
        fd = opened(path)
    except OSError:
        return False
    try:
        size = os.fstat(fd).st_size
        length = LENGTHS[path[path.rindex(".") :]](fd, size)
        near = tuple(t for t in tails if length is not None and length >= min(t.size, LENGTH_SURE))
        if not near:
            return False
        if path.endswith(".zst"):
            return True  # nothing in Debian 12's and 13's Python reads it; its length must do
        return _unpacked_holds(fd, path, sample, near)
    except (OSError, ValueError, EOFError):
        return False
    finally:
        os.close(fd)


def _unpacked_holds(fd: int, path: str, sample: Sample, tails: tuple[Tail, ...]) -> bool:
    """Unpacks a little at a time, and no more than UNPACK_MAX."""
    whole = all(t.size <= UNPACK_MAX for t in tails)
    wanted = max(t.size for t in tails) if whole else sample.head_length
    data = bytearray()
    for part in _unpacked(fd, path):
        data += part
        if len(data) >= wanted:
            break
    if len(data) < wanted or _digest(bytes(data[: sample.head_length])) != sample.head:
        return False
    return not whole or any(_digest(bytes(data[t.size - t.length : t.size])) == t.digest for t in tails)


def _unpacked(fd: int, path: str) -> Iterator[bytes]:
    unpack: Callable[[bytes, int], bytes]
    errors: tuple[type[Exception], ...]
    if path.endswith(".bz2"):
        import bz2  # as little, and as rarely

        errors = (OSError, EOFError)
        unpack = bz2.BZ2Decompressor().decompress
    elif path.endswith(".xz"):
        import lzma  # 0.2 MB, and only where somebody lets logrotate use it

        errors = (lzma.LZMAError,)
        unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=64 << 20).decompress
    else:
        import zlib

        errors = (zlib.error,)
        unpack = zlib.decompressobj(wbits=31).decompress
    offset = 0
    while chunk := os.pread(fd, PART, offset):
        offset += len(chunk)
        try:
            yield unpack(chunk, UNPACK_MAX)
        except errors:
            return


def _gzip_length(fd: int, size: int) -> int | None:
    """What was packed, in bytes (of the last 4 GiB), as the end of the file says."""
    if size < 18 or os.pread(fd, 2, 0) != b"\x1f\x8b":
        return None
    return int.from_bytes(os.pread(fd, 4, size - 4), "little")


def _xz_length(fd: int, size: int) -> int | None:
    """The sum of the blocks' lengths in the index at the end of the file."""
    if size < 32 or os.pread(fd, 6, 0) != b"\xfd7zXZ\0" or os.pread(fd, 2, size - 2) != b"YZ":
        return None
    backward = (int.from_bytes(os.pread(fd, 4, size - 8), "little") + 1) * 4
    if backward > min(size - 24, 1 << 16):
        return None
    index = os.pread(fd, backward, size - 12 - backward)
    count, at = _varint(index, 1)
    total = 0
    for _record in range(count):
        _, at = _varint(index, at)
        length, at = _varint(index, at)
        total += length
    return total


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 56:
            raise ValueError("xz: its index is damaged")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _zstd_length(fd: int, _size: int) -> int | None:
    """What the first frame says that it holds; None where it does not say."""
    head = os.pread(fd, 18, 0)
    if len(head) < 18 or head[:4] != b"\x28\xb5\x2f\xfd":
        return None
    flag = head[4]
    single = flag >> 5 & 1
    width = (1 if single else 0, 2, 4, 8)[flag >> 6]
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[flag & 3]
    if not width or at + width > len(head):
        return None
    value = int.from_bytes(head[at : at + width], "little")
    return value + 256 if width == 2 else value


def _bzip2_length(fd: int, _size: int) -> int | None:
    """It is not said anywhere: what is unpacked must tell."""
    return LENGTH_SURE if os.pread(fd, 3, 0) == b"BZh" else None


LENGTHS = {".gz": _gzip_length, ".xz": _xz_length, ".bz2": _bzip2_length, ".zst": _zstd_length}


def _digest(data: bytes) -> bytes:
    return sha.digest(data)[:DIGEST]


# -- on disk

_SAMPLE = struct.Struct("<H16sQH16s")
SAMPLE_SIZE = _SAMPLE.size


def pack(sample: Sample) -> bytes:
    return _SAMPLE.pack(sample.head_length, sample.head, *sample.tail)


def unpack(raw: bytes) -> Sample:
    head_length, head, size, length, digest = _SAMPLE.unpack(raw)
    return Sample(head_length, head, Tail(size, length, digest))
