"""A bell that the kernel rings whenever a program opens a port: two small BPF programs and a ring buffer.

* TCP: at the tracepoint inet_sock_set_state, when a socket comes to listen, with or without a bind before it, in every
  namespace and cgroup of this kernel. What runs at a tracepoint cannot change what it looks at.
* UDP: at the end of bind, as a program of the topmost cgroup of version 2 that is to be seen here. It always answers
  1, "allowed". Ports of the range that the kernel gives to whoever asks for any do not ring: each question to a name
  server may open one.

A value in the ring is a process id of the initial pid namespace in its upper half. The ring may be full: then nothing
is written, nothing waits, and the bell has rung anyway. All ends with our descriptors, however we end.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct

from edgeguard.errors import DecodeError, Unavailable
from edgeguard.linux import bpf, mounts
from edgeguard.linux.bpf import Instruction

TRACEPOINT = "inet_sock_set_state"  # (sock, old state, new state), since Linux 4.16
TCP_LISTEN = 10  # net/tcp_states.h
EVERY_PORT = (65536, 65536)  # an ephemeral range that holds no port

_SOCK_PROTOCOL, _SOCK_PORT = 12, 44  # struct bpf_sock
_R0, _R1, _R2, _R3, _R4, _FRAME = 0, 1, 2, 3, 4, 10


def listen_program(ring: int) -> list[Instruction]:
    """At the tracepoint: if the new state is "listens", ring."""
    bell = _ring(ring)
    return [
        Instruction(bpf.LDX_DW, _R2, _R1, 16),
        Instruction(bpf.JNE_IMM, _R2, offset=_places(bell), value=TCP_LISTEN),
        *bell,
        Instruction(bpf.MOV64_IMM, _R0, value=0),
        Instruction(bpf.EXIT),
    ]


def bind_program(ring: int, ephemeral: tuple[int, int]) -> list[Instruction]:
    """After a bind: if it is UDP and the port is not an ephemeral one, ring. Allow in any case."""
    bell = _ring(ring)
    over = _places(bell)
    low, high = ephemeral
    return [
        Instruction(bpf.LDX_W, _R2, _R1, _SOCK_PROTOCOL),
        Instruction(bpf.JNE_IMM, _R2, offset=over + 3, value=socket.IPPROTO_UDP),
        Instruction(bpf.LDX_W, _R2, _R1, _SOCK_PORT),
        Instruction(bpf.JLT_IMM, _R2, offset=1, value=low),
        Instruction(bpf.JLE_IMM, _R2, offset=over, value=high),
        *bell,
        Instruction(bpf.MOV64_IMM, _R0, value=1),
        Instruction(bpf.EXIT),
    ]


def _ring(ring: int) -> list[Instruction]:
    """bpf_ringbuf_output(ring, &pid_and_thread, 8, 0); whether it had room does not matter."""
    return [
        Instruction(bpf.CALL, value=bpf.FUNC_GET_CURRENT_PID_TGID),
        Instruction(bpf.STX_DW, _FRAME, _R0, -8),
        Instruction(bpf.LD_IMM64, _R1, bpf.PSEUDO_MAP_FD, value=ring),
        Instruction(bpf.MOV64_REG, _R2, _FRAME),
        Instruction(bpf.ADD64_IMM, _R2, value=-8),
        Instruction(bpf.MOV64_IMM, _R3, value=bpf.VALUE_BYTES),
        Instruction(bpf.MOV64_IMM, _R4, value=0),
        Instruction(bpf.CALL, value=bpf.FUNC_RINGBUF_OUTPUT),
    ]


def _places(program: list[Instruction]) -> int:
    return len(bpf.encode(program)) // 8


class PortBell:
    """Both programs, attached. Raises Unavailable where TCP cannot be heard; `deaf` says why UDP cannot, if so."""

    def __init__(self, ephemeral: tuple[int, int], cgroup: str | None = None) -> None:
        """`cgroup`: a directory of cgroup version 2 to attach to; None: the topmost one that is mounted here."""
        self._ring = bpf.Ring()
        self._links: list[int] = []
        self.deaf = ""
        try:
            self._hear_listen()
        except Unavailable:
            self.close()
            raise
        try:
            self._hear_bind(ephemeral, topmost_cgroup() if cgroup is None else cgroup)
        except Unavailable as error:
            self.deaf = str(error)

    def fileno(self) -> int:
        return self._ring.fd

    def rang(self) -> list[int]:
        """Processes that opened a port since the last call (ids of the initial pid namespace). Never blocks."""
        return [value >> 32 for value in self._ring.drain()]

    def close(self) -> None:
        for link in self._links:
            os.close(link)
        self._links.clear()
        self._ring.close()

    def _hear_listen(self) -> None:
        program = bpf.load(bpf.PROG_TYPE_RAW_TRACEPOINT, listen_program(self._ring.fd), "edgeguard_tcp")
        try:
            self._links.append(bpf.open_raw_tracepoint(TRACEPOINT, program))
            self._prove(program)
        finally:
            os.close(program)  # the link holds it

    def _prove(self, program: int) -> None:
        """The kernel runs the program as if a socket came to listen: does the bell ring?

        We may not open a port ourselves, so this is as near as it gets.
        """
        bpf.run_once(program, struct.pack("=QQQ", 0, 0, TCP_LISTEN))
        if not select.select([self._ring.fd], [], [], 0)[0] or not self._ring.drain():
            raise Unavailable("a BPF program ran and was not heard")

    def _hear_bind(self, ephemeral: tuple[int, int], cgroup: str) -> None:
        try:
            directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"{cgroup}: {error.strerror}") from error
        before = len(self._links)
        try:
            for attach in (bpf.CGROUP_INET4_POST_BIND, bpf.CGROUP_INET6_POST_BIND):
                program = bpf.load(
                    bpf.PROG_TYPE_CGROUP_SOCK, bind_program(self._ring.fd, ephemeral), "edgeguard_udp", attach
                )
                try:
                    self._links.append(bpf.link_cgroup(program, directory, attach))
                finally:
                    os.close(program)
        except Unavailable:
            while len(self._links) > before:  # not one without the other
                os.close(self._links.pop())
            raise
        finally:
            os.close(directory)


def topmost_cgroup() -> str:
    """Where cgroup version 2 is mounted. Raises Unavailable."""
    with contextlib.suppress(OSError, DecodeError):
        for mount in mounts.read():
            if mount.fstype == "cgroup2" and mount.root == "/":
                return mount.point
    raise Unavailable("cgroup version 2 is not mounted")
