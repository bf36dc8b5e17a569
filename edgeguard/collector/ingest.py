"""What happens to a segment that came: verify, decode, store, advance the head, and say so in a receipt.

No network and no clock of its own, so that all of it can be tested with bytes. The signature is verified before the
payload is looked at. One transaction takes in a whole POST; the receipt is made from what that transaction committed.
The same segments any number of times, in any order, give the same database: (device, stream, seq) is the key, and a
head only ever moves over what is there or explained.

Everything that is not as it should be has a name, the same that `verify` gives it (records.defects):
    altered, truncated file, malformed, re-sealed, replayed, unknown epoch, forged epoch      not taken, told to the
                      device. `unknown epoch` comes again with its statement
    unknown dictionary      compressed with one of a later release: not taken; the receipt says which ones are here
    unknown device    nobody we know
    equivocation      another segment or statement with this number is here: a cloned device or a stolen key. Kept as
                      evidence only
    spliced           taken, but it does not name the segment before it: the chain was cut and made anew
    sealed later, old epoch     taken, but its key did not exist yet, or was gone by then
    rolled back       taken, but a statement or a heartbeat of the device names another segment with this number
    unannounced epoch a key was lost while the device stayed on: what was not delivered by then may have been cut off
    gap               segments are missing before one that is here; resolved when they come or a drop explains them
    records missing, records twice    two neighbouring segments whose record numbers do not meet. Missing ones are
                      resolved when the device says that it lost a journal
    explained loss    the device says itself that it lost segments, or a journal
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from edgeguard.codec import cose
from edgeguard.collector import bulk, events, findings, statements, store
from edgeguard.collector.baselines import Baselines
from edgeguard.collector.bulk import Standing, Taken
from edgeguard.collector.database import Database
from edgeguard.errors import UnknownDictionary
from edgeguard.records import dictionaries, epoch, examine, receipts, registry, wire
from edgeguard.records.certify import Refused
from edgeguard.records.defects import Name
from edgeguard.records.receipts import Range, Receipt, Refusal
from edgeguard.records.wire import Header, Segment

STREAMS = 4
REASON_MAX = 1 << 16  # a number of tomorrow is kept, a giant one is not
PAUSE_MAX = 86_400_000  # ms; a longer pause says nothing about how often a device talks
BACK_MAX = 80  # segments; a sealer goes back over at most 64 damaged ones (holdings.QUARANTINE_MAX)
EVIDENCE_MAX = 16  # conflicting segments kept for one device
JOURNAL = "a journal was damaged; nobody knows how many records were in it"
UNKNOWN = bytes(16)  # incidents about nobody we know


class Verdict(NamedTuple):
    """What became of one segment. `name` is "stored", "duplicate", or the name of what is wrong."""

    name: str
    hash: bytes
    stream: int = -1
    sequence: int = 0
    detail: str = ""

    @property
    def taken(self) -> bool:
        return self.name in {"stored", "duplicate"}


class Device(NamedTuple):
    id: bytes
    name: str
    public: bytes


class Heard(NamedTuple):
    """A device that talked, and what is new of it; its columns of `_HEARD`."""

    device: bytes
    duplicates: int = 0
    segments: int = 0
    records: int = 0
    bytes: int = 0
    lag: int | None = None  # ms; only of new segments


# A number that may be NULL in each row has no type for PostgreSQL: hence the CAST in the caller.
_HEARD = """
WITH v(device, again, more, n, size, late) AS (VALUES {}), t(now) AS (VALUES (CAST(? AS BIGINT)))
UPDATE devices SET duplicates = duplicates + v.again, segments = segments + v.more, records = records + v.n,
    bytes = bytes + v.size, lag = CASE WHEN v.more > 0 THEN v.late ELSE lag END,
    pace = CASE WHEN seen IS NULL THEN pace WHEN t.now - seen > {} THEN {}
        WHEN t.now - seen > coalesce(pace, 0) * 7 / 8 THEN t.now - seen ELSE pace * 7 / 8 END,
    seen = t.now
