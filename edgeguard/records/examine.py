"""One segment's bytes: what they prove, alone. How segments hang together is `chain`, where they lie is `evidence`.

The signature is verified before the payload is believed. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import NamedTuple

from edgeguard.codec import cose
from edgeguard.errors import DecodeError, Incomplete, SegmentRefused, SignatureError, UnknownSigner
from edgeguard.records import registry, wire
from edgeguard.records.defects import Defect, Name, Place
from edgeguard.records.wire import Drop, Segment

MEMORY_FULL = registry.REASONS.index("memory full")


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


class Refused(Exception):
    """The bytes prove a defect. Never leaves the room: the caller makes a value of it."""

    def __init__(self, name: Name, detail: str, claimed: Place | None = None) -> None:
        super().__init__(detail)
        self.name = name
        self.claimed = claimed

    def defect(self, place: Place | None, source: str) -> Defect:
        return Defect(self.name, place or self.claimed, source=source, detail=str(self))


def keys_by_kid(publics: list[bytes]) -> dict[bytes, bytes]:
    """Key id -> public key."""
    return {cose.kid_of(public): public for public in publics}


def opened(
    data: bytes, keys: Mapping[bytes, bytes], resolve: Callable[[bytes], wire.Resolve | None] | None = None
) -> Segment:
    """The segment in these bytes, signed by one of `keys` for the device of that key. Raises Refused."""
    try:
        kid = cose.parse1(data).kid
        public = keys.get(kid)
        payload = cose.verify1(data, [public] if public else [], cose.SEGMENT_AAD)
    except Incomplete as error:
        raise Refused(Name.TRUNCATED, str(error)) from error
    except DecodeError as error:
        raise Refused(Name.ALTERED, str(error)) from error
    except UnknownSigner as error:
        raise _stranger(data, keys, str(error)) from error
    except SignatureError as error:
        raise Refused(Name.ALTERED, str(error), _claimed(data)) from error
    assert public is not None
    try:
        header = wire.decode_header(payload)
        segment = wire.decode_segment(payload, resolve(header.baseline) if resolve else None)
    except SegmentRefused as error:
        raise Refused(Name.MALFORMED, str(error)) from error
    if header.device != cose.device_id(public):
        place = Place(header.device, header.stream, header.sequence)
        raise Refused(Name.FOREIGN, f"signed by key {kid.hex()} for device {header.device.hex()}", place)
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


def _uint(value: object) -> bool:
    return type(value) is int and value >= 0


def _claimed(data: bytes) -> Place | None:
    """Which segment it says that it is; nobody vouches for it."""
    try:
        header = wire.decode_header(cose.parse1(data).payload)
    except (DecodeError, SegmentRefused):
        return None
    return Place(header.device, header.stream, header.sequence)


def _stranger(data: bytes, keys: Mapping[bytes, bytes], why: str) -> Refused:
    """Names a key that we do not know: ours with a flipped bit, another's in our name, or another device's."""
    claimed = _claimed(data)
    ours = {cose.device_id(public): (kid, public) for kid, public in keys.items()}
    if claimed is None:
        return Refused(Name.ALTERED, why)
    if claimed.device not in ours:
        return Refused(Name.FOREIGN, f"{why}; it says that it is of device {claimed.device.hex()}", claimed)
    right, public = ours[claimed.device]
    try:
        cose.verify1(data.replace(cose.parse1(data).kid, right, 1), [public], cose.SEGMENT_AAD)
    except (DecodeError, SignatureError):
        return Refused(Name.RESEALED, why, claimed)
    return Refused(Name.ALTERED, "the key id in its header was changed", claimed)
