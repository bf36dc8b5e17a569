"""`edgeguard-seal`: closed journals become signed segments; receipts let segments go. Short-lived, no capability.

Every step may be the last before a kill or a power cut, and the next run ends what this one began:
a segment is written beside, made durable and renamed; only when all of a journal is there is the journal marked free;
a record that is in a segment already (its number is below the newest segment's end) is never sealed again.

Before a chain is extended its newest segment is verified. One that is damaged is moved to quarantine and reported. The
chain then goes on from the last good head, with the next free sequence number: a number is never used twice, because
the collector may hold the undamaged original. Each new segment names in `drops` the damaged ones that no receipt
covers, so that the collector knows that they will not come, and those that were let go for want of room (`eviction`).

Segments are signed by the key of an epoch (`keyring`), which the identity key certifies and which does not outlive it.
What was let go is written down under the identity key, because that word is read again for longer than the statement of
any one epoch is kept. Each segment that is sealed from then on carries it too, the one that needed the room first.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any, NamedTuple, cast

from edgeguard import identity
from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError, IdentityUnusable, SegmentRefused, SettingsError, SignatureError
from edgeguard.model import Severity
from edgeguard.records import confirmed, dictionaries, epoch, journal, outbox, quota, receipts, registry, wire
from edgeguard.records.eviction import NO_ROOM, Eviction
from edgeguard.records.keyring import Epoch, Keyring
from edgeguard.records.losses import DAMAGED
from edgeguard.records.outbox import Name
from edgeguard.records.receipts import Receipt
from edgeguard.records.references import Places, manifest_id
from edgeguard.records.spool import HEADER_COST, JOURNALS, SEAL_BYTES, SEAL_RECORDS
from edgeguard.records.wire import Drop, Header, Record
from edgeguard.settings import DEFAULT_FILE, Settings, load

AUDIT_MAX = 64  # segments that every run verifies, at 0.1 ms each on a PC and 1 ms on a Pi; more on request
QUARANTINE_MAX = 64  # files kept for a look; older ones go
CLOCK_STEP_MS = 1_000  # a segment labels time once; where wall and monotonic time part further, a new one begins
HEADER_ROOM = 1024  # bytes that a segment may have beside its records: header, signature, drops
NUMBER_MAX = 10**15  # of a segment; a device that seals ten a second for a million years comes to less
COLLECTOR_KEY_MAX = 256  # bytes of a file that holds 64 hex digits
STATUS_MAX = 64 * 1024
REQUEST_MAX = 64 * 1024  # bytes of the daemon's question
SHORT_HASH = 8  # bytes of the newest segments' hashes that the daemon puts into its heartbeats

_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4  # linux/prctl.h
_PR_SET_DUMPABLE = 4
_LINUX_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h


class Head(NamedTuple):
    """Where a stream's chain goes on."""

    sequence: int  # the highest number ever used
    hash: bytes  # of the last good segment
    record: int  # sequence number of the first record that is in no segment
    good: int  # which segment that is; 0: none


