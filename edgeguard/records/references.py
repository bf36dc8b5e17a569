"""Entries of a baseline's file manifest as numbers and back: entry n is the n-th path in the manifest's own order.

The device uses it to write a path as one small negative number, the collector to read it. Both need the very same
manifest, so a device only does it once a receipt has named that manifest's id.
"""

from __future__ import annotations

import os
from bisect import bisect_right

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
        self._names: dict[int, list[bytes]] = {}

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
        names = self._names_of(number)
        return self._firsts[number] + names.index(name) if name in names else None

    def resolve(self, index: int) -> str | None:
        """The path of a number, None if there is none."""
        if not 0 <= index < self._count:
            return None
        number = bisect_right(self._firsts, index) - 1
        names, place = self._names_of(number), index - self._firsts[number]
        return os.fsdecode(self._directories[number] + b"/" + names[place]) if place < len(names) else None

    def _names_of(self, number: int) -> list[bytes]:
        names = self._names.get(number)
        if names is None:
            try:
                names = next(self._reader.blocks(number)).names
            except DecodeError:  # damaged since it was opened: its paths are written out, nothing stops
                names = []
            if len(self._names) >= _KEPT:
                self._names.pop(next(iter(self._names)))
            self._names[number] = names
        return names
