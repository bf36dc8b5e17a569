"""The file manifest: the reference values of tens of thousands of files, as bytes, one block per directory.

Here are the layout, a streaming writer and a strict reader. What a file looks like is found elsewhere (sensors), and
whether a manifest may be trusted too: the signed baseline pins its SHA-256 and size.

A resident daemon must look up one path among 100,000 without holding any of them. So blocks lie in walk order (paths
compared component by component), an index of offsets comes last, and a lookup is a binary search with `pread`, then
a few more reads inside one block. Nothing is kept in memory but the descriptor. All integers are little-endian:

    "EGMANIF1"
    block*    u16 len(directory), u32 entries, u32 len(names), u32 digests, u32 len(extras)
              directory ("" is /), names joined by NUL, one byte an entry (1: has a digest),
              20 bytes an entry (u16 st_mode, u8 category, u8 has extras, u32 uid, u32 gid, u64 size),
              32 bytes a digest, extras (u32 entry, three u16 lengths, symlink target, capability, xattrs)
    u64*      offset of each block
    text*     u8 length + UTF-8: the names of the categories
    trailer   u32 directories, u64 entries, u64 offset of the index, u16 categories, u8 version,
              u8 digest of contents (0: SHA-256, 1: BLAKE2b of 32 bytes), "EGMEND01"
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from struct import Struct, error
from typing import BinaryIO, NamedTuple

from edgeguard.codec.digests import NUMBERS, Algorithm, numbered
from edgeguard.codec.sha import of_file
from edgeguard.errors import DecodeError
from edgeguard.model import Value

MAGIC = b"EGMANIF1"
END = b"EGMEND01"
VERSION = 1
SIZE_MAX = 1 << 30  # bytes of a manifest: ten million files; more is not a device of ours
BLOCK_MAX = 256 << 20  # bytes of one directory's block: two million files in one directory
NAMES_MAX = 1 << 20  # entries of one directory
PATH_MAX = 4096  # bytes, the kernel's PATH_MAX: a longer path cannot be opened by name
TARGET_MAX = 4096  # bytes of a symlink's target (PATH_MAX)
CAPS_MAX = 64  # bytes; the kernel's largest security.capability (revision 3) has 24
CATEGORIES_MAX = 255  # a policy has about twelve

PLACES = 512  # offsets read at once
SIGNPOST_STEPS = 6  # of a search, remembered: half of the reads of a lookup for 20 KB

HEAD = Struct("<HIIII")
ATTRIBUTES = Struct("<HBBIIQ")
CATEGORY, RARE = 2, 3  # where these bytes are in it
EXTRA = Struct("<IHHH")
OFFSET = Struct("<Q")
TRAILER = Struct("<IQQHBB8s")
DIGEST = 32

TYPES = {0o1: "fifo", 0o2: "char", 0o4: "directory", 0o6: "block", 0o10: "file", 0o12: "symlink", 0o14: "socket"}
"""File type bits of st_mode, shifted right by 12, and our word for them."""


class Entry(NamedTuple):
    """What is known of one file. `st_mode` holds type and permissions as the kernel gives them."""

    st_mode: int
    uid: int
    gid: int
    size: int  # bytes of a regular file whose content is watched, else 0
    category: str
    digest: bytes = b""  # of the content, 32 bytes; b"" where none was read. Which one says the manifest
    target: bytes = b""  # of a symlink
    caps: bytes = b""  # raw security.capability
    xattrs: bytes = b""  # SHA-256 over the other extended attributes, b"" where there are none

    @property
    def type(self) -> str:
        return TYPES.get(self.st_mode >> 12, "unknown")

    @property
    def setid(self) -> bool:
        """Does a regular file run with other rights than its caller's?"""
        return self.st_mode >> 12 == 0o10 and bool(self.st_mode & 0o6000 or self.caps)

    def columns(self, algorithm: Algorithm) -> dict[str, Value]:
        """The reference columns of kind "file". The digest bears the name of what it is, and no other is there: a rule
        that asks for another one is undecided, never fulfilled."""
        return {
            "type": self.type,
            algorithm.value: self.digest or None,
            "size": self.size,
            "mode": self.st_mode & 0o7777,
            "uid": self.uid,
            "gid": self.gid,
            "target": os.fsdecode(self.target),
            "caps": self.caps.hex(),
            "xattrs": self.xattrs,
        }