def run(
    settings: Settings,
    *,
    audit: bool = False,
    drop_privileges: bool = True,
    manifest: str = "",
    started: bool = False,
    clock: int = 0,
) -> dict[str, Any]:
    """Do all that is to be done and say what was done, ready for JSON or CBOR.

    `audit`: verify every segment that waits, not just the newest. `manifest`: the file (<sha256>.egm) of the baseline
    in force; its paths become numbers once a receipt says that the collector has that manifest. `started`: the daemon
    has just started, so a new epoch begins; `clock`: how good it believes the clock to be (registry.Clock).
    Raises OSError or IdentityUnusable (nothing is lost, try again later), DecodeError (the device key is unusable).
    """
    if drop_privileges:
        give_up_capabilities()
    sealer = Sealer(settings, manifest, clock)
    lock = os.open(os.path.join(sealer.spool, "seal.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return sealer.run(audit=audit, started=started)
    except BlockingIOError:
        return {"v": 1, "busy": True}
    finally:
        os.close(lock)


def main(argv: list[str]) -> int:
    """`edgeguard-seal [seal] [--settings FILE]`: asked by a CBOR map on standard input, answers with one frame
    [length u32][CBOR map], as every helper of the daemon does."""
    words = argv[1:] if argv[:1] == ["seal"] else argv
    if words and (len(words) != 2 or words[0] != "--settings"):
        sys.stderr.write("usage: edgeguard-seal [--settings FILE]\n")
        return 64
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
        )
    except OSError as error:
        result = {"error": str(error), "storage": True}
    except IdentityUnusable as error:
        result = {"error": str(error), "identity": str(error)}
    except (DecodeError, SettingsError) as error:
        result = {"error": str(error)}
    answer = cbor.encode(result)
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
        self._runtime = settings.paths.runtime
        self._clock = clock
        self.spool = os.path.join(state, "spool")
        self.outbox = os.path.join(exchange, "outbox")
        self.inbox = os.path.join(exchange, "inbox")
        self.quarantine = os.path.join(self.spool, "quarantine")
        self._room = Eviction(self.spool, self.outbox, settings.budget, _sync)
        key = settings.uplink.collector_key  # also without a network: a receipt may be carried here
        self._collector_key = key if settings.uplink.url or os.path.exists(key) else ""
        second = settings.uplink.second
        self._second_key = second.collector_key if second.url else ""
        self._copy = second.mode == "copy"
        self._settings = settings
        self._manifest = manifest
        self._baseline = manifest_id(manifest) or wire.NO_BASELINE
        self._places: Places | None = None
        self._identity: cose.Signer  # from the beginning of the run
        self._ring: Keyring  # from the beginning of the run
        self._epoch: Epoch  # while it seals
        self._signer: cose.Signer | None = None  # with the epoch's key
        self._device = b""
        self._receipt: Receipt | None = None  # of two collectors, what counts of both
        self._received: list[Receipt] = []  # of each collector
        self._sure: dict[int, int] = {}  # stream: highest number that a receipt confirms and that was here
        self._sealed: list[dict[str, Any]] = []
        self._quarantined: list[dict[str, Any]] = []
        self._spoiled = 0  # records that the disk lost out of a journal
        self._problems: list[str] = []

    def run(self, *, audit: bool = False, started: bool = False) -> dict[str, Any]:
        for directory, mode in ((self.outbox, 0o750), (self.quarantine, 0o700)):
            os.makedirs(directory, mode=mode, exist_ok=True)
        self._identity = identity.load(self._settings)
        public = self._identity.public
        self._device = cose.device_id(public)
        self._ring = Keyring(self._runtime, self.outbox, self._identity, self._clock, self._write_statement)
        self._ring.load()
        self._receipt = self._take_receipts()
        self._room.open(public, self._device, self._sign_losses, self._receipt, self._ring.public)
        self._tidy(audit=audit)
        heads = self._heads(audit=audit)
        self._let_go()
        journals = self._journals()
        closed = _closed(journals)
        boot = max([0, *(content.boot for content in journals.values())])
        self._ring.begin(_stated(heads), boot, fresh=started)
        if closed:
            self._epoch = self._ring.ready(_stated(heads), boot)
        released = [index for index, content in closed if self._seal(content, heads)]
        if self._places is not None:
            self._places.close()
        if self._sealed or released:  # what is released may have been sealed by a run that was killed before this
            _sync(self.outbox)
        self._ring.end(_stated(heads), boot)
        for index in released:
            self._release(index)
        self._ring.let_go()
        return self._result(released, heads)

    # --- receipts ------------------------------------------------------------------------------------------------

    def _take_receipts(self) -> Receipt | None:
        """The latest of each collector, each by its own key; what counts of them together."""
        first = self._take_receipt(receipts.FILE, self._collector_key)
        second = self._take_receipt(receipts.SECOND_FILE, self._second_key)
        self._received = [receipt for receipt in (first, second) if receipt is not None]
        return confirmed.together(first, second, copy=self._copy) if self._second_key else first

    def _take_receipt(self, file: str, key: str) -> Receipt | None:
        """The latest receipt: the stored one, or one in the inbox if it is good and says no less."""
        publics = self._publics(key)
        stored = self._read_receipt(os.path.join(self.spool, file), publics)
        came = self._read_receipt(os.path.join(self.inbox, file), publics)
        if came is None or (stored is not None and came[1] == stored[1]):
            return stored[0] if stored else None
        receipt, data = came
        problem = self._objection(receipt, stored[0] if stored else None)
        if problem:
            self._problems.append(f"{file}: {problem}")
            return stored[0] if stored else None
        _write(os.path.join(self.spool, file), data, 0o600)
        _sync(self.spool)
        with contextlib.suppress(OSError):  # a comfort: it tells the uplink a time that it may believe
            _write(os.path.join(self.outbox, file), data, 0o640)
        return receipt

    def _read_receipt(self, path: str, publics: list[bytes]) -> tuple[Receipt, bytes] | None:
        if not publics:
            return None
        try:
            data = receipts.read(path)
            return receipts.verified(data, publics, self._device), data
        except FileNotFoundError:
            return None
        except (OSError, DecodeError, SignatureError) as error:
            self._problems.append(f"{os.path.basename(path)}: {error}")
            return None

    def _objection(self, receipt: Receipt, stored: Receipt | None) -> str:
        """Why a well-signed receipt is not followed: "" if it is."""
        for old in stored.heads if stored else ():
            new = receipt.head(old.stream)
            if new is None or new.sequence < old.sequence or (new.sequence == old.sequence and new.hash != old.hash):
                return f"says less about stream {old.stream} than the one before: an old one, sent again?"
        for head in receipt.heads:
            if head.sequence > NUMBER_MAX:
                return f"names segment {head.stream}-{head.sequence}, which no device reaches"
            try:
                own = sha256(outbox.read(self.outbox, Name(head.stream, head.sequence))).digest()
            except FileNotFoundError:
                continue
            except (OSError, SegmentRefused):
                own = b""
            if own != head.hash and self._genuine(Name(head.stream, head.sequence)):
                return f"names another segment {head.stream}-{head.sequence} than ours: is this device cloned?"
        return ""

    def _publics(self, path: str) -> list[bytes]:
        if not path:
            return []
        try:
            public = bytes.fromhex(receipts.read(path, COLLECTOR_KEY_MAX).decode("ascii").strip())
        except (OSError, DecodeError, ValueError) as error:
            self._problems.append(f"the collector's key {path}: {error}")
            return []
        return [public] if len(public) == cose.PUBLIC_SIZE else []

    def _let_go(self) -> None:
        """Delete what the receipt covers, except the newest of each stream: it anchors the chain.

        A head must name a segment that is here (`_objection` has compared it): of one that we do not have, after a
        spool was put back or if the collector makes it up, nothing follows for those before it. It goes last itself.
        """
        names = outbox.listing(self.outbox)
        keep = set(outbox.newest(names).values())
        heads = self._receipt.heads if self._receipt else ()
        here = set(names)
        self._sure = {head.stream: head.sequence for head in heads if Name(head.stream, head.sequence) in here}
        for name in names:
            path = os.path.join(self.outbox, name.file)
            if name not in keep and name.sequence <= self._sure.get(name.stream, 0):
                os.unlink(path)
            else:
                self._room.holds(name)

    # --- chains --------------------------------------------------------------------------------------------------

    def _heads(self, *, audit: bool) -> dict[int, Head]:
        """Verify what must be verified, set aside what is damaged, and find where each chain goes on."""
        names = outbox.listing(self.outbox)
        suspects = self._suspects()
        everything = audit or len(names) <= AUDIT_MAX
        heads = {stream: self._received_head(stream) for stream in range(journal.STREAMS)}
        for name in self._set_aside():
            old = heads[name.stream]
            heads[name.stream] = old._replace(sequence=max(old.sequence, name.sequence))
        for drop in self._room.drops:
            old = heads[drop.stream]
            heads[drop.stream] = old._replace(sequence=max(old.sequence, drop.last))
        for stream in range(journal.STREAMS):
            anchored = False
            for name in sorted((name for name in names if name.stream == stream), reverse=True):
                if anchored and not everything and name not in suspects:
                    continue
                heads[stream], good = self._look_at(name, heads[stream], anchored=anchored)
                anchored = anchored or good
        return heads

    def _received_head(self, stream: int) -> Head:
        heads = [head for receipt in self._received if (head := receipt.head(stream)) is not None]
        head = max(heads, key=lambda head: head.sequence, default=None)  # a number is used once, whoever has it
        return Head(head.sequence, head.hash, 1, head.sequence) if head else Head(0, wire.NO_PREVIOUS, 1, 0)

    def _look_at(self, name: Name, head: Head, *, anchored: bool) -> tuple[Head, bool]:
        """Verify one segment; a good one may become the head, a bad one goes to quarantine. Newest first."""
        try:
            data = outbox.read(self.outbox, name)
            header = self._believe(name, data)
        except (OSError, SegmentRefused) as error:
            self._put_aside(name, str(error))
            return head._replace(sequence=max(head.sequence, name.sequence)), False
        if not anchored:
            self._ring.used(header.epoch)
            newer = name.sequence >= self._received_head(name.stream).sequence
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

    def _genuine(self, name: Name) -> bool:
        try:
            self._believe(name, outbox.read(self.outbox, name))
        except (OSError, SegmentRefused):
            return False
        return True

    def _suspects(self) -> set[Name]:
        """What the uplink says the collector refused. It may say anything: we only look at those files ourselves."""
        try:
            status = json.loads(receipts.read(os.path.join(self.inbox, "status.json"), STATUS_MAX))
        except (OSError, ValueError, RecursionError, DecodeError):
            return set()
        refused = status.get("refused") if isinstance(status, dict) else None
        items = refused if isinstance(refused, list) else []
        names = (outbox.parse_name(str(item.get("name"))) for item in items if isinstance(item, dict))
        return {name for name in names if name is not None}

    def _put_aside(self, name: Name, reason: str) -> None:
        _move(os.path.join(self.outbox, name.file), os.path.join(self.quarantine, name.file))
        covered = self._receipt is not None and self._receipt.covers(name)
        self._quarantined.append(
            {"name": name.file, "stream": name.stream, "seq": name.sequence, "why": reason, "delivered": covered}
        )

    def _set_aside(self) -> list[Name]:
        return outbox.listing(self.quarantine)

    def _tidy(self, *, audit: bool) -> None:
        """What a killed run left, statements that are not whole, and quarantine beyond its bound."""
        for file in os.listdir(self.outbox):
            if file.startswith(".") and file.endswith(".tmp"):
                with contextlib.suppress(IsADirectoryError):  # nobody's, and in nobody's way
                    os.unlink(os.path.join(self.outbox, file))
        aside = sorted(self._set_aside(), key=lambda name: self._receipt is None or not self._receipt.covers(name))
        old = aside[:-QUARANTINE_MAX]  # those that no longer need explaining first
        self._room.note(self._damaged(old))
        for name in old:
            with contextlib.suppress(IsADirectoryError):
                os.unlink(os.path.join(self.quarantine, name.file))
        self._ring.tidy(self.quarantine, _move, audit=audit)

    # --- sealing -------------------------------------------------------------------------------------------------

    def _journals(self) -> dict[int, journal.Content]:
        """Journals that are whole, by the number of their file."""
        found: dict[int, journal.Content] = {}
        for index, file in enumerate(JOURNALS):
            with contextlib.suppress(FileNotFoundError):
                content = journal.parse(journal.read(os.path.join(self.spool, file)))
                if content is not None:
                    found[index] = content
        return found

    def _seal(self, content: journal.Content, heads: dict[int, Head]) -> bool:
        """All of a journal into segments. True when nothing of it remains."""
        self._spoiled += sum(not frame.content for frame in content.frames)
        for stream in range(journal.STREAMS):
            frames = [
                frame for frame in content.frames if frame.stream == stream and frame.sequence >= heads[stream].record
            ]
            for chunk in _chunks(frames):
                heads[stream] = self._write_segment(stream, heads[stream], chunk)
        return True

    def _unexplained(self) -> tuple[Drop, ...]:
        return (*self._damaged(self._set_aside()), *self._room.drops)

    def _damaged(self, names: Iterable[Name]) -> tuple[Drop, ...]:
        return tuple(
            Drop(name.sequence, name.sequence, DAMAGED, name.stream)
            for name in names
            if self._receipt is None or not self._receipt.covers(name)
        )

    def _sign_losses(self, payload: bytes) -> bytes:
        return self._identity.sign1(payload, cose.LOSSES_AAD)

    def _write_statement(self, path: str, data: bytes, mode: int) -> None:
        """About a key: nothing is sealed without it, so a full disk makes room for it as for a segment."""
        while True:
            try:
                _write_durably(path, data, mode)
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
                _write(os.path.join(self.outbox, name.file), data, 0o640)
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
        number = dictionaries.best(self._receipt.dictionaries if self._receipt else ())
        if number:
            try:
                dictionaries.read(number)
            except DecodeError as error:
                self._problems.append(str(error))
                return 0
        return number

    def _reference(self) -> wire.Reference | None:
        """The baseline's paths as numbers, if the collector can read them."""
        if self._receipt is None or self._baseline not in self._receipt.baselines:
            return None
        if self._places is None:
            try:
                self._places = Places(self._manifest)
            except (OSError, DecodeError) as error:
                self._problems.append(f"{self._manifest}: {error}")
                self._baseline = wire.NO_BASELINE
                return None
        return self._places.reference

    def _release(self, index: int) -> None:
        """Mark a journal free; it was closed when we looked and only a sealer, of which there is one, changes that."""
        path = os.path.join(self.spool, JOURNALS[index])
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            header = journal.parse_header(os.pread(fd, journal.FRAMES_AT, 0))
            if header is not None and header.state == journal.CLOSED:
                journal.write_header(cast("journal.Files", os), fd, header._replace(state=journal.FREE))
                self._room.written += HEADER_COST
        finally:
            os.close(fd)

    def _result(self, released: list[int], heads: dict[int, Head]) -> dict[str, Any]:
        names = outbox.listing(self.outbox)
        receipt = self._receipt
        waiting = [name for name in names if name.sequence > self._sure.get(name.stream, 0)]
        return {
            "v": 1,
            "sealed": self._sealed,
            "quarantined": self._quarantined,
            "released": released,
            "problems": self._problems,
            "key": self._ring.problem or self._ring.unsigned,
            "identity": self._ring.unsigned,
            "heads": [[head.stream, head.sequence, head.hash[:SHORT_HASH]] for head in _stated(heads) if head.hash],
            "waiting": len(waiting),
            "aside": self._room.problem,
            "spoiled": self._spoiled,
            "awaited": bool(self._collector_key),
            **self._room.report(),
            "receipt": None
            if receipt is None
            else {"time": receipt.time, "heads": [[head.stream, head.sequence] for head in receipt.heads]},
        }


def _stated(heads: dict[int, Head]) -> tuple[epoch.Head, ...]:
    """As a statement names them: what has no good segment under its number has no hash."""
    return tuple(
        epoch.Head(stream, head.sequence, head.hash[: epoch.HASH_SIZE] if head.good == head.sequence else b"")
        for stream, head in sorted(heads.items())
        if head.sequence
    )


def _closed(journals: dict[int, journal.Content]) -> list[tuple[int, journal.Content]]:
    """Journals that wait, oldest first."""
    closed = [item for item in journals.items() if item[1].header.state == journal.CLOSED]
    closed.sort(key=lambda item: item[1].header.generation)
    return [(index, journal.completed(content, journals.values())) for index, content in closed]


def _chunks(frames: Iterable[journal.Frame]) -> Iterator[list[tuple[journal.Frame, Record]]]:
    """Records that may share a segment: one boot, contiguous, one clock, within the bounds."""
    chunk: list[tuple[journal.Frame, Record]] = []
    size, before = 0, Record(registry.TEXT.number, 0, 0, None)
    for frame in frames:
        record = before = _record(frame, before)
        size += len(frame.content)
        if chunk and (len(chunk) >= SEAL_RECORDS or size > SEAL_BYTES or _parts(chunk, frame, record)):
            yield chunk
            chunk, size = [], len(frame.content)
        chunk.append((frame, record))
    if chunk:
        yield chunk


def _record(frame: journal.Frame, before: Record) -> Record:
    """What a frame holds. Where the disk lost it, a drop stands in its place, dated as the record before it.

    What its CRC lets pass and cannot be read is our own fault: say so in its place.
    """
    if not frame.content:
        words = f"record {frame.stream}/{frame.sequence} was damaged in the journal"
        fields = (frame.stream, None, None, DAMAGED, 1, words)
        return before._replace(
            type=registry.DROP.number, stream=frame.stream, severity=Severity.MEDIUM, rule=False, fields=fields
        )
    try:
        return wire.decode_record(frame.content)
    except DecodeError as error:
        words = f"record {frame.stream}/{frame.sequence} cannot be read: {error}"
        return Record(registry.TEXT.number, frame.stream, 0, None, 0, 0, False, (words,))


def _parts(chunk: list[tuple[journal.Frame, Record]], frame: journal.Frame, record: Record) -> bool:
    """Does another segment begin here?"""
    last, before = chunk[-1]
    _, first = chunk[0]
    if (frame.boot, frame.sequence, record.clock) != (last.boot, last.sequence + 1, before.clock):
        return True
    if record.wall is None or first.wall is None:
        return (record.wall is None) != (first.wall is None)
    return abs((record.wall - record.mono) - (first.wall - first.mono)) > CLOCK_STEP_MS


def _move(source: str, target: str) -> None:
    """For good. Raises OSError."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # spool and outbox may be on two file systems
            raise
        shutil.copyfile(source, target, follow_symlinks=False)
        os.unlink(source)
    _sync(os.path.dirname(target))
    _sync(os.path.dirname(source))


def _write_durably(path: str, data: bytes, mode: int) -> None:
    _write(path, data, mode)
    _sync(os.path.dirname(path))


def _write(path: str, data: bytes, mode: int) -> None:
    """Beside, durable, renamed. The caller makes the directory durable."""
    directory, _, file = path.rpartition("/")
    temporary = f"{directory}/.{file}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(fd, mode)  # whatever the umask is: the uplink's group must be able to read segments
        journal.write_all(cast("journal.Files", os), fd, data, 0)
        os.fsync(fd)
    except OSError:
        os.unlink(temporary)  # it may hold the last blocks of the disk
        raise
    finally:
        os.close(fd)
    os.replace(temporary, path)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def give_up_capabilities() -> None:
    """No capability, now and after any exec; and nobody reads our memory, in a core or by ptrace. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = _CapabilityHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    nothing = (_CapabilityData * 2)()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)  # kernels without it have no ambient set either
    if libc.capset(ctypes.byref(header), ctypes.byref(nothing)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
