"""The deep sweep: every content is read again within a day or so, whether anything says that it changed or not.

What even size, times and inode hide is found by nothing else: a write to the block device below the file system, to a
shared mapping after its pages were seen, with the change time forged, or to the page cache alone. The work is done in
slices, hours apart, each by a helper of its own; a slice begins after the last file of the one before, wherever that
is, so a restart costs one slice at most. `observed.db` says what there is; what is not in it yet, other sweeps find.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from edgeguard.codec import cbor, digests
from edgeguard.codec.digests import Algorithm
from edgeguard.codec.layers import Lookup
from edgeguard.codec.manifest import Entry, order, split
from edgeguard.errors import DecodeError
from edgeguard.model import Observation, Origin, Watch
from edgeguard.sensors import observed
from edgeguard.sensors.look import CannotLook, Eye, is_subject, present, unreadable
from edgeguard.sensors.observed import Record, same
from edgeguard.sensors.walk import DIRECTORY, resolved
from edgeguard.sensors.watching import Plan

HASTE = 4  # a device that was off does so many times its share at most until it is in time again
FILE_COST = 4096  # bytes that a file counts besides its content: opening it is work, too
POSITION_MAX = 16 * 1024  # bytes of a stored position: two paths at most

Emit = Callable[[Observation], None]


class Position(NamedTuple):
    """Where the next slice begins."""

    started: int = 0  # ms; of this round
    total: int = 0  # cost of a whole round; 0: not known
    done: int = 0  # cost of what this round has read
    after: bytes = b""  # path of the last file

    def to_cbor(self) -> bytes:
        return cbor.encode(list(self))

    @classmethod
    def from_cbor(cls, data: bytes) -> Position:
        """A new round where there is no position to be read."""
        try:
            started, total, done, after = cbor.decode(data, size=POSITION_MAX)
        except (DecodeError, TypeError, ValueError):
            return cls()
        numbers = all(isinstance(value, int) and value >= 0 for value in (started, total, done))
        return cls(started, total, done, after) if numbers and isinstance(after, bytes) else cls()


@dataclass(slots=True)
class Slice:
    """What one slice did."""

    position: Position
    files: int = 0
    bytes_read: int = 0
    emitted: int = 0
    unreadable: int = 0
    complete: bool = False  # a round ended with it


def read_slice(
    watches: Sequence[Watch],
    root: str,
    manifest: Lookup | None,
    observed_in: BinaryIO,
    position: Position,
    now: int,
    period_s: float,
    emit: Emit,
    *,
    slices: int,
    seconds: float,
    hash_file_max: int,
    clock: Callable[[], float] = time.monotonic,
) -> Slice:
    """Read on from `position`, and emit what is neither as the manifest has it nor as it was last seen. `slices` make a
    round; after `seconds` this one ends, however little it could do on a busy machine.

    Raises DecodeError for a damaged observed.db or manifest: the next sweep makes the former anew.
    """
    old = observed.Reader(observed_in)
    if manifest is not None and manifest.algorithm is not old.algorithm:
        return Slice(position)  # another baseline came: the sweep that compares reads all anew, and comes first
    observed_in.seek(0)
    if not position.total or position.done >= position.total:  # or there is more by now than when the round began
        total = max(1, _cost(observed.Reader(observed_in)))
        position = position._replace(total=total) if position.total else Position(now, total)
        observed_in.seek(0)
    plan = Plan(resolved(watches, root))
    reading = _Reading(plan, root.rstrip("/"), manifest, now, emit, hash_file_max, old.algorithm)
    end = clock() + seconds
    budget = _budget(position, now, period_s, slices)
    done = reading.done
    cost, after = 0, position.after
    for path, spent in _files(reading, observed.Reader(observed_in), position.after):
        cost, after = cost + spent, path
        if cost >= budget or clock() >= end:
            done.position = position._replace(done=position.done + cost, after=after)
            return done
    done.position, done.complete = Position(now, max(1, position.done + cost)), True
    return done


def _budget(position: Position, now: int, period_s: float, slices: int) -> int:
    """The cost of a slice: what is missing at this time of the period, within reason."""
    share = max(1, position.total // slices)
    elapsed = max(0, now - position.started) / 1000
    behind = int(position.total * min(1.0, elapsed / period_s)) - position.done
    return min(HASTE * share, max(share, behind))


def _cost(old: observed.Reader) -> int:
    """Of a whole round. Only asked where no round before tells, or what it told was too little."""
    total = 0
    for record in old.records():
        total += sum(entry.size + FILE_COST for _, entry in record.looks().values() if entry and entry.digest)
    return total


def _files(reading: _Reading, old: observed.Reader, after: bytes) -> Iterator[tuple[bytes, int]]:
    """Read the files behind `after`: the path of each that was read, and its cost."""
    directory, last = split(after)
    first = order(directory)
    for record in old.records():
        key = order(record.directory)
        if key >= first:
            yield from reading.directory(record, last if after and key == first else b"")


class _Reading:
    """Reads the files of one directory after the other."""

    def __init__(
        self,
        plan: Plan,
        prefix: str,
        manifest: Lookup | None,
        now: int,
        emit: Emit,
        hash_file_max: int,
        algorithm: Algorithm,
    ) -> None:
        self._algorithm = algorithm
        self._plan = plan
        self._prefix = prefix
        self._manifest = manifest
        self._now = now
        self._emit = emit
        self._eye = Eye(hash_file_max, thorough=True, digester=digests.swift(algorithm))
        self.done = Slice(Position())

    def directory(self, record: Record, last: bytes) -> Iterator[tuple[bytes, int]]:
        """Files behind the name `last`."""
        looks = record.looks()
        names = sorted(name for name, (_, entry) in looks.items() if entry and entry.digest and name > last)
        if not names:
            return
        path = os.fsdecode(record.directory)
        try:
            fd = os.open(self._prefix + path or "/", DIRECTORY)
        except OSError:
            return  # gone or unreadable: an ordinary sweep tells that
        try:
            block = self._manifest.block(record.directory) if self._manifest is not None else None
            references = dict(zip(block.names, block.entries, strict=True)) if block is not None else {}
            for name in names:
                yield record.directory + b"/" + name, self._one(fd, path, name, looks[name][1], references.get(name))
        finally:
            os.close(fd)

    def _one(self, fd: int, directory: str, name: bytes, before: Entry | None, reference: Entry | None) -> int:
        """The cost of looking at it."""
        text = os.fsdecode(name)
        path = f"{directory}/{text}"
        watch = self._plan.decide(path)
        if watch is None or not watch.content:
            return 0
        read = self._eye.bytes_read
        self.done.files += 1
        try:
            seen = self._eye.look(fd, text, watch).judged(reference)
        except FileNotFoundError:
            return FILE_COST
        except CannotLook as why:
            self.done.unreadable += 1
            self._tell(unreadable(path, watch.category, str(why), self._now, Origin.SWEEP))
            return FILE_COST
        known = same(seen.entry, before) and (reference is None or same(seen.entry, reference))
        if is_subject(seen.entry, watch) and not known:
            self._tell(present(path, seen, self._algorithm, self._now, Origin.SWEEP))
        self.done.bytes_read += self._eye.bytes_read - read
        return FILE_COST + self._eye.bytes_read - read

    def _tell(self, observation: Observation) -> None:
        self.done.emitted += 1
        self._emit(observation)
