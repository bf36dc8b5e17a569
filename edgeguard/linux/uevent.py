"""Kernel uevents of one subsystem: a netlink socket that the kernel itself filters, so that others never wake us.

The message is text: b"add@/module/usbhid\0ACTION=add\0...". Anybody may listen; only the kernel (port 0) may speak.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator

NETLINK_KOBJECT_UEVENT = 15  # <linux/netlink.h>
KERNEL_GROUP = 1
SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
MESSAGE_MAX = 8192  # bytes; the kernel's buffer is 2 KiB plus the path

# <linux/bpf_common.h>
_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K


def listen(prefixes: tuple[bytes, ...]) -> socket.socket:
    """A socket that gives only messages that begin with one of `prefixes` (compared in whole words of 4 bytes)."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT)
    sock.setblocking(False)
    try:
        _attach(sock, _program(prefixes))
        sock.bind((0, KERNEL_GROUP))
    except OSError:
        sock.close()
        raise
    return sock


def read(sock: socket.socket) -> Iterator[tuple[str, str]]:
    """(action, device path) of each message that waits. Raises OSError(ENOBUFS) when some were lost."""
    while True:
        try:
            data, sender = sock.recvfrom(MESSAGE_MAX)
        except BlockingIOError:
            return
        action, at, path = data.split(b"\0", 1)[0].partition(b"@")
        if sender[0] == 0 and at:
            yield action.decode("ascii", "replace"), path.decode("utf-8", "surrogateescape")


def _program(prefixes: tuple[bytes, ...]) -> list[tuple[int, int, int, int]]:
    """Classic BPF: (code, jump if true, jump if false, constant); a prefix that does not fit jumps to the next."""
    program: list[tuple[int, int, int, int]] = []
    for prefix in prefixes:
        words = [prefix[at : at + 4] for at in range(0, len(prefix) // 4 * 4, 4)]
        for index, word in enumerate(words):
            rest = 2 * (len(words) - index - 1) + 1  # loads and compares still to come, and the return
            program += [(_LOAD_WORD, 0, 0, 4 * index), (_IF_EQUAL, 0, rest, int.from_bytes(word, "big"))]
        program.append((_RETURN, 0, 0, 0xFFFF))
    return [*program, (_RETURN, 0, 0, 0)]


def _attach(sock: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))
