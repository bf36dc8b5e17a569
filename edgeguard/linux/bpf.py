"""bpf(2) by ctypes: instructions, loading a program, attaching it, and a ring buffer to hear from it.

Only what small hand-made programs need: no BTF, no relocation, no compiler. Everything that is attached here is a
descriptor of ours: when it is closed, or the process dies, the kernel detaches it. Numbers are those of linux/bpf.h.

Pointers in the kernel's `union bpf_attr` have 64 bits on every machine, so attributes look the same to a 32-bit
program on a 64-bit kernel (Raspberry Pi OS). The ring buffer's counters do not: they have the kernel's word size.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import sys
from typing import NamedTuple

from edgeguard.errors import Unavailable

MAP_CREATE, PROG_LOAD, PROG_TEST_RUN, RAW_TRACEPOINT_OPEN, LINK_CREATE = 0, 5, 10, 17, 28
MAP_TYPE_RINGBUF = 27
PROG_TYPE_CGROUP_SOCK, PROG_TYPE_RAW_TRACEPOINT = 9, 17
CGROUP_INET4_POST_BIND, CGROUP_INET6_POST_BIND = 12, 13
FUNC_GET_CURRENT_PID_TGID, FUNC_RINGBUF_OUTPUT = 14, 130

# Opcodes: class | operation | source of the operand.
LDX_W, LDX_DW, STX_DW, LD_IMM64 = 0x61, 0x79, 0x7B, 0x18
MOV64_IMM, MOV64_REG, ADD64_IMM = 0xB7, 0xBF, 0x07
JNE_IMM, JLT_IMM, JLE_IMM, CALL, EXIT = 0x55, 0xA5, 0xB5, 0x85, 0x95
PSEUDO_MAP_FD = 1

# bpf(2) has no function in the C library. By machine and size of our pointers: a 32-bit program may run on a 64-bit
# kernel. The second number is the kernel's word size. Where bytes lie the other way round, instructions do too.
_SYSCALLS = {
    ("x86_64", 8): (321, 8),
    ("x86_64", 4): (357, 8),
    ("i686", 4): (357, 4),
    ("aarch64", 8): (280, 8),
    ("aarch64", 4): (386, 8),
    ("armv8l", 4): (386, 8),
    ("armv7l", 4): (386, 4),
    ("armv6l", 4): (386, 4),
    ("riscv64", 8): (280, 8),
}
_REFUSED = {
    errno.EPERM: "not allowed (needs CAP_SYS_ADMIN, or the kernel is locked down)",
    errno.ENOSYS: "the kernel was built without it",
    errno.ENOMEM: "no memory (or RLIMIT_MEMLOCK is too low)",
}

_RECORD = struct.Struct("=II")  # length with two flags, place in the buffer (not used)
_BUSY, _DISCARD = 1 << 31, 1 << 30
VALUE_BYTES = 8  # what a program of ours writes at a time


class Instruction(NamedTuple):
    """One instruction of the machine. LD_IMM64 takes two places; `encode` sees to it."""

    code: int
    to: int = 0
    source: int = 0
    offset: int = 0
    value: int = 0


def encode(program: list[Instruction]) -> bytes:
    """The bytes that the kernel takes (on machines whose least byte comes first)."""
    code = b""
    for one in program:
        code += struct.pack("=BBhi", one.code, one.source << 4 | one.to, one.offset, one.value)
        if one.code == LD_IMM64:
            code += bytes(8)
    return code


def call(command: int, attributes: bytes, what: str) -> int:
    """One bpf(2) call; returns what the kernel returns. Raises Unavailable with a sentence that starts with `what`."""
    number, _ = _machine()
    memory = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _syscall(number, command, ctypes.addressof(memory), len(attributes))
    if result < 0:
        error = ctypes.get_errno()
        # 524 is ENOTSUPP, which the C library has no text for.
        reason = _REFUSED.get(error) or ("not supported" if error == 524 else os.strerror(error))
        raise Unavailable(f"{what}: {reason}")
    return result


def load(kind: int, program: list[Instruction], name: str, attach: int = 0) -> int:
    """Have the kernel verify and take a program. Returns its descriptor."""
    code = encode(program)
    memory = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache-2.0")  # no function that we call asks for another one
    attributes = load_attributes(
        kind, len(code) // 8, ctypes.addressof(memory), ctypes.addressof(licence), name, attach
    )
    return call(PROG_LOAD, attributes, "loading a BPF program")


def load_attributes(kind: int, count: int, code: int, licence: int, name: str, attach: int) -> bytes:
    # log level, size and buffer, kernel version and flags stay 0; after the name comes the network device, 0 too.
    return struct.pack("=IIQQIIQII16sII", kind, count, code, licence, 0, 0, 0, 0, 0, name.encode(), 0, attach)


def open_raw_tracepoint(name: str, program: int) -> int:
    """Run the program at this tracepoint until the descriptor that this returns is closed."""
    text = ctypes.create_string_buffer(name.encode())
    return call(RAW_TRACEPOINT_OPEN, struct.pack("=QI4x", ctypes.addressof(text), program), f"tracepoint {name}")


def link_cgroup(program: int, cgroup: int, attach: int) -> int:
    """Run the program for this cgroup and those below, beside those of others, until the descriptor is closed."""
    return call(LINK_CREATE, struct.pack("=IIII", program, cgroup, attach, 0), "attaching to the cgroup")


def run_once(program: int, arguments: bytes) -> None:
    """Have the kernel run a raw tracepoint's program once, with these arguments."""
    memory = ctypes.create_string_buffer(arguments, len(arguments))
    attributes = struct.pack(
        "=IIIIQQIIIIQQII", program, 0, 0, 0, 0, 0, 0, 0, len(arguments), 0, ctypes.addressof(memory), 0, 0, 0
    )
    call(PROG_TEST_RUN, attributes, "running a BPF program for a test")


