"""observed.db: what the last sweep saw, so that an unchanged directory costs one comparison of bytes.

A local cache, never a reference: damage only means that everything is read again. Records lie in walk order, one a
directory, and are read as a stream beside the walk:

    "EGOBSRV2" (with digests by BLAKE2b "EGOBSRB2"), 32 bytes that identify the watches
    record*   u16 len(directory), u32 names, u32 len(names), u32 len(block)
              directory, 16 bytes that identify its listing, names joined by NUL,
              24 bytes a name (u64 inode, i64 ctime ns, u64 size),
              the subjects among them as a block of the file manifest (without categories)
    end       u16 65535, u32 directories, u32 names, u32 0

A look that may not be relied on (the file was just changed, or unreadable) is stored with a ctime that no file has.
The listing is BLAKE2b over what the kernel listed, where the names are all of that and no others; else zeros. In the
first version of the format there was none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import BinaryIO

from edgeguard.codec import manifest
from edgeguard.codec.digests import Algorithm
from edgeguard.codec.manifest import (
    ATTRIBUTES,
    BLOCK_MAX,
    NAMES_MAX,
    PATH_MAX,
    Categories,
    Entry,
    Layout,
    decode_block,
    encode_block,
    order,
    without_categories,
)
from edgeguard.errors import DecodeError

MAGIC = b"EGOBSRV2"
UNLISTED_MAGIC = b"EGOBSRV1"
MAGICS = {Algorithm.SHA256: MAGIC, Algorithm.BLAKE2B: b"EGOBSRB2"}
MEANINGS = {MAGIC: Algorithm.SHA256, UNLISTED_MAGIC: Algorithm.SHA256, MAGICS[Algorithm.BLAKE2B]: Algorithm.BLAKE2B}
HEAD = Struct("<HIII")
STAT = Struct("<QqQ")
PLAN = 32
LAST = 0xFFFF
UNSURE = -(1 << 62)  # a ctime before the universe: such a look is repeated
NO_CATEGORY = ("",)
LISTING = 16
NO_LISTING = bytes(LISTING)  # of a directory of which not all names are here; no directory has it
CHUNK = 1 << 15  # bytes a read: a record has up to some 10,000


class Record:
    """One directory as it was seen. The subjects are only decoded where something differs."""

    __slots__ = ("_block", "_chunk", "_names", "_stats", "count", "directory", "end", "listing", "start")

    def __init__(self, start: int, chunk: bytes, at: int, head: tuple[int, int, int, int], listed: bool) -> None:
        """`start`: offset in the file; the record's body lies in `chunk` from `at` on."""
        length, self.count, names, block = head
        self.start = start
        self.directory = chunk[at : at + length]
        at += length
        self.listing = chunk[at : at + LISTING] if listed else NO_LISTING
        self._chunk = chunk
        self._names = at + LISTING if listed else at
        self._stats = self._names + names
        self._block = self._stats + STAT.size * self.count
        self.end = self._block + block

    @property
    def raw(self) -> bytes:
        head = HEAD.pack(len(self.directory), self.count, self._stats - self._names, self.end - self._block)
        return b"".join((head, self.directory, self.listing, self._chunk[self._names : self.end]))

    @property
    def joined(self) -> bytes:
        """The names, joined by NUL."""
        return self._chunk[self._names : self._stats]

    @property
    def stats(self) -> bytes:
        """Packed, of all names."""
        return self._chunk[self._stats : self._block]

    @property
    def block(self) -> bytes:
        """The subjects as a block of a manifest without categories; b"" for none."""
        return self._chunk[self._block : self.end]

    def regular(self) -> list[bool] | None:
        """Which names are regular files; None where not all of them are subjects. Raises DecodeError."""
        block = self.block
        layout = Layout.of(block[: manifest.HEAD.size])
        if (
            layout.entries != self.count
            or layout.end != len(block)
            or block[layout.names : layout.marks] != self.joined
        ):
            return None
        return [kind >> 4 == 0o10 for kind in block[layout.attributes + 1 : layout.digests : ATTRIBUTES.size]]

    def inodes(self) -> Iterator[tuple[bytes, int]]:
        """(path, inode) of all names."""
        for name, (inode, _, _) in zip(self.joined.split(b"\0"), STAT.iter_unpack(self.stats), strict=False):
            yield self.directory + b"/" + name, inode

    def looks(self) -> dict[bytes, tuple[bytes, Entry | None]]:
        """name -> (packed stat, entry if it is a subject). Raises DecodeError."""
        names, stats = self.joined.split(b"\0"), self.stats
        if len(names) != self.count or len(set(names)) != self.count:
            raise DecodeError("observed.db: names of a directory are damaged")
        subjects: dict[bytes, Entry] = {}
        if self._block < self.end:
            block = decode_block(self.block, NO_CATEGORY)
            subjects = dict(zip(block.names, block.entries, strict=True))
            if not subjects.keys() <= set(names):
                raise DecodeError("observed.db: a subject has no name")
        return {
            name: (stats[STAT.size * at : STAT.size * (at + 1)], subjects.get(name)) for at, name in enumerate(names)
        }


