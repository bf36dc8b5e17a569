"""The collector's epochs: statements about the keys of devices, and what they prove about segments that are here.

Statements and segments come in any order, so each is held against what is there when it comes. Judging is
records.certify; here are the tables `epochs` and `announced`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from edgeguard.codec import cose
from edgeguard.collector.database import Database
from edgeguard.errors import DecodeError, SegmentRefused
from edgeguard.records import certify, epoch, examine, receipts, wire
from edgeguard.records.certify import Keys, Line, Refused
from edgeguard.records.defects import Name
from edgeguard.records.epoch import Head, Statement
from edgeguard.records.wire import Header, Segment

RIVALS_MAX = 16  # other statements of one epoch, kept so that what they sealed has its name, too
MISPLACED_MAX = 64  # segments that one statement speaks against; more are more of the same
STREAMS = 4
NO_STREAM = -1  # of incidents about an epoch
UNANNOUNCED = "unannounced epoch"
_OWN, _BELOW, _ABOVE = (
    "SELECT bytes FROM epochs WHERE device = ? AND number = ? AND rival = 0",
    "SELECT bytes FROM epochs WHERE device = ? AND number < ? AND rival = 0 ORDER BY number DESC LIMIT 1",
    "SELECT bytes FROM epochs WHERE device = ? AND number > ? AND rival = 0 ORDER BY number LIMIT 1",
)

# device, stream (NO_STREAM: an epoch), number, name, detail, evidence
Incident = Callable[[bytes, int, int, str, str, "bytes | None"], None]


class Statements:
    """`explained`: is this number of a stream of a device said to be lost?"""

    def __init__(
        self,
        connection: Database,
        now: Callable[[], int],
        incident: Incident,
        explained: Callable[[bytes, int, int], bool],
    ) -> None:
        self._db = connection
        self._now = now
        self._incident = incident
        self._explained = explained

    def take(self, data: bytes, device: bytes, public: bytes) -> tuple[str, str]:
        """("stored" or "duplicate", ""), or the name of what is wrong, and more about it."""
        try:
            statement = Keys([public]).admit(data)
        except Refused as refused:
            self._incident(device, NO_STREAM, 0, refused.name.word, str(refused), None)
            return refused.name.word, str(refused)
        same = self._db.execute(
            "SELECT bytes FROM epochs WHERE device = ? AND number = ? ORDER BY rival", (device, statement.number)
        ).fetchall()
        if any(row[0] == data for row in same):
            return "duplicate", ""
        before = cose.kid_of(statement.before.public) if statement.before else None
        if len(same) <= RIVALS_MAX:
            self._db.execute(
                "INSERT INTO epochs (device, number, rival, kid, before, received, bytes) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (device, statement.number, len(same), cose.kid_of(statement.public), before, self._now(), data),
            )
        if same:
            detail = f"another statement of epoch {statement.number} is here: cloned device or stolen key"
            self._incident(device, NO_STREAM, statement.number, Name.EQUIVOCATION.word, detail, None)
            return Name.EQUIVOCATION.word, detail
        self._among_others(statement)
        for head in statement.heads:
            self.announced(device, head, f"the statement of epoch {statement.number}")
        for stream in range(STREAMS):
            self._speaks_against(statement, stream)
        return "stored", ""

    def keys(self, data: bytes, public: bytes) -> Keys:
        """What is needed to verify this segment: the statement of its epoch, or of the next, which names the key."""
        keys = Keys([public])
        device = cose.device_id(public)
        kid, header = key_id(data), claimed(data)
        row = self._db.execute(
            "SELECT bytes FROM epochs WHERE device = ? AND kid = ?"
            " UNION ALL SELECT bytes FROM epochs WHERE device = ? AND before = ? LIMIT 1",
            (device, kid, device, kid),
        ).fetchone()
        if row is None and header is not None:  # another key than that of the epoch that it names?
            row = self._db.execute(_OWN, (device, header.epoch)).fetchone()
        if row is not None:
            keys.admit(row[0])
        return keys

    def segment(self, segment: Segment, digest: bytes) -> None:
        """A verified segment is about to be stored: could its epoch's key have sealed this number?"""
        header = segment.header
        device, stream, sequence = header.device, header.stream, header.sequence
        following = self._judge(device, stream, sequence, header.epoch, header.boot)
        for head in following.heads if following else ():
            if (head.stream, head.sequence) == (stream, sequence):
                assert following is not None
                self._compare(device, head, digest, f"the statement of epoch {following.number}")
        row = self._db.execute(
            "SELECT hash FROM announced WHERE device = ? AND stream = ? AND seq = ?", (device, stream, sequence)
        ).fetchone()
        if row:
            self._compare(device, Head(stream, sequence, row[0]), digest, "what the device said before")
        for head in examine.heads(segment):
            self.announced(device, head, f"the heartbeat in findings {sequence}")

    def announced(self, device: bytes, head: Head, source: str) -> None:
        """The device names its newest segment of a stream: is it the one that is here, if one is?"""
        self._db.execute(
            "INSERT INTO announced (device, stream, seq, hash, received) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (device, stream) DO UPDATE SET seq = excluded.seq, hash = excluded.hash,"
            " received = excluded.received WHERE excluded.seq > announced.seq",
            (device, head.stream, head.sequence, head.hash, self._now()),
        )
        row = self._db.execute(
            "SELECT hash FROM segments WHERE device = ? AND stream = ? AND seq = ?",
            (device, head.stream, head.sequence),
        ).fetchone()
        if row:
            self._compare(device, head, row[0], source)

    def newest(self, device: bytes) -> tuple[int, ...]:
        """For the receipt."""
        rows = self._db.execute(
            "SELECT number FROM epochs WHERE device = ? AND rival = 0 ORDER BY number DESC LIMIT ?",
            (device, receipts.EPOCHS_MAX),
        )
        return tuple(row[0] for row in rows)

    # --- small things ------------------------------------------------------------------------------------------------

    def _one(self, query: str, device: bytes, number: int) -> Statement | None:
        """They were verified when they came."""
        row = self._db.execute(query, (device, number)).fetchone()
        return epoch.unverified(row[0]) if row else None

    def _among_others(self, this: Statement) -> None:
        """What it and its neighbours say against each other."""
        device, line = this.device, Line()
        for statement in (self._one(_BELOW, device, this.number), this, self._one(_ABOVE, device, this.number)):
            if statement is not None:
                line.add(statement)
        for name, detail in certify.contradictions(line):
            self._incident(device, NO_STREAM, this.number, name.word, detail, None)
        for one, other in itertools.pairwise(line):
            if not other.announced and other.boot <= one.boot:
                detail = "the key before was lost, though the device had not been off"
                self._incident(device, NO_STREAM, other.number, UNANNOUNCED, detail, None)

    def _speaks_against(self, statement: Statement, stream: int) -> None:
        """Segments that came before this statement, and should not be there."""
        device, head, number = statement.device, statement.head(stream), statement.number
        rows = self._db.execute(
            "SELECT seq, epoch, boot FROM segments WHERE device = ? AND epoch = ? AND stream = ?"
            " AND (seq <= ? OR boot > ?) LIMIT ?",
            (device, number, stream, head, statement.boot, MISPLACED_MAX),
        ).fetchall()
        rows += self._db.execute(
            "SELECT seq, epoch, boot FROM segments WHERE device = ? AND stream = ? AND seq > ? AND epoch < ? LIMIT ?",
            (device, stream, head, number, MISPLACED_MAX),
        ).fetchall()
        for sequence, own, boot in rows:
            self._judge(device, stream, sequence, own, boot)

    def _judge(self, device: bytes, stream: int, sequence: int, number: int, boot: int) -> Statement | None:
        """The statement of the next epoch, if it is here."""
        own, following = self._one(_OWN, device, number), self._one(_ABOVE, device, number)
        wrong = certify.misplaced(stream, sequence, boot, own, following)
        if wrong:
            self._incident(device, stream, sequence, wrong[0].word, wrong[1], None)
        return following

    def _compare(self, device: bytes, head: Head, digest: bytes, source: str) -> None:
        if not digest.startswith(head.hash) and not self._explained(device, head.stream, head.sequence):
            detail = f"{source} names another segment with this number"
            self._incident(device, head.stream, head.sequence, Name.ROLLED_BACK.word, detail, None)


def key_id(data: bytes) -> bytes:
    try:
        return cose.parse1(data).kid
    except DecodeError:
        return b""


def claimed(data: bytes) -> Header | None:
    """What a segment says of itself; nobody vouches for it."""
    try:
        return wire.decode_header(cose.parse1(data).payload)
    except (DecodeError, SegmentRefused):
        return None


def owner(data: bytes) -> bytes | None:
    """The device that a segment or statement says it is of."""
    if not epoch.is_statement(data):
        header = claimed(data)
        return header.device if header else None
    try:
        return epoch.unverified(data).device
    except DecodeError:
        return None
