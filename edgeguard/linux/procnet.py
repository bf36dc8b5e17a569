"""/proc/net/{tcp,tcp6,udp,udp6}: bound sockets as text, for kernels without socket diagnostics, and to compare with."""

from __future__ import annotations

import os
import socket
import sys

from edgeguard.errors import DecodeError
from edgeguard.linux.sockdiag import TCP_CLOSE, TCP_LISTEN, Socket

FILE_MAX = 16 * 1024 * 1024  # bytes; a line has 150, so some 100,000 sockets
READ_BYTES = 64 * 1024
_FILES = (
    ("tcp", socket.AF_INET, socket.IPPROTO_TCP, TCP_LISTEN),
    ("tcp6", socket.AF_INET6, socket.IPPROTO_TCP, TCP_LISTEN),
    ("udp", socket.AF_INET, socket.IPPROTO_UDP, TCP_CLOSE),
    ("udp6", socket.AF_INET6, socket.IPPROTO_UDP, TCP_CLOSE),
)


def bound(proc: str) -> list[Socket]:
    """Listening TCP and unconnected UDP sockets. Raises OSError, DecodeError; a missing IPv6 file is no IPv6."""
    found: list[Socket] = []
    for name, family, protocol, state in _FILES:
        try:
            data = _read(f"{proc}/net/{name}")
        except FileNotFoundError:
            if family == socket.AF_INET6:
                continue
            raise
        found += parse(data, family, protocol, state)
    return found


def parse(data: bytes, family: int, protocol: int, state: int) -> list[Socket]:
    """The sockets in `state` that are bound and not connected. Raises DecodeError."""
    found: list[Socket] = []
    for line in data.split(b"\n")[1:]:
        fields = line.split()
        if not fields:
            continue
        try:
            if int(fields[3], 16) != state:
                continue
            address, port = _endpoint(fields[1], family)
            _peer, peer_port = _endpoint(fields[2], family)
            uid, inode = int(fields[7]), int(fields[9])
            if uid < 0 or inode < 0:
                raise ValueError("a number below 0")
        except (ValueError, IndexError) as error:
            raise DecodeError(f"/proc/net: not a socket: {line[:80]!r}") from error
        if peer_port == 0 and port != 0:
            found.append(Socket(family, protocol, state, address, port, 0, 0, uid, inode, v6only=False))
    return found


def _endpoint(field: bytes, family: int) -> tuple[bytes, int]:
    """0100007F:0016 and the longer kind. The address is written as 32-bit numbers in this machine's byte order."""
    text, _, port = field.partition(b":")
    if len(text) != (8 if family == socket.AF_INET else 32) or len(port) != 4:
        raise ValueError("address")
    raw, number = (
        bytes.fromhex(text.decode("ascii")),
        bytes.fromhex(port.decode("ascii")),
    )  # digits only: no sign, no 0x
    step = 1 if sys.byteorder == "big" else -1
    return b"".join(raw[at : at + 4][::step] for at in range(0, len(raw), 4)), int.from_bytes(number, "big")


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts: list[bytes] = []
        size = 0
        while part := os.read(fd, READ_BYTES):
            size += len(part)
            if size > FILE_MAX:
                raise DecodeError(f"{path}: larger than {FILE_MAX} bytes")
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
