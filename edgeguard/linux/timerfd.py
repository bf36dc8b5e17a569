"""timerfd by ctypes (Python has it from 3.13 on): a timer for an epoll set, and a watch for steps of the clock."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time

from edgeguard.errors import Unavailable

CLOCK_REALTIME = 0
CLOCK_BOOTTIME = 7
TFD_NONBLOCK = 0o4000
TFD_CLOEXEC = 0o2000000
TFD_TIMER_ABSTIME = 1
TFD_TIMER_CANCEL_ON_SET = 2

STEP_MIN_S = 0.5  # smaller ones are corrections; slewing does not cancel timers at all


class _Timespec(ctypes.Structure):
    # The plain libc symbols take `long` on every architecture; on armhf with 64-bit time there are other symbols.
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)


def _create(clock: int) -> int:
    fd: int = _libc.timerfd_create(clock, TFD_NONBLOCK | TFD_CLOEXEC)
    if fd < 0:
        number = ctypes.get_errno()
        raise Unavailable(f"timerfd_create: {os.strerror(number)}")
    return fd


def _set(fd: int, flags: int, seconds: int, nanoseconds: int) -> None:
    spec = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, nanoseconds))
    if _libc.timerfd_settime(fd, flags, ctypes.byref(spec), None) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"timerfd_settime: {os.strerror(number)}")


class Timer:
    """One shot after so many seconds, suspend included. Readable when it went off."""

    def __init__(self) -> None:
        self._fd = _create(CLOCK_BOOTTIME)

    def fileno(self) -> int:
        return self._fd

    def arm(self, seconds: float) -> None:
        """Go off in `seconds` (anything below a millisecond means: now). Replaces what was armed before."""
        nanoseconds = max(1_000_000, int(seconds * 1e9))
        _set(self._fd, 0, *divmod(nanoseconds, 1_000_000_000))

    def disarm(self) -> None:
        _set(self._fd, 0, 0, 0)

    def expired(self) -> bool:
        """Did it go off since the last call? Never blocks."""
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._fd)


class ClockSteps:
    """Readable when somebody set the clock (also when NTP stepped it, or a device without RTC got its time)."""

    def __init__(self) -> None:
        self._fd = _create(CLOCK_REALTIME)
        self._offset = _offset()
        self._arm()

    def fileno(self) -> int:
        return self._fd

    def step(self) -> float:
        """Seconds by which the clock jumped since the last call (negative: back); 0.0 for no step. Never blocks."""
        if not self.was_set():
            return 0.0
        before, self._offset = self._offset, _offset()
        moved = (self._offset - before) / 1e9
        return moved if abs(moved) >= STEP_MIN_S else 0.0

    def was_set(self) -> bool:
        """Did somebody set the clock since the last call, by however little, and maybe back again? Never blocks."""
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
        try:
            self._arm()
        except OSError as error:
            if error.errno != errno.ECANCELED:  # set once more just now: it is armed all the same
                raise
        return True

    def close(self) -> None:
        os.close(self._fd)

    def _arm(self) -> None:
        # The last second that time_t knows: it never goes off by itself.
        _set(self._fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, sys.maxsize, 0)


def _offset() -> int:
    """Nanoseconds between wall clock and time since boot."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
