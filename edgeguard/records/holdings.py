"""The segments that are here: which are ours and whole, where each stream's chain goes on, and what may go.

One that is damaged is moved to quarantine and reported. The chain goes on from the last good head with the next free
number, because the collector may hold the undamaged original.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, NamedTuple

from edgeguard.codec import cose
from edgeguard.errors import DecodeError, SegmentRefused, SignatureError
from edgeguard.linux import durable
from edgeguard.records import epoch, journal, outbox, wire
from edgeguard.records.arrived import Arrived
from edgeguard.records.eviction import Eviction
from edgeguard.records.keyring import Keyring
from edgeguard.records.losses import DAMAGED
from edgeguard.records.outbox import Name
from edgeguard.records.wire import Drop, Header

AUDIT_MAX = 64  # segments that every run verifies, at 0.1 ms each on a PC and 1 ms on a Pi; more on request
QUARANTINE_MAX = 64  # files kept for a look; older ones go


class Head(NamedTuple):
    """Where a stream's chain goes on."""

    sequence: int  # the highest number ever used
    hash: bytes  # of the last good segment
    record: int  # sequence number of the first record that is in no segment
    good: int  # which segment that is; 0: none


Heads = dict[int, Head]  # by stream


class Holdings:
    """`directory`: the outbox; both directories exist."""

    def __init__(self, directory: str, quarantine: str, device: bytes, ring: Keyring) -> None:
        self._outbox = directory
        self._quarantine = quarantine
        self._device = device
        self._ring = ring
        self.quarantined: list[dict[str, Any]] = []  # by this run
        self._sure: dict[int, int] = {}  # stream: highest number that a receipt confirms and that was here

    def genuine(self, name: Name) -> bool:
        try:
            self._believe(name, outbox.read(self._outbox, name))
        except (OSError, SegmentRefused):
            return False
        return True

    def heads(self, arrived: Arrived, drops: Iterable[Drop], suspects: set[Name], *, audit: bool) -> Heads:
        """Verify what must be verified, set aside what is damaged, and find where each chain goes on.

        `drops`: what was let go; `suspects`: looked at in any case; `audit`: all are.
        """
        names = outbox.listing(self._outbox)
        everything = audit or len(names) <= AUDIT_MAX
        heads = {stream: _received(arrived, stream) for stream in range(journal.STREAMS)}
        for stream, used in ((name.stream, name.sequence) for name in outbox.listing(self._quarantine)):
            heads[stream] = _at_least(heads[stream], used)
        for drop in drops:
            heads[drop.stream] = _at_least(heads[drop.stream], drop.last)
        for stream in range(journal.STREAMS):
            anchored = False
            for name in sorted((name for name in names if name.stream == stream), reverse=True):
                if anchored and not everything and name not in suspects:
                    continue
                heads[stream], good = self._look_at(name, heads[stream], arrived, anchored=anchored)
                anchored = anchored or good
        return heads

    def damaged(self, arrived: Arrived) -> tuple[Drop, ...]:
        """What will not come because it was damaged here: of quarantine, what no receipt covers."""
        return _damaged(outbox.listing(self._quarantine), arrived)

    def let_go(self, arrived: Arrived, room: Eviction) -> None:
        """Delete what the receipt covers, except the newest of each stream: it anchors the chain.

        A head must name a segment that is here (`Inbox` has compared it): of one that we do not have, after a spool
        was put back or if the collector makes it up, nothing follows for those before it. It goes last itself.
        """
        names = outbox.listing(self._outbox)
        keep = set(outbox.newest(names).values())
        heads = arrived.receipt.heads if arrived.receipt else ()
        here = set(names)
        self._sure = {head.stream: head.sequence for head in heads if Name(head.stream, head.sequence) in here}
        for name in names:
            if name not in keep and name.sequence <= self._sure.get(name.stream, 0):
                os.unlink(os.path.join(self._outbox, name.file))
            else:
                room.holds(name)

    def waiting(self) -> int:
        """Segments that no receipt confirms."""
        return sum(name.sequence > self._sure.get(name.stream, 0) for name in outbox.listing(self._outbox))

    def tidy(self, arrived: Arrived, room: Eviction, *, audit: bool) -> None:
        """What a killed run left, statements that are not whole, and quarantine beyond its bound."""
        for file in os.listdir(self._outbox):
            if file.startswith(".") and file.endswith(".tmp"):
                with contextlib.suppress(IsADirectoryError):  # nobody's, and in nobody's way
                    os.unlink(os.path.join(self._outbox, file))
        aside = sorted(outbox.listing(self._quarantine), key=lambda name: not arrived.covers(name))
        old = aside[:-QUARANTINE_MAX]  # those that no longer need explaining first
        room.note(_damaged(old, arrived))
        for name in old:
            with contextlib.suppress(IsADirectoryError):
                os.unlink(os.path.join(self._quarantine, name.file))
        self._ring.tidy(self._quarantine, durable.move, audit=audit)

    def _look_at(self, name: Name, head: Head, arrived: Arrived, *, anchored: bool) -> tuple[Head, bool]:
        """Verify one segment; a good one may become the head, a bad one goes to quarantine. Newest first."""
        try:
            data = outbox.read(self._outbox, name)
            header = self._believe(name, data)
        except (OSError, SegmentRefused) as error:
            self._put_aside(name, str(error), arrived)
            return _at_least(head, name.sequence), False
        if not anchored:
            self._ring.used(header.epoch)
            newer = name.sequence >= _received(arrived, name.stream).sequence
            return Head(
                max(head.sequence, name.sequence),
                sha256(data).digest() if newer else head.hash,
                header.first + header.n,
                name.sequence if newer else head.good,
            ), True
        return head, True

    def _believe(self, name: Name, data: bytes) -> Header:
        """The header of a segment that we signed ourselves. Raises SegmentRefused."""
        try:
            number = wire.decode_header(cose.parse1(data).payload).epoch  # nobody vouches for it yet
            public = self._ring.public(number)
            if public is None:
                raise SegmentRefused(f"{name.file}: the statement of epoch {number} is damaged or gone")
            header = wire.decode_header(cose.verify1(data, [public], cose.SEGMENT_AAD))
        except (DecodeError, SignatureError) as error:
            raise SegmentRefused(f"{name.file}: {error}") from error
        if (header.stream, header.sequence, header.device) != (*name, self._device):
            raise SegmentRefused(f"{name.file}: holds segment {header.stream}-{header.sequence}")
        return header

    def _put_aside(self, name: Name, reason: str, arrived: Arrived) -> None:
        durable.move(os.path.join(self._outbox, name.file), os.path.join(self._quarantine, name.file))
        self.quarantined.append(
            {
                "name": name.file,
                "stream": name.stream,
                "seq": name.sequence,
                "why": reason,
                "delivered": arrived.covers(name),
            }
        )


def stated(heads: Heads) -> tuple[epoch.Head, ...]:
    """As a statement names them: what has no good segment under its number has no hash."""
    return tuple(
        epoch.Head(stream, head.sequence, head.hash[: epoch.HASH_SIZE] if head.good == head.sequence else b"")
        for stream, head in sorted(heads.items())
        if head.sequence
    )


def _received(arrived: Arrived, stream: int) -> Head:
    head = arrived.head(stream)
    return Head(head.sequence, head.hash, 1, head.sequence) if head else Head(0, wire.NO_PREVIOUS, 1, 0)


def _at_least(head: Head, sequence: int) -> Head:
    return head._replace(sequence=max(head.sequence, sequence))


def _damaged(names: Iterable[Name], arrived: Arrived) -> tuple[Drop, ...]:
    return tuple(Drop(name.sequence, name.sequence, DAMAGED, name.stream) for name in names if not arrived.covers(name))
