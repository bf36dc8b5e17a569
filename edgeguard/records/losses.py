"""What this device let go undelivered, signed, before it is deleted: `spool/losses`.

Two slots of 4 KiB, preallocated and written in turn, so that a full disk takes the word that makes room on it, and a
torn write leaves the word before. A slot is [length u16][COSE_Sign1 over [version, device, generation, drops]], a drop
[first, last, reason, stream] as in a segment. What stands here goes into every segment that is sealed from now on,
until a receipt says that the collector has passed that range.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError, SignatureError
from edgeguard.records import journal, registry
from edgeguard.records.receipts import Receipt
from edgeguard.records.wire import COUNT_MAX, Drop

FILE = "losses"
VERSION = 1
SLOT = 4096  # bytes; also what a card writes at least
RANGES_MAX = 96  # of at most 22 bytes
EVICTED = registry.REASONS.index("evicted")
DAMAGED = registry.REASONS.index("damaged")
_LENGTH = struct.Struct("<H")

Sign = Callable[[bytes], bytes]


class Losses(NamedTuple):
    generation: int = 0
    drops: tuple[Drop, ...] = ()
    spoiled: str = ""  # why one of the slots was not read: the newest word may have been in it


def read(directory: str, publics: Sequence[bytes], device: bytes) -> Losses:
    """The newest word that this device signed; an empty one where there is none yet.

    Raises DecodeError where there is something and none of it is ours, OSError.
    """
    try:
        fd = os.open(os.path.join(directory, FILE), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return Losses()
    with open(fd, "rb") as file:
        data = file.read(2 * SLOT)
    found, problem = Losses(), ""
    for at in (0, SLOT):
        slot = data[at : at + SLOT]
        if not slot.strip(b"\0"):
            continue
        try:
            found = max(found, _opened(slot, publics, device), key=lambda word: word.generation)
        except (DecodeError, SignatureError) as error:
            problem = str(error)
    if problem and not found.generation:
        raise DecodeError(f"{FILE}: {problem}")
    return found._replace(spoiled=problem)


def write(directory: str, losses: Losses, device: bytes, sign: Sign) -> None:
    """Durable when it returns. Raises OSError."""
    drops = [list(drop) for drop in losses.drops]
    signed = sign(cbor.encode([VERSION, device, losses.generation, drops]))
    path = os.path.join(directory, FILE)
    prepare(directory)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        slot = (_LENGTH.pack(len(signed)) + signed).ljust(SLOT, b"\0")
        journal.write_all(cast("journal.Files", os), fd, slot, losses.generation % 2 * SLOT)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def prepare(directory: str) -> None:
    """Take the room as long as there is some. Raises OSError."""
    path = os.path.join(directory, FILE)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size < 2 * SLOT:
            journal.write_all(cast("journal.Files", os), fd, bytes(2 * SLOT - size), size)
            os.fsync(fd)
            folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        os.close(fd)


def merged(drops: Iterable[Drop]) -> tuple[Drop, ...]:
    """Ranges that touch or overlap as one, by stream and reason; where there are too many, whatever touches as one."""
    found = _merged(set(drops), lambda drop: (drop.stream, drop.reason))
    if len(found) > RANGES_MAX:
        found = _merged(found, lambda drop: (drop.stream, 0))
    return found


def _merged(drops: Iterable[Drop], key: Callable[[Drop], tuple[int, int]]) -> tuple[Drop, ...]:
    whole: list[Drop] = []
    for drop in sorted(drops, key=lambda drop: (key(drop), drop)):
        last = whole[-1] if whole else None
        if last is not None and key(last) == key(drop) and drop.first <= last.last + 1:
            reason = last.reason if last.reason == drop.reason else DAMAGED  # the worse of the two
            whole[-1] = last._replace(last=max(last.last, drop.last), reason=reason)
        else:
            whole.append(drop)
    return tuple(whole)


def uncovered(drops: Iterable[Drop], receipt: Receipt | None) -> tuple[Drop, ...]:
    """What the collector has not passed yet."""
    left = []
    for drop in drops:
        head = receipt.head(drop.stream) if receipt is not None else None
        first = max(drop.first, head.sequence + 1) if head is not None else drop.first
        if first <= drop.last:
            left.append(drop._replace(first=first))
    return tuple(left)


def _opened(slot: bytes, publics: Sequence[bytes], device: bytes) -> Losses:
    (length,) = _LENGTH.unpack_from(slot)
    signed = slot[_LENGTH.size : _LENGTH.size + length]
    return decode(cose.verify1(signed, publics, cose.LOSSES_AAD), device)


def decode(payload: bytes, device: bytes) -> Losses:
    """The word in a payload. Raises DecodeError."""
    parts: Any = cbor.decode(payload, depth=3, size=SLOT)
    if not isinstance(parts, list) or len(parts) < 4 or type(parts[0]) is not int or parts[0] != VERSION:
        raise DecodeError("not an array of four of version 1")
    _, owner, generation, drops = parts[:4]
    if owner != device:
        raise DecodeError("of another device")
    if not _uint(generation) or not isinstance(drops, list) or not all(map(_is_drop, drops)):
        raise DecodeError("generation or drops")
    return Losses(generation, tuple(Drop(*drop[:4]) for drop in drops))


def _is_drop(item: Any) -> bool:
    return (
        isinstance(item, list)
        and len(item) >= 4
        and all(map(_uint, item[:4]))
        and 0 < item[0] <= item[1]
        and item[2] < 2**16
        and item[3] < journal.STREAMS
    )


def _uint(value: Any) -> bool:
    return type(value) is int and 0 <= value < COUNT_MAX