class Ring:
    """A ring buffer that programs write 8-byte values to, and a descriptor that is readable while it holds some."""

    def __init__(self) -> None:
        size = mmap.PAGESIZE  # the smallest that there is
        # key and value size are 0; the rest of the attributes is not needed.
        self.fd = call(MAP_CREATE, struct.pack("=IIIII", MAP_TYPE_RINGBUF, 0, 0, size, 0), "a BPF ring buffer")
        self._size = size
        try:
            self._read = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            # The writers' counter has a page of its own, then come the values (twice in a row, of which one is enough:
            # no record of ours lies across the end).
            self._written = mmap.mmap(self.fd, 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=size)
        except OSError as error:
            os.close(self.fd)
            raise Unavailable(f"a BPF ring buffer: {error.strerror}") from error
        self._word = "Q" if _machine()[1] == 8 else "I"

    def drain(self) -> list[int]:
        """The values that were written since the last call, oldest first. Never blocks; at most a page of them."""
        position = int(struct.unpack_from(f"={self._word}", self._read)[0])
        end = int(struct.unpack_from(f"={self._word}", self._written)[0])
        values, position = parse(memoryview(self._written)[self._size :], position, end)
        struct.pack_into(f"={self._word}", self._read, 0, position)
        return values

    def close(self) -> None:
        self._read.close()
        self._written.close()
        os.close(self.fd)


def parse(data: memoryview, position: int, end: int) -> tuple[list[int], int]:
    """The values between two positions that only ever grow, and how far they could be read.

    The kernel writes these records, so what does not look like one of ours ends the reading at `end`.
    """
    values: list[int] = []
    with data:
        step = _RECORD.size + VALUE_BYTES
        if end - position > len(data):
            return values, end
        while position < end:
            place = position % len(data)
            if place + step > len(data):
                return values, end
            length, _ = _RECORD.unpack_from(data, place)
            if length & _BUSY:
                break  # somebody writes it right now, and the descriptor stays readable
            if length & ~_DISCARD != VALUE_BYTES:
                return values, end
            if not length & _DISCARD:
                values.append(int.from_bytes(data[place + _RECORD.size : place + step], sys.byteorder))
            position += step
    return values, position


def _machine() -> tuple[int, int]:
    """Number of bpf(2) here, and the kernel's word size in bytes."""
    name = os.uname().machine
    found = _SYSCALLS.get((name, struct.calcsize("P")))
    if found is None or sys.byteorder != "little":
        raise Unavailable(f"BPF: its number on {name} is not known")
    return found


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong)
