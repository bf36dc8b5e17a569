"""One segment's bytes: what they prove, alone. How segments hang together is `chain`, where they lie is `evidence`.

The signature is verified before the payload is believed. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from edgeguard.codec import cose
from edgeguard.errors import DecodeError, Incomplete, SegmentRefused, SignatureError, UnknownSigner
from edgeguard.records import epoch, registry, wire
from edgeguard.records.certify import Keys, Refused
from edgeguard.records.defects import Name, Place
from edgeguard.records.wire import Drop, Segment

MEMORY_FULL = registry.REASONS.index("memory full")
HEARTBEAT = registry.STATES.index("heartbeat")


class Link(NamedTuple):
    """A verified segment, as its chain sees it. Sorts by device, stream and sequence."""

    device: bytes
    stream: int
    sequence: int
    hash: bytes
    previous: bytes
    first: int  # record numbers: the first, and how many
    n: int
    epoch: int
    boot: int
    begin: int | None  # wall time of the first and the last record, ms since the epoch
    end: int | None
    source: str = ""
    named: int = 0  # the number under which it lay, where it was another; 0: its own, or none


class Losses(NamedTuple):
    """What a segment says was lost."""

    drops: tuple[Drop, ...] = ()  # ranges of segments
    records: tuple[tuple[int, int | None], ...] = ()  # (stream, how many) that never were in one; None: nobody counted


def opened(data: bytes, keys: Keys, decode: Callable[[bytes], Segment] = wire.decode_segment) -> Segment:
    """The segment in these bytes, signed by the key of an epoch of its device; `decode` gives what is in its payload.
    Raises Refused."""
    try:
        kid = cose.parse1(data).kid
        key = keys.find(kid)
        payload = cose.verify1(data, [key.public] if key else [], cose.SEGMENT_AAD)
    except Incomplete as error:
        raise Refused(Name.TRUNCATED, str(error)) from error
    except DecodeError as error:
        raise Refused(Name.ALTERED, str(error)) from error
    except UnknownSigner as error:
        raise _stranger(data, keys, str(error)) from error
    except SignatureError as error:
        raise Refused(Name.ALTERED, str(error), _claimed(data)) from error
    assert key is not None
    try:
        segment = decode(payload)
    except SegmentRefused as error:
        raise Refused(Name.MALFORMED, str(error)) from error
    header = segment.header
    place = Place(header.device, header.stream, header.sequence)
    if header.device != key.device:
        raise Refused(Name.FOREIGN, f"signed by key {kid.hex()} for device {header.device.hex()}", place)
    if header.epoch != key.epoch:
        raise Refused(Name.RESEALED, f"signed in epoch {key.epoch}, says that it is of {header.epoch}", place)
    return segment


def link(data: bytes, segment: Segment, source: str = "", named: int = 0) -> Link:
    """What the chain needs to know of a segment that `opened` gave."""
    header = segment.header
    return Link(
        header.device,
        header.stream,
        header.sequence,
        sha256(data).digest(),
        header.previous,
        header.first,
        header.n,
        header.epoch,
        header.boot,
        segment.records[0].wall,
        segment.records[-1].wall,
        source,
        named,
    )


def losses(segment: Segment) -> Losses:
    """What it says was lost: in its list of drops, and in records of the stream of findings."""
    drops, counted = list(segment.drops), []
    if segment.header.stream == registry.Stream.FINDINGS:
        for record in segment.records:
            if record.type == registry.DROP.number:
                stream, first, last, reason, count, _ = (*record.fields, *[None] * 6)[:6]
                if not _uint(stream) or stream >= len(registry.Stream):
                    continue
                if reason in (MEMORY_FULL, wire.TOO_LARGE):
                    continue  # they never had a number, or this stands under it
                if first is None and last is None:
                    counted.append((stream, count if _uint(count) else None))
                elif _uint(first) and _uint(last) and 0 < first <= last < wire.COUNT_MAX:
                    drops.append(Drop(first, last, reason if _uint(reason) else 0, stream))
    return Losses(tuple(drops), tuple(counted))


def heads(segment: Segment) -> list[epoch.Head]:
    """The newest segments that its heartbeats name."""
    found = []
    if segment.header.stream == registry.Stream.FINDINGS:
        for record in segment.records:
            if record.type == registry.STATE.number and record.fields[:1] == (HEARTBEAT,):
                found += _heartbeat((*record.fields, *[None] * 3)[2])
    return found


def _heartbeat(columns: object) -> list[epoch.Head]:
    """`segments`: the newest number of each stream; `hashes`: so many bytes of each that is not 0."""
    if not isinstance(columns, dict):
        return []
    numbers, hashes = columns.get("segments"), columns.get("hashes")
    if not isinstance(numbers, tuple) or not isinstance(hashes, bytes) or len(numbers) > len(registry.Stream):
        return []
    named = [(stream, number) for stream, number in enumerate(numbers) if _uint(number) and 0 < number < wire.COUNT_MAX]
    size = len(hashes) // len(named) if named else 0
    return [
        epoch.Head(stream, number, hashes[at * size : (at + 1) * size][: epoch.HASH_SIZE])
        for at, (stream, number) in enumerate(named)
    ]


def _uint(value: object) -> bool:
    return type(value) is int and value >= 0


def _claimed(data: bytes) -> Place | None:
    """Which segment it says that it is; nobody vouches for it."""
    try:
        header = wire.decode_header(cose.parse1(data).payload)
    except (DecodeError, SegmentRefused):
        return None
    return Place(header.device, header.stream, header.sequence)


def _stranger(data: bytes, keys: Keys, why: str) -> Refused:
    """Names a key that we do not know: one of an epoch that is not here, ours with a flipped bit, another's in our
    name, or another device's."""
    try:
        header = wire.decode_header(cose.parse1(data).payload)
    except (DecodeError, SegmentRefused):
        return Refused(Name.ALTERED, why)
    claimed = Place(header.device, header.stream, header.sequence)
    if header.device not in keys.devices:
        return Refused(Name.FOREIGN, f"{why}; it says that it is of device {header.device.hex()}", claimed)
    line = keys.lines.get(header.device)
    statement = line.get(header.epoch) if line else None
    if statement is None:
        return Refused(Name.UNCERTIFIED, f"{why}; it says that it is of epoch {header.epoch}", claimed)
    try:
        right = data.replace(cose.parse1(data).kid, cose.kid_of(statement.public), 1)
        cose.verify1(right, [statement.public], cose.SEGMENT_AAD)
    except (DecodeError, SignatureError):
        return Refused(Name.RESEALED, why, claimed)
    return Refused(Name.ALTERED, "the key id in its header was changed", claimed)
