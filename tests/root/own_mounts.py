"""A mount namespace of a test's own: what is mounted in it is seen by this thread and goes with the test."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_mounts() -> Iterator[None]:
    outside = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    home = os.getcwd()
    assert not LIBC.unshare(NEWNS)
    try:
        assert not LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        yield
    finally:
        assert not LIBC.setns(outside, NEWNS)
        os.close(outside)
        os.chdir(home)
