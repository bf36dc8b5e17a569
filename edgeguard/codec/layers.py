"""A file manifest over another one: what packages brought since the baseline was signed lies over what was signed.

The upper one may also say that a path is gone. To whoever asks, both look like one manifest; nothing is copied or held
in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge

from edgeguard.codec.manifest import Block, Categories, Entry, Packed, Reader, encode_block, order
from edgeguard.errors import DecodeError

GONE = "gone"  # category of an upper entry whose path shall not be there; no policy has it
ABSENT = Entry(0o010000, 0, 0, 0, GONE)


class Layers:
    """What `Reader` offers, of two. Damage met in either is a DecodeError."""

    def __init__(self, base: Reader | None, top: Reader) -> None:
        """Raises DecodeError where the two have digests of different kinds: nothing would be as it should."""
        if base is not None and base.algorithm is not top.algorithm:
            raise DecodeError(f"manifest: {top.algorithm.label} was laid over {base.algorithm.label}")
        self.algorithm = top.algorithm
        self._base = base
        self._top = top

    def lookup(self, path: bytes) -> Entry | None:
        """The reference value of an absolute path, None if there is none."""
        entry = self._top.lookup(path)
        if entry is not None:
            return None if entry.category == GONE else entry
        return self._base.lookup(path) if self._base is not None else None

    def went(self, path: bytes) -> bool:
        """Does the upper one say that this is gone?"""
        entry = self._top.lookup(path)
        return entry is not None and entry.category == GONE

    def decides(self, path: bytes) -> bool:
        """Does the upper one speak of this path?"""
        return self._top.lookup(path) is not None

    def block(self, directory: bytes) -> Block | None:
        """All of one directory, None if nothing in it is known."""
        base = self._base.block(directory) if self._base is not None else None
        top = self._top.block(directory)
        return next(self._joined([base] if base else [], [top] if top else []), None)

    def blocks(self) -> Iterator[Block]:
        """All directories in walk order."""
        return self._joined(self._base.blocks() if self._base is not None else (), self._top.blocks())

    def tree(self, path: bytes) -> Iterator[Block]:
        """The directory `path` and all directories below it, in walk order ("" is everything)."""
        return self._joined(self._base.tree(path) if self._base is not None else (), self._top.tree(path))

    def packed(self) -> Iterator[Packed]:
        """All directories in walk order, as they are stored."""
        return self._packed(self._base.packed() if self._base is not None else (), self._top.packed())

    def packed_tree(self, path: bytes) -> Iterator[Packed]:
        """Of these, the directory `path` and all directories below it ("" is everything)."""
        return self._packed(self._base.packed_tree(path) if self._base is not None else (), self._top.packed_tree(path))

    @classmethod
    def _packed(cls, base: Iterable[Packed], top: Iterable[Packed]) -> Iterator[Packed]:
        """Where the upper one says nothing of a directory it stays as it is; where it does, both are joined."""
        above = iter(top)
        over = next(above, None)
        for below in base:
            while over is not None and order(over.directory) < order(below.directory):
                yield from cls._repacked([], over)
                over = next(above, None)
            if over is not None and over.directory == below.directory:
                yield from cls._repacked([below.block()], over)
                over = next(above, None)
            else:
                yield below
        while over is not None:
            yield from cls._repacked([], over)
            over = next(above, None)

    @classmethod
    def _repacked(cls, base: Iterable[Block], top: Packed) -> Iterator[Packed]:
        for block in cls._joined(base, [top.block()]):
            # As in the files: sorted by name.
            entries = dict(sorted(zip(block.names, block.entries, strict=True)))
            categories = Categories()
            raw = encode_block(block.directory, list(entries), list(entries.values()), categories)
            yield Packed(block.directory, raw, tuple(categories.names))

    def below(self, path: bytes) -> Iterator[tuple[bytes, Entry]]:
        """Everything in the tree `path`, without `path` itself."""
        for block in self.tree(path):
            for name, entry in zip(block.names, block.entries, strict=True):
                yield block.directory + b"/" + name, entry

    @staticmethod
    def _joined(base: Iterable[Block], top: Iterable[Block]) -> Iterator[Block]:
        for directory, found in together(base, top):
            kept = {name: entry for name, entry in found.items() if entry.category != GONE}
            if kept:
                yield Block(directory, list(kept), list(kept.values()))


def together(*streams: Iterable[Block]) -> Iterator[tuple[bytes, dict[bytes, Entry]]]:
    """Streams of blocks in walk order, joined by directory; of two entries for one name, the later stream's counts."""
    numbered = [_numbered(number, stream) for number, stream in enumerate(streams)]
    directory: bytes | None = None
    found: dict[bytes, Entry] = {}
    for _, _, block in merge(*numbered, key=lambda item: item[:2]):
        if block.directory != directory:
            if directory is not None:
                yield directory, found
            directory, found = block.directory, {}
        found.update(zip(block.names, block.entries, strict=True))
    if directory is not None:
        yield directory, found


def _numbered(number: int, stream: Iterable[Block]) -> Iterator[tuple[bytes, int, Block]]:
    return ((order(block.directory), number, block) for block in stream)


Lookup = Reader | Layers
"""Whatever answers for reference values of files."""
