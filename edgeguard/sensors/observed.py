"""observed.db: what the last sweep saw, so that an unchanged directory costs one comparison of bytes.

A local cache, never a reference: damage only means that everything is read again. Records lie in walk order, one a
directory, and are read as a stream beside the walk:

    "EGOBSRV1", 32 bytes that identify the watches
    record*   u16 len(directory), u32 names, u32 len(names), u32 len(block)
              directory, names joined by NUL, 24 bytes a name (u64 inode, i64 ctime ns, u64 size),
              the subjects among them as a block of the file manifest (without categories)
    end       u16 65535, u32 directories, u32 names, u32 0

A look that may not be relied on (the file was just changed, or unreadable) is stored with a ctime that no file has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct, error
from typing import BinaryIO

from edgeguard.codec.manifest import (
    BLOCK_MAX,
    NAMES_MAX,
    PATH_MAX,
    Categories,
    Entry,
    decode_block,
    encode_block,
    order,
    without_categories,
)
from edgeguard.errors import DecodeError

MAGIC = b"EGOBSRV1"
HEAD = Struct("<HIII")
STAT = Struct("<QqQ")
PLAN = 32
LAST = 0xFFFF
UNSURE = -(1 << 62)  # a ctime before the universe: such a look is repeated
NO_CATEGORY = ("",)


class Record:
    """One directory as it was seen. The subjects are only decoded where something differs."""

    __slots__ = ("_names", "body", "count", "length", "start")

    def __init__(self, start: int, length: int, count: int, names: int, body: bytes) -> None:
        self.start = start  # offset in the file
        self.length = length  # of the directory's path
        self.count = count
        self._names = names
        self.body = body

    @property
    def directory(self) -> bytes:
        return self.body[: self.length]

    @property
    def raw(self) -> bytes:
        at = self.length + self._names + STAT.size * self.count
        return HEAD.pack(self.length, self.count, self._names, len(self.body) - at) + self.body

    def stats_if(self, directory: bytes, names: bytes) -> bytes | None:
        """The packed stats, if this is that directory with these names (joined by NUL)."""
        end = self.length + self._names
        if len(directory) != self.length or len(names) != self._names or self.body[:end] != directory + names:
            return None
        return self.body[end : end + STAT.size * self.count]

    def inodes(self) -> Iterator[tuple[bytes, int]]:
        """(path, inode) of all names."""
        end = self.length + self._names
        names = self.body[self.length : end].split(b"\0")
        stats = STAT.iter_unpack(self.body[end : end + STAT.size * self.count])
        for name, (inode, _, _) in zip(names, stats, strict=False):
            yield self.directory + b"/" + name, inode

    def looks(self) -> dict[bytes, tuple[bytes, Entry | None]]:
        """name -> (packed stat, entry if it is a subject). Raises DecodeError."""
        end = self.length + self._names
        names = self.body[self.length : end].split(b"\0")
        stats = end + STAT.size * self.count
        if len(names) != self.count or len(set(names)) != self.count:
            raise DecodeError("observed.db: names of a directory are damaged")
        subjects: dict[bytes, Entry] = {}
        if stats < len(self.body):
            block = decode_block(self.body[stats:], NO_CATEGORY)
            subjects = dict(zip(block.names, block.entries, strict=True))
            if not subjects.keys() <= set(names):
                raise DecodeError("observed.db: a subject has no name")
        return {
            name: (self.body[end + STAT.size * at : end + STAT.size * (at + 1)], subjects.get(name))
            for at, name in enumerate(names)
        }


def encode(directory: bytes, names: Sequence[bytes], stats: bytes, block: bytes) -> bytes:
    """The bytes of one record. `block`: see `block_of`."""
    joined = b"\0".join(names)
    return HEAD.pack(len(directory), len(names), len(joined), len(block)) + directory + joined + stats + block


def block_of(directory: bytes, subjects: dict[bytes, Entry]) -> bytes:
    """Subjects as a block, b"" for none. Categories are left out: the watches tell them, and they may change."""
    if not subjects:
        return b""
    categories = Categories({entry.category for entry in subjects.values()})
    return without_categories(encode_block(directory, list(subjects), list(subjects.values()), categories))


def same(one: Entry | None, other: Entry | None) -> bool:
    """Equal but for the category, which is the policy's word and not the file's."""
    if one is None or other is None:
        return one is other
    return one == other or (one[:4] == other[:4] and one[5:] == other[5:])


class Reader:
    """A stream of records. `current` is the next one that was not taken, None at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        head = file.read(len(MAGIC) + PLAN)
        if len(head) != len(MAGIC) + PLAN or head[: len(MAGIC)] != MAGIC:
            raise DecodeError("observed.db: not such a file")
        self.plan = head[len(MAGIC) :]
        self.offset = len(head)
        self.directories = 0
        self.names = 0
        self._last: bytes | None = None
        self.current: Record | None = None
        self.advance()

    def advance(self) -> None:
        """Take the current record. Raises DecodeError where the next is damaged or the end is missing."""
        start = self.offset
        try:
            length, count, names, block = HEAD.unpack(self._file.read(HEAD.size))
        except error as short:
            raise DecodeError("observed.db: truncated") from short
        if length == LAST:
            if (count, names) != (self.directories & 0xFFFFFFFF, self.names & 0xFFFFFFFF):
                raise DecodeError("observed.db: its end disagrees with its records")
            self.current = None
            return
        size = length + names + STAT.size * count + block
        if length >= PATH_MAX or not 0 < count <= NAMES_MAX or size > BLOCK_MAX or names > 256 * count:
            raise DecodeError("observed.db: a record is out of bounds")
        body = self._file.read(size)
        if len(body) != size:
            raise DecodeError("observed.db: truncated")
        self.offset = start + HEAD.size + size
        self.directories += 1
        self.names += count
        self.current = Record(start, length, count, names, body)

    def records(self) -> Iterator[Record]:
        """All that are left, one after the other. Raises DecodeError."""
        while self.current is not None:
            self.key()
            yield self.current
            self.advance()

    def key(self) -> bytes:
        """Sort key of the current record, with a check that records ascend."""
        assert self.current is not None
        key = order(self.current.directory)
        if self._last is not None and key < self._last:
            raise DecodeError("observed.db: directories are out of order")
        self._last = key
        return key


