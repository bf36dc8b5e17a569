"""Whose key may sign what: identity keys, the statements of epochs, and what they say about each segment.

A statement names all that was sealed before it. So a segment of an epoch lies behind its own statement's heads and not
behind those of the next: a key that came later cannot have sealed it, and one that is gone cannot seal any more.
Statements may come in any order. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edgeguard.codec import cose
from edgeguard.errors import DecodeError, Incomplete, SignatureError, UnknownSigner
from edgeguard.records import epoch
from edgeguard.records.defects import Defect, Name, Place
from edgeguard.records.epoch import Statement


class Refused(Exception):
    """The bytes prove a defect. Never leaves the room: the caller makes a value of it."""

    def __init__(self, name: Name, detail: str, claimed: Place | None = None) -> None:
        super().__init__(detail)
        self.name = name
        self.claimed = claimed

    def defect(self, place: Place | None, source: str) -> Defect:
        return Defect(self.name, place or self.claimed, source=source, detail=str(self))


class Key(NamedTuple):
    """A key that may sign segments of one epoch of one device."""

    device: bytes
    epoch: int
    public: bytes


class Line:
    """The statements of one device, by number."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._statements: dict[int, Statement] = {}

    def __iter__(self) -> Iterator[Statement]:
        return (self._statements[number] for number in self._numbers)

    def add(self, statement: Statement) -> Statement:
        """The one that has this number now; the first that came stays."""
        if statement.number not in self._statements:
            insort(self._numbers, statement.number)
            self._statements[statement.number] = statement
        return self._statements[statement.number]

    def get(self, number: int) -> Statement | None:
        return self._statements.get(number)

    def following(self, number: int) -> Statement | None:
        """The next that is known."""
        at = bisect_left(self._numbers, number + 1)
        return self._statements[self._numbers[at]] if at < len(self._numbers) else None


class Keys:
    """`publics` are identity keys of devices; statements are let in as they come."""

    def __init__(self, publics: Sequence[bytes]) -> None:
        self.devices = {cose.device_id(public): public for public in publics}
        self._identities = {cose.kid_of(public): public for public in publics}
        self._keys: dict[bytes, Key] = {}  # by key id
        self.lines: dict[bytes, Line] = {}  # by device

    def admit(self, data: bytes) -> Statement:
        """Let a statement's key in. Raises Refused."""
        try:
            kid = cose.parse1(data).kid
            claimed = epoch.unverified(data)
        except Incomplete as error:
            raise Refused(Name.TRUNCATED, str(error)) from error
        except DecodeError as error:
            raise Refused(Name.ALTERED, str(error)) from error
        try:
            statement = epoch.opened(data, self._identities.get(kid) or self.devices.get(claimed.device) or bytes(32))
        except UnknownSigner as error:
            ours = claimed.device in self.devices
            what = f"epoch {claimed.number} of device {claimed.device.hex()}: {error}"
            raise Refused(Name.FORGED_EPOCH if ours else Name.FOREIGN, what) from error
        except SignatureError as error:
            raise Refused(Name.ALTERED, str(error)) from error
        except DecodeError as error:
            raise Refused(Name.FORGED_EPOCH, str(error)) from error
        line = self.lines.setdefault(statement.device, Line())
        first = line.add(statement)
        self._let_in(Key(statement.device, statement.number, statement.public))
        if first != statement:
            raise Refused(Name.EQUIVOCATION, f"two statements of epoch {statement.number}, both signed by the device")
        if statement.before is not None:  # so that one lost statement does not take an hour of records with it
            self._let_in(Key(statement.device, *statement.before))
        return statement

    def find(self, kid: bytes) -> Key | None:
        return self._keys.get(kid)

    def _let_in(self, key: Key) -> None:
        self._keys.setdefault(cose.kid_of(key.public), key)


class Gaps(NamedTuple):
    """How many epochs began without the word of the one before: after a start of the device, and without one."""

    starts: int
    others: int


def contradictions(line: Line) -> Iterator[tuple[Name, str]]:
    """What the statements of one device say against each other."""
    before: Statement | None = None
    for this in line:
        named = line.get(this.before.number) if this.before else None
        if this.before is not None and named is not None and named.public != this.before.public:
            yield (
                Name.FORGED_EPOCH,
                f"epoch {this.number} follows another epoch {named.number} than the one whose statement is here",
            )
        if before is not None:
            if this.boot < before.boot:
                yield Name.TIME_BACK, f"epoch {this.number} is of start {this.boot}, the one before of {before.boot}"
            for stream, sequence, _ in before.heads:
                if this.head(stream) < sequence:
                    detail = f"epoch {this.number} begins in stream {stream} after segment {this.head(stream)}, the one"
                    yield Name.ROLLED_BACK, f"{detail} before after {sequence}"
        before = this


def gaps(line: Line, *, complete: bool) -> Gaps:
    """Each of them is honest after a power cut; each is also what somebody leaves who cut off what was not sent.

    `complete`: all statements are here, so one that is named and not here never was.
    """
    starts = others = 0
    before: Statement | None = None
    for this in line:
        known = not complete or (this.before is not None and line.get(this.before.number) is not None)
        if before is not None and not (this.announced and known):
            starts += this.boot > before.boot
            others += this.boot <= before.boot
        before = this
    return Gaps(starts, others)


def misplaced(
    stream: int, sequence: int, boot: int, own: Statement | None, following: Statement | None
) -> tuple[Name, str] | None:
    """Can a segment of epoch `own` have this number? `following` is the next statement that is known."""
    if own is not None and sequence <= own.head(stream):
        detail = f"sealed in epoch {own.number}, which began when {own.head(stream)} segments were sealed already"
        return Name.SEALED_LATER, detail
    if following is not None and sequence > following.head(stream):
        last = following.head(stream)
        return Name.OLD_EPOCH, f"epoch {following.number} began after segment {last}, this one is of an epoch before"
    if own is not None and boot > own.boot:
        return Name.OLD_EPOCH, f"the key of epoch {own.number} ended with start {own.boot}, this is of start {boot}"
    return None
