"""What can be wrong with a log, by name, and what was found in one. Values only: `examine` and `chain` find them.

A name says what the bytes prove, not who did it: the same hole is left by a failing card and by somebody with a knife.
Pure.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, NamedTuple

from edgeguard.records.registry import REASONS, Stream

DEFECTS_MAX = 1000  # kept with their place; beyond, only counted by name
NOTES_MAX = 100
TEXT_MAX = 400  # letters of a source or a detail
EXPLAINED_MAX = 1000  # explained gaps kept with their place


class Name(Enum):
    """A kind of defect: its name, what was seen, and what follows from it."""

    ALTERED = (
        "altered",
        "these bytes are not what the device signed",
        "Believe nothing in it; look for the original at the collector.",
    )
    TRUNCATED = ("truncated file", "the file ends before the segment does", "The records in it are lost here.")
    MALFORMED = (
        "malformed",
        "signed by the device, but not a segment that this release can read",
        "A later release may read it; otherwise somebody signs with the device's key.",
    )
    NOT_A_FILE = (
        "not a file",
        "a link, a pipe, a directory or a giant stands where a segment should be",
        "EdgeGuard writes plain files only: somebody put it there.",
    )
    UNREADABLE = ("unreadable", "the disk does not give these bytes", "Nothing is known of the records in it.")
    RESEALED = (
        "re-sealed",
        "says that this device wrote it, but another key signed it",
        "It was written after the fact, by somebody without the device's key.",
    )
    FOREIGN = (
        "replayed",
        "a segment of another device stands among those of this one",
        "Somebody put it there to fill a place or to blame.",
    )
    REORDERED = (
        "reordered",
        "it lies under the number of another segment",
        "The order was changed by hand; the signed numbers still tell the right one.",
    )
    INSERTED = (
        "inserted",
        "the same segment is here twice, once under a number that is not its own",
        "The second is an addition by somebody.",
    )
    MISSING = (
        "segments missing",
        "no segment has this number, and no signed record says why",
        "Records were deleted. The collector may have them.",
    )
    BEGINNING = (
        "beginning missing",
        "the log does not begin with segment 1, and no receipt says that what was before is delivered",
        "Records were deleted, or the receipt that let them go was.",
    )
    TAIL = (
        "tail missing",
        "the collector confirmed segments that are not here",
        "The end was deleted, or an older copy of the log was put back.",
    )
    SPLICED = (
        "spliced",
        "it does not name the segment before it as its predecessor",
        "Segments were taken out or exchanged, and the chain was made anew with the device's key.",
    )
    EQUIVOCATION = (
        "equivocation",
        "two different segments with the same number, both signed by the device",
        "The device was cloned, its key was stolen, or an older copy of its log was put back.",
    )
    ROLLED_BACK = (
        "rolled back",
        "another segment with this number was confirmed before",
        "An older copy of the log was put back and numbers were used again, or the device was cloned.",
    )
    OLD_EPOCH = (
        "old epoch",
        "signed with a key whose epoch had ended by then",
        "An old key was used again: it was taken while it was in use, or an older copy of the device was started.",
    )
    SEALED_LATER = (
        "sealed later",
        "signed with a key that did not exist yet when this number was sealed",
        "It was sealed anew by somebody who took the device over later.",
    )
    UNCERTIFIED = (
        "unknown epoch",
        "signed with a key of which no statement of the device is here",
        "Statements travel with the segments of their epoch. Without it, nobody vouches for this segment.",
    )
    FORGED_EPOCH = (
        "forged epoch",
        "a statement about an epoch's key that this device did not make, or that contradicts another",
        "Somebody certified a key of his own.",
    )
    TIME_BACK = (
        "boot went back",
        "from an earlier start of the device than the segment before it",
        "An older copy of the device was started, or the log was made anew.",
    )
    RECORDS_MISSING = (
        "records missing",
        "neighbouring segments, but records between them are in neither, and no signed record says why",
        "Whoever sealed left records out.",
    )
    RECORDS_TWICE = (
        "records twice",
        "begins with records that an earlier segment holds already",
        "Records were numbered anew: an older copy of the log was put back.",
    )
    FORGED_RECEIPT = (
        "forged receipt",
        "the collector's key did not sign this receipt for this device",
        "Nothing is deleted on its word; find out who wrote it.",
    )
    FORGED_DROP = (
        "forged drop",
        "an explanation of a gap that no signed segment gives",
        "Somebody who may write to the database explained a gap away.",
    )
    COLUMNS = (
        "database edited",
        "the database says other things about this segment than the segment does",
        "Somebody who may write to the database changed what is shown.",
    )

    def __init__(self, word: str, meaning: str, consequence: str) -> None:
        self.word = word
        self.meaning = meaning
        self.consequence = consequence


class Place(NamedTuple):
    """Where in which chain; `sequence` 0: not a single segment."""

    device: bytes
    stream: int
    sequence: int


class Defect(NamedTuple):
    name: Name
    place: Place | None  # None: the bytes do not say
    last: int = 0  # the last segment of a range that begins at `place`; 0: just that one
    source: str = ""  # file or row; may hold anything that a file name may
    detail: str = ""


class Explained(NamedTuple):
    """A gap that has an explanation: a loss, not an incident."""

    device: bytes
    stream: int
    first: int
    last: int
    reason: str


class Report:
    """What was looked at and what was found. Bounded, whatever is given to it."""

    def __init__(self) -> None:
        self.defects: list[Defect] = []
        self.counts: dict[Name, int] = {}
        self.explained: list[Explained] = []
        self.notes: list[str] = []
        self.devices: set[bytes] = set()
        self.streams: set[tuple[bytes, int]] = set()
        self.segments = 0
        self.records = 0
        self.duplicates = 0
        self.lost_records = 0  # that a signed record counts
        self.begin: int | None = None  # ms since the epoch, as the devices believed
        self.end: int | None = None

    @property
    def clean(self) -> bool:
        return not self.counts

    def add(self, defect: Defect) -> None:
        self.counts[defect.name] = self.counts.get(defect.name, 0) + 1
        if len(self.defects) < DEFECTS_MAX:
            short = defect._replace(source=defect.source[:TEXT_MAX], detail=defect.detail[:TEXT_MAX])
            self.defects.append(short)

    def note(self, text: str) -> None:
        if len(self.notes) < NOTES_MAX:
            self.notes.append(text[:TEXT_MAX])

    def explain(self, explained: Explained) -> None:
        if len(self.explained) < EXPLAINED_MAX:
            self.explained.append(explained)


def document(report: Report, time: Callable[[int], str]) -> dict[str, Any]:
    """For programs. `time` writes ms since the epoch."""
    return {
        "v": 1,
        "clean": report.clean,
        "summary": {
            "devices": len(report.devices),
            "streams": len(report.streams),
            "segments": report.segments,
            "records": report.records,
            "duplicates": report.duplicates,
            "lost_records": report.lost_records,
            "begin": None if report.begin is None else time(report.begin),
            "end": None if report.end is None else time(report.end),
        },
        "counts": {name.word: number for name, number in report.counts.items()},
        "defects": [_defect(defect) for defect in report.defects],
        "explained": [
            {"device": item.device.hex(), "stream": item.stream, "first": item.first, "last": item.last}
            | {"reason": item.reason}
            for item in report.explained
        ],
        "notes": report.notes,
    }


def _defect(defect: Defect) -> dict[str, Any]:
    place = defect.place
    return {
        "name": defect.name.word,
        "device": place.device.hex() if place else None,
        "stream": place.stream if place else None,
        "first": place.sequence if place else None,
        "last": (defect.last or place.sequence) if place else None,
        "source": defect.source,
        "detail": defect.detail,
        "meaning": defect.name.meaning,
        "consequence": defect.name.consequence,
    }


def lines(
    report: Report, time: Callable[[int], str], escape: Callable[[str], str], columns: int = 80, most: int = 200
) -> Iterator[str]:
    """For people: the verdict, the worst of it, what was looked at. `escape` makes foreign text safe for a terminal."""
    total = sum(report.counts.values())
    yield "No defect." if report.clean else f"{total:,} defect{'s' if total > 1 else ''}."
    several = len(report.devices) > 1
    told: set[Name] = set()
    for defect in report.defects[:most]:
        yield from _wrapped(escape(_sentence(defect, several)), columns, "!  ")
        if defect.name not in told:
            told.add(defect.name)
            yield from _wrapped(f"{_capital(defect.name.meaning)}. {defect.name.consequence}", columns, "   ")
    if total > most:
        yield f"   ... and {total - most:,} more; -o json lists up to {DEFECTS_MAX:,}."
    for loss in report.explained[: max(3, most // 4)]:
        yield from _wrapped(escape(f"Explained: {_where(loss, several)}: {loss.reason}"), columns, "-  ")
    if report.lost_records:
        yield f"-  Explained: {report.lost_records:,} records never became segments (quota or a damaged journal)."
    for note in report.notes[: max(3, most // 4)]:
        yield from _wrapped(escape(note), columns, "-  ")
    yield from _wrapped(_looked_at(report, time), columns, "")


def _sentence(defect: Defect, several: bool) -> str:
    where = ""
    if defect.place:
        last = defect.last or defect.place.sequence
        where = f": {_where(Explained(*defect.place, last, ''), several)}"
    source = f" in {defect.source}" if defect.source else ""
    detail = f": {defect.detail}" if defect.detail else ""
    return f"{defect.name.word}{where}{source}{detail}"


def _where(item: Explained, several: bool) -> str:
    stream = Stream(item.stream).name.lower() if item.stream in set(Stream) else f"stream {item.stream}"
    number = f" {item.first}" + (f" to {item.last}" if item.last > item.first else "") if item.first else ""
    return f"{f'device {item.device.hex()}, ' if several else ''}{stream}{number}"


def _looked_at(report: Report, time: Callable[[int], str]) -> str:
    text = f"Looked at {report.segments:,} segments with {report.records:,} records"
    text += f" in {len(report.streams)} streams of {len(report.devices)} device{'s' * (len(report.devices) != 1)}"
    if report.begin is not None and report.end is not None:
        text += f", {time(report.begin)} to {time(report.end)}"
    return text + "."


def _wrapped(text: str, columns: int, head: str) -> list[str]:
    return textwrap.wrap(text, max(columns, 20), initial_indent=head, subsequent_indent=" " * len(head))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def reason_word(reason: int) -> str:
    """A number of the registry, or of a later release."""
    return REASONS[reason] if reason < len(REASONS) else f"reason {reason}"
