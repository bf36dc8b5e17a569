"""Letting sealed segments go undelivered because there is no room: first the signed word, durable, then the deletion.

A kill or a power cut between the two is ended by the next run, which deletes what the word names. What goes, and in
which order, is decided in `quota`; the word itself is `losses`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edgeguard.codec import cose
from edgeguard.errors import DecodeError, SegmentRefused, SignatureError
from edgeguard.records import losses, outbox, quota, wire
from edgeguard.records.losses import DAMAGED, EVICTED, Losses, Sign
from edgeguard.records.outbox import Name
from edgeguard.records.receipts import Receipt
from edgeguard.records.registry import Stream
from edgeguard.records.wire import Drop
from edgeguard.settings import Budget

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
FORCED = 16  # blocks at least that are freed when the disk takes nothing more

Sync = Callable[[str], None]  # makes a directory durable


class Eviction:
    """The room of one outbox, for one run of the sealer. `open` first."""

    def __init__(self, spool: str, directory: str, budget: Budget, sync: Sync) -> None:
        self._spool = spool
        self._outbox = directory
        self._budget = budget
        self._sync = sync
        self._device = b""
        self._sign: Sign = bytes
        self._losses = Losses()
        self._sizes: dict[Name, int] = {}
        self.held: set[Name] = set()  # not handed out yet
        self._unsynced = False  # names in the outbox that a power cut might take
        self.problem = ""  # why the word of earlier runs could not be read
        self.bytes = 0  # of the disk, taken by the outbox
        self.written = 0  # bytes that this run cost the disk, whole blocks
        self.gone: list[Drop] = []  # let go in this run

    def open(
        self,
        public: bytes,
        device: bytes,
        sign: Sign,
        receipt: Receipt | None,
        epoch_key: Callable[[int], bytes | None],
    ) -> None:
        """Read what was let go so far and the collector does not know yet; end what a killed run began.

        `public` is the identity key, which signs that word; `epoch_key` gives the key that signs segments of an epoch.
        """
        self._device, self._sign = device, sign
        try:
            self._losses = losses.read(self._spool, [public], device)
        except (DecodeError, OSError) as error:
            self.problem = str(error)
            self._put_aside()
        try:
            losses.prepare(self._spool)
        except OSError as error:  # a disk that is full already is asked again when it matters
            if error.errno not in NO_ROOM:
                raise
        drops = self._losses.drops
        if not self._losses.generation or self._losses.spoiled:
            drops = losses.merged([*drops, *self._told(epoch_key)])
        self._losses = Losses(self._losses.generation, losses.uncovered(drops, receipt))
        self._finish()

    @property
    def drops(self) -> tuple[Drop, ...]:
        """For every segment that is sealed from now on."""
        return self._losses.drops

    def limit(self) -> int:
        """Bytes that the outbox may take now."""
        budget = self._budget
        return quota.limit(budget.spool_bytes, budget.disk_free_percent, self.bytes, quota.disk(self._outbox))

    def holds(self, name: Name, *, new: bool = False) -> None:
        """A segment that stays in the outbox. `new`: it was written a moment ago."""
        status = os.stat(os.path.join(self._outbox, name.file), follow_symlinks=False)
        if outbox.holds(status):
            self.held.add(name)
        size = quota.taken(status)
        self.bytes += size - self._sizes.get(name, 0)
        self._sizes[name] = size
        self._unsynced = self._unsynced or new
        self.written += size if new else 0

    def make(self, stream: int, incoming: int) -> None:
        """Room for so many bytes of a stream, as far as the rules allow. Raises OSError.

        Asked for before a segment is written and at no other time: that segment carries the word to the collector.
        """
        limit = self.limit()
        over = self.bytes + incoming - limit
        if over <= 0:
            return
        more = limit // quota.BATCH_SHARE
        chosen = quota.victims(self._sizes, over + more)
        own = sum(size for name, size in self._sizes.items() if name.stream == Stream.FINDINGS)
        own += incoming if stream == Stream.FINDINGS else 0
        if own > limit:
            repeated = quota.repeats(self._outbox, self._sizes)
            chosen += quota.findings(self._sizes, own - limit + more, repeated)
        self._evict(chosen)

    def force(self, incoming: int) -> bool:
        """The disk took no more: free what may go for this, whatever the quota says. False: nothing may."""
        excess = max(2 * quota.blocks(incoming), FORCED * quota.BLOCK)
        chosen = quota.victims(self._sizes, excess)
        if not chosen:
            repeated = quota.repeats(self._outbox, self._sizes)
            chosen = [name for name in quota.findings(self._sizes, excess, repeated) if name in repeated]
        self._evict(chosen)
        return bool(chosen)

    def note(self, drops: Iterable[Drop]) -> None:
        """Something that is not coming for another reason, and whose own trace will be deleted. Raises OSError."""
        new = losses.merged([*self._losses.drops, *drops])
        if set(new) != set(self._losses.drops):
            self._write(new)

    def report(self) -> dict[str, Any]:
        """For the sealer's answer."""
        limit = self.limit()
        return {
            "bytes": self.bytes,
            "written": self.written,
            "limit": limit,
            "full": self.bytes > limit,
            "evicted": [[drop.first, drop.last, drop.stream] for drop in losses.merged(self.gone)],
            "lost": [[drop.first, drop.last, drop.stream] for drop in self._losses.drops if drop.reason == EVICTED],
        }

    # --- one after the other -----------------------------------------------------------------------------------------

    def _evict(self, names: Sequence[Name]) -> None:
        if not names:
            return
        if self._unsynced:  # what stays must be durable before what goes is gone
            self._sync(self._outbox)
            self._unsynced = False
        new = [Drop(name.sequence, name.sequence, EVICTED, name.stream) for name in names]
        self._write(losses.merged([*self._losses.drops, *new]))
        self.gone += new
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._outbox, name.file))
            self.bytes -= self._sizes.pop(name)
            self.held.discard(name)

    def _write(self, drops: tuple[Drop, ...]) -> None:
        self._losses = Losses(self._losses.generation + 1, drops)
        losses.write(self._spool, self._losses, self._device, self._sign)
        self.written += losses.SLOT

    def _finish(self) -> None:
        names = outbox.listing(self._outbox)
        keep = set(outbox.newest(names).values())
        for name in names:
            if name not in keep and any(
                drop.reason == EVICTED and drop.stream == name.stream and drop.first <= name.sequence <= drop.last
                for drop in self._losses.drops
            ):
                os.unlink(os.path.join(self._outbox, name.file))

    def _put_aside(self) -> None:
        """What lies there in place of our word; without it the newest segments tell."""
        source = os.path.join(self._spool, losses.FILE)
        with contextlib.suppress(OSError):
            os.replace(source, os.path.join(self._spool, "quarantine", losses.FILE))

    def _told(self, epoch_key: Callable[[int], bytes | None]) -> list[Drop]:
        """The losses that the newest segments name, in place of a file that is not there or not ours."""
        found: list[Drop] = []
        for name in outbox.newest(outbox.listing(self._outbox)).values():
            try:
                data = outbox.read(self._outbox, name)
                public = epoch_key(wire.decode_header(cose.parse1(data).payload).epoch)  # nobody vouches for it yet
                payload = cose.verify1(data, [public] if public else [], cose.SEGMENT_AAD)
                found += wire.decode_segment(payload).drops
            except (OSError, DecodeError, SignatureError, SegmentRefused):
                continue  # the sealer sets it aside in a moment
        return [drop for drop in found if drop.reason in (EVICTED, DAMAGED)]
