"""Descriptors that a test lends to what never closes them, such as a manifest's reader; they come back when it ends.

A test run must fit into the 1,024 descriptors that a login shell has.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

from edgeguard.codec.manifest import Reader

_FDS: list[int] = []


def lend(fd: int) -> int:
    """The descriptor itself; it is closed after the test."""
    _FDS.append(fd)
    return fd


def manifest(path: str | Path) -> Reader:
    """A manifest, open while the test runs."""
    return Reader(lend(os.open(path, os.O_RDONLY)))


def give_back() -> None:
    while _FDS:
        os.close(_FDS.pop())


def open_now() -> set[str]:
    """The descriptors of this process, without those that wait for the collector of cycles: it comes when it likes."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))