entry_of: Callable[[tuple[int, int, int, int, str, bytes, bytes, bytes, bytes]], Entry] = partial(tuple.__new__, Entry)
"""An Entry of all its fields, made three times as fast; for those that come by the thousand."""


def order(directory: bytes) -> bytes:
    """The sort key of walk order: component by component, so that a directory is followed by what is below it."""
    return directory.replace(b"/", b"\0")


def split(path: bytes) -> tuple[bytes, bytes]:
    """(directory, name) of an absolute path; the root directory itself has no entry."""
    directory, _, name = path.rpartition(b"/")
    return directory, name


class Block(NamedTuple):
    """One directory: names and entries in the same order."""

    directory: bytes
    names: list[bytes]
    entries: list[Entry]


class Packed(NamedTuple):
    """One directory as it is stored: for most questions it need not be taken apart."""

    directory: bytes
    raw: bytes
    categories: Sequence[str]

    def block(self) -> Block:
        """Raises DecodeError."""
        return decode_block(self.raw, self.categories)

    def says(self, plain: bytes) -> bool:
        """Is this the very block `plain`, whatever the categories? Raises DecodeError."""
        layout = Layout.of(self.raw[: HEAD.size])
        if max(self.raw[layout.attributes + CATEGORY : layout.digests : ATTRIBUTES.size]) >= len(self.categories):
            raise DecodeError("manifest: attributes are damaged")
        return without_categories(self.raw) == plain


