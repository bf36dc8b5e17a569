"""Epoch statements: the identity key's word that, from these heads on, another key signs this device's segments.

    statement = COSE_Sign1 by the identity key (external data EGEPOC1) over core, or over the next line
    announced = COSE_Sign1 by the key of the epoch before (external data EGNEXT1) over core
    core      = ["epoch", version, device, number, public, boot, mono, wall, clock, heads, before]

An epoch key is used for an hour at most and then gone, so who takes the device over later cannot seal anew what it
sealed. He has the identity key perhaps, but not the key of the epoch before: a statement of his is not announced by it.
That is honest only where that key was lost, which is at a start of the device.
Pure: bytes and values. Where keys live is `keyring`, what statements prove about segments is `certify`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError, SignatureError
from edgeguard.records.wire import COUNT_MAX

VERSION = 1
SIZE_MAX = 2048  # bytes of a statement; one has 450
FIELDS = 11
HASH_SIZE = 16  # bytes of a head's hash: nobody finds another segment with the same
HEADS_MAX = 16
_MARK = cbor.encode("epoch")
_TAG = b"\xd2"


class Head(NamedTuple):
    """The highest number ever used in a stream; the first bytes of that segment's SHA-256, b"" if it was damaged."""

    stream: int
    sequence: int
    hash: bytes


class Before(NamedTuple):
    """The epoch before, as this device knew it."""

    number: int
    public: bytes


class Statement(NamedTuple):
    device: bytes
    number: int  # counts from 1, never used twice
    public: bytes
    boot: int  # counts starts of the device, as in segments
    mono: int  # ms since boot
    wall: int | None  # ms since 1970, as the device believed
    clock: int  # registry.Clock
    heads: tuple[Head, ...]  # all that was sealed before this epoch
    before: Before | None = None
    announced: bool = False  # the key of the epoch before has signed this, too

    def head(self, stream: int) -> int:
        """The last number that was used before this epoch."""
        return next((head.sequence for head in self.heads if head.stream == stream), 0)


def issue(statement: Statement, identity: bytes | cose.Signer, before: bytes | None) -> bytes:
    """The signed statement. `identity` is the identity key, `before` the private one of the epoch before."""
    *fields, heads, last, _ = statement
    parts = ["epoch", VERSION, *fields, [list(head) for head in heads], list(last) if last else None]
    core = cbor.encode(parts)
    if before is not None:
        core = cose.sign1(core, before, cose.NEXT_AAD)
    return cose.sign1(core, identity, cose.EPOCH_AAD)


def is_statement(data: bytes) -> bool:
    """Is this COSE_Sign1 of a sequence one of ours, and no segment? Nothing is verified."""
    try:
        return _core(cose.parse1(data).payload).startswith(_MARK, 1)
    except DecodeError:
        return False


def unverified(data: bytes) -> Statement:
    """What it says, without knowing who said it. Raises DecodeError."""
    if len(data) > SIZE_MAX:
        raise DecodeError(f"an epoch statement of more than {SIZE_MAX} bytes")
    payload = cose.parse1(data).payload
    return _decoded(_core(payload), announced=payload.startswith(_TAG))


def opened(data: bytes, identity: bytes) -> Statement:
    """What the device with this public identity key says. Raises DecodeError or SignatureError."""
    statement = unverified(data)
    payload = cose.verify1(data, [identity], cose.EPOCH_AAD)
    if statement.device != cose.device_id(identity):
        raise DecodeError(f"an epoch statement for another device, {statement.device.hex()}")
    if statement.announced:
        assert statement.before is not None
        try:
            cose.verify1(payload, [statement.before.public], cose.NEXT_AAD)
        except SignatureError as error:
            raise DecodeError(f"epoch {statement.number} is not announced by the key that it names: {error}") from error
    return statement


def _core(payload: bytes) -> bytes:
    return cose.parse1(payload).payload if payload.startswith(_TAG) else payload


def _decoded(core: bytes, *, announced: bool) -> Statement:
    parts = cbor.decode(core, depth=3, size=SIZE_MAX)
    if not isinstance(parts, list) or len(parts) < FIELDS or parts[0] != "epoch":
        raise DecodeError("epoch: not an array of eleven")
    _, version, device, number, public, boot, mono, wall, clock, heads, before = parts[:FIELDS]
    _need(type(version) is int and version == VERSION, "version")
    _need(isinstance(device, bytes) and len(device) == cose.DEVICE_ID_SIZE, "device")
    _need(_count(number) and number > 0, "number")
    _need(isinstance(public, bytes) and len(public) == cose.PUBLIC_SIZE, "key")
    _need(_count(boot) and _count(mono), "boot or time")
    _need(wall is None or (type(wall) is int and abs(wall) < COUNT_MAX), "wall time")
    _need(_count(clock) and clock < 4, "clock quality")
    _need(isinstance(heads, list) and len(heads) <= HEADS_MAX and all(map(_is_head, heads)), "heads")
    _need(len({head[0] for head in heads}) == len(heads), "a stream twice")
    _need(before is None or _is_before(before, number), "the epoch before")
    _need(before is not None or not announced, "announced by no epoch")
    return Statement(
        device,
        number,
        public,
        boot,
        mono,
        wall,
        clock,
        tuple(Head(*head) for head in heads),
        Before(*before) if before else None,
        announced,
    )


def _is_head(item: Any) -> bool:
    if not isinstance(item, list) or len(item) != 3 or not isinstance(item[2], bytes):
        return False
    return _count(item[0]) and item[0] < 4 and _count(item[1]) and item[1] > 0 and len(item[2]) in {0, HASH_SIZE}


def _is_before(item: Any, number: int) -> bool:
    if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], bytes):
        return False
    return _count(item[0]) and 0 < item[0] < number and len(item[1]) == cose.PUBLIC_SIZE


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < COUNT_MAX


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise DecodeError(f"epoch: {what}")
