"""/proc/modules taken apart. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

MODULES_FILE_MAX = 1024 * 1024  # bytes; 300 modules give 20 KiB
SIZE_DIGITS = 20  # of 64 bits; what is longer is no size, and beyond 4,300 digits Python makes no number of it


class Module(NamedTuple):
    name: str
    size: int
    used_by: tuple[str, ...]
    taint: str  # O out of tree, E unsigned, F forced, ...


def parse(data: bytes) -> Iterator[Module]:
    """Each loaded module: `usbhid 65536 1 hid_generic,hid_x, Live 0x0000000000000000 (OE)`."""
    for line in data.split(b"\n"):
        fields = line.split()
        if len(fields) < 4 or not fields[1].isdigit() or len(fields[1]) > SIZE_DIGITS:
            continue
        users = tuple(os.fsdecode(user) for user in fields[3].split(b",") if user not in (b"", b"-"))
        taint = os.fsdecode(fields[6]).strip("()") if len(fields) > 6 else ""
        yield Module(os.fsdecode(fields[0]), int(fields[1]), users, taint)