FROM v, t WHERE devices.id = v.device
"""

# In a stream of findings a segment that tells of a lost journal, and a segment that was sealed before it.
_JOURNAL_LOST = """
SELECT 1 FROM incidents i JOIN segments t ON t.device = i.device AND t.stream = i.stream AND t.seq = i.seq
JOIN segments b ON b.device = i.device AND (b.boot < t.boot OR (b.boot = t.boot AND b.mono <= t.mono))
WHERE i.device = ? AND i.name = 'explained loss' AND i.detail = ? AND b.stream = ? AND b.seq = ?
"""


class Ingest:
    """One database, one writer. `now` gives milliseconds since the epoch."""

    def __init__(
        self,
        connection: Database,
        seed: bytes,
        now: Callable[[], int],
        baselines: Baselines | None = None,
    ) -> None:
        self._db = connection
        self._seed = seed
        self._now = now
        self._baselines = baselines
        self._statements = statements.Statements(connection, now, self._incident, self._is_explained)

    # --- devices -------------------------------------------------------------------------------------------------

    def add_device(self, name: str, public: bytes) -> Device:
        """Know a device from now on. Raises ValueError if its name or key is known already."""
        device = Device(cose.device_id(public), name, public)
        added = self._db.execute(
            "INSERT INTO devices (id, name, public, added) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (*device, self._now()),
        )
        if not added.rowcount:
            raise ValueError(f"a device with the name {name!r} or this key is known already")
        return device

    def device(self, identity: bytes) -> Device | None:
        row = self._db.execute("SELECT id, name, public FROM devices WHERE id = ?", (identity,)).fetchone()
        return Device(*row) if row else None

    def device_of(self, public: bytes) -> Device | None:
        """The device with this key."""
        return self.device(cose.device_id(public))

    def _heard(self, heard: Sequence[Heard]) -> None:
        """They talked now. A pace is the longest pause of late: each time forgets an eighth of it."""
        now = self._now()
        for at in range(0, len(heard), bulk.ROWS):
            some = heard[at : at + bulk.ROWS]
            rows = ", ".join(["(?, ?, ?, ?, ?, CAST(? AS BIGINT))"] * len(some))
            values = [value for each in some for value in each]
            self._db.execute(_HEARD.format(rows, PAUSE_MAX, PAUSE_MAX), (*values, now))

    # --- segments ------------------------------------------------------------------------------------------------

    def take(self, data: bytes, device: Device, *, vouched: bool = True) -> tuple[list[Verdict], bytes]:
        """A POST's body from a device that TLS has vouched for: what became of each segment, and the signed receipt.
        `vouched` False: anybody may have sent it; that the device lives is shown by a new segment of its own only.

        Raises SegmentRefused when the body is not a sequence of segments at all.
        """
        return self.take_all([(wire.split(data), device)], vouched=vouched)[0]

    def take_all(
        self, posts: Sequence[tuple[Sequence[bytes], Device]], *, vouched: bool = True
    ) -> list[tuple[list[Verdict], bytes]]:
        """The parts of many POSTs in one transaction, and as `take` for each. A device that is there twice gets the
        same receipt twice."""
        parts: dict[Device, list[bytes]] = {}
        places = []
        for some, device in posts:
            all_of_it = parts.setdefault(device, [])
            places.append(range(len(all_of_it), len(all_of_it) + len(some)))
            all_of_it += some
        with store.transaction(self._db, *(device.id.hex() for device in parts)):
            found, known = self._take_all(parts, vouched=vouched)
        answers = {device: self._answer(device, found[device], known.get(device)) for device in parts}
        return [
            ([found[device][at] for at in _in_order(parts[device], where)], answers[device])
            for (_, device), where in zip(posts, places, strict=True)
        ]

    def _take_all(
        self, parts: Mapping[Device, Sequence[bytes]], *, vouched: bool
    ) -> tuple[dict[Device, dict[int, Verdict]], dict[Device, Standing]]:
        """What became of each part, and where those devices stand now that only sent what is ordinary."""
        verdicts: dict[Device, dict[int, Verdict]] = {device: {} for device in parts}
        segments: dict[Device, dict[int, bytes]] = {}
        for device, some in parts.items():
            segments[device] = dict(enumerate(some))
            for at in [at for at, part in enumerate(some) if epoch.is_statement(part)]:
                verdicts[device][at] = self._take_statement(segments[device].pop(at), device)
        standing = bulk.standing(self._db, [device.id for device in parts])
        ordinary: dict[Device, list[Taken]] = {}
        heard: list[Heard] = []
        for device, those in segments.items():
            taken = bulk.ordinary(those.values(), device.public, standing[device.id], self._decode)
            if taken is None:
                found = self._take_slowly(device, those.values())
            else:
                ordinary[device], found = taken, [_stored(each) for each in taken]
            verdicts[device].update(zip(those, found, strict=True))
            names = Counter(verdict.name for verdict in verdicts[device].values())
            if vouched or names["stored"]:
                heard.append(self._counted(device, taken or (), names["duplicate"]))
        self._store_all([each for taken in ordinary.values() for each in taken])
        self._heard(heard)
        return verdicts, {device: standing[device.id] for device in ordinary}

    def _take_slowly(self, device: Device, parts: Iterable[bytes]) -> list[Verdict]:
        """One after the other, whatever there is about them."""
        verdicts = [self._take_one(part, device) for part in parts]
        for stream in range(STREAMS):
            self._advance(device, stream)
        return verdicts

    def _answer(self, device: Device, verdicts: Mapping[int, Verdict], known: Standing | None) -> bytes:
        refused = [Refusal(verdict.hash, verdict.name) for verdict in verdicts.values() if not verdict.taken]
        return self.receipt(device, refused, known)

    def take_files(self, parts: Sequence[bytes]) -> list[Verdict]:
        """Segments and statements that came on a stick: each says whose it is, and its signature proves it."""
        verdicts = []
        for part in sorted(parts, key=epoch.is_statement, reverse=True):
            claimed = statements.owner(part)
            device = self.device(claimed) if claimed else None
            if device is None:
                verdict = Verdict("unknown device", sha256(part).digest())
                with store.transaction(self._db, UNKNOWN.hex()):
                    self._incident(UNKNOWN, -1, 0, verdict.name, claimed.hex() if claimed else "not a segment")
            else:
                verdict = self.take(part, device)[0][0]
            verdicts.append(verdict)
        return verdicts

    def unknown_device(self, identity: str) -> None:
        """Somebody with a certificate of ours whom we do not know (any more)."""
        with store.transaction(self._db, UNKNOWN.hex()):
            self._incident(UNKNOWN, -1, 0, "unknown device", identity[:64])

    def explain(self, device: Device, stream: int, last: int) -> None:
        """An operator says that what is missing up to `last` will not come."""
        with store.transaction(self._db, device.id.hex()):
            head = self._head(device, stream)
            if last > head[0]:
                self._explain(device, stream, head[0] + 1, last, registry.REASONS.index("operator"))
            self._advance(device, stream)

    def receipt(self, device: Device, refused: Sequence[Refusal] = (), known: Standing | None = None) -> bytes:
        """What is committed for this device, signed. `known`: the same, where a transaction has just read it."""
        rows = (
            known.heads()
            if known
            else self._db.execute(
                "SELECT stream, seq, hash FROM heads WHERE device = ? AND seq > 0 ORDER BY stream", (device.id,)
            ).fetchall()
        )
        receipt = Receipt(
            device=device.id,
            time=self._now(),
            heads=tuple(receipts.Head(*row) for row in rows),
            held=() if known and known.is_whole() else tuple(self._held(device)),
            refused=tuple(refused[: receipts.REFUSED_MAX]),
            dictionaries=dictionaries.numbers(),
            baselines=self._baselines.ids() if self._baselines else (),
            epochs=tuple(known.epochs) if known else self._statements.newest(device.id),
        )
        return cose.sign1(receipts.encode(receipt), self._seed, cose.RECEIPT_AAD)

    # --- one segment ---------------------------------------------------------------------------------------------

    def _take_statement(self, data: bytes, device: Device) -> Verdict:
        name, detail = self._statements.take(data, device.id, device.public)
        return Verdict(name, sha256(data).digest(), detail=detail)

    def _take_one(self, data: bytes, device: Device) -> Verdict:
        digest = sha256(data).digest()
        try:
            segment = examine.opened(data, self._statements.keys(data, device.public), self._decode)
        except Refused as refused:
            place = refused.claimed or (device.id, -1, 0)
            return self._refuse(device, Verdict(_word(refused), digest, place[1], place[2], str(refused)))
        return self._store(segment, data, digest, device)

    def _decode(self, payload: bytes) -> Segment:
        places = self._baselines.places(wire.decode_header(payload).baseline) if self._baselines else None
        return wire.decode_segment(payload, places.resolve, places.digest) if places else wire.decode_segment(payload)

    def _store(self, segment: Segment, data: bytes, digest: bytes, device: Device) -> Verdict:
        header = segment.header
        found = self._db.execute(
            "SELECT hash FROM segments WHERE device = ? AND stream = ? AND seq = ?",
            (device.id, header.stream, header.sequence),
        ).fetchone()
        if found and found[0] == digest:
            return Verdict("duplicate", digest, header.stream, header.sequence)
        if found:
            detail = f"another segment {header.stream}-{header.sequence} is here: cloned device or stolen key"
            self._incident(device.id, header.stream, header.sequence, Name.EQUIVOCATION.word, digest.hex(), data)
            return Verdict(Name.EQUIVOCATION.word, digest, header.stream, header.sequence, detail)
        if self._behind(header, device):
            detail = "its number was passed over as lost, and now it is here"
            self._incident(device.id, header.stream, header.sequence, "late", detail)
        self._statements.segment(segment, digest)
        (row,) = bulk.write_segments(self._db, [Taken(segment, data, digest)], self._now())
        self._count(segment, len(data))
        bulk.write_records(self._db, [(row, segment)])
        findings.project(self._db, header, segment.records, self._now())
        self._learn_time(header)
        for drop in segment.drops:
            self._explain(device, drop.stream, drop.first, drop.last, drop.reason)
        self._explain_by_records(segment, device)
        self._explain_by_journal(segment, device)
        return Verdict("stored", digest, header.stream, header.sequence)

    def _behind(self, header: Header, device: Device) -> bool:
        return header.sequence <= self._head(device, header.stream)[0]

    def _store_all(self, taken: Sequence[Taken]) -> None:
        """Ordinary segments, of any number of devices."""
        if not taken:
            return
        bulk.write(self._db, taken, self._now())
        for segment, _, _ in taken:
            header = segment.header
            findings.project(self._db, header, segment.records, self._now())
            for head in examine.heads(segment):
                self._statements.announced(header.device, head, f"the heartbeat in findings {header.sequence}")

    def _counted(self, device: Device, taken: Sequence[Taken], duplicates: int) -> Heard:
        return Heard(
            device.id,
            duplicates,
            segments=len(taken),
            records=sum(each.segment.header.n for each in taken),
            bytes=sum(len(each.data) for each in taken),
            lag=self._lag(taken[-1].segment) if taken else None,
        )

    def _lag(self, segment: Segment) -> int | None:
        """How old its newest record is; None: it does not know the time."""
        newest = max((record.wall for record in segment.records if record.wall is not None), default=None)
        return None if newest is None or not segment.header.clock else max(0, self._now() - newest)

    def _count(self, segment: Segment, size: int) -> None:
        header = segment.header
        self._db.execute(
            "UPDATE devices SET segments = segments + 1, records = records + ?, bytes = bytes + ?, lag = ?"
            " WHERE id = ?",
            (header.n, size, self._lag(segment), header.device),
        )

    def _learn_time(self, header: Header) -> None:
        """Once one segment of a boot has a good clock, the times of that whole boot are known."""
        base = events.offset(header)
        if base is None:
            return
        self._db.execute(
            'INSERT INTO boots (device, boot, "offset", clock) VALUES (?, ?, ?, ?)'
            ' ON CONFLICT (device, boot) DO UPDATE SET "offset" = excluded."offset", clock = excluded.clock'
            " WHERE excluded.clock > boots.clock",
            (header.device, header.boot, base, header.clock),
        )

    # --- chains --------------------------------------------------------------------------------------------------

    def _head(self, device: Device, stream: int) -> tuple[int, bytes, int, int]:
        """(sequence up to which nothing is missing, hash of the last segment that is here, its number, next record)."""
        row = self._db.execute(
            "SELECT seq, hash, last_good, next_record FROM heads WHERE device = ? AND stream = ?", (device.id, stream)
        ).fetchone()
        return (row[0], row[1], row[2], row[3]) if row else (0, wire.NO_PREVIOUS, 0, 1)

    def _advance(self, device: Device, stream: int) -> None:
        """Move the head over everything that is here or explained, looking at each joint of the chain once."""
        before = self._head(device, stream)
        sequence, digest, last, record = before
        while True:
            row = self._db.execute(
                "SELECT hash, previous, first, n FROM segments WHERE device = ? AND stream = ? AND seq = ?",
                (device.id, stream, sequence + 1),
            ).fetchone()
            if row is None:
                explained = self._explained_to(device, stream, sequence + 1)
                if explained is None:
                    break
                sequence = explained
                continue
            sequence += 1
            self._check_joint(device, stream, sequence, row, (digest, last, record))
            digest, last, record = row[0], sequence, row[2] + row[3]
        if sequence != before[0]:
            self._db.execute(
                "INSERT INTO heads (device, stream, seq, hash, last_good, next_record) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (device, stream) DO UPDATE SET seq = excluded.seq, hash = excluded.hash,"
                " last_good = excluded.last_good, next_record = excluded.next_record",
                (device.id, stream, sequence, digest, last, record),
            )
        self._note_gap(device, stream, sequence)

    def _check_joint(
        self,
        device: Device,
        stream: int,
        sequence: int,
        row: tuple[bytes, bytes, int, int],
        head: tuple[bytes, int, int],
    ) -> None:
        _, previous, first, _ = row
        digest, last, record = head
        # Of a segment that is explained as lost nobody here knows the hash; the one after it names that.
        unlike = previous != digest and last == sequence - 1
        if unlike and not self._damaged_since(device, stream, sequence, previous):
            detail = f"names {previous.hex()} as the segment before it, {digest.hex()} is"
            self._incident(device.id, stream, sequence, Name.SPLICED.word, detail)
        if first != record and last == sequence - 1:
            name = Name.RECORDS_MISSING if first > record else Name.RECORDS_TWICE
            if name is Name.RECORDS_TWICE or not self._journal_lost(device, stream, sequence):
                self._incident(device.id, stream, sequence, name.word, f"begins with record {first}, expected {record}")

    def _journal_lost(self, device: Device, stream: int, sequence: int) -> bool:
        """Did the device say, later than the segment before this one, that a journal was damaged? Nobody knows what was
        in it, and where its records are missing it is explained."""
        row = self._db.execute(_JOURNAL_LOST, (device.id, JOURNAL, stream, sequence - 1)).fetchone()
        return row is not None

    def _explain_by_journal(self, segment: Segment, device: Device) -> None:
        """The device says that it lost a journal: what is missing since is so for that reason."""
        header = segment.header
        if all(count is not None for _, count in examine.losses(segment).records):
            return
        self._incident(device.id, header.stream, header.sequence, "explained loss", JOURNAL)
        rows = self._db.execute(
            "SELECT id, stream, seq FROM incidents WHERE device = ? AND name = ? AND resolved IS NULL",
            (device.id, Name.RECORDS_MISSING.word),
        ).fetchall()
        for number, stream, sequence in rows:
            if self._journal_lost(device, stream, sequence):
                self._db.execute("UPDATE incidents SET resolved = ? WHERE id = ?", (self._now(), number))

    def _damaged_since(self, device: Device, stream: int, sequence: int, previous: bytes) -> bool:
        """The device says that what we have before this was damaged on its side, and went on from the last good one:
        one that is here, one that was lost undelivered (nobody here knows its hash but the one after it), or none."""
        if previous == wire.NO_PREVIOUS:
            return self._all_explained(device, stream, sequence - 1)
        rows = self._db.execute(
            "SELECT seq, hash, previous FROM segments WHERE device = ? AND stream = ? AND seq < ?"
            " ORDER BY seq DESC LIMIT ?",
            (device.id, stream, sequence, BACK_MAX),
        ).fetchall()
        here = {number: (digest, before) for number, digest, before in rows}
        oldest = min(here, default=sequence) if len(here) == BACK_MAX else 1
        for number in range(sequence - 1, oldest, -1):
            if self._explained_to(device, stream, number) is None:
                return False
            if number - 1 in here:
                if here[number - 1][0] == previous:
                    return True
            elif number not in here or here[number][1] == previous:
                return True
        return False

    def _all_explained(self, device: Device, stream: int, last: int) -> bool:
        """Is everything up to `last` said to be lost?"""
        ranges = self._db.execute(
            "SELECT first, last FROM drops WHERE device = ? AND stream = ? AND first <= ? ORDER BY first, last",
            (device.id, stream, last),
        )
        reached = 0
        for first, end in ranges:
            if first > reached + 1:
                break
            reached = max(reached, end)
        return reached >= last

    def _explained_to(self, device: Device, stream: int, sequence: int) -> int | None:
        row = self._db.execute(
            "SELECT max(last) FROM drops WHERE device = ? AND stream = ? AND first <= ? AND last >= ?",
            (device.id, stream, sequence, sequence),
        ).fetchone()
        return row[0] if row else None

    def _is_explained(self, device: bytes, stream: int, sequence: int) -> bool:
        row = self._db.execute(
            "SELECT 1 FROM drops WHERE device = ? AND stream = ? AND first <= ? AND last >= ?",
            (device, stream, sequence, sequence),
        ).fetchone()
        return row is not None

    def _explain(self, device: Device, stream: int, first: int, last: int, reason: int) -> None:
        """A segment that is here is worth more than the word that it is lost. A device that goes on losing says so with
        a range that grows: the longest is kept, and the loss is one."""
        if self._db.execute(
            "SELECT 1 FROM drops WHERE device = ? AND stream = ? AND reason = ? AND first <= ? AND last >= ?",
            (device.id, stream, reason, first, last),
        ).fetchone():
            return
        place = (device.id, stream, first)
        self._db.execute(
            "DELETE FROM drops WHERE device = ? AND stream = ? AND first = ? AND reason = ?", (*place, reason)
        )
        inserted = self._db.execute(
            "INSERT INTO drops (device, stream, first, last, reason) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (device.id, stream, first, last, reason),
        ).rowcount
        if not inserted:
            return
        name = registry.REASONS[reason] if reason < len(registry.REASONS) else str(reason)
        detail = f"segments {first} to {last}: {name}"
        own = "device = ? AND stream = ? AND seq = ? AND name = 'explained loss' AND detail <> ?"
        (known,) = self._db.execute(f"SELECT min(id) FROM incidents WHERE {own}", (*place, JOURNAL)).fetchone()  # noqa: S608 - constant text
        if known is None:
            self._incident(device.id, stream, first, "explained loss", detail)
            return
        self._db.execute(f"DELETE FROM incidents WHERE {own} AND id > ?", (*place, JOURNAL, known))  # noqa: S608 - constant text
        self._db.execute(  # the same row: who was told of it is not told again with each segment
            "UPDATE incidents SET detail = ?, last_seen = ?, count = count + 1 WHERE id = ?",
            (detail, self._now(), known),
        )

    def _explain_by_records(self, segment: Segment, device: Device) -> None:
        for record in segment.records:
            if record.type == registry.DROP.number and segment.header.stream == registry.Stream.FINDINGS:
                stream, first, last, reason = (*record.fields[:4], *[None] * 4)[:4]
                whole = all(type(item) is int for item in (stream, first, last))
                if whole and 0 <= stream < STREAMS and 0 < first <= last < wire.COUNT_MAX:
                    self._explain(device, stream, first, last, min(reason or 0, REASON_MAX))

    def _note_gap(self, device: Device, stream: int, head: int) -> None:
        row = self._db.execute(
            "SELECT min(seq) FROM segments WHERE device = ? AND stream = ? AND seq > ?", (device.id, stream, head)
        ).fetchone()
        self._db.execute(
            "UPDATE incidents SET resolved = ? WHERE device = ? AND stream = ? AND name = 'gap' AND seq <= ?"
            " AND resolved IS NULL",
            (self._now(), device.id, stream, head),
        )
        if row[0] is not None:
            self._incident(device.id, stream, head + 1, "gap", "segments are missing")

    def _held(self, device: Device) -> list[Range]:
        """Segments beyond the heads, as ranges."""
        held: list[Range] = []
        rows = self._db.execute(
            "SELECT s.stream, s.seq FROM segments s LEFT JOIN heads h ON h.device = s.device AND h.stream = s.stream"
            " WHERE s.device = ? AND s.seq > coalesce(h.seq, 0) ORDER BY s.stream, s.seq LIMIT 10000",
            (device.id,),
        )
        for stream, sequence in rows:
            if held and held[-1].stream == stream and held[-1].last == sequence - 1:
                held[-1] = held[-1]._replace(last=sequence)
            elif len(held) < receipts.HELD_MAX:
                held.append(Range(stream, sequence, sequence))
            else:
                break
        return held

    # --- trouble -------------------------------------------------------------------------------------------------

    def _refuse(self, device: Device, verdict: Verdict) -> Verdict:
        self._incident(device.id, verdict.stream, verdict.sequence, verdict.name, verdict.detail)
        return verdict

    def _incident(
        self, device: bytes, stream: int, sequence: int, name: str, detail: str, evidence: bytes | None = None
    ) -> None:
        """Note it once, count it after; the table is bounded, by device and name first of all."""
        now = self._now()
        detail = events.printable(detail)[:300]
        updated = self._db.execute(
            "UPDATE incidents SET last_seen = ?, count = count + 1"
            " WHERE device = ? AND stream = ? AND seq = ? AND name = ? AND detail = ?",
            (now, device, stream, sequence, name, detail),
        ).rowcount
        if updated:
            return
        same, kept = self._db.execute(
            "SELECT count(CASE WHEN name = ? THEN 1 END), count(evidence) FROM incidents WHERE device = ?",
            (name, device),
        ).fetchone()
        if same >= store.INCIDENTS_EACH and not self._forget(1, " AND device = ? AND name = ?", device, name):
            return
        (rows,) = self._db.execute("SELECT count(*) FROM incidents").fetchone()
        if rows >= store.INCIDENTS_MAX and not self._forget(store.INCIDENTS_MAX // 100 + 1):
            return
        self._db.execute(
            "INSERT INTO incidents (device, stream, seq, name, detail, first_seen, last_seen, evidence)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (device, stream, sequence, name, detail, now, now, evidence if kept < EVIDENCE_MAX else None),
        )

    def _forget(self, most: int, where: str = "", *values: object) -> bool:
        """The oldest incidents that are over, and of which nobody has still to be told that they are."""
        gone = self._db.execute(
            "DELETE FROM incidents WHERE id IN (SELECT id FROM incidents WHERE resolved IS NOT NULL AND noted <> 1"  # noqa: S608 - texts of ours
            f"{where} ORDER BY id LIMIT ?)",
            (*values, most),
        ).rowcount
        return gone > 0


def _word(refused: Refused) -> str:
    """The name of what is wrong. What only a later release can read is not the device's fault, and comes again."""
    why = refused.__cause__.__cause__ if refused.__cause__ else None
    return "unknown dictionary" if isinstance(why, UnknownDictionary) else refused.name.word


def _in_order(parts: Sequence[bytes], where: Iterable[int]) -> list[int]:
    """Statements first: segments are verified by what they say."""
    return sorted(where, key=lambda at: epoch.is_statement(parts[at]), reverse=True)


def _stored(taken: Taken) -> Verdict:
    header = taken.segment.header
    return Verdict("stored", taken.hash, header.stream, header.sequence)
