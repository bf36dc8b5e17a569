"""The records of a journal, cut into what may share a segment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgeguard.errors import DecodeError
from edgeguard.model import Severity
from edgeguard.records import journal, registry, wire
from edgeguard.records.losses import DAMAGED
from edgeguard.records.spool import SEAL_BYTES, SEAL_RECORDS
from edgeguard.records.wire import Record

CLOCK_STEP_MS = 1_000  # a segment labels time once; where wall and monotonic time part further, a new one begins


def chunks(frames: Iterable[journal.Frame]) -> Iterator[list[tuple[journal.Frame, Record]]]:
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