def encode(directory: bytes, names: Sequence[bytes], stats: bytes, block: bytes, listing: bytes = NO_LISTING) -> bytes:
    """The bytes of one record. `block`: see `block_of`."""
    return joined(directory, b"\0".join(names), stats, block, listing)


def joined(directory: bytes, names: bytes, stats: bytes, block: bytes, listing: bytes) -> bytes:
    """The same, of names that are joined already."""
    head = HEAD.pack(len(directory), len(stats) // STAT.size, len(names), len(block))
    return b"".join((head, directory, listing, names, stats, block))


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
        self._chunk = b""
        self._at = 0
        head = self._take(len(MAGIC) + PLAN)
        magic = self._chunk[head : head + len(MAGIC)]
        if magic not in MEANINGS:
            raise DecodeError("observed.db: not such a file")
        self.algorithm = MEANINGS[magic]
        self.listed = magic != UNLISTED_MAGIC
        self.plan = self._chunk[len(MAGIC) : len(MAGIC) + PLAN]
        self.offset = len(MAGIC) + PLAN
        self.directories = 0
        self.names = 0
        self._last: bytes | None = None
        self.current: Record | None = None
        self.advance()

    def _take(self, size: int) -> int:
        """Where the next `size` bytes begin in the chunk. Raises DecodeError where the file ends before."""
        at = self._at
        if at + size > len(self._chunk):
            self._chunk = self._chunk[at:] + self._file.read(max(CHUNK, size))
            at = 0
            if size > len(self._chunk):
                raise DecodeError("observed.db: truncated")
        self._at = at + size
        return at

    def advance(self) -> None:
        """Take the current record. Raises DecodeError where the next is damaged or the end is missing."""
        start = self.offset
        at = self._take(HEAD.size)
        head = length, count, names, block = HEAD.unpack_from(self._chunk, at)
        if length == LAST:
            if (count, names) != (self.directories & 0xFFFFFFFF, self.names & 0xFFFFFFFF):
                raise DecodeError("observed.db: its end disagrees with its records")
            self.current = None
            return
        size = length + (LISTING if self.listed else 0) + names + STAT.size * count + block
        if length >= PATH_MAX or not 0 < count <= NAMES_MAX or size > BLOCK_MAX or names > 256 * count:
            raise DecodeError("observed.db: a record is out of bounds")
        at = self._take(size)
        self.offset = start + HEAD.size + size
        self.directories += 1
        self.names += count
        self.current = Record(start, self._chunk, at, head, self.listed)

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

    def __init__(
        self, out: BinaryIO, plan: bytes, old: BinaryIO | None, algorithm: Algorithm = Algorithm.SHA256
    ) -> None:
        self._magic = MAGICS[algorithm]
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
        self._out.write(self._magic + self._plan)
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