class Writer:
    """Writes a new observed.db beside the old one; nothing is written as long as nothing differs.

    Flash wears by the byte: an unchanged sweep leaves `started` False, and the old file stays.
    """

    def __init__(self, out: BinaryIO, plan: bytes, old: BinaryIO | None) -> None:
        self._out = out
        self._plan = plan
        self._old = old
        self.started = False
        self.directories = 0
        self.names = 0

    def keep(self, record: Record) -> None:
        """The directory is as it was."""
        self.directories += 1
        self.names += record.count
        if self.started:
            self._out.write(record.raw)

    def put(self, record: bytes, names: int, old_until: int) -> None:
        """A directory that differs. `old_until`: up to there the old file holds; only needed for the first one."""
        self.start(old_until)
        self.directories += 1
        self.names += names
        self._out.write(record)

    def start(self, old_until: int) -> None:
        """Something differs from here on (a directory that is gone differs, too)."""
        if self.started:
            return
        self.started = True
        self._out.write(MAGIC + self._plan)
        if self._old is None or not self.directories:
            return
        place = self._old.tell()
        self._old.seek(len(MAGIC) + PLAN)
        left = old_until - len(MAGIC) - PLAN
        while left > 0 and (chunk := self._old.read(min(1 << 20, left))):
            self._out.write(chunk)
            left -= len(chunk)
        self._old.seek(place)

    def close(self) -> None:
        if self.started:
            self._out.write(HEAD.pack(LAST, self.directories & 0xFFFFFFFF, self.names & 0xFFFFFFFF, 0))
            self._out.flush()
