"""Giving up capabilities (capabilities(7)): what only the start needs is gone by the time something goes wrong."""

from __future__ import annotations

import ctypes
import os

CAP_DAC_READ_SEARCH = 2
CAP_NET_ADMIN = 12
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_AUDIT_READ = 37
CAP_LAST = 63

_LINUX_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_LOWER, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 3, 4  # linux/prctl.h
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


def held() -> frozenset[int]:
    """Effective capabilities of this process, by number."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                mask = int(line.split()[1], 16)
                return frozenset(number for number in range(CAP_LAST + 1) if mask >> number & 1)
    return frozenset()


def give_up(*numbers: int) -> None:
    """Drop these from every set of this process, and so from its children. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: low words, then high words
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for number in numbers:
        # Not there is as good as lowered; the permitted set below is what counts.
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_LOWER, number, 0, 0)
        word, bit = divmod(number, 32)
        for offset in range(3):
            sets[3 * word + offset] &= ~(1 << bit)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def give_up_all() -> None:
    """No capability, now and after any exec; and nobody reads our memory, in a core or by ptrace. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)  # kernels without it have no ambient set either
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")
