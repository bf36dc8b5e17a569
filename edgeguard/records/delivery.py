"""The outbox on its way to one collector: what waits, in which order, in what portions, and what came back.

A receipt cannot be verified here; the sealer does that before it deletes. Here it only decides what need not be sent
again, and also for that it is believed as little as possible: a head counts if the outbox's own file of that number has
that hash, and what is held beyond a gap counts if we remember to have sent it. So a receipt that somebody made up, or
that stayed after a collector was replaced, keeps nothing from being sent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from hashlib import sha256

from edgeguard.codec import cose
from edgeguard.errors import DecodeError, SegmentRefused
from edgeguard.linux import durable
from edgeguard.records import memory, outbox, receipts, registry, renewal, transport, wire
from edgeguard.records.allowance import Allowance
from edgeguard.records.link import RETRY_AFTER_MAX, Target, UplinkError, refusal
from edgeguard.records.memory import Known
from edgeguard.records.outbox import Name, replace
from edgeguard.records.receipts import Head, Receipt
from edgeguard.records.transport import Way

BODY_MAX = 256 * 1024  # bytes of one POST; the collector takes no more
ROUNDS_MAX = 10_000  # POSTs in one run: 2.5 GB, far beyond any quota; a loop that never ends would be our bug
RUN_S = 420  # of one run, and the last exchange may take EXCHANGE_S more: the unit is killed after 600
UNKNOWN_EPOCH = "unknown epoch"  # why a collector refuses a segment whose statement it does not have (defects.Name)
INTRODUCE_MS = 24 * 3600 * 1000


class Delivery:
    """One run for one collector. `receipt`: the file in which its receipts are kept."""

    def __init__(self, outbox_: str, receipt: str, target: Target, known: Known, allowance: Allowance) -> None:
        self._outbox = outbox_
        self._receipt_file = receipt
        self._target = target
        self._known = known
        self._allowance = allowance
        self._done: set[Name] = set()  # taken or refused in this run: not sent again in it
        self._taken: set[Name] = set()
        self._told: set[int] = set()  # epochs whose statements were sent in this run
        self._asked: set[int] = set()  # epochs that it refused as unknown, whatever its receipts said before
        self._room = (BODY_MAX, BODY_MAX)  # bytes of one body: well sent, and taken at all
        self._too_large = 0  # segments that the broker does not take
        self._heard_at = 0  # ms since 1970: of the newest receipt that is known, by the collector's clock
        self._newest = 0  # of security, as this run began: this and what comes meanwhile is not backlog
        self.refused: dict[str, str] = {}
        self.sent = 0
        self.rest = 0  # seconds after which the budgets let go what they hold back; 0: they hold nothing back

    def drain(self) -> None:
        """Send until nothing waits or nothing more may go (`rest`). Raises UplinkError."""
        names = self.waiting()
        self._newest = max((name.sequence for name in names if name.stream == registry.Stream.SECURITY), default=0)
        batch = self._batch(names)
        if batch:
            self._exchange(batch)

    def introduce(self) -> None:
        """Ask for a receipt if there was none for a day: a collector that is only needed when another fails should be
        known to answer before that, and what it can read decides how segments are written. Raises UplinkError."""
        if not 0 <= now() - self._known.seen < INTRODUCE_MS:
            self._exchange({}, rounds=1)

    def known(self) -> Known:
        """What is to be remembered of this collector."""
        heads = self._heads(self._receipt())
        taken = [
            name
            for name in outbox.listing(self._outbox)
            if (name in self._taken or self._known.took(name)) and not _covered(name, heads)
        ]
        return self._known._replace(taken=memory.ranges(taken))

    def waiting(self) -> list[Name]:
        """What is to be sent, in the order in which it is."""
        receipt = self._receipt()
        heads = self._heads(receipt)
        names = [
            name
            for name in outbox.listing(self._outbox)
            if name not in self._done
            and not _covered(name, heads)
            and not (receipt is not None and self._known.took(name) and receipt.holds(name))
        ]
        return in_order(names)

    # --- one exchange after the other ----------------------------------------------------------------------------

    def _exchange(self, batch: dict[Name, bytes], rounds: int = ROUNDS_MAX) -> None:
        wait = self._known.rest_until - now()
        if 0 < wait <= RETRY_AFTER_MAX * 1000:
            seconds = wait // 1000 + 1
            raise UplinkError("busy", f"the collector asked us to wait {seconds} s more", seconds)
        until = time.monotonic() + RUN_S
        self._heard_at = self._heard()
        link = transport.way(renewal.chosen(self._target)._replace(heard=self._heard_at))
        try:
            self._room = link.room(BODY_MAX)
            if batch and self._room[0] < BODY_MAX:
                batch = self._batch(self.waiting())
                rounds = rounds if batch else 0
            for _ in range(rounds):
                self._send(link, batch)
                batch = self._batch(self.waiting())
                if not batch:
                    break
                if time.monotonic() > until:
                    raise UplinkError("slow", f"{len(self.waiting())} segments wait after {RUN_S} s of sending")
            renewal.renew(link, self._target)
            if self._too_large:
                raise UplinkError("too-large", f"{self._too_large} segments are larger than the broker takes")
        except UplinkError as error:
            if error.name in {"tls", "unreachable"}:
                renewal.doubt(link, self._target)
            self._known = self._known._replace(rest_until=now() + 1000 * (error.retry_after or 0))
            raise
        finally:
            link.close()
            self._allowance.spend(link.spent(), 0)

    def _send(self, link: Way, batch: dict[Name, bytes]) -> None:
        # The sealer may have named a segment a moment ago. If a power cut took that name after it was sent, another
        # segment would be sealed under the same number, and the collector would see a device with two histories.
        durable.sync(self._outbox)
        statements = self._statements(batch)
        reply = link.post(b"".join([*statements.values(), *batch.values()]))
        backlog = sum(len(data) for name, data in batch.items() if not self._urgent(name))
        self._allowance.spend(link.spent(), backlog)
        self._allowance.tick(now())
        if reply.status != 200:
            raise refusal(reply)
        try:
            receipt = receipts.unverified(reply.body)
        except DecodeError as error:
            raise UplinkError("bad-reply", f"the collector's reply is no receipt: {error}") from error
        if link.relayed and self._old(receipt):
            raise UplinkError("old-receipt", "the broker brings a receipt of before, as if it were of now")
        self._heard_at = max(self._heard_at, receipt.time)
        replace(self._receipt_file, reply.body)
        reasons = {refused.hash: refused.reason for refused in receipt.refused}
        self._told.update(statements)
        for name, data in batch.items():
            reason = reasons.get(sha256(data).digest())
            if reason == UNKNOWN_EPOCH and self._missed(_epoch(data)):
                continue  # again, with its statement
            self._done.add(name)
            if reason is None:
                self._taken.add(name)
                self.sent += 1
            else:
                self.refused[name.file] = reason
        at = now()
        self._known = self._known._replace(rest_until=0, seen=at, last_sent=at if batch else self._known.last_sent)

    def _batch(self, names: Iterable[Name]) -> dict[Name, bytes]:
        """The next portion: within the body's bound and the budgets, at least one segment where they leave anything."""
        batch: dict[Name, bytes] = {}
        epochs = set(self._newest_epoch())
        size = backlog = self.rest = 0
        beside = self._size(epochs)  # bytes of statements that go with the segments
        for name in names:
            urgent = self._urgent(name)
            left = self._allowance.left(backlog=False) - size - beside
            left_backlog = left if urgent else min(left, self._allowance.left(backlog=True) - backlog)
            if left_backlog <= 0:  # names after this one are no more urgent
                self.rest = self._allowance.wait(backlog=not urgent)
                break
            data = self._read(name)
            if not data:
                continue
            more = self._size({_epoch(data)} - epochs)
            if batch and (size + beside + len(data) + more > self._room[0] or len(data) + more > left_backlog):
                break
            if beside + len(data) + more > self._room[1]:
                self._pass_over(name, f"the broker takes no more than {self._room[1]} bytes")
                self._too_large += 1
                continue
            epochs.add(_epoch(data))
            beside += more
            batch[name] = data
            size += len(data)
            backlog += 0 if urgent else len(data)
        return batch

    def _statements(self, batch: dict[Name, bytes]) -> dict[int, bytes]:
        """Who vouches for the keys of these segments, and for the key that comes next: it names where they end."""
        return self._untold({*self._newest_epoch(), *map(_epoch, batch.values())}) if batch else {}

    def _untold(self, epochs: set[int]) -> dict[int, bytes]:
        receipt = self._receipt()
        has = set(receipt.epochs) - self._asked if receipt is not None else set()
        found = {}
        for number in sorted(epochs - self._told - has):
            try:
                data = outbox.read_epoch(self._outbox, number)
            except (OSError, SegmentRefused):  # gone with its segments, or damaged: the sealer looks at it
                continue
            if outbox.is_one(data):
                found[number] = data
        return found

    def _size(self, epochs: set[int]) -> int:
        return sum(map(len, self._untold(epochs).values()))

    def _newest_epoch(self) -> list[int]:
        return outbox.epochs(self._outbox)[-1:]

    def _missed(self, number: int) -> bool:
        """Was its statement kept back on the word of a receipt? Once for each epoch."""
        missed = number not in self._told and number not in self._asked
        self._asked.add(number)
        return missed

    def _read(self, name: Name) -> bytes:
        """A segment; nothing if there is none that could be sent."""
        try:
            if outbox.is_held(self._outbox, name):  # perhaps handed out before this run looks again
                return b""
            data = outbox.read(self._outbox, name)
        except FileNotFoundError:  # the sealer has just deleted or set it aside
            return b""
        except (OSError, SegmentRefused) as error:
            return self._pass_over(name, f"cannot be read: {error}")
        if not outbox.is_one(data):  # would spoil the whole sequence; the sealer looks at it
            return self._pass_over(name, "not a segment")
        return data

    def _pass_over(self, name: Name, reason: str) -> bytes:
        self._done.add(name)
        self.refused[name.file] = reason
        return b""

    def _urgent(self, name: Name) -> bool:
        newest = name.stream == registry.Stream.SECURITY and name.sequence >= self._newest
        return name.stream == registry.Stream.FINDINGS or newest

    # --- what it has ---------------------------------------------------------------------------------------------

    def _receipt(self) -> Receipt | None:
        try:
            return receipts.unverified(receipts.read(self._receipt_file))
        except (OSError, DecodeError):
            return None

    def _heard(self) -> int:
        """When the newest receipt was given that the sealer has verified, ms since 1970; 0 if there is none."""
        try:
            copy = os.path.join(self._outbox, os.path.basename(self._receipt_file))
            return receipts.unverified(receipts.read(copy)).time
        except (OSError, DecodeError):
            return 0

    def _old(self, receipt: Receipt) -> bool:
        """Does it tell nothing that we did not know? Not by its time alone: a collector's clock may be set back."""
        before = self._receipt()
        known = {head.stream: head.sequence for head in before.heads} if before is not None else {}
        further = any(head.sequence > known.get(head.stream, 0) for head in receipt.heads)
        return receipt.time <= self._heard_at and not further

    def _heads(self, receipt: Receipt | None) -> list[Head]:
        """The heads that name a segment of ours as it is."""
        return [] if receipt is None else [head for head in receipt.heads if self._ours(head)]

    def _ours(self, head: Head) -> bool:
        try:
            return sha256(outbox.read(self._outbox, Name(head.stream, head.sequence))).digest() == head.hash
        except (OSError, SegmentRefused):
            return False


def _epoch(data: bytes) -> int:
    """In which epoch a segment says that it was sealed; 0: it does not say."""
    try:
        return wire.decode_header(cose.parse1(data).payload).epoch
    except (DecodeError, SegmentRefused):
        return 0


def in_order(names: list[Name]) -> list[Name]:
    """Findings, oldest first; then the newest of security, for that is what an attack in progress looks like; then
    the backlog, oldest first, security before metrics before verbose at the same age of number."""
    findings = [name for name in names if name.stream == registry.Stream.FINDINGS]
    security = [name for name in names if name.stream == registry.Stream.SECURITY]
    newest = security[-1:]
    backlog = [name for name in names if name.stream != registry.Stream.FINDINGS and name not in newest]
    return [*findings, *newest, *sorted(backlog, key=lambda name: (name.stream, name.sequence))]


def _covered(name: Name, heads: Iterable[Head]) -> bool:
    return any(head.stream == name.stream and name.sequence <= head.sequence for head in heads)


def now() -> int:
    """Milliseconds since 1970, as this device believes."""
    return time.time_ns() // 1_000_000
