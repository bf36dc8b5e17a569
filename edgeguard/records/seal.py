"""`edgeguard-seal`: closed journals become signed segments; receipts let segments go. Short-lived, no capability.

Every step may be the last before a kill or a power cut, and the next run ends what this one began:
a segment is written beside, made durable and renamed; only when all of a journal is there is the journal marked free,
and only then are its segments handed out to whoever sends them (`outbox`). A record that is in a segment already (its
number is below the newest segment's end) is never sealed again, and one that may have been sent never comes back.

Before a chain is extended its newest segment is verified (`holdings`). Each new segment names in `drops` the damaged
ones that no receipt covers, so that the collector knows that they will not come, and those that were let go for want of
room (`eviction`).

Segments are signed by the key of an epoch (`keyring`), which the identity key certifies and which does not outlive it.
What was let go is written down under the identity key, because that word is read again for longer than the statement of
any one epoch is kept. Each segment that is sealed from then on carries it too, the one that needed the room first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
from hashlib import sha256
from typing import Any

from edgeguard import identity
from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError, IdentityUnusable, SettingsError
from edgeguard.linux import capabilities, durable
from edgeguard.records import chunks, closed, dictionaries, journal, outbox, quota, registry, wire
from edgeguard.records.arrived import Arrived, Inbox
from edgeguard.records.closed import Closed
from edgeguard.records.eviction import NO_ROOM, Eviction
from edgeguard.records.holdings import Head, Heads, Holdings, stated
from edgeguard.records.keyring import Epoch, Keyring
from edgeguard.records.outbox import Name
from edgeguard.records.references import Places, manifest_id
from edgeguard.records.spool import HEADER_COST
from edgeguard.records.wire import Drop, Header, Record
from edgeguard.settings import DEFAULT_FILE, Settings, load

HEADER_ROOM = 1024  # bytes that a segment may have beside its records: header, signature, drops
REQUEST_MAX = 64 * 1024  # bytes of the daemon's question
SHORT_HASH = 8  # bytes of the newest segments' hashes that the daemon puts into its heartbeats


def run(
    settings: Settings,
    *,
    audit: bool = False,
    drop_privileges: bool = True,
    manifest: str = "",
    started: bool = False,
    clock: int = 0,
    so_far: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Do all that is to be done and say what was done, ready for JSON or CBOR.

    `audit`: verify every segment that waits, not just the newest. `manifest`: the file (<sha256>.egm) of the baseline
    in force; its paths become numbers once a receipt says that the collector has that manifest. `started`: the daemon
    has just started, so a new epoch begins; `clock`: how good it believes the clock to be (registry.Clock). `so_far`
    gets what is to be said where this raises, too.
    Raises OSError or IdentityUnusable (nothing is lost, try again later), DecodeError (the device key is unusable).
    """
    if drop_privileges:
        capabilities.give_up_all()
    sealer = Sealer(settings, manifest, clock)
    lock = os.open(os.path.join(sealer.spool, "seal.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return sealer.run(audit=audit, started=started)
    except BlockingIOError:
        return {"v": 1, "busy": True}
    finally:
        os.close(lock)
        if so_far is not None:
            so_far["handed_out"] = sealer.handed_out


def main(argv: list[str]) -> int:
    """`edgeguard-seal [seal] [--settings FILE]`: asked by a CBOR map on standard input, answers with one frame
    [length u32][CBOR map], as every helper of the daemon does."""
    words = argv[1:] if argv[:1] == ["seal"] else argv
    if words and (len(words) != 2 or words[0] != "--settings"):
        sys.stderr.write("usage: edgeguard-seal [--settings FILE]\n")
        return 64
    so_far: dict[str, Any] = {}
    try:
        settings = load(words[1] if words else DEFAULT_FILE)
        request = _request()
        manifest, clock = request.get("manifest"), request.get("clock")
        result = run(
            settings,
            audit=request.get("audit") is True,
            manifest=manifest if isinstance(manifest, str) else "",
            started=request.get("started") is True,
            clock=clock if type(clock) is int and clock in set(registry.Clock) else 0,
            so_far=so_far,
        )
    except OSError as error:
        result = {"error": str(error), "storage": True}
    except IdentityUnusable as error:
        result = {"error": str(error), "identity": str(error)}
    except (DecodeError, SettingsError) as error:
        result = {"error": str(error)}
    answer = cbor.encode(so_far | result)
    sys.stdout.buffer.write(struct.pack("<I", len(answer)) + answer)
    sys.stdout.buffer.flush()
    return 1 if "error" in result else 0


def _request() -> dict[str, Any]:
    """What the daemon asks for; nothing when a person started us."""
    if sys.stdin is None or sys.stdin.isatty():
        return {}
    data = sys.stdin.buffer.read(REQUEST_MAX)
    request = cbor.decode(data, size=REQUEST_MAX) if data else {}
    if not isinstance(request, dict):
        raise DecodeError("the request is not a map")
    return request


class Sealer:
    """One run. Holds the keys, so it does not live long."""

    def __init__(self, settings: Settings, manifest: str = "", clock: int = 0) -> None:
        state, exchange = settings.paths.state, settings.paths.exchange
        self._settings = settings
        self._clock = clock
        self.spool = os.path.join(state, "spool")
        self.outbox = os.path.join(exchange, "outbox")
        self._quarantine = os.path.join(self.spool, "quarantine")
        self._room = Eviction(self.spool, self.outbox, settings.budget, durable.sync)
        self._manifest = manifest
        self._baseline = manifest_id(manifest) or wire.NO_BASELINE
        self._places: Places | None = None
        self._identity: cose.Signer  # these five from the beginning of the run
        self._device: bytes
        self._ring: Keyring
        self._arrived: Arrived
        self._holdings: Holdings
        self._epoch: Epoch  # while it seals
        self._signer: cose.Signer | None = None  # with the epoch's key
        self._sealed: list[dict[str, Any]] = []
        self.handed_out = 0  # segments, in this run
        self._spoiled = 0  # records that the disk lost out of a journal
        self._problems: list[str] = []

    def run(self, *, audit: bool = False, started: bool = False) -> dict[str, Any]:
        for directory, mode in ((self.outbox, 0o750), (self._quarantine, 0o700)):
            os.makedirs(directory, mode=mode, exist_ok=True)
        self._identity = identity.load(self._settings)
        public = self._identity.public
        self._device = cose.device_id(public)
        runtime = self._settings.paths.runtime
        self._ring = Keyring(runtime, self.outbox, self._identity, self._clock, self._write_statement)
        self._ring.load()
        inbox = Inbox(self._settings, self.spool, self.outbox, self._device, self._problems)
        self._holdings = Holdings(self.outbox, self._quarantine, self._device, self._ring)
        self._arrived = inbox.take(self._holdings.genuine)
        self._room.open(public, self._device, self._sign_losses, self._arrived.receipt, self._ring.public)
        self._holdings.tidy(self._arrived, self._room, audit=audit)
        heads = self._holdings.heads(self._arrived, self._room.drops, inbox.suspects(), audit=audit)
        self._holdings.let_go(self._arrived, self._room)
        waiting, boot = closed.found(self.spool)
        try:
            self._seal_all(waiting, heads, boot, fresh=started)
        except Exception:  # a disk that is full, say: what was sealed until now is on its way, and may make room
            with contextlib.suppress(OSError):  # then it waits until all of its journal is sealed
                self._hand_out_so_far(waiting, heads)
            raise
        self._hand_out()
        self._ring.let_go()
        return self._result([one.number for one in waiting], heads, awaited=inbox.awaits)

    def _seal_all(self, waiting: list[Closed], heads: Heads, boot: int, *, fresh: bool) -> None:
        """All that waits into segments, durable, and out of the journals. `heads` follow step by step."""
        self._ring.begin(stated(heads), boot, fresh=fresh)
        if waiting:
            self._epoch = self._ring.ready(stated(heads), boot)
        for one in waiting:
            self._seal(one.content, heads)
        if self._places is not None:
            self._places.close()
        if self._sealed or waiting:  # what is released may have been sealed by a run that was killed before this
            durable.sync(self.outbox)
        self._ring.end(stated(heads), boot)
        for one in waiting:
            self._room.written += HEADER_COST if one.release() else 0

    def _hand_out_so_far(self, waiting: list[Closed], heads: Heads) -> None:
        if not self._room.held:  # it is tried every minute: no write for nothing
            return
        durable.sync(self.outbox)
        for one in waiting:
            one.note_sealed(heads[stream].record for stream in range(journal.STREAMS))
        self._hand_out()

    def _seal(self, content: journal.Content, heads: Heads) -> None:
        """All of a journal into segments."""
        self._spoiled += sum(not frame.content for frame in content.frames)
        for stream in range(journal.STREAMS):
            first = max(heads[stream].record, content.sealed[stream])
            frames = [frame for frame in content.frames if frame.stream == stream and frame.sequence >= first]
            for chunk in chunks.chunks(frames):
                heads[stream] = self._write_segment(stream, heads[stream], chunk)

    def _unexplained(self) -> tuple[Drop, ...]:
        return (*self._holdings.damaged(self._arrived), *self._room.drops)

    def _sign_losses(self, payload: bytes) -> bytes:
        return self._identity.sign1(payload, cose.LOSSES_AAD)

    def _write_statement(self, path: str, data: bytes, mode: int) -> None:
        """About a key: nothing is sealed without it, so a full disk makes room for it as for a segment."""
        while True:
            try:
                durable.write(path, data, mode)
            except OSError as error:
                if error.errno not in NO_ROOM or not self._room.force(len(data)):
                    raise
            else:
                break

    def _write_segment(self, stream: int, head: Head, chunk: list[tuple[journal.Frame, Record]]) -> Head:
        frames, records = [frame for frame, _ in chunk], [record for _, record in chunk]
        self._room.make(stream, quota.blocks(sum(len(frame.content) for frame in frames) + HEADER_ROOM))
        header = Header(
            device=self._device,
            stream=stream,
            sequence=head.sequence + 1,
            epoch=self._epoch.statement.number,
            boot=frames[0].boot,
            first=frames[0].sequence,
            n=len(records),
            previous=head.hash,
            mono=0,
            wall=None,
            clock=0,
            baseline=self._baseline,
            dictionary=self._dictionary(),
        )
        name = Name(stream, header.sequence)
        while True:
            data = self._sign(self._encode(header, records, self._unexplained()))
            try:
                durable.put(os.path.join(self.outbox, name.file), data, outbox.HELD)
            except OSError as error:
                if error.errno not in NO_ROOM or not self._room.force(len(data)):
                    raise
            else:
                break
        self._room.holds(name, new=True)
        self._sealed.append(
            {"stream": stream, "seq": header.sequence, "first": header.first, "n": header.n, "bytes": len(data)}
        )
        return Head(header.sequence, sha256(data).digest(), header.first + header.n, header.sequence)

    def _encode(self, header: Header, records: list[Record], drops: tuple[Drop, ...]) -> bytes:
        reference = self._reference()
        digest = self._places.digest if reference and self._places else None
        header = header._replace(baseline=self._baseline)  # none, if its manifest turned out to be unusable
        return wire.encode_segment(header, records, reference, drops, digest)

    def _sign(self, payload: bytes) -> bytes:
        if self._signer is None:
            self._signer = cose.Signer(self._epoch.seed)
        return self._signer.sign1(payload, cose.SEGMENT_AAD)

    def _dictionary(self) -> int:
        """The newest that the collector's last word offers; none before that, and none that is damaged here."""
        number = dictionaries.best(self._arrived.receipt.dictionaries if self._arrived.receipt else ())
        if number:
            try:
                dictionaries.read(number)
            except DecodeError as error:
                self._problems.append(str(error))
                return 0
        return number

    def _reference(self) -> wire.Reference | None:
        """The baseline's paths as numbers, if the collector can read them."""
        receipt = self._arrived.receipt
        if receipt is None or self._baseline not in receipt.baselines:
            return None
        if self._places is None:
            try:
                self._places = Places(self._manifest)
            except (OSError, DecodeError) as error:
                self._problems.append(f"{self._manifest}: {error}")
                self._baseline = wire.NO_BASELINE
                return None
        return self._places.reference

    def _hand_out(self) -> None:
        for name in sorted(self._room.held):
            try:
                outbox.hand_out(self.outbox, name)
                self.handed_out += 1
            except OSError as error:
                self._problems.append(f"{name.file} cannot be handed out: {error.strerror}")

    def _result(self, released: list[int], heads: Heads, *, awaited: bool) -> dict[str, Any]:
        receipt = self._arrived.receipt
        return {
            "v": 1,
            "sealed": self._sealed,
            "handed_out": self.handed_out,
            "quarantined": self._holdings.quarantined,
            "released": released,
            "problems": self._problems,
            "key": self._ring.problem or self._ring.unsigned,
            "identity": self._ring.unsigned,
            "heads": [[head.stream, head.sequence, head.hash[:SHORT_HASH]] for head in stated(heads) if head.hash],
            "waiting": self._holdings.waiting(),
            "aside": self._room.problem,
            "spoiled": self._spoiled,
            "awaited": awaited,
            **self._room.report(),
            "receipt": None
            if receipt is None
            else {"time": receipt.time, "heads": [[head.stream, head.sequence] for head in receipt.heads]},
        }
