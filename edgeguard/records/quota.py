"""How much room sealed segments may take, and which go first when it is not enough.

    limit = the quota, less where the disk would not keep its free share, but never below SPARED
    order = verbose, then metrics, then security, each the oldest first;
            findings only when they alone are too many: those first whose every record is told again later

The newest segment of a stream is never let go: the chain goes on from it. Deleting is `seal`'s, and only after the
signed word of `losses` is durable.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from edgeguard.codec import cose
from edgeguard.errors import DecodeError, SegmentRefused
from edgeguard.records import outbox, registry, wire
from edgeguard.records.outbox import Name
from edgeguard.records.registry import Stream
from edgeguard.records.wire import Record

SPARED = 4 * 1024 * 1024  # bytes that a disk full of other things does not take from us: a day of an attack
BLOCK = 4096  # bytes; what the smallest segment takes on the usual file systems
BATCH_SHARE = 32  # when something must go, so many-th part of the limit goes: one word, one write
REPEATS_WINDOW = 256  # oldest segments of findings that are read to find repeats: a second on a small board
ORDER = (Stream.VERBOSE, Stream.METRICS, Stream.SECURITY)
_ONCE_TOLD = frozenset(map(registry.STATES.index, ("sweep", "sensor", "uplink", "helper failed", "overflow")))


class Disk(NamedTuple):
    """Of the file system that holds the outbox, in bytes."""

    total: int
    free: int  # for us


def disk(directory: str) -> Disk:
    """Raises OSError."""
    space = os.statvfs(directory)
    return Disk(space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize)


def limit(quota: int, free_percent: int, used: int, disk: Disk) -> int:
    """Bytes that segments may take now. `used`: what they take already."""
    left = used + disk.free - disk.total * free_percent // 100
    return min(quota, max(SPARED, left))


def taken(status: os.stat_result) -> int:
    """Bytes of the disk that a file takes: whole blocks, not what it holds."""
    return max(status.st_size, status.st_blocks * 512)


def blocks(size: int) -> int:
    """What a file of so many bytes will take."""
    return -(-size // BLOCK) * BLOCK


def victims(sizes: Mapping[Name, int], excess: int) -> list[Name]:
    """Which go, until `excess` bytes are free: no findings among them. Fewer where there are no more."""
    keep = set(outbox.newest(sizes).values())
    chosen: list[Name] = []
    for stream in ORDER:
        for name in sorted(name for name in sizes if name.stream == stream and name not in keep):
            if excess <= 0:
                return chosen
            chosen.append(name)
            excess -= sizes[name]
    return chosen


def findings(sizes: Mapping[Name, int], excess: int, repeated: Collection[Name]) -> list[Name]:
    """Which findings go when they alone are too many: what is told again later, then the oldest."""
    keep = outbox.newest(sizes).get(Stream.FINDINGS)
    own = sorted(name for name in sizes if name.stream == Stream.FINDINGS and name != keep)
    chosen: list[Name] = []
    for name in [*(name for name in own if name in repeated), *(name for name in own if name not in repeated)]:
        if excess <= 0:
            break
        chosen.append(name)
        excess -= sizes[name]
    return chosen


def repeats(directory: str, names: Iterable[Name]) -> set[Name]:
    """Of the oldest segments of findings those whose every record is told again in a later one of them."""
    oldest = sorted(name for name in names if name.stream == Stream.FINDINGS)[:REPEATS_WINDOW]
    later: set[tuple[object, ...]] = set()
    found = set()
    for name in reversed(oldest):
        try:
            records = wire.decode_segment(cose.parse1(outbox.read(directory, name)).payload).records
        except (OSError, DecodeError, SegmentRefused):
            continue  # looked at closely, and set aside, when its turn comes
        keys = [_told_as(record) for record in records]
        if all(key is not None and key in later for key in keys):
            found.add(name)
        later.update(key for key in keys if key is not None)
    return found


def _told_as(record: Record) -> tuple[object, ...] | None:
    """Records with the same key say the same, the later one better; None: it stands for itself."""
    if record.type == registry.FINDING.number and len(record.fields) > 2:
        return ("finding", record.fields[2])
    if record.type == registry.STATE.number and record.fields and record.fields[0] in _ONCE_TOLD:
        return ("state", record.fields[0], record.fields[3] if len(record.fields) > 3 else None)
    return None