class Categories:
    """Names of categories by small number, in the order in which they turned up."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = list(names)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
            if number >= CATEGORIES_MAX or len(name.encode()) > 255:
                raise ValueError(f"too many categories or too long a name: {name!r}")
        return number

    def encode(self) -> bytes:
        raw = [name.encode() for name in self.names]
        return b"".join(bytes((len(name),)) + name for name in raw)


def encode_block(directory: bytes, names: Sequence[bytes], entries: Sequence[Entry], categories: Categories) -> bytes:
    """The bytes of one directory's block. Names must be unique, free of NUL and not empty."""
    joined = b"\0".join(names)
    number = {name: categories.number(name) for name in dict.fromkeys([entry[4] for entry in entries])}
    pack = ATTRIBUTES.pack
    # Twice for each of 100,000 files of a first learn, hence without names and calls.
    attributes = b"".join(
        [
            pack(mode, number[category], 1 if target or caps or xattrs else 0, uid, gid, size)
            for mode, uid, gid, size, category, _, target, caps, xattrs in entries
        ]
    )
    sums = [entry[5] for entry in entries]
    digests = b"".join(sums)
    marks = bytes(map(bool, sums))
    extras = b"".join(
        [extra_of(at, entry) for at, entry in enumerate(entries) if attributes[ATTRIBUTES.size * at + RARE]]
        if any(attributes[RARE :: ATTRIBUTES.size])
        else ()
    )
    head = HEAD.pack(len(directory), len(entries), len(joined), len(digests) // DIGEST, len(extras))
    return b"".join((head, directory, joined, marks, attributes, digests, extras))


def assembled(
    directory: bytes, names: Sequence[bytes], digests: Sequence[bytes], attributes: bytes, extras: bytes
) -> bytes:
    """A block of its parts: a digest or b"" for each name, the attributes of all, and what `extra_of` gives of those
    that have the mark for it."""
    joined, sums = b"\0".join(names), b"".join(digests)
    head = HEAD.pack(len(directory), len(names), len(joined), len(sums) // DIGEST, len(extras))
    return b"".join((head, directory, joined, bytes(map(bool, digests)), attributes, sums, extras))


def extra_of(position: int, entry: Entry) -> bytes:
    """What a block has of an entry beside its attributes; b"" for nothing."""
    _, _, _, _, _, _, target, caps, xattrs = entry
    if not (target or caps or xattrs):
        return b""
    return EXTRA.pack(position, len(target), len(caps), len(xattrs)) + target + caps + xattrs


def without_categories(block: bytes) -> bytes:
    """The same block with the first category for all: what it says of the files, whatever the policy calls them."""
    layout = Layout.of(block[: HEAD.size])
    plain = bytearray(block)
    plain[layout.attributes + CATEGORY : layout.digests : ATTRIBUTES.size] = bytes(layout.entries)
    return bytes(plain)


def decode_block(data: bytes, categories: Sequence[str]) -> Block:
    """A whole block, strictly: every length agrees, nothing is left over."""
    layout = Layout.of(data[: HEAD.size])
    if len(data) != layout.end:
        raise DecodeError("manifest: a block's length disagrees with its head")
    directory = data[HEAD.size : layout.names]
    _check_directory(directory)
    names = data[layout.names : layout.marks].split(b"\0")
    if len(names) != layout.entries or not all(names) or len(set(names)) != len(names):
        raise DecodeError("manifest: names of a directory are damaged")
    if any(b"/" in name or len(name) > 255 for name in names):
        raise DecodeError("manifest: a name is not a file name")
    marks = data[layout.marks : layout.attributes]
    if marks.count(1) != layout.digests_count or marks.count(0) + marks.count(1) != layout.entries:
        raise DecodeError("manifest: digest marks of a directory are damaged")
    extras = dict(_extras(data[layout.extras : layout.end], layout.entries))
    entries = []
    digest = layout.digests
    for position, raw in enumerate(ATTRIBUTES.iter_unpack(data[layout.attributes : layout.digests])):
        value = b""
        if marks[position]:
            value = data[digest : digest + DIGEST]
            digest += DIGEST
        entries.append(_entry(raw, value, extras.pop(position, None), categories))
    if extras:
        raise DecodeError("manifest: an extra belongs to no entry")
    return Block(directory, names, entries)


class Layout(NamedTuple):
    """Where the parts of a block begin, relative to it."""

    entries: int
    digests_count: int
    names: int
    marks: int
    attributes: int
    digests: int
    extras: int
    end: int

    @classmethod
    def of(cls, head: bytes) -> Layout:
        if len(head) != HEAD.size:
            raise DecodeError("manifest: truncated")
        length, count, names_length, digests_count, extras_length = HEAD.unpack(head)
        if not 0 < count <= NAMES_MAX or digests_count > count or length >= PATH_MAX:
            raise DecodeError("manifest: a block's head is out of bounds")
        if not 2 * count - 1 <= names_length <= 256 * count:
            raise DecodeError("manifest: a block's names are out of bounds")
        names = HEAD.size + length
        marks = names + names_length
        attributes = marks + count
        digests = attributes + ATTRIBUTES.size * count
        extras = digests + DIGEST * digests_count
        end = extras + extras_length
        if end > BLOCK_MAX:
            raise DecodeError("manifest: a block is too large")
        return cls(count, digests_count, names, marks, attributes, digests, extras, end)


def _check_directory(directory: bytes) -> None:
    if directory and (directory[:1] != b"/" or directory[-1:] == b"/" or b"\0" in directory or b"//" in directory):
        raise DecodeError("manifest: a directory is not an absolute path")


def _extras(data: bytes, count: int) -> Iterator[tuple[int, tuple[bytes, bytes, bytes]]]:
    """(position, (target, caps, xattrs)) in ascending order of position."""
    offset, last = 0, -1
    while offset < len(data):
        try:
            position, target, caps, xattrs = EXTRA.unpack_from(data, offset)
        except error as short:
            raise DecodeError("manifest: extras are truncated") from short
        first = offset + EXTRA.size
        offset = first + target + caps + xattrs
        fits = target <= TARGET_MAX and caps <= CAPS_MAX and xattrs in {0, DIGEST}
        if not fits or offset > len(data) or not last < position < count or not target + caps + xattrs:
            raise DecodeError("manifest: extras are damaged")
        last = position
        after = first + target
        yield position, (data[first:after], data[after : after + caps], data[after + caps : offset])


def _entry(
    raw: tuple[int, ...], value: bytes, extra: tuple[bytes, bytes, bytes] | None, categories: Sequence[str]
) -> Entry:
    mode, category, rare, uid, gid, size = raw
    if mode >> 12 not in TYPES or category >= len(categories) or rare > 1 or rare != (extra is not None):
        raise DecodeError("manifest: attributes are damaged")
    return Entry(mode, uid, gid, size, categories[category], value, *(extra or (b"", b"", b"")))


class Writer:
    """Writes a manifest as a stream, keeping 8 bytes a directory. `close()` completes it; the caller syncs it."""

    def __init__(self, out: BinaryIO, algorithm: Algorithm = Algorithm.SHA256) -> None:
        self._out = out
        self._algorithm = algorithm
        self._offsets = array("Q")
        self._categories = Categories()
        self._last: bytes | None = None
        self._position = len(MAGIC)
        self.entries = 0
        out.write(MAGIC)

    def add(self, directory: bytes, names: Sequence[bytes], entries: Sequence[Entry]) -> bytes:
        """One directory, in walk order; its block. One without entries leaves no trace."""
        if not entries:
            return b""
        block = encode_block(directory, names, entries, self._categories)
        self._write(directory, block, len(entries))
        return block

    def put(self, directory: bytes, plain: bytes, entries: int, category: str) -> None:
        """One directory, in walk order, as a block without categories; all in it are of this one."""
        number = self._categories.number(category)
        if number:
            layout, block = Layout.of(plain[: HEAD.size]), bytearray(plain)
            block[layout.attributes + CATEGORY : layout.digests : ATTRIBUTES.size] = bytes((number,)) * entries
            plain = bytes(block)
        self._write(directory, plain, entries)

    def _write(self, directory: bytes, block: bytes, entries: int) -> None:
        key = order(directory)
        if self._last is not None and key <= self._last:
            raise ValueError("directories must come in walk order")
        self._last = key
        self._offsets.append(self._position)
        self._out.write(block)
        self._position += len(block)
        self.entries += entries

    def close(self) -> None:
        index = b"".join(OFFSET.pack(offset) for offset in self._offsets)
        names = self._categories.encode()
        counts = (len(self._offsets), self.entries, self._position, len(self._categories.names))
        self._out.write(index + names + TRAILER.pack(*counts, VERSION, NUMBERS.index(self._algorithm), END))
        self._out.flush()


class Reader:
    """Looks into a manifest through its descriptor, remembering some sixty directories. Damage met is a DecodeError.

    The descriptor stays the caller's. `pread`, not a mapping: a truncated file gives an error, not SIGBUS.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        size = os.fstat(fd).st_size
        if not len(MAGIC) + TRAILER.size <= size <= SIZE_MAX:
            raise DecodeError("manifest: its size is out of bounds")
        if self._at(0, len(MAGIC)) != MAGIC:
            raise DecodeError("manifest: not a manifest")
        trailer, self.algorithm = _trailer(self._at(size - TRAILER.size, TRAILER.size))
        self.directories_count, self.count, self._index, categories = trailer
        names = self._index + OFFSET.size * self.directories_count
        length = size - TRAILER.size - names
        if self._index < len(MAGIC) or not 0 <= length <= 256 * CATEGORIES_MAX:
            raise DecodeError("manifest: its trailer is damaged")
        self.categories = _categories(self._at(names, length), categories)
        self._signposts: dict[int, tuple[bytes, int, Layout]] = {}  # where every search begins: 63 directories
        self._latest: tuple[bytes, tuple[int, Layout] | None] = (b"\0", None)  # events come in bunches a directory

    def lookup(self, path: bytes) -> Entry | None:
        """The reference value of an absolute path, None if there is none."""
        directory, name = split(path)
        found = self._find(directory)
        if found is None or not name:
            return None
        start, layout = found
        names = b"\0" + self._at(start + layout.names, layout.marks - layout.names) + b"\0"
        at = names.find(b"\0" + name + b"\0")
        if at < 0 or b"\0" in name:
            return None
        return self._entry_at(start, layout, names.count(0, 0, at))

    def has_directory(self, directory: bytes) -> bool:
        """Is anything directly in this directory known?"""
        return self._find(directory) is not None

    def block(self, directory: bytes) -> Block | None:
        """All of one directory, None if nothing in it is known."""
        found = self._find(directory)
        if found is None:
            return None
        start, layout = found
        return decode_block(self._at(start, layout.end), self.categories)

    def blocks(self, first: int = 0) -> Iterator[Block]:
        """All directories in walk order, from the `first`-th on, checked as a whole."""
        return (packed.block() for packed in self.packed(first))

    def packed(self, first: int = 0) -> Iterator[Packed]:
        """All directories in walk order, from the `first`-th on, as they are stored: each in its place and as long as
        it says, no more is checked."""
        last: bytes | None = None
        for start, stop in self._places(first):
            if not 0 < stop - start <= BLOCK_MAX:
                raise DecodeError("manifest: the index disagrees with the blocks")
            raw = self._at(start, stop - start)
            layout = Layout.of(raw[: HEAD.size])
            if layout.end != len(raw):
                raise DecodeError("manifest: the index disagrees with the blocks")
            directory = raw[HEAD.size : layout.names]
            key = order(directory)
            if last is not None and key <= last:
                raise DecodeError("manifest: directories are out of order")
            last = key
            yield Packed(directory, raw, self.categories)

    def _places(self, first: int) -> Iterator[tuple[int, int]]:
        """(start, end) of each block, from the `first`-th on, by some hundred in one reading."""
        before = self._offset(first) if first < self.directories_count else 0
        for number in range(first + 1, self.directories_count, PLACES):
            count = min(PLACES, self.directories_count - number)
            for (start,) in OFFSET.iter_unpack(self._at(self._index + OFFSET.size * number, OFFSET.size * count)):
                if not len(MAGIC) <= start < self._index:
                    raise DecodeError("manifest: the index is damaged")
                yield before, start
                before = start
        if first < self.directories_count:
            yield before, self._index

    def directories(self) -> Iterator[bytes]:
        """The paths of all directories that hold entries, in walk order."""
        for number in range(self.directories_count):
            yield self._directory(number)[0]

    def counts(self) -> Iterator[tuple[bytes, int]]:
        """Each directory that holds entries, in walk order, and how many: what numbers entries from start to end."""
        for number in range(self.directories_count):
            directory, _, layout = self._directory(number)
            yield directory, layout.entries

    def tree(self, path: bytes) -> Iterator[Block]:
        """The directory `path` and all directories below it, in walk order ("" is everything)."""
        return (packed.block() for packed in self.packed_tree(path))

    def packed_tree(self, path: bytes) -> Iterator[Packed]:
        """The same as it is stored."""
        for packed in self.packed(self._bisect(order(path))):
            if packed.directory != path and not packed.directory.startswith(path + b"/"):
                return
            yield packed

    def below(self, path: bytes) -> Iterator[tuple[bytes, Entry]]:
        """Everything in the tree `path`, without `path` itself."""
        for block in self.tree(path):
            for name, entry in zip(block.names, block.entries, strict=True):
                yield block.directory + b"/" + name, entry

    def verify(self) -> None:
        """Read everything once: afterwards, no lookup can fail."""
        entries = sum(len(block.names) for block in self.blocks())
        first = self._offset(0) if self.directories_count else self._index
        if entries != self.count or first != len(MAGIC):
            raise DecodeError("manifest: its trailer disagrees with the blocks")

    def _at(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) != length:
            raise DecodeError("manifest: truncated")
        return data

    def _offset(self, number: int) -> int:
        (offset,) = OFFSET.unpack(self._at(self._index + OFFSET.size * number, OFFSET.size))
        if not len(MAGIC) <= offset < self._index:
            raise DecodeError("manifest: the index is damaged")
        return int(offset)

    def _directory(self, number: int) -> tuple[bytes, int, Layout]:
        start = self._offset(number)
        # One read for head and path: nearly all paths are shorter than this, and the search meets 13 of them.
        raw = os.pread(self._fd, HEAD.size + 200, start)
        layout = Layout.of(raw[: HEAD.size])
        if start + layout.end > self._index:
            raise DecodeError("manifest: a block reaches into the index")
        if layout.names > len(raw):
            raw = self._at(start, layout.names)
        return raw[HEAD.size : layout.names], start, layout

    def _bisect(self, key: bytes) -> int:
        low, high, step = 0, self.directories_count, 0
        while low < high:
            middle = (low + high) // 2
            found = self._signposts.get(middle)
            if found is None:
                found = self._directory(middle)
                if step < SIGNPOST_STEPS:
                    self._signposts[middle] = found
            if order(found[0]) < key:
                low = middle + 1
            else:
                high = middle
            step += 1
        return low

    def _find(self, directory: bytes) -> tuple[int, Layout] | None:
        if self._latest[0] != directory:
            self._latest = (directory, self._search(directory))
        return self._latest[1]

    def _search(self, directory: bytes) -> tuple[int, Layout] | None:
        number = self._bisect(order(directory))
        if number == self.directories_count:
            return None
        found, start, layout = self._directory(number)
        return (start, layout) if found == directory else None

    def _entry_at(self, start: int, layout: Layout, position: int) -> Entry:
        if position >= layout.entries:
            raise DecodeError("manifest: names of a directory are damaged")
        raw = ATTRIBUTES.unpack(self._at(start + layout.attributes + ATTRIBUTES.size * position, ATTRIBUTES.size))
        marks = self._at(start + layout.marks, position + 1)
        value = b""
        if marks[position]:
            ordinal = marks.count(1, 0, position)
            if ordinal >= layout.digests_count:
                raise DecodeError("manifest: digest marks of a directory are damaged")
            value = self._at(start + layout.digests + DIGEST * ordinal, DIGEST)
        extra = None
        if raw[2]:
            data = self._at(start + layout.extras, layout.end - layout.extras)
            extra = next((value for at, value in _extras(data, layout.entries) if at == position), None)
        return _entry(raw, value, extra, self.categories)


def algorithm_in(data: bytes) -> Algorithm:
    """Of the digests in these bytes of a manifest. Raises DecodeError for what is none that can be read here."""
    if data[: len(MAGIC)] != MAGIC or len(data) < len(MAGIC) + TRAILER.size:
        raise DecodeError("manifest: not a manifest")
    return _trailer(data[-TRAILER.size :])[1]


def _trailer(raw: bytes) -> tuple[tuple[int, int, int, int], Algorithm]:
    directories, entries, index, categories, version, number, end = TRAILER.unpack(raw)
    if end != END or version != VERSION:
        raise DecodeError("manifest: truncated, or of another version")
    return (directories, entries, index, categories), numbered(number)


def digest(fd: int) -> bytes:
    """SHA-256 of the whole file, for comparison with what the signed baseline says."""
    return of_file(fd)


def _categories(data: bytes, count: int) -> tuple[str, ...]:
    names, offset = [], 0
    try:
        while offset < len(data):
            end = offset + 1 + data[offset]
            if end > len(data):
                raise DecodeError("manifest: categories are truncated")
            names.append(data[offset + 1 : end].decode())
            offset = end
    except UnicodeDecodeError as undecodable:
        raise DecodeError("manifest: a category is not text") from undecodable
    if len(names) != count or len(set(names)) != count:
        raise DecodeError("manifest: categories are damaged")
    return tuple(names)
