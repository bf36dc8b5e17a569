"""The attributes of all names of a directory, asked for at once and compared with earlier ones by columns.

Python's stat_result of twenty numbers costs as much as the call; here the answers lie in one piece of memory. A call
through ctypes costs by its arguments: lstat has two, where the process stands in that directory, and statx five. But
the layout of lstat's answer depends on the machine: where one is known that tells what Python tells, it is used.
"""

from __future__ import annotations

import ctypes
import os
import sys
from array import array
from collections.abc import Iterator
from itertools import repeat
from typing import Any, NamedTuple

from edgeguard.linux.fileflags import AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS

SLOTS = 128  # names asked for before one look at the answers
_OTHER_TYPES = bytes(kind for kind in range(256) if kind >> 4 != 0o4)
_library = ctypes.PyDLL(None)  # nothing else runs in a helper: to let other threads in costs a tenth of a call
_statx = _library.statx
_lstat: Any = getattr(_library, "lstat", None)  # since glibc 2.33, as the next
_fstat: Any = getattr(_library, "fstat", None)


class Layout(NamedTuple):
    """Where things are in an answer, in words of 64 bits."""

    words: int  # of a whole one
    inode: int
    size: int
    seconds: int  # of the change time
    nanoseconds: int
    device: int  # of statx: major and minor number
    type: int  # the byte whose upper half is the file type


class Told(NamedTuple):
    """Of all names of a directory."""

    stats: bytes  # u64 inode, i64 change time in ns, u64 size each
    types: bytes  # upper half: file type
    device: int


STATX = Layout(32, 4, 5, 12, 13, 17, 29 if sys.byteorder == "little" else 28)
X86_64 = Layout(18, 1, 6, 13, 14, 0, 25)
GENERIC_64 = Layout(16, 1, 6, 13, 14, 0, 17)  # asm-generic/stat.h: arm64, and all that came later


class Glance:
    """Compares what is in a directory with what was there. Holds the room for it. Until it is closed, the process may
    stand in the last directory."""

    def __init__(self) -> None:
        self._home = -1
        self._layout = next(filter(tells, (X86_64, GENERIC_64)), STATX)
        self._ask = self._by_statx if self._layout is STATX else self._by_lstat
        self._size = 8 * self._layout.words
        self._room = ctypes.create_string_buffer(self._size * SLOTS)
        # What byref gives is taken as it is; a pointer object would be made into that by each call.
        self._slots = [ctypes.byref(self._room, self._size * slot) for slot in range(SLOTS)]
        self._bytes = memoryview(self._room).cast("B")
        self._words = self._bytes.cast("Q")

    def same(self, fd: int, names: list[bytes], stats: bytes) -> list[tuple[int, int, int]] | None:
        """None: not all of these names in the open directory are as `stats` says (u64 inode, i64 ctime in ns, u64 size
        each), or that cannot be told. Else the directories among them: (position, device, inode)."""
        directories: list[tuple[int, int, int]] = []
        seen = memoryview(stats).cast("Q")
        for first in range(0, len(names), SLOTS):
            some = names[first : first + SLOTS]
            try:
                if any(self._ask(fd, some)):
                    return None
            except OSError:
                return None
            if not as_seen(self._words, self._layout, len(some), seen[3 * first : 3 * (first + len(some))]):
                return None
            types = self._bytes[self._layout.type : self._size * len(some) : self._size].tobytes()
            if types.translate(None, _OTHER_TYPES):
                directories += [(first + at, *self._answer(at)) for at, kind in enumerate(types) if kind >> 4 == 0o4]
        return directories

    def told(self, fd: int, names: list[bytes]) -> Told | None:
        """What is in the open directory, if that can be told of all of these names, and all lie on one device."""
        rows = bytearray()
        types = b""
        device = -1
        for first in range(0, len(names), SLOTS):
            some = names[first : first + SLOTS]
            step, inode, size, seconds, nanoseconds, place, kind = self._layout
            try:
                if any(self._ask(fd, some)):
                    return None
            except OSError:
                return None
            end, words = step * len(some), self._words
            on, _ = self._answer(0)
            devices = words[place:end:step].tobytes()
            if device not in {-1, on} or devices != devices[:8] * len(some):
                return None
            device = on
            part = bytearray(24 * len(some))
            with memoryview(part) as room:
                columns = room.cast("Q")
                columns[0::3] = words[inode:end:step]
                columns[2::3] = words[size:end:step]
                times = zip(words[seconds:end:step].tolist(), words[nanoseconds:end:step].tolist(), strict=True)
                try:
                    room.cast("q")[1::3] = memoryview(array("q", [s * 1_000_000_000 + ns for s, ns in times]))
                except OverflowError:  # before 1970, or beyond all times
                    return None
            rows += part
            types += self._bytes[kind : self._size * len(some) : self._size].tobytes()
        return Told(bytes(rows), types, device)

    def identity(self, fd: int) -> tuple[int, int]:
        """(device, inode) of an open file."""
        if self._layout is STATX or _fstat(fd, self._slots[0]):
            at = os.fstat(fd)
            return at.st_dev, at.st_ino
        return self._words[self._layout.device], self._words[self._layout.inode]

    def close(self) -> None:
        """Back to where the process stood."""
        if self._home >= 0:
            os.fchdir(self._home)
            os.close(self._home)
            self._home = -1

    def _by_lstat(self, fd: int, names: list[bytes]) -> Iterator[int]:
        if self._home < 0:
            self._home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fchdir(fd)
        return map(_lstat, names, self._slots)

    def _by_statx(self, fd: int, names: list[bytes]) -> Iterator[int]:
        return map(_statx, repeat(fd), names, repeat(AT_SYMLINK_NOFOLLOW), repeat(STATX_BASIC_STATS), self._slots)

    def _answer(self, slot: int) -> tuple[int, int]:
        """(device, inode) of one answer."""
        first = self._layout.words * slot
        device, inode = self._words[first + self._layout.device], self._words[first + self._layout.inode]
        if self._layout is STATX:
            device = os.makedev(*memoryview(device.to_bytes(8, sys.byteorder)).cast("I"))
        return device, inode


def as_seen(words: memoryview, layout: Layout, count: int, seen: memoryview) -> bool:
    """Do the first `count` answers tell inode, change time and size as `seen` has them (three words each)?"""
    step, inode, size, seconds, nanoseconds, _, _ = layout
    end, number, order = step * count, int.from_bytes, sys.byteorder
    return (
        words[inode:end:step] == seen[0::3]
        and words[size:end:step] == seen[2::3]
        # All change times at once, as digits of 64 bits. One before 1970 is no such digit, and so never the same.
        and number(words[seconds:end:step].tobytes(), order) * 1_000_000_000
        + number(words[nanoseconds:end:step].tobytes(), order)
        == number(seen[1::3].tobytes(), order)
    )


def tells(layout: Layout) -> bool:
    """Is this how lstat answers here?"""
    if _lstat is None or _fstat is None:
        return False
    answer = ctypes.create_string_buffer(8 * STATX.words)
    try:
        at = os.lstat("/")
    except OSError:
        return False
    if _lstat(b"/", ctypes.byref(answer)):
        return False
    words = memoryview(answer).cast("B").cast("Q")
    told = [words[place] for place in layout[1:6]]
    return (
        told == [at.st_ino, at.st_size, *divmod(at.st_ctime_ns, 1_000_000_000), at.st_dev]
        and answer.raw[layout.type] == at.st_mode >> 8
    )
