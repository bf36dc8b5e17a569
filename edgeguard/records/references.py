"""Entries of a baseline's file manifest as numbers and back: entry n is the n-th path in the manifest's own order.

The device uses it to write a path as one small negative number, the collector to read it. Both need the very same
manifest, so a device only does it once a receipt has named that manifest's id.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import NamedTuple

from edgeguard.codec.manifest import Reader
from edgeguard.errors import DecodeError
from edgeguard.records.outbox import O_READ

ID_SIZE = 8  # bytes of the manifest's SHA-256
SUFFIX = ".egm"
_KEPT = 64  # directories whose names are remembered: events come in bunches


def manifest_id(file: str) -> bytes | None:
    """The id of the manifest in a file called by its SHA-256; None for any other file."""
    digits, dot, suffix = file.rpartition("/")[2].partition(".")
    if dot + suffix != SUFFIX or len(digits) != 64:
        return None
    try:
        return bytes.fromhex(digits)[:ID_SIZE]
    except ValueError:
        return None


class _Names(NamedTuple):
    """One directory."""

    names: list[bytes]
    digests: list[bytes]  # b"" where there is none
    places: dict[bytes, int]


class Places:
    """One manifest, open. Keeps a name and a number for each directory, and little else."""

    def __init__(self, path: str) -> None:
        """Raises OSError or DecodeError."""
        self._fd = os.open(path, O_READ)
        try:
            self._reader = Reader(self._fd)
            self._directories: list[bytes] = []
            self._firsts: list[int] = []
            count = 0
            for directory, entries in self._reader.counts():
                self._directories.append(directory)
                self._firsts.append(count)
                count += entries
            self._count = count
        except BaseException:
            os.close(self._fd)
            raise
        self._numbers = {directory: number for number, directory in enumerate(self._directories)}
        self._names: dict[int, _Names] = {}

    def close(self) -> None:
        os.close(self._fd)

    def reference(self, text: str) -> int | None:
        """The number of a path, None if the manifest does not hold it."""
        if not text.startswith("/"):
            return None
        try:
            directory, _, name = os.fsencode(text).rpartition(b"/")
        except UnicodeEncodeError:
            return None
        number = self._numbers.get(directory)
        if number is None:
            return None
        place = self._names_of(number).places.get(name)
        return None if place is None else self._firsts[number] + place

    def resolve(self, index: int) -> str | None:
        """The path of a number, None if there is none."""
        found = self._at(index)
        if found is None:
            return None
        number, place = found
        return os.fsdecode(self._directories[number] + b"/" + self._names_of(number).names[place])

    def digest(self, index: int) -> bytes | None:
        """The digest of what is in the file of this number, of the kind that the manifest has; None if it has none."""
        found = self._at(index)
        return self._names_of(found[0]).digests[found[1]] or None if found else None

    def _at(self, index: int) -> tuple[int, int] | None:
        """(directory, place in it)."""
        if not 0 <= index < self._count:
            return None
        number = bisect_right(self._firsts, index) - 1
        place = index - self._firsts[number]
        return (number, place) if place < len(self._names_of(number).names) else None

    def _names_of(self, number: int) -> _Names:
        names = self._names.get(number)
        if names is None:
            try:
                block = next(self._reader.blocks(number))
                digests = [entry.digest for entry in block.entries]
                names = _Names(block.names, digests, {name: place for place, name in enumerate(block.names)})
            except DecodeError:  # damaged since it was opened: its paths are written out, nothing stops
                names = _Names([], [], {})
            if len(self._names) >= _KEPT:
                self._names.pop(next(iter(self._names)))
            self._names[number] = names
        return names
