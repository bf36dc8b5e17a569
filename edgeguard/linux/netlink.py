"""Netlink framing: messages and attributes as the kernel aligns them. Nothing here opens a socket.

Strict in one direction only: what arrives is either well-formed or one DecodeError. A length that points outside
the buffer is never "repaired", because the next offset would come from the sender as well.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from edgeguard.errors import DecodeError

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_MIN_TYPE = 0x10
NLM_F_REQUEST = 0x1
NLM_F_MULTI = 0x2
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300  # NLM_F_ROOT | NLM_F_MATCH

NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
ATTRIBUTES_MAX = 256  # per message; the kernel's socket diagnostics know about 25

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_ERRNO = struct.Struct("=i")
HEADER_SIZE = _HEADER.size


class Message(NamedTuple):
    type: int
    flags: int
    sequence: int
    port: int
    payload: bytes


def pack(kind: int, flags: int, sequence: int, payload: bytes, port: int = 0) -> bytes:
    return _HEADER.pack(HEADER_SIZE + len(payload), kind, flags, sequence, port) + payload


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram. Raises DecodeError at the first one that does not fit."""
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < HEADER_SIZE:
            raise DecodeError("netlink: a header is cut off")
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if length < HEADER_SIZE or length > end - offset:
            raise DecodeError(f"netlink: message length {length} does not fit")
        yield Message(kind, flags, sequence, port, data[offset + HEADER_SIZE : offset + length])
        offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data`, by type. Of a type that comes twice the last one counts, as in the kernel."""
    found: dict[int, bytes] = {}
    offset, end, count = 0, len(data), 0
    while offset < end:
        count += 1
        if end - offset < _ATTRIBUTE.size or count > ATTRIBUTES_MAX:
            raise DecodeError("netlink: an attribute is cut off, or there are too many")
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or length > end - offset:
            raise DecodeError(f"netlink: attribute length {length} does not fit")
        found[kind & NLA_TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def error_of(message: Message) -> int:
    """errno of an NLMSG_ERROR message (0: an acknowledgement)."""
    if len(message.payload) < _ERRNO.size:
        raise DecodeError("netlink: an error message is cut off")
    code: int = _ERRNO.unpack_from(message.payload)[0]
    if code > 0 or code < -4095:  # MAX_ERRNO
        raise DecodeError(f"netlink: {code} is no error number")
    return -code
