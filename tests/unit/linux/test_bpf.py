"""BPF by hand: the bytes of programs and attributes as the kernel's headers have them, a small machine that runs the
programs, and a ring that may hold anything."""

import ctypes
import errno
import struct
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.errors import Unavailable
from edgeguard.linux import bpf, portbell
from edgeguard.linux.bpf import Instruction

RING = 5
EPHEMERAL = (32768, 60999)


def test_instructions():
    assert bpf.encode([Instruction(bpf.MOV64_IMM, 0, value=1)]).hex() == "b700000001000000"
    assert bpf.encode([Instruction(bpf.EXIT)]).hex() == "9500000000000000"
    assert bpf.encode([Instruction(bpf.STX_DW, 10, 0, -8)]).hex() == "7b0af8ff00000000"
    assert bpf.encode([Instruction(bpf.ADD64_IMM, 2, value=-8)]).hex() == "07020000f8ffffff"
    # A map takes two places; the source register says that the value is a descriptor.
    assert bpf.encode([Instruction(bpf.LD_IMM64, 1, bpf.PSEUDO_MAP_FD, value=7)]).hex() == "1811000007000000" + 16 * "0"


class Attributes(ctypes.Structure):
    """As in linux/bpf.h, laid out by the compiler's rules instead of ours."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
    )


def test_attributes_of_a_program():
    data = bpf.load_attributes(9, 17, 0x1122334455667788, 0x99, "edgeguard_udp", 13)
    assert len(data) == ctypes.sizeof(Attributes)
    found = Attributes.from_buffer_copy(data)
    assert (found.prog_type, found.insn_cnt, found.insns, found.license) == (9, 17, 0x1122334455667788, 0x99)
    assert (found.prog_name, found.expected_attach_type) == (b"edgeguard_udp", 13)
    assert (found.log_level, found.log_size, found.log_buf, found.prog_flags, found.prog_ifindex) == (0, 0, 0, 0, 0)


# -- what the programs do, on a machine of eight instructions


class Machine(NamedTuple):
    result: int
    rung: list


def run(program, context):
    """Runs the encoded bytes, so that jumps count places as the kernel does. Registers not set do not exist."""
    code, place, registers, stack, rung = bpf.encode(program), 0, {1: "context", 10: 0}, {}, []
    for _ in range(100):
        opcode, both, offset, value = struct.unpack_from("=BBhi", code, 8 * place)
        to, source = both & 15, both >> 4
        place += 1
        if opcode in (bpf.LDX_W, bpf.LDX_DW):
            assert registers[source] == "context"
            registers[to] = context[offset]
        elif opcode == bpf.STX_DW:
            stack[registers[to] + offset] = registers[source]
        elif opcode == bpf.LD_IMM64:
            assert source == bpf.PSEUDO_MAP_FD
            registers[to], place = ("map", value), place + 1
        elif opcode == bpf.MOV64_IMM:
            registers[to] = value
        elif opcode == bpf.MOV64_REG:
            registers[to] = registers[source]
        elif opcode == bpf.ADD64_IMM:
            registers[to] += value
        elif opcode in (bpf.JNE_IMM, bpf.JLT_IMM, bpf.JLE_IMM):
            left = registers[to]
            jump = {bpf.JNE_IMM: left != value, bpf.JLT_IMM: left < value, bpf.JLE_IMM: left <= value}[opcode]
            place += offset if jump else 0
        elif opcode == bpf.CALL:
            if value == bpf.FUNC_RINGBUF_OUTPUT:
                assert registers[1] == ("map", RING)
                assert (registers[3], registers[4]) == (8, 0)
                rung.append(stack[registers[2]])
            else:
                assert value == bpf.FUNC_GET_CURRENT_PID_TGID
            result = 77 << 32 | 78 if value == bpf.FUNC_GET_CURRENT_PID_TGID else -errno.EAGAIN  # the ring is full
            registers = {0: result, **{number: kept for number, kept in registers.items() if number >= 6}}
        else:
            assert opcode == bpf.EXIT
            return Machine(registers[0], rung)
    raise AssertionError("it does not end")


@pytest.mark.parametrize(("state", "rings"), [(10, True), (1, False), (7, False), (12, False), (0, False)])
def test_only_listening_rings(state, rings):
    done = run(portbell.listen_program(RING), {0: 0xFFFF, 8: 7, 16: state})
    assert bool(done.rung) is rings
    assert done.result == 0


@pytest.mark.parametrize(
    ("protocol", "port", "rings"),
    [
        (17, 53, True),
        (17, 32767, True),
        (17, 32768, False),
        (17, 45000, False),
        (17, 60999, False),
        (17, 61000, True),
        (17, 65535, True),
        (6, 53, False),
        (1, 0, False),
        (136, 53, False),
    ],
)
def test_binds_that_ring(protocol, port, rings):
    done = run(portbell.bind_program(RING, EPHEMERAL), {12: protocol, 44: port})
    assert done.rung == ([77 << 32 | 78] if rings else [])
    assert done.result == 1


@given(st.integers(0, 2**32 - 1), st.integers(0, 65535), st.integers(0, 65536), st.integers(0, 65536))
def test_every_bind_is_allowed(protocol, port, low, high):
    assert run(portbell.bind_program(RING, (low, high)), {12: protocol, 44: port}).result == 1


def test_a_range_without_ports():
    for port in (0, 1, 32768, 65535):
        assert run(portbell.bind_program(RING, portbell.EVERY_PORT), {12: 17, 44: port}).rung


# -- the ring


def record(value, flags=0, length=8):
    return struct.pack("=IIQ", length | flags, 0, value)


def read(data, position, end):
    return bpf.parse(memoryview(data), position, end)


def test_values_in_order_and_around_the_end():
    data = record(3) + record(4) + record(1) + record(2)
    assert read(data, 32, 96) == ([1, 2, 3, 4], 96)
    assert read(data, 64, 64) == ([], 64)


def test_one_that_is_being_written_waits():
    data = record(1) + record(2, bpf._BUSY) + record(3) + record(4)
    assert read(data, 0, 48) == ([1], 16)


def test_one_that_was_withdrawn_is_left_out():
    data = record(1) + record(2, bpf._DISCARD) + record(3) + record(4)
    assert read(data, 0, 48) == ([1, 3], 48)


def test_what_is_not_ours_ends_the_reading():
    assert read(record(1) + record(2, length=24) + record(3) + record(4), 0, 64) == ([1], 64)
    assert read(bytes(64), 0, 1 << 40) == ([], 1 << 40)  # more than the ring can hold
    assert read(bytes(64), 57, 58) == ([], 58)  # a position that no record has


@given(st.binary(min_size=64, max_size=64), st.integers(0, 2**63), st.integers(-64, 128))
def test_anything_may_be_in_it(data, position, size):
    values, reached = read(data, position, position + size)
    assert len(values) <= 4
    assert position <= reached <= max(position, position + size)


# -- machines


@pytest.mark.parametrize(
    ("machine", "pointer", "number", "word"),
    [
        ("x86_64", 8, 321, 8),
        ("aarch64", 8, 280, 8),
        ("aarch64", 4, 386, 8),
        ("armv7l", 4, 386, 4),
        ("armv6l", 4, 386, 4),
    ],
)
def test_numbers_by_machine(monkeypatch, machine, pointer, number, word):
    monkeypatch.setattr(bpf.os, "uname", lambda: SimpleNamespace(machine=machine))
    monkeypatch.setattr(bpf.struct, "calcsize", lambda _: pointer)
    assert bpf._machine() == (number, word)


def test_an_unknown_machine_has_none(monkeypatch):
    monkeypatch.setattr(bpf.os, "uname", lambda: SimpleNamespace(machine="vax"))
    with pytest.raises(Unavailable, match="vax"):
        bpf.call(bpf.MAP_CREATE, bytes(20), "x")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EINVAL, 524])
def test_a_refusal_is_one_sentence(monkeypatch, number):
    def refuse(*_):
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(bpf, "_machine", lambda: (321, 8))
    monkeypatch.setattr(bpf, "_syscall", refuse)
    with pytest.raises(Unavailable, match=r"\Aa BPF ring buffer: [^\n]{8,}\Z"):
        bpf.Ring()
