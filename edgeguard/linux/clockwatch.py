"""Is the clock synchronised, and was it set? Python 3.11 has neither timerfd nor adjtimex.

A timer with TFD_TIMER_CANCEL_ON_SET becomes readable when somebody sets CLOCK_REALTIME; slewing by NTP does not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

TFD_TIMER_ABSTIME = 0x1  # <linux/timerfd.h>
TFD_TIMER_CANCEL_ON_SET = 0x2
TIME_ERROR = 5  # <linux/timex.h>: clock not synchronised
FAR = 2**31 - 1  # seconds since 1970; as far as a 32-bit time_t reaches

_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    """struct itimerspec"""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


def synchronised() -> bool:
    """Does the kernel believe that its clock follows a time source? Asking needs no right."""
    timex = ctypes.create_string_buffer(512)  # struct timex is 208 bytes or fewer; modes = 0 only reads
    state: int = _libc.adjtimex(timex)
    return 0 <= state < TIME_ERROR


class ClockWatch:
    """`fd` is readable after the clock was set; `read` then says by how many milliseconds."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(time.CLOCK_REALTIME, os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._offset = _offset()
        self._arm()

    def read(self) -> int | None:
        """Milliseconds by which the clock was set since the last call (forward is positive), None if it was not."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
        before, self._offset = self._offset, _offset()
        self._arm()
        return self._offset - before

    def close(self) -> None:
        os.close(self.fd)

    def _arm(self) -> None:
        spec = _Spec(0, 0, FAR, 0)
        flags = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET
        if _libc.timerfd_settime(self.fd, flags, ctypes.byref(spec), None) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _offset() -> int:
    """How far the wall clock is ahead of the one that nobody can set, in milliseconds."""
    return (time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) // 1_000_000
