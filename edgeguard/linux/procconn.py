"""The proc connector (CN_PROC): the kernel tells of every exec. Subscription, kernel-side filter, one event a time.

What the kernel does, and what follows from it:
* A kernel without CONFIG_PROC_EVENTS lets us bind and send, and simply never answers. So the subscription waits a
  short while for the acknowledgement, and silence means "not here". Stock Raspberry Pi kernels are like that.
* It reports fork, exec, exit, thread and uid changes alike. A classic BPF program lets through exec and the
  acknowledgement only: measured, five times more execs fit the buffer, and a third less CPU goes into them.
* Process ids are those of the initial pid namespace, and other network namespaces are refused (ECONNREFUSED).
* A full buffer gives one ENOBUFS and no count of what was lost. Whoever reads must look at /proc then.
* Only the kernel (port id 0) is believed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from edgeguard.errors import DecodeError, Unavailable

NETLINK_CONNECTOR = 11
CN_IDX_PROC = 1
CN_VAL_PROC = 1
PROC_CN_MCAST_LISTEN = 1
PROC_CN_MCAST_IGNORE = 2
PROC_EVENT_NONE = 0x00000000  # carries the acknowledgement
PROC_EVENT_EXEC = 0x00000002
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
NLMSG_DONE = 3

BUFFER_BYTES = 4 * 1024 * 1024  # kernel memory, only used while events wait; holds some 2,500 execs
ACKNOWLEDGE_S = 0.3  # a kernel that supports it answers in microseconds
EVENTS_MAX = 1024  # per call: other descriptors must have their turn

_NLMSG = struct.Struct("=IHHII")
_CN_MSG = struct.Struct("=IIIIHH")  # idx, val, seq, ack, len, flags
_EVENT = struct.Struct("=II8xII")  # what, cpu, timestamp_ns (not used), then pid and tgid, or the error number
_WHAT_OFFSET = _NLMSG.size + _CN_MSG.size
_SIZE_MIN = _WHAT_OFFSET + _EVENT.size
_DATAGRAM_MAX = 1024  # bytes; the kernel's are 76

_BPF_LD_W_ABS, _BPF_JEQ, _BPF_RET = 0x20, 0x15, 0x06


class Event(NamedTuple):
    what: int
    first: int  # PROC_EVENT_EXEC: thread id; PROC_EVENT_NONE: error number
    pid: int  # PROC_EVENT_EXEC: process id


def parse(data: bytes | memoryview) -> Event:
    """One datagram of the connector. Raises DecodeError."""
    if len(data) < _SIZE_MIN:
        raise DecodeError("proc connector: a message is cut off")
    length = _NLMSG.unpack_from(data)[0]
    index, value, _seq, _ack, size, _flags = _CN_MSG.unpack_from(data, _NLMSG.size)
    if (index, value) != (CN_IDX_PROC, CN_VAL_PROC) or length > len(data) or size < _EVENT.size:
        raise DecodeError("proc connector: not a process event")
    what, _cpu, first, second = _EVENT.unpack_from(data, _WHAT_OFFSET)
    return Event(what, first, second)


class ProcConnector:
    """A subscription to exec events. Raises Unavailable from the constructor where there is none to have."""

    def __init__(self, buffer: int = BUFFER_BYTES) -> None:
        self.lost = 0  # times that the buffer overflowed
        self._buffer = bytearray(_DATAGRAM_MAX)
        self._view = memoryview(self._buffer)
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_CONNECTOR
            )
        except OSError as error:
            raise Unavailable(f"no netlink connector: {error.strerror}") from error
        try:
            self._subscribe(buffer)
        except OSError as error:
            self.close()
            raise Unavailable(f"proc connector: {error.strerror}") from error
        except Unavailable:
            self.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def execs(self) -> Iterator[int]:
        """Process ids that called exec, oldest first; at most EVENTS_MAX at a time. Never blocks.

        One by one, so that a process can be looked at before the next is fetched: many live for less than a
        millisecond. `lost` grows when the kernel had to drop events.
        """
        for _ in range(EVENTS_MAX):
            event = self._receive()
            if event is None:
                return
            if event.what == PROC_EVENT_EXEC:
                yield event.pid

    def close(self) -> None:
        self._socket.close()

    def _subscribe(self, buffer: int) -> None:
        self._attach_filter()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
        except PermissionError:  # needs CAP_NET_ADMIN; without it the system's limit has to do
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._socket.bind((0, CN_IDX_PROC))
        self._send(PROC_CN_MCAST_LISTEN)
        self._await_acknowledgement()

    def _attach_filter(self) -> None:
        # BPF_ABS loads in network order, the kernel wrote in its own: swap the constants, not the data.
        execs = struct.unpack(">I", struct.pack("=I", PROC_EVENT_EXEC))[0]
        code = b"".join(
            struct.pack("=HBBI", *instruction)
            for instruction in (
                (_BPF_LD_W_ABS, 0, 0, _WHAT_OFFSET),
                (_BPF_JEQ, 1, 0, execs),
                (_BPF_JEQ, 0, 1, PROC_EVENT_NONE),
                (_BPF_RET, 0, 0, 0xFFFF),
                (_BPF_RET, 0, 0, 0),
            )
        )
        memory = ctypes.create_string_buffer(code, len(code))  # the kernel copies it during the call
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(memory))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

    def _send(self, operation: int) -> None:
        body = struct.pack("=I", operation)
        message = _CN_MSG.pack(CN_IDX_PROC, CN_VAL_PROC, 0, 0, len(body), 0) + body
        port = self._socket.getsockname()[0]
        self._socket.send(_NLMSG.pack(_NLMSG.size + len(message), NLMSG_DONE, 0, 0, port) + message)

    def _await_acknowledgement(self) -> None:
        deadline = time.monotonic() + ACKNOWLEDGE_S
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if not poll.poll(left * 1000):
                break
            while (event := self._receive()) is not None:
                if event.what == PROC_EVENT_NONE:
                    if event.first:
                        raise Unavailable(f"proc connector: {os.strerror(event.first)}")
                    return
        raise Unavailable("proc connector: the kernel does not answer (built without CONFIG_PROC_EVENTS)")

    def _receive(self) -> Event | None:
        """The next event from the kernel, None if there is none. Foreign and malformed datagrams are skipped."""
        while True:
            try:
                size, address = self._socket.recvfrom_into(self._buffer)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                continue
            if address[0] != 0:
                continue
            try:
                return parse(self._view[:size])
            except DecodeError:
                continue
