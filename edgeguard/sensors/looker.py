"""Looking at the files of one directory after the other while learning and sweeping, and carrying over what needs no
look. Which directories, and what comes of what is seen, is not known here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from stat import S_IFMT, S_IFREG
from typing import TYPE_CHECKING, NamedTuple

from edgeguard.codec import digests
from edgeguard.codec.digests import Algorithm
from edgeguard.codec.manifest import Entry, Packed, without_categories
from edgeguard.linux import statx
from edgeguard.linux.glance import Told
from edgeguard.model import ATTRIBUTES, Observation, Origin, Watch
from edgeguard.sensors import observed
from edgeguard.sensors.copies import kept
from edgeguard.sensors.look import CannotLook, Eye, Seen, is_subject, masked, present, unreadable
from edgeguard.sensors.observed import STAT, UNSURE, Record, same
from edgeguard.sensors.vault import Vault
from edgeguard.sensors.walk import Visit

if TYPE_CHECKING:
    from edgeguard.sensors.bulk import Bulk

RACY_NS = 2_000_000_000  # a file changed less than this before the look may change again within the same ctime tick
NOTES_MAX = 100  # lines kept in a summary; a broken disk could give one a file

Looks = dict[bytes, tuple[bytes, Entry | None]]


class Progress(NamedTuple):
    files: int
    bytes: int
    total_files: int
    total_bytes: int


class Summary:
    """What a sweep or learning did."""

    def __init__(self, *, written: bool = False, damaged: bool = False) -> None:
        self.files = 0  # names looked at
        self.subjects = 0
        self.directories = 0
        self.bytes_read = 0
        self.emitted = 0
        self.unreadable = 0
        self.protected = 0  # bytes of new protected copies
        self.written = written  # observed.db differs: the caller renames the new one into place
        self.damaged = damaged  # the old observed.db could not be read: everything was read again
        self.copies: set[str] = set()  # names of all that are to be kept
        self.notes: list[str] = []  # plain sentences: what has a limit
        self.skipped: list[tuple[str, str]] = []  # (mount point, why it was not entered)
        self.began = 0  # ns by the wall clock; 0 where the next sweep may not believe change times because of this one

    def note(self, line: str) -> None:
        if len(self.notes) < NOTES_MAX:
            self.notes.append(line)
        elif len(self.notes) == NOTES_MAX:
            self.notes.append("there are more notes than these")


class Looker:
    """Looks at the files of one directory after the other, and carries over what needs no look."""

    def __init__(
        self,
        summary: Summary,
        hash_file_max: int,
        vault: Vault | None,
        clock_ns: Callable[[], int],
        *,
        thorough: bool = False,
        cached: bool = False,
        algorithm: Algorithm = Algorithm.SHA256,
    ) -> None:
        """`cached`: what the page cache has as it was seen before, and as it should be, is not read from the disk."""
        self._summary = summary
        digester = digests.swift(algorithm)
        self._eye = Eye(hash_file_max, thorough=thorough, digester=digester)
        self._first = Eye(hash_file_max, digester=digester) if thorough and cached else None
        self._bulk: Bulk | None = None
        self._by_bulk = statx.BY_COLUMNS and (cached or not thorough)  # from the disk it is read file by file
        self._vault = vault
        self._clock_ns = clock_ns

    def directory(
        self, visit: Visit, old: Looks, reference: Mapping[bytes, Entry], *, reread: bool
    ) -> tuple[Looks, dict[bytes, str]]:
        """All names with packed stat and entry, and notes for some. `reread`: nothing is carried over."""
        looks: Looks = {}
        notes: dict[bytes, str] = {}
        summary = self._summary
        summary.directories += 1
        summary.files += len(visit.names)
        names = visit.joined.split(b"\0")
        stats = [visit.packed[at : at + STAT.size] for at in range(0, len(visit.packed), STAT.size)]
        entries: list[Entry | None] = []
        if visit.watch is not None and (reread or not old) and self._is_plain(visit.watch):
            settled = self._clock_ns() - RACY_NS
            eye = self._first or self._eye
            entries = eye.quick(visit.fd, visit.names, visit.stats, visit.watch.category, settled)
            if self._first is not None:
                entries = [
                    entry if _is_known(entry, old.get(name), reference.get(name)) else None
                    for name, entry in zip(names, entries, strict=True)
                ]
            looks = dict(zip(names, zip(stats, entries, strict=True), strict=True))
            if None not in entries:
                return self._done(looks), notes
        for at, name in enumerate(names):
            if entries and entries[at] is not None:
                continue
            watch = visit.watch or visit.watches[at]
            before = old.get(name)
            if before is not None and before[0] == stats[at] and not reread and _suffices(before[1], watch):
                entry = before[1]
                looks[name] = (stats[at], entry and entry._replace(category=watch.category))
                continue
            look = self._one(visit, at, name, watch, stats[at], notes, reference, before)
            if look is not None:
                looks[name] = look
            else:
                looks.pop(name, None)
        return self._done(looks), notes

    def recheck(self, fd: int, names: list[bytes], record: Record, reference: Packed | None, watch: Watch) -> bool:
        """Is all in the open directory that is read again as it was seen, and as it should be? Its `names`, inodes,
        sizes and change times are those of the record. No: look at it."""
        block = record.block
        if not self._by_bulk or not self._is_plain(watch) or not block:
            return False
        if reference is not None and not reference.says(block):
            return False  # before anything is read
        regular = record.regular()
        if regular is None:
            return False
        settled = self._clock_ns() - RACY_NS
        found = self._whole().block(fd, record.directory, names, record.stats, regular, watch, settled)
        self._count_bytes()
        if found != block:
            return False
        self._summary.subjects += record.count
        return True

    def learn(self, path: str, fd: int, names: list[bytes], told: Told, watch: Watch) -> bytes | None:
        """All in an open directory as a block without categories. None: look at it."""
        if not self._by_bulk or not self._is_plain(watch):
            return None
        regular = [kind >> 4 == 0o10 for kind in told.types]
        settled = self._clock_ns() - RACY_NS
        block = self._whole().block(fd, os.fsencode(path), names, told.stats, regular, watch, settled, told.device)
        self._count_bytes()
        if block is not None:
            self._summary.directories += 1
            self._summary.files += len(names)
            self._summary.subjects += len(names)
        return block

    def _whole(self) -> Bulk:
        if self._bulk is None:
            from edgeguard.sensors.bulk import Bulk  # an unchanged sweep needs none

            self._bulk = Bulk(self._first or self._eye)
        return self._bulk

    def _done(self, looks: Looks) -> Looks:
        self._summary.subjects += sum([entry is not None for _, entry in looks.values()])
        self._count_bytes()
        return looks

    def _count_bytes(self) -> None:
        self._summary.bytes_read = self._eye.bytes_read + (self._first.bytes_read if self._first is not None else 0)

    def _is_plain(self, watch: Watch) -> bool:
        """Is everything of its files looked at, content too, and nothing done but that?"""
        keeps = self._vault is not None and (watch.protect or watch.diff)
        return watch.content and not watch.only and watch.checks == ATTRIBUTES and not keeps

    def _one(
        self,
        visit: Visit,
        at: int,
        name: bytes,
        watch: Watch,
        packed: bytes,
        notes: dict[bytes, str],
        reference: Mapping[bytes, Entry],
        before: tuple[bytes, Entry | None] | None,
    ) -> tuple[bytes, Entry | None] | None:
        """None: it vanished."""
        stat = visit.stats[at]
        path = f"{visit.path}/{visit.names[at]}"
        if watch.only == "setid" and S_IFMT(stat.st_mode) != S_IFREG:
            return packed, None
        if watch.only == "setid" and not stat.st_mode & 0o6111:
            return packed, None  # neither set-id nor executable: capabilities would be without effect
        try:
            seen = self._look(visit, at, path, watch, before, reference.get(name))
            if seen.disk:
                seen = seen.judged(reference.get(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except CannotLook as why:
            # Its attributes are kept, so that the next look, or its end, is a change that is told.
            notes[name] = f"!{why}"
            self._summary.unreadable += 1
            self._summary.note(f"{path}: {why}")
            return _unsure(packed), Entry(stat.st_mode, stat.st_uid, stat.st_gid, 0, watch.category)
        if seen.note:
            notes[name] = seen.note
            self._summary.note(f"{path}: {seen.note}")
        if not seen.settled or (stat.st_ctime_ns > self._clock_ns() - RACY_NS and not watch.by_rights):
            packed = _unsure(packed)
        return packed, seen.entry if is_subject(seen.entry, watch) else None

    def _look(
        self,
        visit: Visit,
        at: int,
        path: str,
        watch: Watch,
        before: tuple[bytes, Entry | None] | None,
        expected: Entry | None,
    ) -> Seen:
        stat = visit.stats[at]
        if self._vault is not None and S_IFMT(stat.st_mode) == S_IFREG and kept(watch, path, stat.st_size):
            return self._vault.look(self._eye, visit.fd, visit.names[at], path, stat.st_size, watch)
        told = stat if S_IFMT(stat.st_mode) == S_IFREG else None
        if self._first is not None:
            seen = self._first.look(visit.fd, visit.names[at], watch, told)
            if seen.settled and _is_known(seen.entry, before, expected and masked(expected, watch)):
                return seen
        return self._eye.look(visit.fd, visit.names[at], watch, told)

    def close(self) -> None:
        if self._vault is None:
            return
        self._vault.sync()
        self._summary.protected = self._vault.bytes_written
        self._summary.copies = self._vault.names
        for path, why in self._vault.refused:
            self._summary.note(f"{path}: no protected copy, {why}")


def _suffices(entry: Entry | None, watch: Watch) -> bool:
    """Does what was kept of an unchanged file answer what this watch asks? Else it was kept under another policy."""
    if entry is None:
        return watch.only == "setid"
    if watch.only == "setid" and not entry.setid:
        return False
    return entry.st_mode >> 12 != S_IFREG >> 12 or bool(entry.digest) == watch.content


def _is_known(entry: Entry | None, before: tuple[bytes, Entry | None] | None, expected: Entry | None) -> bool:
    """Is it as it was seen, and as it should be? What was seen on the disk only is not what the page cache has."""
    if entry is None or before is None or not same(before[1], entry):
        return False
    return expected is None or same(expected, entry)


def observation_of(
    visit: Visit,
    name: bytes,
    entry: Entry,
    algorithm: Algorithm,
    notes: dict[bytes, str],
    now: int,
    origin: Origin,
) -> Observation:
    path = f"{visit.path}/{os.fsdecode(name)}"
    note = notes.get(name, "")
    if note.startswith("!"):
        return unreadable(path, entry.category, note[1:], now, origin)
    return present(path, Seen(entry, note), algorithm, now, origin)


def record_of(visit: Visit, looks: Looks, block: bytes | None = None) -> bytes:
    """What observed.db keeps of a directory. `block`: its subjects as a manifest has them, where the caller knows."""
    stats = b"".join([stat for stat, _ in looks.values()])
    if block is None:
        subjects = {name: entry for name, (_, entry) in looks.items() if entry is not None}
        block = observed.block_of(directory_of(visit), subjects)
    else:
        block = without_categories(block) if block else b""
    listing = visit.listing if len(looks) == len(visit.names) else observed.NO_LISTING  # a name vanished meanwhile
    return observed.encode(directory_of(visit), list(looks), stats, block, listing)


def _unsure(packed: bytes) -> bytes:
    inode, _, size = STAT.unpack(packed)
    return STAT.pack(inode, UNSURE, size)


def directory_of(visit: Visit) -> bytes:
    return os.fsencode(visit.path)
