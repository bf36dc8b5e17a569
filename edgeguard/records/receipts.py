"""Receipts: the collector's signed word that segments are committed. Only a receipt lets the device delete one.

    COSE_Sign1 over [version, device, heads, dictionaries, time, held, refused, baselines, epochs]

A head is the last segment of a stream up to which the collector has them all (or knows why not), and its hash.
`held` are segments beyond a head: safe there, but something before them is still missing. They are not deleted here,
only not sent again. Used by the collector (writes), the uplink (reads, cannot verify) and the sealer (verifies).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any, NamedTuple

from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError
from edgeguard.records.outbox import O_READ, Name

FILE, SECOND_FILE = "receipt.egr", "receipt-2.egr"  # of the first collector and of a second, in inbox/ and spool/
VERSION = 1
SIZE_MAX = 4096  # bytes; a usual one has 350
FIELDS = 9
HELD_MAX = 16  # ranges
REFUSED_MAX = 16
BASELINES_MAX = 16
EPOCHS_MAX = 16
REASON_MAX = 64  # bytes
HASH_SIZE = 32


class Head(NamedTuple):
    stream: int
    sequence: int
    hash: bytes


class Range(NamedTuple):
    stream: int
    first: int
    last: int


class Refusal(NamedTuple):
    """A segment that the collector does not take; named by its hash, for its own words about itself may be wrong."""

    hash: bytes
    reason: str


class Receipt(NamedTuple):
    device: bytes
    time: int  # ms, the collector's clock
    heads: tuple[Head, ...] = ()
    held: tuple[Range, ...] = ()
    refused: tuple[Refusal, ...] = ()
    dictionaries: tuple[int, ...] = (0,)
    baselines: tuple[bytes, ...] = ()  # whose manifests the collector has: references to them may be used
    epochs: tuple[int, ...] = ()  # the newest whose statements the collector has: they need not be sent again

    def head(self, stream: int) -> Head | None:
        return next((head for head in self.heads if head.stream == stream), None)

    def covers(self, name: Name) -> bool:
        """Is this segment, and all before it, committed?"""
        head = self.head(name.stream)
        return head is not None and name.sequence <= head.sequence

    def holds(self, name: Name) -> bool:
        """Is it with the collector, be it beyond a gap?"""
        return self.covers(name) or any(
            part.stream == name.stream and part.first <= name.sequence <= part.last for part in self.held
        )


def encode(receipt: Receipt) -> bytes:
    """The payload."""
    return cbor.encode(
        [
            VERSION,
            receipt.device,
            [list(head) for head in receipt.heads],
            list(receipt.dictionaries),
            receipt.time,
            [list(part) for part in receipt.held[:HELD_MAX]],
            [[refusal.hash, refusal.reason[:REASON_MAX]] for refusal in receipt.refused[:REFUSED_MAX]],
            list(receipt.baselines[:BASELINES_MAX]),
            list(receipt.epochs[:EPOCHS_MAX]),
        ]
    )


def decode(payload: bytes) -> Receipt:
    """The receipt in a payload. Raises DecodeError."""
    parts = cbor.decode(payload, depth=3, size=SIZE_MAX)
    if not isinstance(parts, list) or len(parts) < FIELDS or type(parts[0]) is not int or parts[0] != VERSION:
        raise DecodeError("receipt: not an array of nine of version 1")
    _, device, heads, dictionaries, time, held, refused, baselines, epochs = parts[:FIELDS]
    if not isinstance(device, bytes) or len(device) != cose.DEVICE_ID_SIZE or not _uint(time):
        raise DecodeError("receipt: device or time")
    if not _all(dictionaries, _uint) or not _all(baselines, lambda item: isinstance(item, bytes) and len(item) == 8):
        raise DecodeError("receipt: dictionaries or baselines")
    if not _all(epochs, _uint):
        raise DecodeError("receipt: epochs")
    if not _all(heads, _is_head) or len({head[0] for head in heads}) != len(heads):
        raise DecodeError("receipt: heads")
    if not _all(held, lambda item: isinstance(item, list) and len(item) == 3 and _all(item, _uint)):
        raise DecodeError("receipt: held")
    if not _all(refused, _is_refusal):
        raise DecodeError("receipt: refused")
    return Receipt(
        device,
        time,
        tuple(Head(*head) for head in heads),
        tuple(Range(*part) for part in held),
        tuple(Refusal(*refusal) for refusal in refused),
        tuple(dictionaries),
        tuple(baselines),
        tuple(epochs),
    )


def unverified(data: bytes) -> Receipt:
    """What a receipt says, without knowing who said it: enough to decide what not to send. Raises DecodeError."""
    if len(data) > SIZE_MAX:
        raise DecodeError(f"a receipt of more than {SIZE_MAX} bytes")
    return decode(cose.parse1(data).payload)


def verified(data: bytes, publics: Sequence[bytes], device: bytes) -> Receipt:
    """What the collector says about this device. Raises DecodeError or SignatureError."""
    if len(data) > SIZE_MAX:
        raise DecodeError(f"a receipt of more than {SIZE_MAX} bytes")
    receipt = decode(cose.verify1(data, publics, cose.RECEIPT_AAD))
    if receipt.device != device:
        raise DecodeError(f"a receipt for another device, {receipt.device.hex()}")
    return receipt


def read(path: str, limit: int = SIZE_MAX) -> bytes:
    """A small file that somebody else may have written: regular, no link, of bounded size. OSError or DecodeError."""
    fd = os.open(path, O_READ)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DecodeError(f"{path}: not a file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DecodeError(f"{path}: more than {limit} bytes")
    return data


def _all(items: Any, test: Any) -> bool:
    return isinstance(items, list) and all(map(test, items))


def _uint(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_head(item: Any) -> bool:
    return (
        isinstance(item, list)
        and len(item) == 3
        and _all(item[:2], _uint)
        and isinstance(item[2], bytes)
        and len(item[2]) == HASH_SIZE
    )


def _is_refusal(item: Any) -> bool:
    return (
        isinstance(item, list)
        and len(item) == 2
        and isinstance(item[0], bytes)
        and len(item[0]) == HASH_SIZE
        and isinstance(item[1], str)
    )
