"""pidfds: a process that cannot be mistaken for another one. Opening, signalling, waiting; no decisions.

A pid may be reused between looking at /proc and acting. A pidfd may not, but it is opened by pid: so `open_same`
opens first and then compares the start time, after which descriptor and identity belong together for good.
"""

from __future__ import annotations

import errno
import os
import select
import signal

from edgeguard.errors import Unavailable
from edgeguard.linux.procfs import Procfs


def open_pid(pid: int) -> int:
    """A pidfd. Raises ProcessLookupError when there is no such process, Unavailable on kernels before 5.3."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            raise Unavailable(f"pidfd_open: {error.strerror}") from error
        if error.errno == errno.EINVAL:  # a thread that is not the leader, or no positive number
            raise ProcessLookupError(errno.ESRCH, "not a process") from error
        raise


def open_same(pid: int, start: int, procfs: Procfs) -> int:
    """A pidfd of the process `pid` that started at `start` (clock ticks, from stat). Raises like open_pid."""
    fd = open_pid(pid)
    try:
        if procfs.start(pid) != start:
            raise ProcessLookupError(errno.ESRCH, "the process ended and its number was given to another")
    except OSError:
        os.close(fd)
        raise
    return fd


def send(fd: int, number: int) -> None:
    """Send a signal. Raises ProcessLookupError when it has ended, PermissionError when we may not."""
    signal.pidfd_send_signal(fd, number)


def ended(fd: int, timeout_s: float = 0) -> bool:
    """Has the process ended (all its threads)? Waits up to `timeout_s`."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(int(timeout_s * 1000)))
